"""Runs of the schedulers whose steps take or return other things than most, by class name; see ``scheduler_runs``."""

from __future__ import annotations

import math
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


def _unclip(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, START.to(dtype), jitter)
    timesteps = s.timesteps[begin or 0 :]
    channels = 2 if s.config.variance_type == "learned_range" else 1
    for i, t in enumerate(walk.over(timesteps)):
        following = timesteps[i + 1] if i + 1 < len(timesteps) else None
        out = s.step(denoiser(walk.x, t, channels), t, walk.x, following, generator=walk.generator)
        walk.record(out.prev_sample, out.pred_original_sample)
    return walk.result()


def _to_zero(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
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


def _ipndm(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, START.to(dtype), jitter)
    if begin:
        s.set_begin_index(begin)
    for t in walk.over(s.timesteps[begin or 0 :]):
        walk.record(s.step(denoiser(walk.x, t * 500, 1), t, walk.x).prev_sample)
    return walk.result()


def _inverse(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
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


def _repaint(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps, jump_length=3, jump_n_sample=2)
    walk = Walk(s, START.to(dtype), jitter)
    timesteps = s.timesteps[begin or 0 :]
    mask = (torch.arange(64).reshape(1, 1, 8, 8) % 3 == 0).to(dtype)
    last = timesteps[0] + 1
    for t in walk.over(timesteps):
        if t < last:
            out = s.step(denoiser(walk.x, t, 1), t, walk.x, MEAN.to(dtype), mask, walk.generator)
            walk.record(out.prev_sample, out.pred_original_sample)
        else:
            walk.record(s.undo_step(walk.x, last, walk.generator))
        last = t
    return walk.result()


def _slope(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """−ε̂ of the toy denoiser for samples x0 + σ·ε."""
    return (denoiser(x / (1 + sigma**2) ** 0.5, 100 * math.log1p(sigma), 1) - x) / sigma


def _sde_ve(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps)
    s.set_sigmas(steps)
    start = s.sigmas[begin] if begin else s.init_noise_sigma
    walk = Walk(s, START.to(dtype) * float(start), jitter)
    for t, sigma in zip(walk.over(s.timesteps[begin or 0 :]), s.sigmas[begin or 0 :], strict=True):
        for _ in range(s.config.correct_steps):
            score = _slope(walk.x, float(sigma)) / sigma
            walk.record(s.step_correct(score, walk.x, walk.generator).prev_sample)
        out = s.step_pred(_slope(walk.x, float(sigma)) / sigma, t, walk.x, walk.generator)
        walk.record(out.prev_sample, out.prev_sample_mean)
    walk.record(s.add_noise(MEAN.to(dtype), START.to(dtype), torch.tensor([steps // 2])))
    return walk.result() | {"sigmas": torch.cat([s.sigmas, s.discrete_sigmas])}


def _karras_ve(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, START.to(dtype) * s.init_noise_sigma, jitter)
    for t in walk.over(s.timesteps[begin or 0 :]):
        sigma, following = s.schedule[t], s.schedule[t - 1] if t > 0 else 0
        hat, raised = s.add_noise_to_input(walk.x, sigma, generator=walk.generator)
        out = s.step(_slope(hat, float(raised)), raised, following, hat)
        # x̂0 is a small difference of samples as large as σ, and as exact as those
        walk.record(out.prev_sample, torch.cat([out.pred_original_sample, hat]))
        if following != 0:
            second = _slope(out.prev_sample, float(following))
            out = s.step_correct(second, raised, following, hat, out.prev_sample, out.derivative)
            walk.record(out.prev_sample, torch.cat([out.pred_original_sample, hat]))
    return walk.result() | {"sigmas": s.schedule}


def _logits(tokens: torch.Tensor, classes: int, t: Any, dtype: torch.dtype) -> torch.Tensor:
    """Smooth scores of the classes, (batch, tokens, classes), from the tokens and their neighbours."""
    place = torch.arange(tokens.shape[1], dtype=torch.float64)
    context = tokens.double() + 0.5 * tokens.roll(1, 1) + 0.1 * place + 0.01 * float(t)
    return (2 * torch.sin(context[..., None] + 1.7 * torch.arange(classes, dtype=torch.float64))).to(dtype)


def _vq_diffusion(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    s.set_timesteps(steps)
    walk = Walk(s, torch.full((2, 64), s.mask_class), None)
    for t in walk.over(s.timesteps[begin or 0 :]):
        log_p = _logits(walk.x, s.mask_class, t, dtype).log_softmax(-1).transpose(1, 2)
        clean = s.q_posterior(log_p, walk.x, t) if t > 0 else None
        walk.record(s.step(log_p, t, walk.x, generator=walk.generator).prev_sample, clean)
    return walk.result()


def _amused(
    s: Any, steps: int, call: dict[str, Any], dtype: torch.dtype, begin: int | None, jitter: int | None
) -> Result:
    """Flat and square tokens by turns, from all masked or half of them."""
    s.set_timesteps(steps, temperature=(2, 0) if steps % 2 else 3)
    mask, share = s.config.mask_token_id, call.get("starting_mask_ratio", 1.0)
    start = torch.arange(128).reshape(2, 64)
    start = torch.where(start % 2 < 2 * share, mask, start % mask)
    walk = Walk(s, start.reshape(2, 8, 8) if steps > 5 else start, None)
    walk.record(s.add_noise(walk.x % mask, s.timesteps[0], walk.generator))
    walk.x = walk.samples[0]
    for t in walk.over(s.timesteps[begin or 0 :]):
        out = _logits(walk.x.flatten(1), mask, t, dtype)
        out = out.transpose(1, 2).reshape(2, mask, 8, 8) if walk.x.dim() == 3 else out
        result = s.step(out, t, walk.x, generator=walk.generator, **call)
        walk.record(result.prev_sample, result.pred_original_sample)
    return walk.result() | {"sigmas": s.temperatures}


LOOPS: dict[str, Callable[..., Result]] = {
    "UnCLIPScheduler": _unclip,
    "DDPMWuerstchenScheduler": _to_zero,
    "SCMScheduler": _to_zero,
    "IPNDMScheduler": _ipndm,
    "DDIMInverseScheduler": _inverse,
    "CogVideoXDPMScheduler": _cogvideox_dpm,
    "RePaintScheduler": _repaint,
    "ScoreSdeVeScheduler": _sde_ve,
    "KarrasVeScheduler": _karras_ve,
    "VQDiffusionScheduler": _vq_diffusion,
    "AmusedScheduler": _amused,
}
