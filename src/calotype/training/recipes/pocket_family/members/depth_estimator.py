"""``pocket-depth-estimator``: how near things are, from a picture (https://arxiv.org/abs/2103.13413)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.core.files import write_text
from calotype.pocket.renderer import SKY_DEPTH
from calotype.training.loop import Batches
from calotype.training.recipes.base import Base
from calotype.training.recipes.pocket.data import to_unit
from calotype.training.recipes.pocket.networks import save_transformer
from calotype.training.recipes.pocket_family.denoising import draw_views, in_rows
from calotype.training.recipes.pocket_family.member import Member, Sheet
from calotype.training.recipes.pocket_family.settings import TINY_TRAIN, TrainSettings
from calotype.training.recipes.pocket_family.views import ViewSet
from calotype.training.vae import gradient_loss

UNIT = 4.0
"""The depth whose inverse is 1: objects' inverse depths are about 1 then."""

_IDLE = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")
"""Layers that the architecture has and that nothing is computed with: the first fusion has nothing to fuse."""


@dataclass(frozen=True)
class EstimatorShape:
    """A vision transformer of ``layers``, a fourth of which feeds each scale of the decoder.

    The features of patches are enlarged and halved by ``factors``, so that the depth has as many pixels as the picture.
    """

    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 384
    patch: int = 8
    factors: tuple[float, ...] = (2, 1, 0.5, 0.25)
    neck: tuple[int, ...] = (32, 32, 48, 64)
    fusion: int = 32


@dataclass(frozen=True)
class EstimatorSettings:
    """``sharpness`` weighs the error of the differences between neighbouring pixels."""

    seed: int = 30_010
    train: TrainSettings = field(default_factory=lambda: TrainSettings(learning_rate=8e-4, warmup=300))
    shape: EstimatorShape = field(default_factory=EstimatorShape)
    sharpness: float = 0.5


def inverse_depth(depth: torch.Tensor) -> torch.Tensor:
    """Depth along the camera's axis in world units as nearness: 0 for the sky, 1 at about :data:`UNIT`, float32."""
    return UNIT / depth.float() - UNIT / SKY_DEPTH


