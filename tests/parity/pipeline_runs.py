"""Running one pipeline of the reference and ours on the same arguments, and comparing what they make."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-4

Case = Callable[[], dict[str, Any]]
"""Makes a call's arguments anew for each of the two, since generators are used up."""


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@lru_cache(maxsize=32)
def _kept(library: Any, name: str, folder: Path) -> tuple[Any, Any]:
    pipe = quiet(getattr(library, name).from_pretrained(folder))
    return pipe, pipe.scheduler


def loaded(library: Any, name: str, folder: Path, scheduler: str | None = None) -> Any:
    """A checkpoint's pipeline, loaded once for all who ask and as it was loaded: they change nothing but the scheduler,
    which is each time another one, of its class unless one is named."""
    pipe, first = _kept(library, name, folder)
    pipe.scheduler = getattr(library, scheduler or type(first).__name__).from_config(first.config)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(result: Any) -> np.ndarray:
    images = result[0]
    if isinstance(images, list):
        return np.stack([np.asarray(image) for image in images]) / 255
    return images.float().numpy() if isinstance(images, torch.Tensor) else images


def compare(theirs: Any, ours: Any, make: Case) -> None:
    results = []
    for pipe in (theirs, ours):
        arguments = {"prompt": "a red ball", "num_inference_steps": 3, "output_type": "np", **make()}
        arguments.setdefault("generator", seeded())
        results.append(pipe(**arguments))
    expected, found = (arrays(result) for result in results)
    assert type(results[0][0]) is type(results[1][0])
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.isfinite(expected).all()
    assert expected.std() > 0.01
    # eight bits may round a picture's last digit either way
    tolerance = 1.01 / 255 if isinstance(results[0][0], list) else TOLERANCE
    scale = max(1.0, float(np.abs(expected).std()))  # latents of random weights may be large
    np.testing.assert_allclose(found, expected, atol=tolerance * scale, rtol=0)
    assert np.abs(found - expected).mean() < TOLERANCE * scale
    theirs_rest, ours_rest = (
        tuple(result[1:]) if isinstance(result, tuple) else getattr(result, "nsfw_content_detected", ())
        for result in results
    )
    assert theirs_rest == ours_rest
