"""Who judges: networks that only ever saw rendered scenes, and plain measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from calotype.pipelines.bundled import locate
from calotype.pocket.classifier import AttributeClassifier
from calotype.pocket.labels import SEGMENTS

ESTIMATOR = "pocket-depth-estimator"


class DepthJudge:
    """Reads inverse depth, up to scale and offset, with the family's own estimator."""

    def __init__(self, place: str | Path, device: torch.device | str) -> None:
        from transformers import DPTForDepthEstimation, DPTImageProcessor

        folder = Path(locate(place))
        model: Any = DPTForDepthEstimation.from_pretrained(folder / "depth_estimator", dtype=torch.float32)
        self.model = model.to(device).eval()
        self.extractor: Any = DPTImageProcessor.from_pretrained(folder / "feature_extractor")
        self.device = device

    @torch.no_grad()
    def __call__(self, images: list[Any]) -> torch.Tensor:
        """[B, H, W] on the CPU, in the pictures' size."""
        height, width = images[0].height, images[0].width
        parts = []
        for first in range(0, len(images), 64):
            pixels = self.extractor(images=images[first : first + 64], return_tensors="pt").pixel_values
            depth = self.model(pixels.to(self.device)).predicted_depth[:, None]
            parts.append(F.interpolate(depth, (height, width), mode="bicubic", align_corners=False)[:, 0])
        return torch.cat(parts).cpu()


def correlation(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Pearson's correlation of each map in [B, H, W] with its counterpart."""
    x, y = (v.flatten(1).double() - v.flatten(1).double().mean(1, keepdim=True) for v in (a, b))
    norm = (x.norm(dim=1) * y.norm(dim=1)).clamp_min(1e-12)
    return ((x * y).sum(1) / norm).tolist()


def iou(found: torch.Tensor, asked: torch.Tensor) -> list[float]:
    """Intersection over union of each map of segments [B, H, W]: the mean over the segments that were asked for."""
    scores = []
    for mine, wanted in zip(found, asked, strict=True):
        kinds = [kind for kind in range(len(SEGMENTS)) if (wanted == kind).any()]
        ratios = [
            ((mine == kind) & (wanted == kind)).sum().item()
            / ((mine == kind) | (wanted == kind)).sum().item()
            for kind in kinds
        ]
        scores.append(sum(ratios) / len(ratios))
    return scores


def edge_f1(found: np.ndarray, asked: np.ndarray, tolerance: int = 1) -> float:
    """F1 of edges (bool [H, W]), where one within ``tolerance`` pixels, diagonals included, counts as found."""
    if not found.any() or not asked.any():
        return float(found.any() == asked.any())
    precision = (found & _grown(asked, tolerance)).sum() / found.sum()
    recall = (asked & _grown(found, tolerance)).sum() / asked.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def _grown(edges: np.ndarray, by: int) -> np.ndarray:
    values = torch.from_numpy(edges)[None, None].float()
    return F.max_pool2d(values, 2 * by + 1, stride=1, padding=by)[0, 0].numpy() > 0


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each picture in [0, 1]."""
    error = ((found - wanted) ** 2).flatten(1).mean(1).clamp_min(1e-10)
    return (-10 * error.log10()).tolist()


@torch.no_grad()
def features(classifier: AttributeClassifier, pictures: torch.Tensor) -> torch.Tensor:
    """The classifier's last features of pictures [B, 3, H, W], averaged over each picture, float64 [B, C]."""
    weight = classifier.place.weight
    sized = F.interpolate(pictures, (128, 128), mode="bicubic", antialias=True).clamp(0, 1)
    parts = [classifier.features(part.to(weight.device, weight.dtype)) for part in sized.split(64)]
    return torch.cat([part.mean((2, 3)) for part in parts]).double().cpu()


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of two sets of features, each taken to be Gaussian (arXiv:1706.08500)."""
    means, spreads = zip(*((x.mean(0), x.T.cov()) for x in (a, b)), strict=True)
    # the trace of the root of the product, by the eigenvalues of a symmetric matrix similar to it
    values, vectors = torch.linalg.eigh(spreads[0])
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ spreads[1] @ root).clamp_min(0).sqrt().sum()
    distance = ((means[0] - means[1]) ** 2).sum() + spreads[0].trace() + spreads[1].trace() - 2 * mixed
    return float(distance.clamp_min(0))


def nearest(found: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Distance [B] of each row of ``found`` to the nearest row of ``known``."""
    return torch.cdist(found.double(), known.double()).amin(1)
