"""What schedulers promise beside their numbers: refusals, threads, copies, files, and views of the timesteps."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import calotype
from calotype.core.brownian import BrownianNoise, BrownianPath
from calotype.core.errors import InputError
from calotype.schedulers import grid
from calotype.schedulers.affine import affine
from calotype.schedulers.exponential import exponential_update, moments
from calotype.schedulers.levels import Level, posterior, transfer
from tests.parity.scheduler_cases import OPTIONS
from tests.parity.scheduler_cases_more import REQUIRED
from tests.parity.scheduler_runs import run

WITH_STEPS = [name for name in OPTIONS if name not in ("ScoreSdeVeScheduler",)]


def make(name: str, **options: object) -> object:
    return getattr(calotype, name)(**REQUIRED.get(name, {}), **options)


@pytest.mark.parametrize("name", WITH_STEPS)
@pytest.mark.parametrize("steps", [0, -3, 2.5, "ten"])
def test_impossible_step_counts_are_refused(name: str, steps: object) -> None:
    with pytest.raises(InputError, match="num_inference_steps"):
        make(name).set_timesteps(steps)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("DDIMScheduler", {"beta_schedule": "cosine"}, "squaredcos_cap_v2"),
        ("DDIMScheduler", {"prediction_type": "eps"}, "v_prediction"),
        ("DDPMScheduler", {"variance_type": "tiny"}, "fixed_small"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "even"}, "trailing"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_exponential_sigmas"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "3"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "sigma_min"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "epsilon"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_with_the_good_ones(
    name: str, options: dict[str, object], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        make(name, **options)


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(InputError, match="at most 1000"):
        make("DDIMScheduler").set_timesteps(1001)
    with pytest.raises(InputError, match="at most 999"):
        make("DPMSolverMultistepScheduler", timestep_spacing="leading").set_timesteps(1000)


def test_a_run_that_is_over_says_so() -> None:
    scheduler = make("EulerDiscreteScheduler")
    scheduler.set_timesteps(2)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        scheduler.step(scheduler.scale_model_input(x, t), t, x)
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_a_timestep_outside_the_schedule_is_refused() -> None:
    scheduler = make("DPMSolverMultistepScheduler")
    scheduler.set_timesteps(5)
    with pytest.raises(InputError, match="123"):
        scheduler.step(torch.ones(1, 1, 2, 2), 123, torch.ones(1, 1, 2, 2))


def test_steps_before_a_schedule_are_refused() -> None:
    with pytest.raises(InputError, match="set_timesteps"):
        make("DDIMScheduler").step(torch.ones(1, 1, 2, 2), 999, torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("name", OPTIONS)
def test_eight_threads_share_one_scheduler(name: str) -> None:
    """Eight runs of different lengths at once give the same bits as each alone."""
    options = {"noise_sampler_seed": 3} if name == "DPMSolverSDEScheduler" else {}
    shared = make(name, **options)
    counts = [5, 6, 7, 8, 9, 10, 11, 12]
    alone = [run(make(name, **options), n)["samples"][-1] for n in counts]
    gate = threading.Barrier(len(counts))

    def together(n: int) -> torch.Tensor:
        gate.wait()
        return run(shared, n)["samples"][-1]

    with ThreadPoolExecutor(len(counts)) as pool:
        results = list(pool.map(together, counts))
    for one, other in zip(alone, results, strict=True):
        assert torch.equal(one, other)


def test_a_thread_without_a_run_takes_the_last_schedule() -> None:
    scheduler = make("EulerDiscreteScheduler")
    scheduler.set_timesteps(7)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: (len(scheduler.timesteps), scheduler.step_index)).result() == (7, None)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_go_on_from_where_the_original_stood(copied: object) -> None:
    scheduler = make("DPMSolverMultistepScheduler", solver_order=3)
    scheduler.set_timesteps(8)
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    for t in scheduler.timesteps[:4]:
        x = scheduler.step(x.sin(), t, x).prev_sample
    twin = copied(scheduler)
    assert twin.config == scheduler.config
    for t in scheduler.timesteps[4:]:
        a, b = (s.step(x.sin(), t, x).prev_sample for s in (scheduler, twin))
        assert torch.equal(a, b)
        x = a
    assert twin.step_index == scheduler.step_index == 8


def test_an_element_of_the_timesteps_is_found_without_its_value() -> None:
    scheduler = make("DDIMScheduler")
    scheduler.set_timesteps(10)
    plan = scheduler._run.plan
    assert [plan.position(t) for t in scheduler.timesteps] == list(range(10))
    assert plan.position(scheduler.timesteps[3:][2]) == 5
    assert plan.position(torch.tensor(901)) is None
    assert plan.position(901) is None


def test_saved_and_loaded(tmp_path: Path) -> None:
    scheduler = make("EulerDiscreteScheduler", use_karras_sigmas=True)
    scheduler.save_pretrained(tmp_path)
    assert (tmp_path / "scheduler_config.json").is_file()
    again = calotype.EulerDiscreteScheduler.from_pretrained(tmp_path)
    assert again.config.use_karras_sigmas is True
    changed, unused = calotype.EulerDiscreteScheduler.from_pretrained(
        tmp_path, use_karras_sigmas=False, colour="red", return_unused_kwargs=True
    )
    assert changed.config.use_karras_sigmas is False
    assert unused == {"colour": "red"}


def test_the_table_can_be_moved_and_replaced() -> None:
    scheduler = make("DDIMScheduler")
    scheduler.alphas_cumprod = torch.linspace(0.9, 0.1, 1000)
    noisy = scheduler.add_noise(torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1), torch.tensor([0, 999]))
    assert noisy.flatten().tolist() == pytest.approx([0.1**0.5, 0.9**0.5], rel=1e-6)


def test_the_transfer_is_ddpm_at_eta_one() -> None:
    """With ε̂ = (x − α·x̂0)/σ, family A at η = 1 has DDPM's posterior mean and variance."""
    s, t = Level(0.6, 0.8), Level(0.8, 0.6)
    toward, direction, fresh = transfer(s, t, 1.0)
    along, mean, variance = posterior(s, t, 1 - (s.alpha / t.alpha) ** 2)
    assert fresh**2 == pytest.approx(variance)
    assert direction / s.sigma == pytest.approx(along)
    assert toward - direction * s.alpha / s.sigma == pytest.approx(mean)
    with pytest.raises(InputError, match="eta"):
        transfer(s, t, 1.5)


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("q", [1.0, 2.0])
@pytest.mark.parametrize("h", [1e-6, 9e-3, 1.1e-2, 0.5, 4.0])
def test_moments_are_the_integrals(data: bool, q: float, h: float) -> None:
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 * h
    weight = q * torch.exp(q * (u - h)) if data else q * torch.exp(-u)
    for k, moment in enumerate(moments(h, 4, data=data, q=q, rule="exact")):
        assert moment == pytest.approx(float((weight * (u / h) ** k).mean() * h), rel=1e-6)