def correlation(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Pearson's correlation over the pixels of each picture [B, H, W], averaged."""
    x, y = (part.float().flatten(1) for part in (predicted, wanted))
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    scale = (x.square().sum(1) * y.square().sum(1)).clamp_min(1e-12).sqrt()
    return ((x * y).sum(1) / scale).mean()


def build_estimator(shape: EstimatorShape, pixels: int) -> Any:
    """A ``transformers.DPTForDepthEstimation`` with random weights, whose outputs begin above zero.

    It ends in a rectifier: where that is silent everywhere nothing could be learned.
    """
    from transformers import DPTConfig, DPTForDepthEstimation

    model = DPTForDepthEstimation(
        DPTConfig(
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.inner,
            image_size=pixels,
            patch_size=shape.patch,
            is_hybrid=False,
            readout_type="ignore",
            backbone_out_indices=[
                (i + 1) * shape.layers // len(shape.neck) - 1 for i in range(len(shape.neck))
            ],
            reassemble_factors=list(shape.factors),
            neck_hidden_sizes=list(shape.neck),
            fusion_hidden_size=shape.fusion,
            use_auxiliary_head=False,
        )
    )
    last = [part for part in model.head.modules() if isinstance(part, nn.Conv2d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.bias.fill_(0.5)
        # transformers prepares a model under a lock when it is first called, which a compiler cannot follow
        model(torch.zeros(1, 3, pixels, pixels))
    for name, parameter in model.named_parameters():
        if name.startswith(_IDLE):
            parameter.requires_grad_(False)
    return model


class EstimatorObjective(nn.Module):
    """L1 + ``sharpness`` x multi-scale gradient error, on inverse depths in a fixed unit."""

    model: Any

    def __init__(self, settings: EstimatorSettings, base: Base) -> None:
        super().__init__()
        self.sharpness = settings.sharpness
        self.model = build_estimator(settings.shape, base.pixels)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """``pictures`` [B, 3, P, P] in [-1, 1] and ``nearness`` [B, P, P]."""
        wanted = batch["nearness"]
        predicted = self.model(batch["pictures"]).predicted_depth.float()
        l1 = (predicted - wanted).abs().mean()
        edges = gradient_loss(predicted[:, None], wanted[:, None])
        loss = l1 + self.sharpness * edges
        return {"loss": loss, "correlation": correlation(predicted, wanted).detach()}


class DepthEstimator(Member):
    """Estimates how near what a picture shows is."""

    name = "pocket-depth-estimator"
    summary = (
        "A `DPTForDepthEstimation` of transformers, with its image processor, for pictures of the pocket world: the "
        "`depth_estimator` and `feature_extractor` of `StableDiffusionDepth2ImgPipeline`. It predicts relative inverse "
        "depth: 0 for the sky, larger for what is nearer."
    )
    fields = ("pictures", "depth")

    def settings(self, preset: str) -> EstimatorSettings:
        if preset == "tiny":
            shape = EstimatorShape(width=16, heads=2, inner=32, neck=(8, 8, 8, 8), fusion=8)
            return EstimatorSettings(train=TINY_TRAIN, shape=shape)
        return EstimatorSettings()

    def objective(self, settings: EstimatorSettings, base: Base) -> EstimatorObjective:
        return EstimatorObjective(settings, base).to(base.device)

    def batches(self, views: ViewSet, base: Base, settings: EstimatorSettings) -> Batches:
        def batch(number: int) -> dict[str, torch.Tensor]:
            draw = draw_views(views, number, settings)
            mirrored = draw.chance(0.5)[:, None, None]
            pictures, nearness = to_unit(views.pictures[draw.index]), inverse_depth(views.depth[draw.index])
            return {
                "pictures": torch.where(mirrored[:, None], pictures.flip(-1), pictures),
                "nearness": torch.where(mirrored, nearness.flip(-1), nearness),
            }

        return batch

    def save(self, objective: EstimatorObjective, base: Base, folder: Path) -> None:
        save_transformer(objective.model, objective.model.state_dict(), folder / "depth_estimator")
        processor = json.dumps(_processor(base.pixels), indent=2) + "\n"
        write_text(folder / "feature_extractor" / "preprocessor_config.json", processor)

    def restore(self, objective: EstimatorObjective, folder: Path) -> None:
        from safetensors.torch import load_file

        path = folder / "depth_estimator" / "model.safetensors"
        if not path.is_file():
            raise InputError(f"There is no {path}: name the folder of a depth estimator of this recipe.")
        try:
            objective.model.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise InputError(f"The depth estimator in {folder} is of other sizes: {error}"[:600]) from error

    def sheet(self, objective: EstimatorObjective, base: Base, views: ViewSet) -> Sheet:
        """Pictures, their exact inverse depths and the estimated ones."""
        count = min(8, len(views))
        pictures, exact = views.pictures[:count], inverse_depth(views.depth[:count])
        estimated = objective.model(to_unit(pictures)).predicted_depth.float()
        top = exact.flatten(1).amax(1)[:, None, None].clamp_min(1e-3)
        shades = [(each / top)[:, None].expand(-1, 3, -1, -1) for each in (exact, estimated)]
        return in_rows(pictures / 255, *shades), ["picture", "exact", "estimated"] * count, 3


def _processor(pixels: int) -> dict[str, Any]:
    """The configuration of a ``DPTImageProcessor``: any picture to a square of ``pixels`` in [-1, 1]."""
    return {
        "image_processor_type": "DPTImageProcessor",
        "do_resize": True,
        "size": {"height": pixels, "width": pixels},
        "keep_aspect_ratio": False,
        "ensure_multiple_of": 1,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_pad": False,
    }


DEPTH_ESTIMATOR = DepthEstimator()
