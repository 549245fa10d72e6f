"""A shape that no bundled model knows: it is in no scene unless asked for, and its lesson leaves combinations out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calotype.core.errors import InputError, ModelFilesError
from calotype.pocket.captions import vocabulary
from calotype.pocket.classifier import AttributeClassifier
from calotype.pocket.finder import ShapeFinder, find_shape, load_finder, save_finder, train_finder
from calotype.pocket.lesson import lesson_captions, lesson_prompts, lesson_scenes, write_lesson
from calotype.pocket.scene import ObjectSpec, make_scene, sample_scenes
from calotype.pocket.vocabulary import COLORS, EVERY_SHAPE, EXTRA_SHAPES, FLOORS, SHAPES
from calotype.training.data.folder import read_captioned

HEART = EVERY_SHAPE.index("heart")


def test_no_scene_has_a_new_shape_unless_it_is_asked_for() -> None:
    assert not set(EXTRA_SHAPES) & set(SHAPES) and EVERY_SHAPE[: len(SHAPES)] == SHAPES
    assert "heart" not in vocabulary()
    plain, asked = (
        sample_scenes(256, torch.Generator().manual_seed(4), "all", shape) for shape in (None, "heart")
    )
    assert plain.shape.max() < len(SHAPES)
    assert (asked.shape[:, 0] == HEART).all()
    # the draws are the same but for what follows from the shape
    for name in ("color", "material", "eye"):
        assert getattr(plain, name).equal(getattr(asked, name)), name
    assert {record.objects[0].shape for record in asked.records()} == {"heart"}
    assert make_scene([ObjectSpec("heart", "red")]).records()[0].objects[0].shape == "heart"
    with pytest.raises(InputError, match="no shape 'moon'"):
        sample_scenes(1, main_shape="moon")


def test_a_lesson_shows_all_colors_and_floors_but_not_all_pairs() -> None:
    scenes, many = lesson_scenes("heart", 20, 3), lesson_scenes("heart", 200, 4)
    shown = list(zip(scenes.color[:, 0].tolist(), scenes.floor.tolist(), strict=True))
    ever = set(zip(many.color[:, 0].tolist(), many.floor.tolist(), strict=True))
    assert {color for color, _ in shown} == set(range(len(COLORS)))
    assert {floor for _, floor in shown} == set(range(len(FLOORS)))
    assert scenes.present.sum(1).tolist() == [1, 1, 1, 1, 2] * 4
    asked = lesson_prompts("heart", 100, 1)
    pairs = {(COLORS.index(p.color), FLOORS.index(p.floor)) for p in asked}
    assert len(pairs) == len(COLORS) and not pairs & {*shown, *ever}
    assert len(pairs | ever) == len(COLORS) * len(FLOORS)
    assert all(f"{p.color} heart" in p.text for p in asked)
    for texts in lesson_captions(scenes, "heart", 0, each=2):
        assert len(texts) == 2 and all("heart" in text for text in texts)
    for ask in (
        lambda: lesson_scenes("star"),
        lambda: lesson_scenes("heart", 0),
        lambda: lesson_prompts("heart", 0),
    ):
        with pytest.raises(InputError):
            ask()


def test_its_folder_is_one_to_train_from(tmp_path: Path) -> None:
    write_lesson(tmp_path, count=2, size=24, supersample=1)
    found = read_captioned(tmp_path)
    assert [Path(str(one.path)).name for one in found] == ["heart-01.png", "heart-02.png"]
    assert all("heart" in text for one in found for text in one.captions)


def test_a_finder_learns_and_is_what_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier(8).eval()
    with pytest.raises(InputError, match="knows the shape 'star'"):
        train_finder(classifier, "star")
    finder = train_finder(classifier, "heart", scenes=4, steps=3, batch=2, supersample=1)
    assert finder.narrow.weight.shape == ShapeFinder(8).narrow.weight.shape
    save_finder(finder, tmp_path / "one.safetensors", "heart", {})
    images = torch.rand(2, 3, 64, 64)
    again = find_shape(load_finder(tmp_path / "one.safetensors"), classifier, images)
    torch.testing.assert_close(again, find_shape(finder, classifier, images), atol=1e-3, rtol=0)
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    for name, words in (("none", "There is no finder"), ("other", "does not hold a finder")):
        with pytest.raises(ModelFilesError, match=words):
            load_finder(tmp_path / f"{name}.safetensors")
