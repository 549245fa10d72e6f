"""The vector-quantised autoencoder of latent diffusion, and MoVQ of Kandinsky.

https://arxiv.org/abs/2012.09841; modulated by the quantised latents: https://arxiv.org/abs/2209.09002.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.outputs import BaseOutput
from calotype.models.attention_access import AttentionAccess
from calotype.models.modeling import ModelMixin
from calotype.models.tiling import AutoencoderMixin
from calotype.models.vae import Decoder, DecoderOutput, Encoder
from calotype.models.vector_quantizer import VectorQuantizer


@dataclass
class VQEncoderOutput(BaseOutput):
    """``latents``: encoded pictures (batch, vq_embed_dim, height, width), not yet quantised."""

    latents: torch.Tensor


class VQModel(ModelMixin, AutoencoderMixin, AttentionAccess):
    """Pictures in [-1, 1] to latents, and latents, quantised to a codebook, to pictures.

    A picture (batch, in_channels, h, w) becomes latents (batch, vq_embed_dim, h/f, w/f) with ``f`` doubling for each
    block but the first. With ``norm_type="spatial"`` the decoder's norms read the quantised latents. With
    ``lookup_from_codebook`` a decoding without quantisation takes indices of the codebook. ``scaling_factor`` and
    ``force_upcast`` are for those who use the latents; the network itself does not apply them.
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        code_dim = latent_channels if vq_embed_dim is None else vq_embed_dim
        if norm_type == "spatial" and code_dim != latent_channels:
            raise InputError(
                f"norm_type='spatial' reads the quantised latents, so vq_embed_dim={code_dim} must be "
                f"latent_channels={latent_channels}."
            )
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            double_z=False,
            mid_block_add_attention=mid_block_add_attention,
        )
        self.quant_conv = nn.Conv2d(latent_channels, code_dim, kernel_size=1)
        self.quantize = VectorQuantizer(num_vq_embeddings, code_dim)
        self.post_quant_conv = nn.Conv2d(code_dim, latent_channels, kernel_size=1)
        self.decoder = Decoder(
            in_channels=latent_channels,
            out_channels=out_channels,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            norm_type=norm_type,
            mid_block_add_attention=mid_block_add_attention,
        )

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """The latents, not quantised, of pictures ``x`` (batch, in_channels, height, width) in [-1, 1]."""
        self._check(x, self.config.in_channels, "encode")
        latents = self._each(lambda item: self.quant_conv(self.encoder(item)), x)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self,
        h: torch.Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Pictures of latents ``h`` (batch, vq_embed_dim, height, width), and the loss of quantising them.

        With ``force_not_quantize`` the latents are taken as they are; if the model has ``lookup_from_codebook``, ``h``
        are then indices of the codebook, (batch, height, width) or anything that ``shape``, (batch, height, width,
        vq_embed_dim), arranges so.
        """
        if not force_not_quantize:
            self._check(h, self._code_dim, "decode")
            quantised, loss, _ = self.quantize(h)
        else:
            quantised = self._entries(h, shape) if self.config.lookup_from_codebook else h
            self._check(quantised, self._code_dim, "decode")
            loss = quantised.new_zeros(quantised.shape[0])
        sample = self._each(self._picture, quantised)
        return DecoderOutput(sample=sample, commit_loss=loss) if return_dict else (sample, loss)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Pictures encoded, quantised and decoded, and the loss of quantising them."""
        (latents,) = self.encode(sample, return_dict=False)
        return self.decode(latents, return_dict=return_dict)

    @property
    def _code_dim(self) -> int:
        return self.post_quant_conv.in_channels

    def _picture(self, quantised: torch.Tensor) -> torch.Tensor:
        features = self.post_quant_conv(quantised)
        return self.decoder(features, quantised if self.config.norm_type == "spatial" else None)

    def _entries(self, indices: torch.Tensor, shape: tuple[int, ...] | None) -> torch.Tensor:
        if indices.is_floating_point() or (shape is None and indices.ndim != 3):
            raise InputError(
                f"With lookup_from_codebook, VQModel.decode(force_not_quantize=True) takes whole numbers (batch, "
                f"height, width), or any with `shape`, not {indices.dtype} of shape {tuple(indices.shape)}."
            )
        return self.quantize.lookup(indices if shape is None else indices.reshape(shape[:3]))

    def _check(self, x: torch.Tensor, channels: int, method: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise InputError(
                f"VQModel.{method} takes a tensor (batch, {channels}, height, width), not {tuple(x.shape)}."
            )
