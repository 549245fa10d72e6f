"""Running a scheduler over a toy denoiser, the same way for the reference and for calotype."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch

from tests.parity.scheduler_cases_more import SETUP

SHAPE = (1, 4, 8, 8)
PATTERN = torch.linspace(-2, 2, 256, dtype=torch.float64).reshape(SHAPE)
START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7))
MEAN = torch.randn(SHAPE, generator=torch.Generator().manual_seed(8))


def denoiser(x: torch.Tensor, t: Any, channels: int) -> torch.Tensor:
    """A smooth, bounded, deterministic function of the input and the time; with twice the channels if asked."""
    pattern = _pattern(float(t) / 300.0, x.dtype)
    out = torch.tanh(0.8 * x) * 0.9 + 0.2 * pattern
    return torch.cat([out, pattern.abs() * 0.5], dim=1) if channels == 2 else out


@lru_cache(maxsize=2048)
def _pattern(phase: float, dtype: torch.dtype) -> torch.Tensor:
    return (PATTERN + phase).cos().to(dtype)


def run(
    scheduler: Any,
    steps: int,
    call: dict[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    begin: int | None = None,
    setup: dict[str, Any] | None = None,
    jitter: int | None = None,
) -> dict[str, Any]:
    """The whole trajectory: timesteps, samples, predicted clean samples and a draw that shows the generator's state.

    With ``jitter`` the sample is disturbed before each step by as much as rounding its terms to float32 does.
    """
    from tests.parity.scheduler_loops import LOOPS  # which stand on this module

    name = type(scheduler).__name__
    if name in LOOPS:
        return LOOPS[name](scheduler, steps, call or {}, dtype=dtype, begin=begin, jitter=jitter)
    extra_setup = SETUP[name](scheduler.config) if name in SETUP else {}
    scheduler.set_timesteps(**(setup or {"num_inference_steps": steps, **extra_setup}))
    torch.default_generator.manual_seed(11)  # for draws that no generator is given for
    generator = torch.Generator().manual_seed(3)
    timesteps = scheduler.timesteps
    if begin is not None:
        timesteps = timesteps[begin * scheduler.order :]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin * scheduler.order)
        if hasattr(scheduler, "add_noise"):
            x = scheduler.add_noise(MEAN.to(dtype), START.to(dtype), timesteps[:1])
        else:
            x = scheduler.scale_noise(MEAN.to(dtype), timesteps[:1], START.to(dtype))
    else:
        x = START.to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    takes = inspect.signature(scheduler.step).parameters
    extra = dict(call or {}) | ({"generator": generator} if "generator" in takes else {})
    channels = 2 if str(scheduler.config.get("variance_type") or "").startswith("learned") else 1
    samples, clean = [x], []
    shake = torch.Generator().manual_seed(jitter or 0)
    for t in timesteps:
        if jitter is not None:
            size = max(float(s.abs().nan_to_num().max()) for s in samples[-2:])
            x = x + (6e-8 * size * torch.randn(x.shape, generator=shake)).to(x.dtype)
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = scheduler.step(denoiser(scaled, t, channels), t, x, **extra)
        x = out.prev_sample
        samples.append(x)
        clean.append(out.get("pred_original_sample"))
    return {
        "timesteps": scheduler.timesteps,
        "sigmas": getattr(scheduler, "sigmas", None),
        "samples": samples,
        "clean": clean,
        "draw": torch.randn(3, generator=generator),
    }


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference relative to the largest value; 0 where both are NaN, infinite where one is not finite."""
    return gaps([ours], [theirs])[0]


def gaps(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[float]:
    """:func:`difference` of each of the pairs of tensors, which are all of one shape."""
    if not ours or not ours[0].numel():
        return [0.0] * len(ours)
    a, b = (torch.stack(side).double().flatten(1) for side in (ours, theirs))
    if a.shape != b.shape:
        return [float("inf")] * len(ours)
    alike = (a.isfinite() == b.isfinite()).all(1)
    a, b = a.nan_to_num(), b.nan_to_num()
    scale = b.abs().amax(1)
    off = (a - b).abs().amax(1) / torch.where(scale > 0, scale, 1.0)
    return torch.where(alike, off, torch.inf).tolist()


def spread(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """How far runs of one scheduler are apart at each step, relative: its own sensitivity to rounding."""
    first, *others = runs
    found = {}
    for key in ("samples", "clean"):
        there = [i for i, value in enumerate(first[key]) if value is not None]
        found[key] = [0.0] * len(first[key])
        apart = [gaps([o[key][i] for i in there], [first[key][i] for i in there]) for o in others]
        for i, values in zip(there, zip(*apart, strict=True), strict=True):
            found[key][i] = max(values)
    return found


def _rounding(samples: list[torch.Tensor]) -> list[float]:
    """What a float32 rounding of the two samples before amounts to, relative to the sample after: a step that takes a
    small difference of large terms (κ = 4096 and more) cannot be nearer than that. It stays for the later steps."""
    size = [float(x.abs().nan_to_num().max()) or 1.0 for x in samples]
    worst, found = 0.0, []
    for i, after in enumerate(size):
        worst = max(worst, 2.4e-7 * max(size[max(i - 2, 0) : i + 1]) / after)
        found.append(worst)
    return found


def compare(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    tolerance: float,
    sensitivity: dict[str, list[float]] | None = None,
) -> list[str]:
    """What differs between two runs; an empty list if nothing does.

    ``sensitivity`` (of :func:`spread`) raises the tolerance of a step where the oracle itself moves by more than
    that when its samples are disturbed by rounding.
    """

    rounding = _rounding(theirs["samples"]) if sensitivity else []

    def allowed(key: str, i: int) -> float:
        if not sensitivity:
            return tolerance
        moved = 8 * sensitivity[key][i]
        return max(tolerance, rounding[i], moved if moved < 1 else 0.0)

    wrong = []
    a, b = ours["timesteps"], theirs["timesteps"]
    if a.shape != b.shape or a.dtype != b.dtype or difference(a, b) > (1e-6 if a.is_floating_point() else 0):
        wrong.append(f"timesteps {a.dtype} {a.tolist()[:8]} against {b.dtype} {b.tolist()[:8]}")
        return wrong
    if ours["sigmas"] is not None and difference(ours["sigmas"], theirs["sigmas"]) > 1e-6:
        wrong.append(f"sigmas {ours['sigmas'].tolist()[:6]} against {theirs['sigmas'].tolist()[:6]}")
    for key in ("samples", "clean"):
        pairs = list(zip(ours[key], theirs[key], strict=True))
        both = [i for i, (x, y) in enumerate(pairs) if x is not None and y is not None]
        off = dict(zip(both, gaps([pairs[i][0] for i in both], [pairs[i][1] for i in both]), strict=True))
        for i, (x, y) in enumerate(pairs):
            if x is None and y is None:
                continue
            if x is None or y is None:
                wrong.append(f"{key} {i} is a None on one side")
                break
            if key == "samples" and x.dtype != y.dtype:
                wrong.append(f"{key} {i} {x.dtype}/{y.dtype}")
                break
            if off[i] <= allowed(key, i):
                continue
            if x.isfinite().all() or y.isfinite().all():
                wrong.append(f"{key} {i} off by {off[i]:.2e}")
            break  # also at an infinite x̂0 (ε-prediction where no signal is): what follows means nothing
    if not torch.equal(ours["draw"], theirs["draw"]):
        wrong.append("other random draws")
    return wrong
