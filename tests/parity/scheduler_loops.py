"""Runs of the schedulers whose steps take or return other things than most, by class name; see ``scheduler_runs``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.parity.scheduler_runs import MEAN, START, denoiser

Result = dict[str, Any]


class Walk:
    """What the runs have in common: the generator, the record, and the disturbance of the samples."""

    def __init__(self, scheduler: Any, start: torch.Tensor, jitter: int | None) -> None:
        self.scheduler, self.x = scheduler, start
        self.generator = torch.Generator().manual_seed(3)
        self.samples, self.clean = [start], []
        self._jitter = jitter
        self._shake = torch.Generator().manual_seed(jitter or 0)

    def over(self, timesteps: Any) -> Iterator[Any]:
        for t in timesteps:
            if self._jitter is not None and self.x.is_floating_point():
                noise = torch.randn(self.x.shape, generator=self._shake)
                self.x = self.x * (1 + 6e-8 * noise).to(self.x.dtype)
            yield t

    def record(self, sample: torch.Tensor, clean: torch.Tensor | None = None) -> None:
        self.x = sample
        self.samples.append(sample)
        self.clean.append(clean)

    def result(self, timesteps: torch.Tensor | None = None) -> Result:
        return {
            "timesteps": self.scheduler.timesteps if timesteps is None else timesteps,
            "sigmas": None,
            "samples": self.samples,
            "clean": self.clean,
            "draw": torch.randn(3, generator=self.generator),
        }


def _unclip(s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, START.to(dtype), jitter)
    timesteps = s.timesteps[begin or 0 :]
    channels = 2 if s.config.variance_type == "learned_range" else 1
    for i, t in enumerate(walk.over(timesteps)):
        following = timesteps[i + 1] if i + 1 < len(timesteps) else None
        out = s.step(denoiser(walk.x, t, channels), t, walk.x, following, generator=walk.generator)
        walk.record(out.prev_sample, out.pred_original_sample)
    return walk.result()


def _to_zero(s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None) -> Result:
    """The last of the timesteps is where the run ends. The reference takes other than two steps of SCM only so."""
    even = type(s).__name__ == "SCMScheduler" and steps != 2
    s.set_timesteps(steps, **({"intermediate_timesteps": None} if even else {}))
    walk = Walk(s, START.to(dtype), jitter)
    if begin and hasattr(s, "set_begin_index"):
        s.set_begin_index(begin)
    batched = type(s).__name__ == "DDPMWuerstchenScheduler"
    for t in walk.over(s.timesteps[begin or 0 : -1]):
        given = t.expand(len(walk.x)) if batched else t
        out = s.step(denoiser(walk.x, t * 500, 1), given, walk.x, generator=walk.generator)
        walk.record(out.prev_sample, out.get("pred_original_sample"))
    return walk.result()


def _ipndm(s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, START.to(dtype), jitter)
    if begin:
        s.set_begin_index(begin)
    for t in walk.over(s.timesteps[begin or 0 :]):
        walk.record(s.step(denoiser(walk.x, t * 500, 1), t, walk.x).prev_sample)
    return walk.result()


def _inverse(s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, MEAN.to(dtype), jitter)
    for t in walk.over(s.timesteps[begin or 0 :]):
        out = s.step(denoiser(walk.x, t, 1), t, walk.x)
        walk.record(out.prev_sample, out.pred_original_sample)
    return walk.result()


def _cogvideox_dpm(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps)
    walk, old, back = Walk(s, START.to(dtype), jitter), None, None
    for t in walk.over(s.timesteps[begin or 0 :]):
        x, old = s.step(denoiser(walk.x, t, 1), old, t, back, walk.x, generator=walk.generator, **call)
        walk.record(x, old)
        back = t
    return walk.result()


LOOPS: dict[str, Callable[..., Result]] = {
    "UnCLIPScheduler": _unclip,
    "DDPMWuerstchenScheduler": _to_zero,
    "SCMScheduler": _to_zero,
    "IPNDMScheduler": _ipndm,
    "DDIMInverseScheduler": _inverse,
    "CogVideoXDPMScheduler": _cogvideox_dpm,
}
