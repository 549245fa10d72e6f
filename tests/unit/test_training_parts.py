"""Objectives, moving averages, pace and the tokenizer: each against what its definition says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.training.ema import EMA
from calotype.training.objectives import (
    PREDICTIONS,
    denoising_loss,
    diffuse,
    min_snr_weight,
    prediction_target,
    signal_to_noise,
    stratified_timesteps,
)
from calotype.training.pace import Pace
from calotype.training.tokenizer import END, START, Encoder, learn_merges, split_words, train_tokenizer

LEVELS = torch.linspace(0.01, 0.99, 7)


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 4, 5, 5, generator=generator), torch.randn(7, 4, 5, 5, generator=generator)


def test_diffusion_keeps_unit_variance(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, eps = torch.randn(2, 7, 1, 200, 200, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(diffuse(x, eps, LEVELS).var(dim=(1, 2, 3)), torch.ones(7), atol=0.03)


def test_every_prediction_recovers_the_sample(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, eps = pair
    z = diffuse(x, eps, LEVELS)
    alpha, sigma = LEVELS.sqrt()[:, None, None, None], (1 - LEVELS).sqrt()[:, None, None, None]
    recovered = {
        "epsilon": (z - sigma * prediction_target(x, eps, LEVELS, "epsilon")) / alpha,
        "sample": prediction_target(x, eps, LEVELS, "sample"),
        "v_prediction": alpha * z - sigma * prediction_target(x, eps, LEVELS, "v_prediction"),
    }
    for name, value in recovered.items():
        assert torch.allclose(value, x, atol=1e-4), name


def test_noising_and_velocity_agree_with_the_schedulers(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    from calotype import DDPMScheduler

    x, eps = pair
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 1, 10, 300, 500, 900, 999])
    level = scheduler.alphas_cumprod[timesteps]
    assert torch.allclose(diffuse(x, eps, level), scheduler.add_noise(x, eps, timesteps), atol=1e-6)
    velocity = prediction_target(x, eps, level, "v_prediction")
    assert torch.allclose(velocity, scheduler.get_velocity(x, eps, timesteps), atol=1e-6)


def test_min_snr_weights_are_the_same_error_in_the_sample(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """An error d in x is d * alpha / sigma in eps and d / sigma in v: all three must cost the same."""
    snr = signal_to_noise(LEVELS)
    cost = {name: min_snr_weight(LEVELS, 5.0, name) for name in PREDICTIONS}
    assert torch.allclose(cost["sample"], snr.clamp(max=5.0))
    assert torch.allclose(cost["epsilon"] * LEVELS / (1 - LEVELS), cost["sample"])
    assert torch.allclose(cost["v_prediction"] / (1 - LEVELS), cost["sample"], atol=1e-5)


def test_weighted_loss_is_the_mean_of_weighted_samples() -> None:
    predicted, target = torch.zeros(2, 3, 2, 2, dtype=torch.bfloat16), torch.ones(2, 3, 2, 2)
    target[1] *= 2
    assert denoising_loss(predicted, target).item() == pytest.approx(2.5)
    assert denoising_loss(predicted, target, torch.tensor([1.0, 0.25])).item() == pytest.approx(1.0)


def test_unknown_prediction_is_named() -> None:
    with pytest.raises(InputError, match=r"'flow'.*v_prediction"):
        prediction_target(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1), "flow")  # type: ignore[arg-type]


@pytest.mark.parametrize("uniform", [0.0, 0.37, 0.9999999])
def test_stratified_timesteps_take_one_of_each_stratum(uniform: float) -> None:
    timesteps = stratified_timesteps(torch.tensor([uniform]), 50, 1000)
    assert timesteps.min() >= 0 and timesteps.max() <= 999
    assert sorted((timesteps // 20).tolist()) == list(range(50))


def test_average_follows_its_formula_and_gives_the_weights_back() -> None:
    module = nn.Linear(3, 2)
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    module.register_parameter("frozen", frozen)
    ema = EMA(module, decay=0.5)
    expected = module.weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            module.weight.add_(1.0)
        ema.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    own = module.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied():
        assert torch.allclose(module.weight, expected, atol=1e-5)
        raise KeyError
    assert torch.equal(module.weight, own)


def test_average_is_float32_for_half_weights_and_restores_its_state() -> None:
    module = nn.Linear(4, 4).to(torch.bfloat16)
    ema, other = EMA(module, 0.9), EMA(nn.Linear(4, 4), 0.9)
    for _ in range(5):
        with torch.no_grad():
            module.weight.add_(0.01)
        ema.update()
    other.load_state_dict(ema.state_dict())
    assert other.updates == 5
    stored = ema.state_dict()["shadow"]
    assert all(s.dtype == torch.float32 for s in stored)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="other parameters"):
        EMA(nn.Linear(2, 2)).load_state_dict(ema.state_dict())
    with pytest.raises(InputError, match=r"1\.0"):
        EMA(module, decay=1.0)


def test_pace_ends_by_steps_or_by_time_whichever_is_first() -> None:
    pace = Pace(1e-3, steps=100, minutes=1.0, warmup=10)
    assert pace.progress(50, 0.0) == pytest.approx(0.5)
    assert pace.progress(10, 45.0) == pytest.approx(0.75)
    assert pace.progress(100, 1.0) == pace.progress(1, 61.0) == 1.0
    assert pace.rate(0, 0.0) == pytest.approx(1e-4)
    assert pace.rate(10, 0.0) == pytest.approx(1e-3, rel=0.05)
    assert pace.rate(100, 0.0) == pace.rate(50, 60.0) == pytest.approx(1e-5)
    rates = [pace.rate(step, 0.0) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("bad", [{}, {"steps": 0}, {"minutes": -1.0}, {"minutes": float("nan")}])
def test_pace_refuses_what_never_ends_or_never_starts(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"end|positive"):
        Pace(1e-3, **bad)  # type: ignore[arg-type]


TEXTS = [
    "a big shiny red ball to the left of a small blue cube on grass at sunset",
    "a 3d render of two objects, snow",
    "the ball's shadow",
]


def test_words_of_the_corpus_become_single_tokens(tmp_path: Path) -> None:
    size = train_tokenizer(tmp_path, TEXTS, merges=500)
    encoder = Encoder(tmp_path)
    assert size == len(encoder.ids) == len(json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")))
    assert encoder.ids[START] == size - 2 and encoder.ids[END] == size - 1
    for word in "shiny ball left sunset render objects".split():
        ids = encoder.encode(word, 8)
        assert ids[0] == encoder.ids[START] and ids[2:] == [encoder.ids[END]] * 6, word


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS, "", "   ", "A Shiny RED  ball,, (left)!?", "it's don't we're", "Ünïcode 漢字 🙂 ½ ²", "x1y22z", "a_b-c",
        "tab\tand\nline", "word " * 200, "zzz qqq xylophone", "ﬁ ligature Å angstrom ß",
    ],
)  # fmt: skip
def test_encodes_as_transformers_does(tmp_path: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    train_tokenizer(tmp_path, TEXTS, merges=60)
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    expected = reference(text, padding="max_length", truncation=True).input_ids
    assert reference.model_max_length == 77
    assert Encoder(tmp_path).encode(text) == expected


def test_merges_are_by_frequency_then_alphabet_and_end_when_done() -> None:
    counts = Counter({"ab": 3, "cd": 3, "xy": 9})
    assert learn_merges(counts, 2) == [("x", "y</w>"), ("a", "b</w>")]
    assert len(learn_merges(counts, 100)) == 3
    with pytest.raises(InputError, match="-1"):
        learn_merges(counts, -1)


def test_text_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no word"):
        train_tokenizer(tmp_path, [" ", ""])
    assert split_words("  ") == []
    assert not list(tmp_path.iterdir())
