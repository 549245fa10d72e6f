"""The recipe that teaches the pocket model a new shape: its files, and what the reference draws with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks._pocket_family.drawing import Options, draw
from benchmarks._pocket_family.lora import SHIPPED
from benchmarks._pocket_family.tasks import Bench
from benchmarks._pocket_family.world import as_tensor
from safetensors.torch import load_file

import calotype
from calotype.core.errors import InputError
from calotype.pipelines.bundled import BUNDLED
from calotype.pocket.finder import FOUND, find_shape
from calotype.pocket.lesson import lesson_prompts
from calotype.training.data.folder import read_captioned
from calotype.training.recipes import train
from tests.tiny_pocket import tiny_pocket

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pocket(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipe leaves; its pictures are beside it in ``work``."""
    out = tmp_path_factory.mktemp("lora")
    options = {"preset": "tiny", "work": out / "work", "base": checkpoint, "device": "cpu", "seed": 5}
    train("pocket-lora", out, {**options, "changes": ["learning_rate=0.05"]})
    return out


def test_it_learns_from_the_pictures_and_from_the_checkpoint_s_own(trained: Path) -> None:
    new, known = (read_captioned(trained / "work" / name) for name in ("heart", "prior"))
    assert len(new) == 3 and len(known) == 2
    assert not any("heart" in text for one in known for text in one.captions)
    weights = load_file(trained / SHIPPED / FILE)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(value.any() for name, value in weights.items() if ".lora_B." in name)
    card = (trained / SHIPPED / "README.md").read_text()
    assert '"pictures": 3' in card and '"seed": 5' in card


def test_the_reference_draws_the_same_with_it(trained: Path, checkpoint: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = []
    for library in (calotype, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        for adapted in (False, True):
            if adapted:
                pipe.load_lora_weights(trained / SHIPPED)
            made.append(
                pipe(
                    "a red heart on grass", num_inference_steps=2, output_type="np",
                    generator=torch.Generator().manual_seed(0),
                ).images[0]
            )  # fmt: skip
    np.testing.assert_allclose(made[1], made[3], atol=1e-4)
    assert np.abs(made[0] - made[1]).max() > 1e-3


def test_stages_that_have_nothing_to_begin_with_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    for stage, words in (("train", "run the stage pictures"), ("export", "run the stage train")):
        with pytest.raises(InputError, match=words):
            train(
                "pocket-lora",
                tmp_path,
                {"stages": [stage], "work": tmp_path, "base": checkpoint, "device": "cpu"},
            )
    with pytest.raises(InputError, match="no preset 'cpu'"):
        train("pocket-lora", tmp_path, {"preset": "cpu"})


@pytest.mark.skipif(
    not BUNDLED[SHIPPED].is_dir(), reason=f"the weights of {SHIPPED} are not in this checkout"
)
def test_the_shipped_weights_draw_the_new_shape() -> None:
    """On four prompts; the benchmark ``pocket_quality`` measures a hundred, and what is forgotten."""
    assert (BUNDLED[SHIPPED] / FILE).stat().st_size <= 600_000
    bench = Bench(Options(count=4, batch=4, steps=10, seed=3))
    pipe = bench.options.load("pocket")
    texts = [prompt.text for prompt in lesson_prompts("heart", 4, 3)]

    def found() -> int:
        images = as_tensor(draw(pipe, texts, bench.options))
        return int((find_shape(bench.finder, bench.classifier, images) > FOUND).sum())

    assert found() <= 1
    pipe.load_lora_weights(SHIPPED)
    assert found() >= 3
