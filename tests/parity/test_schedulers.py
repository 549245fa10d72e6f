"""Every scheduler against the reference: the whole trajectory over a toy denoiser, for every option."""

from __future__ import annotations

import ast
import inspect
import json
import logging
from functools import lru_cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.brownian import BrownianPath
from calotype.schedulers.ladders import ExplodingScheduler
from tests.parity.deviations import deviation
from tests.parity.scheduler_cases import OPTIONS, calls, cases, configurations, label
from tests.parity.scheduler_oracle import oracle, without_layout
from tests.parity.scheduler_runs import compare, difference, run, spread

TOLERANCE = 1e-5
METHODS = (
    "__init__",
    "set_timesteps",
    "step",
    "add_noise",
    "get_velocity",
    "scale_model_input",
    "index_for_timestep",
    "set_begin_index",
    "previous_timestep",
)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@lru_cache(maxsize=16)
def _terms(seed: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(64, *shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(autouse=True)
def _smooth_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's run and ours ask our Brownian path, whose values tests of its own check. In its place are the
    first terms of its sine series (Karhunen-Loève), which differ as it does by seed, interval and ends."""

    def increment(path: Any, start: float, end: float) -> torch.Tensor:
        like, span = path._like, path._high - path._low
        frequencies = np.pi * (np.arange(64) + 0.5)
        first, last = (
            np.sin(frequencies * (min(max(t, path._low), path._high) - path._low) / span)
            for t in (start, end)
        )
        weights = torch.from_numpy((2 * span) ** 0.5 / frequencies * (last - first)).to(like.dtype)
        return torch.tensordot(weights, _terms(path._seed, like.shape, like.dtype), 1)

    monkeypatch.setattr(BrownianPath, "increment", increment)


@lru_cache(maxsize=4)
def made(module: Any, name: str, config: str, steps: int) -> Any:
    """A scheduler, once for all runs of its configuration; or the exception that making it ends in.

    ``steps`` makes another one where the reference's configuration changes with its first run.
    """
    try:
        options = ast.literal_eval(config)
        if module is not diffusers:
            return getattr(module, name)(**options)
        with without_layout():
            return oracle(name)(**options)
    except Exception as error:
        return error


def attempt(
    module: Any, name: str, config: dict[str, Any], steps: int, call: dict[str, Any], **how: Any
) -> Any:
    """A run, or the exception that it ends in."""
    scheduler = made(module, name, repr(config), steps if "Singlestep" in name else 0)
    if isinstance(scheduler, Exception):
        return scheduler
    try:
        return run(scheduler, steps, call, **how)
    except Exception as error:
        return error


def facts(
    name: str,
    config: dict[str, Any],
    steps: int,
    ours: dict[str, Any],
    theirs: Any,
    differs: bool,
    begin: int | None = None,
) -> list[str]:
    """What is special about a case beside its options; deviations are stated in these terms."""
    found = []
    cls = getattr(calotype, name)
    known = inspect.signature(cls.__init__).parameters
    if "timestep_spacing" in known:
        spacing = config.get("timestep_spacing", known["timestep_spacing"].default)
        replaced = any(config.get(f"use_{c}_sigmas") for c in ("karras", "exponential", "beta"))
        ignored = replaced and ("sigma_min" in config or not issubclass(cls, ExplodingScheduler))
        if spacing == "trailing" and not ignored and len(np.arange(1000, 0, -1000 / steps)) > steps:
            found.append("trailing-extra-point")
    if config.get("shift_terminal") and steps == 1:
        found.append("one-level")
    third = config.get("solver_order") == 3 and steps - (begin or 0) >= 5
    if str(config.get("algorithm_type")).startswith("sde") and third:
        found.append("third-order-sde")
    if len(ours["timesteps"]) > 1 and ours["timesteps"][0] == ours["timesteps"][1]:
        found.append("repeated-start")
    if isinstance(theirs, dict):
        broken = [any(not bool(x.isfinite().all()) for x in side["samples"]) for side in (theirs, ours)]
        if broken == [True, False]:
            found.append("nan-in-reference")
    if config.get("use_flow_sigmas") and (
        config.get("use_exponential_sigmas")
        or config.get("use_beta_sigmas")
        or (config.get("use_karras_sigmas") and "UniPC" not in name)
    ):
        found.append("converted-flow")
    if differs and any(
        part in name for part in ("Ancestral", "Heun", "KDPM2", "SolverMultistepInverse", "KarrasVe")
    ):
        kappa = ours["sigmas"].unique().flip(0)
        kappa = kappa[kappa > 0]
        if len(kappa) > 1 and float((kappa[1:] / kappa[:-1]).min()) < 0.1:
            found.append("steep")
    if differs and ("DEIS" in name or "SASolver" in name) and isinstance(theirs, dict):
        gap = float(ours["sigmas"].log().diff().abs().clamp(min=1e-9)[:-1].min())
        order = max(config.get(f"{kind}_order", 2) for kind in ("solver", "predictor", "corrector"))
        if not compare(ours, theirs, 2 * TOLERANCE + 1e-6 / gap**order):
            found.append("float32-coefficients")
    keeps_none = "DDIM" in name and config.get("rescale_betas_zero_snr") and isinstance(theirs, dict)
    if differs and keeps_none and not compare(ours, theirs, 1e-3):
        found.append("no-noise-kept")
    if differs and config.get("use_flow_sigmas") and config.get("prediction_type") == "v_prediction":
        found.append("v-of-flow")
    if differs and config.get("use_flow_sigmas") and "Inverse" in name:
        found.append("upward")
    if differs and begin is not None:
        found.append("late-begin")
    if isinstance(theirs, dict) and len(theirs["timesteps"]) < len(ours["timesteps"]):
        found.append("repeated-steps")
    return found


def differences(
    name: str, config: dict[str, Any], steps: int, call: dict[str, Any], **how: Any
) -> tuple[str, list[str]]:
    """A case's name, with its facts, and what differs."""
    theirs = attempt(diffusers, name, config, steps, call, **how)
    ours = attempt(calotype, name, config, steps, call, **how)
    case = f"schedulers/{name}/{label(config)}/{label(call)}/steps={steps}"
    if isinstance(ours, Exception):
        if isinstance(theirs, Exception) and isinstance(ours, ValueError):
            return case, []
        return case, [f"reference: {theirs!r:.150}, calotype: {ours!r:.150}"]
    if isinstance(theirs, Exception):
        wrong = [f"the reference fails: {theirs!r:.150}"]
    else:
        wrong, runs = compare(ours, theirs, TOLERANCE), [theirs]
        while wrong and len(runs) < 4:
            runs.append(attempt(diffusers, name, config, steps, call, jitter=len(runs), **how))
            wrong = compare(ours, theirs, TOLERANCE, spread(runs))
    return ";".join([case, *facts(name, config, steps, ours, theirs, bool(wrong), how.get("begin"))]), wrong


def judge(case: str, wrong: list[str], problems: list[str]) -> None:
    """Record a difference that is not listed, and a listed one that is not there."""
    reason = deviation(case)
    if wrong and reason is None:
        problems.append(f"{case}: {'; '.join(wrong)}")
    if not wrong and reason is not None:
        problems.append(f"{case}: listed as a deviation ({reason}) but equal")


@pytest.mark.parametrize("name", OPTIONS)
def test_trajectories(name: str) -> None:
    problems: list[str] = []
    for config, call, steps in cases(name):
        judge(*differences(name, config, steps, call), problems)
    assert not problems, "\n".join(problems)


def test_there_are_enough_cases() -> None:
    assert sum(len(list(cases(name))) for name in OPTIONS) >= 1500


@pytest.mark.parametrize("name", OPTIONS)
def test_signatures(name: str) -> None:
    """Same parameters, order and defaults; a method of ours may take more, all of it optional."""
    ours, theirs = getattr(calotype, name), oracle(name)
    for method in METHODS:
        if not hasattr(theirs, method):
            continue
        expected = list(inspect.signature(getattr(theirs, method)).parameters.values())
        actual = list(inspect.signature(getattr(ours, method)).parameters.values())
        named = [p for p in expected if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        assert [p.name for p in actual[: len(named)]] == [p.name for p in named], method
        for a, e in zip(actual, named, strict=False):
            assert a.default == e.default or e.default is e.empty, f"{method}({e.name})"
        if method in ("__init__", "step"):
            assert len(actual) == len(expected), method
    assert set(ours._compatibles) == set(theirs._compatibles)
    assert ours.order == getattr(theirs, "order", 1)


@pytest.mark.parametrize("name", OPTIONS)
def test_attributes_before_a_run(name: str) -> None:
    required = configurations(name)[0]
    ours, theirs = getattr(calotype, name)(**required), oracle(name)(**required)
    written = [json.loads(s.to_json_string()) for s in (ours, theirs)]
    assert written[0] == written[1] | {"_diffusers_version": written[0]["_diffusers_version"]}
    if "__len__" in dir(type(theirs)) and "num_train_timesteps" in theirs.config:
        assert len(ours) == len(theirs)
    for attribute in ("timesteps", "sigmas", "betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        value = getattr(theirs, attribute, None)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(ours, attribute), value, rtol=1e-6, atol=1e-6, msg=attribute)
    if hasattr(theirs, "init_noise_sigma"):
        assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_low_precision(name: str, dtype: torch.dtype) -> None:
    """Dtypes as the reference's; values within a few roundings of the sample's dtype, or as near as the reference's
    to those that it has in float32."""
    for config in [configurations(name)[0], {"prediction_type": "v_prediction"}]:
        for call in calls(name):
            theirs = attempt(diffusers, name, config, 5, call, dtype=dtype)
            ours = attempt(calotype, name, config, 5, call, dtype=dtype)
            if isinstance(theirs, Exception):
                continue
            wrong = compare(ours, theirs, (64 if "Inverse" in name else 20) * torch.finfo(dtype).eps)
            if wrong and [x.dtype for x in ours["samples"]] == [x.dtype for x in theirs["samples"]]:
                exact = attempt(diffusers, name, config, 5, call)["samples"]
                errors = [
                    [difference(x, y) for x, y in zip(side["samples"], exact, strict=True)]
                    for side in (ours, theirs)
                ]
                wrong = [] if max(errors[0]) <= 2 * max(errors[1]) else wrong
            assert not wrong, f"{config} {call} {wrong}"


@pytest.mark.parametrize("name", OPTIONS)
def test_image_to_image(name: str) -> None:
    """Starting in the middle: add_noise at the first timestep, set_begin_index, and the rest of the run."""
    problems: list[str] = []
    for place, config in enumerate(configurations(name)[:12]):
        for begin in (1, 3) if place == 0 else (1 + 2 * (place % 2),):
            case, wrong = differences(name, config, 5, {}, begin=begin)
            judge(f"{case};begin={begin}", wrong, problems)
    assert not problems, "\n".join(problems)
