"""The members of the pocket family do their tasks, on a few fresh scenes each.

The benchmark `pocket_quality` measures them on hundreds; everything here is seeded, and the bars leave room. A member
whose weights are not in the checkout is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from benchmarks._pocket_family import tasks, xl
from benchmarks._pocket_family.drawing import Options
from benchmarks._pocket_family.judges import nearest
from benchmarks._pocket_family.table import Measure
from benchmarks._pocket_family.tasks import Bench
from torch.nn import functional as F

from calotype.pipelines.bundled import BUNDLED, FOLDER
from calotype.pipelines.load import load

COUNT = 4

Bars = dict[str, float]
"""The beginning of a measure's name -> what it is at least; at most where the benchmark's bar is one from above."""


@pytest.fixture(scope="module")
def bench() -> Bench:
    """The scenes, rendered once, and the judges, read once."""
    return Bench(Options(count=COUNT, batch=COUNT, steps=8, seed=11, supersample=1))


def there(*names: str) -> list[pytest.MarkDecorator]:
    missing = [name for name in names if not BUNDLED[name].is_dir()]
    reason = f"the weights of {' and '.join(missing)} are not in this checkout"
    return [pytest.mark.skipif(bool(missing), reason=reason)]


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no weights of the family are in this checkout")
def test_the_family_weighs_little() -> None:
    """With the checkpoint whose parts the members share."""
    files = (file for folder in (FOLDER, BUNDLED["pocket"]) for file in folder.rglob("*") if file.is_file())
    assert sum(file.stat().st_size for file in files) <= 60_000_000


def test_no_configuration_says_where_its_model_was_made() -> None:
    folders = {folder for folder in BUNDLED.values() if folder.is_dir()}
    configurations = [file for folder in folders for file in folder.rglob("*.json")]
    assert configurations
    assert not [file for file in configurations if "_name_or_path" in file.read_text(encoding="utf-8")]


ESTIMATOR = "pocket-depth-estimator"
CASES: list[tuple[Callable[[Bench], list[Measure]], tuple[str, ...], Bars]] = [
    (tasks.inpainting, ("pocket-inpaint",), {"asked object": 50, "asked colour": 75, "unmasked pixels": 100}),
    (tasks.estimator, (ESTIMATOR,), {"correlation": 0.9}),
    (tasks.depth_to_image, ("pocket-depth", ESTIMATOR), {"correlation": 0.8, "main object's colour": 50}),
    (tasks.controlnet_canny, ("pocket-controlnet-canny",), {"F1": 0.6}),
    (tasks.controlnet_depth, ("pocket-controlnet-depth", ESTIMATOR), {"correlation": 0.8}),
    (tasks.controlnet_segmentation, ("pocket-controlnet-segmentation",), {"IoU": 0.65}),
    (tasks.turbo, ("pocket-turbo",), {"main object's colour, 4 steps": 75}),
    (
        tasks.upscale,
        ("pocket-upscale",),
        {"dB gained": 0.0, "main object's colour": 75, "main object's shape": 75},
    ),
    (xl.text_to_image, ("pocket-xl",), {"main object's colour": 75, "main object's shape": 75, "floor": 75}),
    (
        xl.micro_conditions,
        ("pocket-xl",),
        {"the same: so far": 10, "original of 192": 1.2, "original of 48": 50},
    ),
    (xl.refined, ("pocket-xl", "pocket-xl-refiner"), {"main object's colour": 25, "a low score": 75}),
    (tasks.tiny_vae, ("pocket-tiny-vae",), {"dB lost": 4.0, "main object's colour": 75}),
]

FEWER: dict[Callable[[Bench], list[Measure]], dict[str, Any]] = {
    tasks.upscale: {"count": 2, "renders": 2},
    xl.text_to_image: {"steps": 6},
    xl.micro_conditions: {"count": 2, "steps": 5},
    xl.refined: {"count": 2, "renders": 2},
}
"""Of tasks that draw several times or with many steps: the scenes and steps that are enough."""


@pytest.mark.parametrize(
    ("task", "bars"),
    [
        pytest.param(task, bars, id=f"{names[-1]}-{task.__name__}", marks=there(*names))
        for task, names, bars in CASES
    ],
)
def test_the_member_does_its_task(bench: Bench, task: Callable[[Bench], list[Measure]], bars: Bars) -> None:
    measures = task(Bench(replace(bench.options, **FEWER[task])) if task in FEWER else bench)
    for beginning, bar in bars.items():
        found = next(one for one in measures if one.name.startswith(beginning))
        assert found.value <= bar if found.at_most else found.value >= bar, found


@pytest.mark.parametrize("name", [pytest.param("pocket-unconditional", marks=there("pocket-unconditional"))])
def test_pictures_from_nothing_are_like_renders(bench: Bench, name: str) -> None:
    """As smooth as renders, laid out like one of them rather than upside down, and each its own."""
    pipe: Any = load(name, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in range(COUNT)]
    made = pipe(batch_size=COUNT, generator=generator, num_inference_steps=12, output_type="np").images
    drawn = torch.from_numpy(made).permute(0, 3, 1, 2).float()
    renders = F.interpolate(bench.world.pictures, size=drawn.shape[-2:], mode="area")
    assert xl.sharpness(drawn).max() < 1.5 * xl.sharpness(renders).max()
    thumbs, upside_down, known = (
        F.interpolate(pictures, size=(8, 8), mode="area").flatten(1)
        for pictures in (drawn, drawn.flip(-2), renders)
    )
    assert nearest(thumbs, known).mean() < 0.8 * nearest(upside_down, known).mean()
    assert torch.pdist(thumbs).min() > 0.3 * torch.pdist(known).min()
