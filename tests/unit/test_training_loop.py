"""The loop, its checkpoints and the VAE's objective, on small modules."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from calotype.core.errors import InputError, ModelFilesError
from calotype.training.checkpoint import Position
from calotype.training.gradients import accumulate_gradients
from calotype.training.loop import LoopSettings, Outcome, TrainingError, fit, optimizer_for
from calotype.training.pace import Pace
from calotype.training.vae import (
    AutoencoderObjective,
    gradient_loss,
    kl_to_standard_normal,
    standardise_latents,
)


class Regression(nn.Module):
    """Squared error of a linear map, with dropout so that the global random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.2)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": (self.layer(self.dropout(batch["x"])) - batch["y"]).square().mean()}


def batches(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(8, 4, generator=generator)
    return {"x": x, "y": x[:, :3] * 2 + 1}


def train(folder: Path, steps: int, total: int = 40, **options: object) -> tuple[Outcome, Regression]:
    """Train ``steps`` of a run of ``total`` (which rules the learning rate), every step reported."""
    torch.manual_seed(3)
    module = Regression()
    lines: list[str] = []

    class Stop(Exception):
        pass

    def limited(number: int) -> dict[str, torch.Tensor]:
        if number >= steps:
            raise Stop
        return batches(number)

    settings = LoopSettings(
        pace=Pace(0.05, steps=total, warmup=5), autocast=None, ema_decay=0.9, report_every=0.0,
        checkpoint_every=0.0, inspect_every=None,
    )  # fmt: skip
    outcome = Outcome(Position(), None)  # type: ignore[arg-type]
    with contextlib.suppress(Stop):
        outcome = fit(
            module, limited, settings, folder=folder, samples_per_batch=8, identity={"name": "test"},
            say=lines.append, **options,
        )  # type: ignore[arg-type]  # fmt: skip
    return outcome, module


def losses(folder: Path) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_training_lowers_the_loss_and_reports_each_step(tmp_path: Path) -> None:
    outcome, _ = train(tmp_path, 40)
    values = losses(tmp_path)
    assert len(values) == len(outcome.reports) == 40
    assert values[-1] < 0.5 * values[0]
    assert outcome.position.step == 40
    assert {"gradient_norm", "learning_rate", "samples_per_second"} <= set(outcome.reports[-1])


def test_a_broken_run_goes_on_to_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole, unbroken = train(tmp_path / "whole", 40)
    train(tmp_path / "broken", 17)
    torch.manual_seed(99)
    rest, resumed = train(tmp_path / "broken", 40, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    for mine, theirs in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with rest.ema.applied(), whole.ema.applied():
        assert torch.equal(resumed.layer.weight, unbroken.layer.weight)


def test_an_interrupted_run_ends_its_step_and_goes_on_exactly(tmp_path: Path) -> None:
    _, unbroken = train(tmp_path / "whole", 40)
    torch.manual_seed(3)
    module = Regression()
    settings = LoopSettings(
        pace=Pace(0.05, steps=40, warmup=5), autocast=None, ema_decay=0.9, checkpoint_every=None
    )

    def interrupted(number: int) -> dict[str, torch.Tensor]:
        if number == 6:
            signal.raise_signal(signal.SIGINT)
        return batches(number)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(
            module, interrupted, settings, folder=tmp_path / "broken", samples_per_batch=8,
            identity={"name": "test"}, say=lambda line: None,
        )  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "broken" / "training.pt", weights_only=True)["step"] == 7
    _, resumed = train(tmp_path / "broken", 40, resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")[7:]
    assert torch.equal(resumed.layer.weight, unbroken.layer.weight)


def test_what_is_not_trained_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    module = Regression()
    module.layer.bias.requires_grad_(False)
    settings = LoopSettings(
        pace=Pace(0.05, steps=4), autocast=None, ema_decay=0.0, checkpoint_steps=3, checkpoint_every=None
    )
    seen: list[float] = []
    fit(
        module, batches, settings, folder=tmp_path, samples_per_batch=8, say=lambda line: None,
        watch=lambda position, numbers: seen.append(numbers["loss"]),
    )  # fmt: skip
    assert seen == losses(tmp_path)
    assert list(torch.load(tmp_path / "training.pt", weights_only=True)["weights"]) == ["layer.weight"]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 5)
    settings = LoopSettings(pace=Pace(0.05, steps=40), autocast=None)
    with pytest.raises(InputError, match="name: 'test' then, 'other' now"):
        fit(
            Regression(), batches, settings, folder=tmp_path, samples_per_batch=8, identity={"name": "other"},
            resume=True,
        )  # fmt: skip
    path = tmp_path / "training.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelFilesError, match=r"training\.pt cannot be read"):
        train(tmp_path, 40, resume=True)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    def run(accumulate: int, source: object) -> torch.Tensor:
        torch.manual_seed(0)
        module = Regression()
        module.dropout.p = 0.0
        pace = Pace(0.05, steps=6, warmup=1)
        fit(
            module, source, LoopSettings(pace=pace, accumulate=accumulate, autocast=None),
            folder=tmp_path / str(accumulate), samples_per_batch=8,
        )  # type: ignore[arg-type]  # fmt: skip
        return module.layer.weight.detach()

    def pairs(number: int) -> dict[str, torch.Tensor]:
        first, second = batches(2 * number), batches(2 * number + 1)
        return {name: torch.cat([first[name], second[name]]) for name in first}

    assert torch.allclose(run(2, batches), run(1, pairs), atol=1e-6)


def test_a_loss_that_is_not_a_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    def poisoned(number: int) -> dict[str, torch.Tensor]:
        batch = batches(number)
        return batch if number < 10 else {**batch, "y": batch["y"] * float("nan")}

    settings = LoopSettings(
        pace=Pace(0.05, steps=40), autocast=None, report_every=0.0, checkpoint_every=0.0, inspect_every=None
    )
    with pytest.raises(TrainingError, match="step 11 is not finite"):
        fit(Regression(), poisoned, settings, folder=tmp_path, samples_per_batch=8)
    stored = torch.load(tmp_path / "training.pt", weights_only=True)
    assert stored["step"] == 10
    assert all(value.isfinite().all() for value in stored["weights"].values())


def test_a_failing_inspection_is_said_and_costs_nothing(tmp_path: Path) -> None:
    said: list[str] = []

    def inspect(position: Position) -> dict[str, float]:
        raise OSError("no room for the sheet")

    settings = LoopSettings(pace=Pace(0.05, steps=4), autocast=None, inspect_every=0.0)
    outcome = fit(
        Regression(),
        batches,
        settings,
        folder=tmp_path,
        samples_per_batch=8,
        inspect=inspect,
        say=said.append,
    )
    assert outcome.position.step == 4
    assert sum("no room for the sheet" in line for line in said) == 4


def test_inspections_see_the_average_and_training_does_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Regression()
    seen: list[torch.Tensor] = []

    def inspect(position: Position) -> dict[str, float]:
        assert not module.training
        seen.append(module.layer.weight.detach().clone())
        return {"looked": 1.0}

    settings = LoopSettings(
        pace=Pace(0.05, steps=5, warmup=1), autocast=None, inspect_every=0.0, ema_decay=0.99
    )
    outcome = fit(module, batches, settings, folder=tmp_path, samples_per_batch=8, inspect=inspect)
    assert len(seen) == 5 and not torch.allclose(seen[-1], module.layer.weight)
    with outcome.ema.applied():
        assert torch.equal(seen[-1], module.layer.weight)
    assert module.training


def test_norms_and_biases_do_not_decay_and_nothing_to_train_is_an_error() -> None:
    settings = LoopSettings(pace=Pace(1e-3, steps=1), weight_decay=0.3)
    groups = optimizer_for(nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3)), settings).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 1), (0.0, 3)]
    with pytest.raises(InputError, match="nothing to train"):
        optimizer_for(nn.Linear(2, 2).requires_grad_(False), settings)


