"""The classifier: it learns, reads what is there, survives a round trip to disk; judging counts rightly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from calotype.core.errors import InputError, ModelFilesError
from calotype.pocket.classifier import (
    GRID,
    AttributeClassifier,
    Maps,
    Reading,
    decode,
    load_classifier,
    main,
    read_pictures,
    save_classifier,
)
from calotype.pocket.classifier_training import (
    classifier_loss,
    evaluate_classifier,
    roughen,
    train_classifier,
)
from calotype.pocket.judging import judge, shares
from calotype.pocket.labels import labels_of
from calotype.pocket.prompts import Prompt
from calotype.pocket.renderer import render
from calotype.pocket.scene import ObjectSpec, make_scene, sample_scenes
from calotype.pocket.vocabulary import COLORS, FLOORS, SHAPES, SKIES


def perfect_maps(scenes) -> Maps:
    """What a network without fault would put out."""
    labels = labels_of(scenes)
    n = len(scenes)
    heat = torch.full((n, GRID, GRID), -9.0)
    shape, color = torch.zeros(n, len(SHAPES), GRID, GRID), torch.zeros(n, len(COLORS), GRID, GRID)
    for i in range(n):
        for k in range(int(labels.count[i])):
            x, y = labels.center[i, k].tolist()
            column, row = round((x + 1) * GRID / 2 - 0.5), round((1 - y) * GRID / 2 - 0.5)
            heat[i, row, column] = 5.0
            shape[i, labels.shape[i, k], row, column] = 9.0
            color[i, labels.color[i, k], row, column] = 9.0
    floor = torch.nn.functional.one_hot(labels.floor, len(FLOORS)).float()
    sky = torch.nn.functional.one_hot(labels.sky, len(SKIES)).float()
    return Maps(heat, shape, color, floor, sky)


def test_decoding_perfect_maps_gives_the_labels():
    scenes = sample_scenes(300, torch.Generator().manual_seed(0), "all")
    labels, found = labels_of(scenes), decode(perfect_maps(scenes))
    assert torch.equal(found.count, labels.count)
    assert torch.equal(found.shape, labels.shape)
    assert torch.equal(found.color, labels.color)
    assert torch.equal(found.floor, labels.floor)
    assert torch.equal(found.sky, labels.sky)
    present = labels.shape >= 0
    assert (found.center - labels.center)[present].abs().max() < 1.01 / GRID


def test_loss_is_least_at_the_truth():
    scenes = sample_scenes(16, torch.Generator().manual_seed(1), "all")
    labels, good = labels_of(scenes), perfect_maps(scenes)
    bad = Maps(good.heat.flip(2), good.shape, good.color, good.floor, good.sky)
    wrong_color = Maps(good.heat, good.shape, good.color.roll(1, 1), good.floor, good.sky)
    right = classifier_loss(good, labels)
    assert classifier_loss(bad, labels) > right + 0.1
    assert classifier_loss(wrong_color, labels) > right + 0.1


def test_roughened_labels_follow_the_picture():
    """The marked centre still lies on the object after mirroring, shifting and scaling."""
    scenes = sample_scenes(24, torch.Generator().manual_seed(2), "all")
    labels = labels_of(scenes)
    # pictures that are red discs at the centres: whatever happens to them, the centres must go along
    line = (torch.arange(128) + 0.5) / 64 - 1
    x, y = line[None, None, :], -line[None, :, None]
    pictures = torch.zeros(24, 3, 128, 128)
    for k in range(3):
        here = labels.shape[:, k, None, None] >= 0
        cx, cy = labels.center[:, k, 0, None, None], labels.center[:, k, 1, None, None]
        pictures[:, 0] += (((x - cx) ** 2 + (y - cy) ** 2) < 0.06**2) & here
    rough, moved = roughen(pictures.clamp(0, 1), labels, torch.Generator().manual_seed(0))
    mirrored = 0
    for i in range(24):
        for k in range(int(moved.count[i])):
            cx, cy = moved.center[i, k].tolist()
            column, row = round((cx + 1) * 64 - 0.5), round((1 - cy) * 64 - 0.5)
            assert rough[i, 0, row, column] > 0.5
        mirrored += not torch.equal(moved.shape[i], labels.shape[i])
    assert 0 < mirrored < 24
    assert (rough >= 0).all() and (rough <= 1).all()


def test_training_reduces_the_loss_and_evaluation_runs():
    torch.manual_seed(0)
    scenes = sample_scenes(4, torch.Generator().manual_seed(3), "all")
    images, labels = render(scenes, 128, 1).rgb, labels_of(scenes)
    classifier = AttributeClassifier(width=32)
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = classifier_loss(classifier(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    accuracy = evaluate_classifier(classifier, 4, supersample=1)
    assert set(accuracy) == {"count", "shape", "color", "floor", "sky", "order"}
    assert all(0 <= value <= 1 for value in accuracy.values())


def test_train_classifier_on_the_cpu_and_round_trip(tmp_path):
    classifier, record = train_classifier(
        1.0, "cpu", 3, batch_size=4, pool_size=8, render_batch=4, supersample=1
    )
    assert record["steps"] >= 1 and record["rendered"] >= 4 and record["seed"] == 3
    assert sum(p.numel() for p in classifier.parameters()) <= 1_000_000
    path = tmp_path / "classifier.safetensors"
    save_classifier(classifier, path, record)
    assert path.stat().st_size <= 2.5e6
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["training"])["seed"] == 3
    again = load_classifier(path)
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(again(images).floor, classifier(images).floor, atol=2e-2)
    assert [p.name for p in tmp_path.iterdir()] == ["classifier.safetensors"]


def test_other_sizes_are_resampled():
    classifier = AttributeClassifier(width=32).eval()
    reading = read_pictures(classifier, torch.rand(3, 3, 256, 256), batch_size=2)
    assert reading.count.shape == (3,) and reading.shape_probability.shape == (3, 3, len(SHAPES))


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(ModelFilesError, match="There is no classifier at"):
        load_classifier(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor")
    with pytest.raises(ModelFilesError, match=r"broken\.safetensors does not hold"):
        load_classifier(broken)


def test_training_time_must_be_positive():
    with pytest.raises(InputError, match="must be positive"):
        train_classifier(0, "cpu")


def test_command_line_needs_an_output(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--out" in capsys.readouterr().err


def reading_of(*objects: tuple[str, str], floor: str = "sand", sky: str = "day") -> Reading:
    scene = make_scene([ObjectSpec(shape, color) for shape, color in objects], floor, sky)
    return decode(perfect_maps(scene))


ASKED = Prompt("a red cube left of a blue cone", "cube", "red", "sand", "day", "cone", "blue", "left")


@pytest.mark.parametrize(
    ("objects", "color", "shape", "relation"),
    [
        ((("cube", "red"), ("cone", "blue")), True, True, True),
        ((("cone", "blue"), ("cube", "red")), True, True, False),
        ((("cube", "red"),), True, True, False),
        ((("cube", "green"), ("cone", "blue")), False, True, True),
        ((("sphere", "red"), ("cone", "pink")), True, False, True),
        ((("sphere", "green"), ("cone", "blue")), False, False, False),
        ((("cube", "red"), ("star", "white"), ("cone", "blue")), True, True, True),
    ],
)
def test_judging(objects, color, shape, relation):
    verdict = judge([ASKED], reading_of(*objects))[0]
    assert (verdict.color, verdict.shape, verdict.relation) == (color, shape, relation)
    assert verdict.floor and verdict.sky


def test_judging_floor_and_single_objects():
    alone = Prompt("a red cube on snow", "cube", "red", "snow", "day")
    verdicts = judge([alone], reading_of(("cone", "blue"), ("cube", "red")))
    assert verdicts[0].color and verdicts[0].shape and not verdicts[0].floor
    assert verdicts[0].relation is None
    assert shares(verdicts) == {
        "color": (1, 1),
        "shape": (1, 1),
        "floor": (0, 1),
        "sky": (1, 1),
        "relation": (0, 0),
    }
    with pytest.raises(InputError, match="2 prompts for 1 pictures"):
        judge([alone, alone], reading_of(("cone", "blue")))
