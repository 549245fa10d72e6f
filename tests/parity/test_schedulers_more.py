"""What the trajectories do not visit: steps of batches, levels and timesteps of one's own, growing samples, helpers."""

from __future__ import annotations

import logging
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.scheduler_runs import MEAN, START, run

BOTH = (calotype, diffusers)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def pair(name: str, **options: Any) -> list[Any]:
    return [getattr(module, name)(**options) for module in BOTH]


def close(ours: Any, theirs: Any, rtol: float = 1e-5) -> None:
    ours, theirs = (torch.as_tensor(x).double() for x in (ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * max(float(theirs.abs().max()), 1e-30))


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    ("name", "options", "call"),
    [
        ("DDPMParallelScheduler", {}, {}),
        ("DDPMParallelScheduler", {"thresholding": True}, {}),
        ("DDIMParallelScheduler", {}, {}),
        ("DDIMParallelScheduler", {}, {"use_clipped_model_output": True}),
    ],
)
def test_steps_of_a_batch(
    name: str, options: dict[str, Any], call: dict[str, Any], kind: str, spacing: str
) -> None:
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for s in pair(name, prediction_type=kind, timestep_spacing=spacing, **options):
        s.set_timesteps(8)
        results.append(s.batch_step_no_noise(x.sin(), s.timesteps, x, **call))
    close(*results)


def test_the_last_of_a_batch_ends_where_steps_do() -> None:
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    results = []
    for s in pair("DDIMParallelScheduler", set_alpha_to_one=False):
        s.set_timesteps(8)
        results.append(s.batch_step_no_noise(x.sin(), s.timesteps, x))
        last = s.step(x[-1:].sin(), s.timesteps[-1], x[-1:]).prev_sample
        results.append(last)
    close(results[0][:-1], results[2][:-1])
    close(results[1], results[3])
    close(results[0][-1:], results[1])
    assert deviation("schedulers/DDIMParallelScheduler/set_alpha_to_one=False/batch_step_no_noise")
    assert not torch.allclose(results[2][-1:], results[3], rtol=1e-3)


def test_a_batch_step_with_noise_is_refused() -> None:
    s = calotype.DDIMParallelScheduler()
    s.set_timesteps(4)
    with pytest.raises(InputError, match="eta"):
        s.batch_step_no_noise(torch.ones(4, 1, 2, 2), s.timesteps, torch.ones(4, 1, 2, 2), eta=0.5)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"])
@pytest.mark.parametrize(
    "setup",
    [
        {"sigmas": [1.0, 0.7, 0.25]},
        {"timesteps": [1000.0, 600.0, 200.0]},
        {"sigmas": [1.0, 0.7, 0.25], "timesteps": [1000.0, 600.0, 200.0]},
        {"num_inference_steps": 3, "sigmas": [1.0, 0.7, 0.25]},
    ],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_levels_of_ones_own(name: str, setup: dict[str, Any], shift: float) -> None:
    a, b = (run(s, 3, setup=setup) for s in pair(name, shift=shift))
    close(a["timesteps"], b["timesteps"])
    close(a["sigmas"], b["sigmas"])
    close(a["samples"][-1], b["samples"][-1])


def test_a_shift_set_later_leaves_the_ends() -> None:
    runs = []
    for s in pair("FlowMatchEulerDiscreteScheduler", shift=3.0):
        s.set_shift(5.0)
        assert s.shift == 5.0
        runs.append(run(s, 7)["sigmas"])
    close(*runs, rtol=1e-6)


def test_flow_helpers() -> None:
    t = torch.linspace(1, 0.1, 5)
    for kind in ("exponential", "linear"):
        ours, theirs = pair("FlowMatchEulerDiscreteScheduler", time_shift_type=kind, shift_terminal=0.2)
        close(ours.time_shift(0.7, 1.3, t), theirs.time_shift(0.7, 1.3, t))
        close(ours.stretch_shift_to_terminal(t), theirs.stretch_shift_to_terminal(t))


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"])
def test_noise_at_mixed_levels(name: str) -> None:
    results = []
    for s in pair(name, shift=3.0):
        s.set_timesteps(6)
        results.append(
            s.scale_noise(MEAN.repeat(3, 1, 1, 1), s.timesteps[[0, 2, 5]], START.repeat(3, 1, 1, 1))
        )
    close(*results)
    with pytest.raises(InputError, match="noise"):
        pair(name)[0].scale_noise(MEAN, torch.tensor([1000.0]))


@pytest.mark.parametrize("stochastic", [False, True])
def test_tokens_at_levels_of_their_own(stochastic: bool) -> None:
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1000.0, 700.0, 0.0], [300.0, 20.0, 999.0]])
    results = []
    for s in pair("FlowMatchEulerDiscreteScheduler", stochastic_sampling=stochastic):
        s.set_timesteps(6)
        generator = torch.Generator().manual_seed(2)
        step = s.step(x.sin(), s.timesteps[0], x, per_token_timesteps=tokens, generator=generator)
        results.append(step.prev_sample)
    assert results[0].dtype == results[1].dtype
    close(*results)


