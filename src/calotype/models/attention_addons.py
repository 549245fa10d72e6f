"""Add-ons of attention on and off, for U-Nets whose layers are :class:`Attention` in spatial transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from calotype.nn.attention import Attention

from calotype.core.errors import InputError


class MergesTokens:
    """For U-Nets with ``down_blocks``, ``mid_block`` and ``up_blocks``; abstract."""

    def enable_tome(
        self,
        ratio: float = 0.5,
        max_downsample: int = 1,
        sx: int = 2,
        sy: int = 2,
        use_rand: bool = True,
        merge_attn: bool = True,
        merge_crossattn: bool = False,
        merge_mlp: bool = False,
    ) -> None:
        """Merge ``ratio`` of the pixels before attention and copy them back after it (ToMe, arXiv:2303.17604).

        This saves time and changes the picture a little. It concerns maps that are at most ``max_downsample`` times
        smaller than the latents (1, 2, 4, …; SDXL needs 2). Tiles of ``sx`` by ``sy`` pixels keep one each, drawn at
        random with ``use_rand``. Self-attention is concerned, attention to the prompt and the feed-forward layer if
        asked. Raises ``InputError`` for values out of range and where no map is that large.
        """
        from calotype.adapters import merging

        settings = merging.TokenMerging(
            ratio, max_downsample, sx, sy, use_rand, merge_attn, merge_crossattn, merge_mlp
        )
        assert isinstance(self, nn.Module)
        merging.enable(self, settings)

    def disable_tome(self) -> None:
        """Undo :meth:`enable_tome`: everything is as it was, to the bit."""
        from calotype.adapters import merging

        assert isinstance(self, nn.Module)
        merging.disable(self)


class SharesStyle:
    """For U-Nets whose rows are pictures; abstract."""

    def enable_style_aligned(
        self,
        share_attention: bool = True,
        adain_queries: bool = True,
        adain_keys: bool = True,
        adain_values: bool = False,
        full_attention_share: bool = False,
        shared_score_scale: float = 1.0,
        shared_score_shift: float = 0.0,
    ) -> None:
        """Give all pictures of a call the style of its first (StyleAligned, arXiv:2312.02133).

        Self-attention also sees the first picture (all of them with ``full_attention_share``), with scores
        ``shared_score_scale`` times as high and ``shared_score_shift`` higher; queries, keys and, if asked, values get
        the mean and deviation of the first's. The first picture is the one that it is alone. Raises ``InputError``
        where the model has no such layers.
        """
        from calotype.nn.shared_attention import SharedAttnProcessor

        processor = SharedAttnProcessor(
            share_attention,
            adain_queries,
            adain_keys,
            adain_values,
            full_attention_share,
            shared_score_scale,
            shared_score_shift,
        )
        layers = _self_attention(self)
        if not layers:
            raise InputError(f"The {type(self).__name__} has no self-attention that could be shared.")
        for layer in layers:
            layer.set_processor(processor)

    def disable_style_aligned(self) -> None:
        """Undo :meth:`enable_style_aligned`: each picture is by itself again."""
        from calotype.nn.shared_attention import SharedAttnProcessor

        for layer in _self_attention(self):
            if isinstance(layer.get_processor(), SharedAttnProcessor):
                layer.set_processor(layer.default_processor())


def _self_attention(model: object) -> list[Attention]:
    """The layers in which pixels see pixels, and nothing else."""
    from calotype.nn.attention import Attention

    assert isinstance(model, nn.Module)
    layers = [part for part in model.modules() if isinstance(part, Attention)]
    return [layer for layer in layers if not layer.is_cross_attention and layer.added_kv_proj_dim is None]
