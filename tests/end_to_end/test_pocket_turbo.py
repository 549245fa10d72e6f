"""The distillation of the pocket model: two steps, the file that it writes, and what the reference draws with that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.adapters import model as adapters
from calotype.core.errors import InputError
from calotype.training.recipes.base import Base, load_base
from calotype.training.recipes.pocket_family import BASE
from calotype.training.recipes.pocket_family.member import member_of
from calotype.training.recipes.pocket_family.members.turbo import FILE, UPDATES, TurboSettings
from calotype.training.recipes.pocket_family.settings import TrainSettings
from calotype.training.recipes.pocket_family.views import ViewSet
from tests.tiny_pocket import tiny_pocket

TURBO = member_of("pocket-turbo")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pocket(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(checkpoint: Path) -> Base:
    return load_base(checkpoint, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The objective after two steps, and the folder that it was written to."""
    settings = TurboSettings(train=TrainSettings(batch=2, caption_dropout=0.0), rank=2)
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    torch.manual_seed(0)
    objective = TURBO.objective(settings, base)
    optimiser = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], lr=0.01)
    batches = TURBO.batches(ViewSet.blank(base, TURBO.fields), base, settings)
    for number in range(2):
        objective(batches(number))["loss"].backward()
        optimiser.step()
    for name, value in base.unet.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not adapters.adapted_layers(base.unet)
    folder = tmp_path_factory.mktemp("turbo") / "pocket-turbo"
    TURBO.save(objective, base, folder)
    return objective, folder


def test_the_reference_draws_the_same_with_it(trained: tuple[Any, Path], checkpoint: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = []
    for library in (calotype, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
        pipe.scheduler = library.LCMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        for adapted in (False, True):
            if adapted:
                pipe.load_lora_weights(trained[1])
            made.append(
                pipe(
                    "a red ball on grass", num_inference_steps=4, guidance_scale=1.0, output_type="np",
                    generator=torch.Generator().manual_seed(0),
                ).images[0]
            )  # fmt: skip
    np.testing.assert_allclose(made[1], made[3], atol=1e-4)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_a_training_goes_on_from_its_file(trained: tuple[Any, Path], base: Base, tmp_path: Path) -> None:
    objective, folder = trained
    again = TURBO.objective(objective.settings, base)
    with pytest.raises(InputError, match="no low-rank weights"):
        TURBO.restore(again, tmp_path)
    TURBO.restore(again, folder)
    for name, value in adapters.tensors(again.unet, UPDATES).items():
        torch.testing.assert_close(
            value, adapters.tensors(objective.unet, UPDATES)[name], rtol=1e-3, atol=1e-6
        )
    other = TURBO.objective(TurboSettings(rank=3), base)
    with pytest.raises(InputError, match="another rank"):
        TURBO.restore(other, folder)


def test_it_stays_small(tmp_path: Path) -> None:
    settings, base = TURBO.settings("full"), load_base(BASE, torch.device("cpu"))
    TURBO.save(TURBO.objective(settings, base), base, tmp_path)
    assert (tmp_path / FILE).stat().st_size < 3_000_000
    assert {value.dtype for value in load_file(tmp_path / FILE).values()} == {torch.float16}