@pytest.mark.parametrize("data", [True, False])
def test_exponential_updates_are_exact_for_polynomials(data: bool) -> None:
    """x̂0 (or ε̂) that is quadratic in λ is integrated exactly by three nodes."""
    levels = [Level((1 + k * k) ** -0.5, k * (1 + k * k) ** -0.5) for k in (3.0, 2.0, 1.4, 1.0)]
    lam = [torch.log(torch.tensor(a.alpha / a.sigma, dtype=torch.float64)) for a in levels]
    update = exponential_update(levels[2], levels[3], [levels[1], levels[0]], data=data)
    curve = lambda at: 0.3 - 0.7 * at + 0.2 * at**2  # noqa: E731
    h = lam[3] - lam[2]
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 * h
    value = curve(lam[2] + u)
    s, t = levels[2], levels[3]
    if data:
        exact = t.sigma / s.sigma * 1.3 + t.alpha * float((torch.exp(u - h) * value).mean() * h)
    else:
        kappa = s.sigma / s.alpha
        exact = t.alpha / s.alpha * 1.3 - t.alpha * kappa * float((torch.exp(-u) * value).mean() * h)
    found = update.sample * 1.3 + sum(
        w * float(curve(lam[i])) for w, i in zip(update.predictions, (2, 1, 0), strict=True)
    )
    assert found == pytest.approx(exact, rel=1e-7)


def test_affine_keeps_its_inputs() -> None:
    x, y = torch.ones(3), torch.full((3,), 2.0)
    assert affine((1.0, x), (3.0, y)).tolist() == [7.0] * 3
    assert affine((1.0, x)) is not x
    assert affine((0.0, x), (0.0, y)).tolist() == [0.0] * 3
    assert affine((2.0, x), (1.0, y), (0.5, y)).tolist() == [5.0] * 3
    assert affine((0.5, x.half()), (1.0, y)).dtype == torch.float32
    assert x.tolist() == [1.0] * 3
    assert y.tolist() == [2.0] * 3


def test_beta_quantiles() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for a, b in ((0.6, 0.6), (0.6, 1.5), (2.0, 0.5)):
        p = np.array([0.0, 1e-6, 0.02, 0.3, 0.5, 0.77, 0.999, 1.0])
        assert grid.beta_quantile(p, a, b) == pytest.approx(scipy.beta.ppf(p, a, b), rel=1e-10)


def test_brownian_noise_is_torchsdes() -> None:
    """Values of torchsde 0.2.6's BrownianTree over [0.1, 10] with these seeds, as noise of steps down."""
    noise = BrownianNoise(torch.zeros(2, 4), 0.1, 10.0, [5, 6])
    expected = [[0.1045, 0.1711, -0.1629, 0.2912], [-0.7710, 0.4635, -1.7014, 0.7453]]
    torch.testing.assert_close(noise(10.0, 5.0), torch.tensor(expected), atol=1e-4, rtol=0)
    one = BrownianNoise(torch.zeros(1, 4), 0.1, 10.0, 5)
    torch.testing.assert_close(
        one(3.0, 2.0), torch.tensor([[-0.0830, -0.4767, 1.0110, -0.2931]]), atol=1e-4, rtol=0
    )


def test_brownian_increments_add_up_and_vary_as_they_should() -> None:
    path = BrownianPath(torch.zeros(20000), 0.0, 4.0, 1)
    whole, first, second = path.increment(0.5, 3.0), path.increment(0.5, 1.7), path.increment(1.7, 3.0)
    torch.testing.assert_close(first + second, whole, atol=1e-5, rtol=0)
    assert float(first.var()) == pytest.approx(1.2, rel=0.05)
    assert float((first * second).mean()) == pytest.approx(0.0, abs=0.03)
    assert path.increment(3.9, 9.0).equal(path.increment(3.9, 4.0))
    assert float(path.increment(5.0, 6.0).abs().max()) == 0.0