def small_vae() -> nn.Module:
    from calotype import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    with torch.no_grad():
        vae.quant_conv.bias.uniform_(-2, 2)
    return vae.eval()


def test_standardised_latents_decode_to_the_same_pictures() -> None:
    vae = small_vae()
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        pictures = vae.decode(before.mean).sample
        factor = standardise_latents(vae, images.split(3))
        after = vae.encode(images).latent_dist
        again = vae.decode(after.mean).sample
    assert torch.allclose(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    ratio = (after.std / before.std).mean(dim=(0, 2, 3)) * before.mean.std(dim=(0, 2, 3))
    assert torch.allclose(ratio, torch.ones(4), atol=1e-3)
    assert torch.allclose(again, pictures, atol=1e-4)
    assert vae.config.scaling_factor == factor == pytest.approx(1.0, abs=0.01)


def test_losses_of_the_autoencoder_are_what_they_say() -> None:
    mean, logvar = torch.randn(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert torch.allclose(kl_to_standard_normal(mean, logvar), exact.mean(), atol=1e-5)
    image = torch.rand(2, 3, 16, 16)
    assert gradient_loss(image, image + 0.3).item() == pytest.approx(0.0, abs=1e-6)
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    assert gradient_loss(ramp, torch.zeros_like(ramp), scales=3).item() == pytest.approx(1 + 2 + 4)


def test_the_autoencoder_objective_learns(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = LoopSettings(pace=Pace(3e-3, steps=30, warmup=3), autocast=None, report_every=0.0)
    objective = AutoencoderObjective(small_vae())
    fit(
        objective,
        lambda _: {"images": images, "noise": noise},
        settings,
        folder=tmp_path,
        samples_per_batch=4,
    )
    values = losses(tmp_path)
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("fails_in", ["nothing", "forward", "backward"])
def test_compiling_changes_nothing_and_its_failure_is_said(
    fails_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no code for the backward pass")

    def compiler(module: nn.Module, dynamic: bool) -> object:
        def compiled(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            if fails_in == "forward":
                raise RuntimeError("no code for the forward pass")
            values = module(batch)
            return {"loss": Failing.apply(values["loss"])} if fails_in == "backward" else values

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    weights = []
    for compile in (False, True):
        torch.manual_seed(0)
        module = Regression()
        module.dropout.p = 0.0
        settings = LoopSettings(pace=Pace(0.05, steps=5), autocast=None, compile=compile)
        folder = tmp_path / str(compile)
        fit(module, batches, settings, folder=folder, samples_per_batch=8, say=said.append)
        weights.append(module.layer.weight.detach())
    assert torch.equal(*weights)
    warnings = [line for line in said if line.startswith("WARNING")]
    assert warnings == [] if fails_in == "nothing" else f"no code for the {fails_in} pass" in warnings[0]


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_parts_side_by_side_have_the_gradient_of_the_whole_batch(threads: int) -> None:
    def gradient(count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        module = Regression().eval()
        values = accumulate_gradients(
            module, batches(1), share=0.5, device=torch.device("cpu"), dtype=None, threads=count
        )
        assert not values["loss"].requires_grad
        return [p.grad for p in module.parameters() if p.grad is not None], values["loss"]

    (whole, loss), (parts, mean) = gradient(1), gradient(threads)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(mean, loss)


def test_a_batch_needs_a_thread() -> None:
    with pytest.raises(InputError, match="at least one thread, not 0"):
        LoopSettings(pace=Pace(0.1, steps=1), threads=0)


def test_the_color_term_is_the_squared_error_and_twice_that_of_coarse_means() -> None:
    torch.manual_seed(0)
    vae = small_vae()
    batch = {"images": torch.rand(2, 3, 16, 16) * 2 - 1, "noise": torch.zeros(2, 4, 8, 8)}
    plain, colored = (AutoencoderObjective(vae, color=weight)(batch)["loss"] for weight in (0.0, 3.0))
    difference = vae.decode(vae.encode(batch["images"]).latent_dist.mean).sample - batch["images"]
    blocks = difference.reshape(2, 3, 4, 4, 4, 4).mean((3, 5))
    torch.testing.assert_close(
        colored - plain, 3 * difference.square().mean() + 6 * blocks.square().mean(), atol=1e-5, rtol=1e-4
    )