@pytest.mark.parametrize(
    ("factors", "mode", "shape"),
    [
        ([0.5, 1.0], "bicubic", (1, 4, 8, 8)),
        ([1.5, 2.0], "nearest", (1, 4, 7, 9)),
        ([1.0, 2.0], "trilinear", (1, 2, 2, 6, 6)),
    ],
)
def test_samples_that_grow(factors: list[float], mode: str, shape: tuple[int, ...]) -> None:
    results = []
    for s in pair("FlowMatchLCMScheduler", scale_factors=factors, upscale_mode=mode, shift=3.0):
        s.set_timesteps(3)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        for t in s.timesteps:
            x = s.step(x.sin(), t, x, generator=generator).prev_sample
        results.append(x)
    assert results[0].shape == results[1].shape
    close(*results)
    with pytest.raises(InputError, match="scale_factors"):
        run(calotype.FlowMatchLCMScheduler(scale_factors=factors, upscale_mode=mode), 5)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
@pytest.mark.parametrize(
    "setup",
    [
        {"num_inference_steps": 4, "original_inference_steps": 20},
        {"num_inference_steps": 4, "strength": 0.5},
        {"timesteps": [999, 759, 499, 259]},
    ],
)
def test_distilled_schedules(name: str, setup: dict[str, Any]) -> None:
    a, b = (run(s, 4, setup=setup) for s in pair(name))
    assert a["timesteps"].tolist() == b["timesteps"].tolist()
    close(a["samples"][-1], b["samples"][-1])


def test_distilled_timesteps_begun_in_the_middle() -> None:
    for s in pair("LCMScheduler"):
        s.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
        assert s.timesteps.tolist() == [499, 259]


def test_boundary_conditions() -> None:
    ours, theirs = pair("LCMScheduler")
    for t in (0, 1, 19, 999):
        close(
            ours.get_scalings_for_boundary_condition_discrete(t),
            theirs.get_scalings_for_boundary_condition_discrete(t),
        )
    ours, theirs = pair("CMStochasticIterativeScheduler")
    sigma = torch.tensor([0.002, 0.5, 80.0])
    for method in ("get_scalings", "get_scalings_for_boundary_condition"):
        for a, b in zip(getattr(ours, method)(sigma), getattr(theirs, method)(sigma), strict=True):
            close(a, b)


def test_consistency_timesteps_of_ones_own() -> None:
    a, b = (run(s, 3, setup={"timesteps": [39, 22, 0]}) for s in pair("CMStochasticIterativeScheduler"))
    close(a["timesteps"], b["timesteps"])
    close(a["samples"][-1], b["samples"][-1])


def test_angles_of_ones_own() -> None:
    results = []
    for s in pair("SCMScheduler"):
        s.set_timesteps(3, timesteps=[1.5708, 1.1, 0.4, 0.0], max_timesteps=None, intermediate_timesteps=None)
        x, generator = START, torch.Generator().manual_seed(2)
        for t in s.timesteps[:-1]:
            x = s.step(x.sin(), t, x, generator=generator).prev_sample
        results.append(x)
    close(*results)


def test_times_of_ones_own() -> None:
    results = []
    for s in pair("DDPMWuerstchenScheduler"):
        s.set_timesteps(timesteps=[1.0, 0.6, 0.3, 0.0])
        x, generator = START, torch.Generator().manual_seed(2)
        for t in s.timesteps[:-1]:
            x = s.step(x.sin(), t.expand(1), x, generator).prev_sample
        t = torch.tensor([0.6])
        results += [x, s.previous_timestep(t), s.add_noise(MEAN, START, t)]
    for a, b in zip(results[:3], results[3:], strict=True):
        close(a, b)


def test_trained_levels_of_ipndm() -> None:
    sigma = torch.linspace(0.98, 0.0, 6).tolist()
    results = []
    for s in pair("IPNDMScheduler", trained_betas=sigma):
        s.set_timesteps(5)
        x = START
        for t in s.timesteps:
            x = s.step(x.sin(), t, x).prev_sample
        results += [x, s.alphas]
    close(results[0], results[2])
    close(results[1], results[3])


def test_tables_of_vq_diffusion() -> None:
    ours, theirs = pair("VQDiffusionScheduler", num_vec_classes=5)
    for name in ("at", "bt", "ct", "cumprod_at", "cumprod_bt", "cumprod_ct"):
        a, b = (getattr(s, f"log_{name}") for s in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: calotype.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).set_timesteps(4), "mu"),
        (lambda: calotype.FlowMatchEulerDiscreteScheduler().set_timesteps(4, sigmas=[1.0, 0.5]), "differ"),
        (lambda: calotype.LCMScheduler().set_timesteps(60), "at most 50"),
        (lambda: calotype.LCMScheduler().set_timesteps(timesteps=[10, 20]), "descend"),
        (lambda: calotype.DDIMInverseScheduler(timestep_spacing="linspace"), "trailing"),
        (lambda: calotype.DDIMInverseScheduler(set_alpha=True), "set_alpha"),
        (lambda: calotype.SCMScheduler(prediction_type="epsilon"), "trigflow"),
        (lambda: calotype.SCMScheduler().set_timesteps(3, timesteps=[1.5, 0.0]), "one more"),
        (lambda: calotype.UnCLIPScheduler(variance_type="fixed_small"), "learned_range"),
        (lambda: calotype.FlowMatchLCMScheduler(upscale_mode="cubic"), "bicubic"),
        (lambda: calotype.RePaintScheduler().set_timesteps(10, jump_length=0), "jump_length"),
        (lambda: calotype.ScoreSdeVeScheduler(sigma_min=2.0, sigma_max=1.0).timesteps, "sigma_max"),
        (lambda: calotype.AmusedScheduler(3, masking_schedule="sine"), "cosine"),
        (lambda: calotype.VQDiffusionScheduler(1), "mask"),
        (lambda: calotype.VQDiffusionScheduler(9, alpha_cum_end=0.5), "less than nothing"),
    ],
)
def test_refusals(make: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("DDIMScheduler", "LCMScheduler"),
        ("DDIMScheduler", "TCDScheduler"),
        ("DDIMScheduler", "DDIMInverseScheduler"),
        ("LCMScheduler", "DPMSolverMultistepScheduler"),
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"),
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
        ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"),
    ],
)
def test_made_from_anothers_configuration(source: str, target: str) -> None:
    options = {"shift": 3.0} if "Flow" in source else {"beta_schedule": "scaled_linear", "beta_end": 0.013}
    ours, theirs = (getattr(m, target).from_config(getattr(m, source)(**options).config) for m in BOTH)
    hidden = ("_use_default_values", "_class_name", "_diffusers_version")
    a, b = ({k: v for k, v in s.config.items() if k not in hidden} for s in (ours, theirs))
    assert a == b
