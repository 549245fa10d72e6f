"""Scenes that move: what they do is seen, named rightly, and read again from pictures."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calotype.core.errors import InputError
from calotype.pocket import captions as grammar
from calotype.pocket.classifier import load_classifier, read_pictures
from calotype.pocket.motion import (
    FRAMES,
    MOTIONS,
    ROLLING,
    SPINNING,
    MotionRecord,
    MovingScenes,
    is_held_out,
    sample_moving_scenes,
)
from calotype.pocket.motion_captions import VERBS, moments, motion_captions, vocabulary
from calotype.pocket.motion_judging import JUDGED, judge_motion, motion_prompts
from calotype.pocket.placement import heights, project
from calotype.pocket.renderer import render
from calotype.pocket.scene import SceneBatch, sample_scenes
from calotype.pocket.sdf import form_table, pack_bodies, scene_distance
from calotype.pocket.vec3 import Vec3
from calotype.pocket.vocabulary import SHAPES

CLASSIFIER = Path(__file__).parents[2] / "benchmarks" / "pocket_classifier.safetensors"
COUNT = 800
CAMERA = ("camera_left", "camera_right", "camera_in", "camera_out")


@pytest.fixture(scope="module")
def moving() -> MovingScenes:
    return sample_moving_scenes(COUNT, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def frames(moving: MovingScenes) -> SceneBatch:
    return moving.frames(FRAMES)


def of(moving: MovingScenes, *names: str) -> torch.Tensor:
    """bool [B]: which scenes have one of these motions."""
    return torch.isin(moving.motion, torch.tensor([MOTIONS.index(name) for name in names]))


def clips(values: torch.Tensor) -> torch.Tensor:
    """[B·F, …] -> [B, F, …]"""
    return values.unflatten(0, (-1, FRAMES))


def feet_and_tops(scenes: SceneBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each object x [N, 3] and y [N, 3, 2] on the picture, of its foot and top, and half its width [N, 3]."""
    tall = torch.zeros_like(scenes.position)
    tall[..., 1] = heights(scenes.shape, scenes.scale)
    x, foot, depth = scenes.screen()
    _, top, _ = project(scenes.position + tall, scenes.eye, scenes.target, scenes.fov)
    half = form_table("width")[scenes.shape] * scenes.scale
    return (
        x,
        torch.stack((foot, top), dim=-1),
        half / (depth * torch.tan(torch.deg2rad(scenes.fov / 2))[:, None]),
    )


def test_every_motion_and_speed_occurs_and_seeds_repeat(moving: MovingScenes) -> None:
    assert moving.motion.unique().tolist() == list(range(len(MOTIONS)))
    assert moving.speed.unique().tolist() == [0, 1, 2]
    again, other = (sample_moving_scenes(8, torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(again.start, sample_moving_scenes(8, torch.Generator().manual_seed(0)).start)
    assert not torch.equal(again.start, other.start)


def test_the_whole_way_lies_in_the_picture(moving: MovingScenes, frames: SceneBatch) -> None:
    x, y, half = (clips(value) for value in feet_and_tops(frames))
    steady = ~of(moving, *CAMERA)
    present = clips(frames.present)
    assert ((x.abs() + half)[steady][present[steady]] < 1).all()
    assert (y.abs()[steady][present[steady]] < 1).all()
    # a camera that turns or comes closer may cut off an edge, not what is looked at
    main = torch.cat((x[..., 0].abs()[..., None], y[..., 0, :].abs()), dim=-1)
    assert (main[~steady] < 1).all()


def test_nothing_is_run_into(moving: MovingScenes) -> None:
    """Of many points in space none is inside two objects, at any time."""
    pairs = moving[moving.scene.present[:, 1]][:120]
    assert pairs.motion.unique().numel() > 8
    scenes = pairs.frames(8)
    g = torch.Generator().manual_seed(0)
    # above the floor about the second object, where a collision would be
    box = torch.tensor([2.0, 2.5, 2.0])
    p = (torch.rand(len(scenes), 300, 3, generator=g) - torch.tensor([0.5, 0.0, 0.5])) * box
    p = p + scenes.position[:, 1, None]
    distances = []
    for k in (0, 1):
        alone = scenes.present & (torch.arange(3) == k)
        only = pack_bodies(scenes.shape, scenes.position, scenes.scale, scenes.yaw, scenes.roll, alone)
        distances.append(scene_distance(Vec3(*p.unbind(-1)), only))
    assert (distances[1] < 0).any()
    assert (torch.maximum(*distances) > -0.03).all()


def test_what_is_seen_is_what_the_name_says(moving: MovingScenes, frames: SceneBatch) -> None:
    x, y, depth = (clips(value)[..., 0] for value in frames.screen())
    place, yaw = clips(frames.position)[:, :, 0], clips(frames.yaw)[:, :, 0]
    way = {"x": x[:, -1] - x[:, 0], "y": y[:, -1] - y[:, 0], "depth": depth[:, -1] - depth[:, 0]}
    least = {
        "left": ("x", -0.3), "right": ("x", 0.3), "away": ("depth", 1.5), "closer": ("depth", -1.5),
        "fall": ("y", -0.2), "rise": ("y", 0.2), "camera_left": ("x", 0.1), "camera_right": ("x", -0.1),
        "camera_in": ("depth", -0.3), "camera_out": ("depth", 0.3),
    }  # fmt: skip
    for name, (along, bound) in least.items():
        found = way[along][of(moving, name)] * math.copysign(1, bound)
        assert (found > abs(bound)).all(), (name, found.min())
    moves = (place - place[:, :1]).norm(dim=-1).amax(dim=1) > 1e-3
    turns = (yaw - yaw[:, :1]).abs().amax(dim=1) > 1e-3
    assert not moves[of(moving, "still", "spin", *CAMERA)].any()
    assert moves[~of(moving, "still", "spin", *CAMERA)].all()
    assert torch.equal(turns, of(moving, "spin"))
    there_and_back = of(moving, "circle", "jump")
    assert ((place[:, -1] - place[:, 0]).norm(dim=-1)[there_and_back] < 1e-3).all()
    assert (place[of(moving, "jump"), :, 1].amax(dim=1) > 0.1).all()
    travels = (clips(frames.eye) - clips(frames.eye)[:, :1]).abs().amax(dim=(1, 2)) > 1e-4
    assert torch.equal(travels, of(moving, "camera_in", "camera_out"))


def test_nothing_jumps_from_frame_to_frame(moving: MovingScenes, frames: SceneBatch) -> None:
    """On the picture, of its half width; the quickest are three hops in sixteen frames."""
    x, y, _ = frames.screen()
    points = torch.stack((clips(x)[..., 0], clips(y)[..., 0]), dim=-1)
    step = points.diff(dim=1).norm(dim=-1).amax(dim=1)
    for name in MOTIONS:
        assert (step[of(moving, name)] < (0.75 if name == "jump" else 0.3)).all(), (name, step.max())


def test_what_rolls_turns_with_its_way(moving: MovingScenes, frames: SceneBatch) -> None:
    roll, x = clips(frames.roll)[:, :, 0], clips(frames.position)[:, :, 0, 0]
    rolls = of(moving, "left", "right") & torch.isin(
        moving.scene.shape[:, 0], torch.tensor([SHAPES.index(name) for name in ROLLING])
    )
    assert rolls.any() and (roll[~rolls] == 0).all()
    radius = (form_table("top")[frames.shape] * frames.scale)[:, 0].unflatten(0, (-1, FRAMES))
    torch.testing.assert_close(
        (roll * radius + x)[rolls], x[rolls][:, :1].expand(-1, FRAMES), atol=1e-4, rtol=0
    )
    assert [record.rolls for record in moving.records()][: COUNT // 2] == (
        rolls | (of(moving, "away", "closer") & (moving.scene.shape[:, 0] == SHAPES.index("sphere")))
    ).tolist()[: COUNT // 2]


def test_scenes_at_rest_are_not_rolled() -> None:
    """And a roll of zero changes no bit of a distance: 1·x - 0·y is x."""
    scenes = sample_scenes(32, torch.Generator().manual_seed(1))
    assert (scenes.roll == 0).all()
    point = Vec3(*(torch.rand(32, 50, 3, generator=torch.Generator().manual_seed(2)) * 2).unbind(-1))

    def distance(scenes: SceneBatch) -> torch.Tensor:
        return scene_distance(
            point,
            pack_bodies(scenes.shape, scenes.position, scenes.scale, scenes.yaw, scenes.roll, scenes.present),
        )

    plain = distance(scenes)
    spheres = replace(scenes, shape=torch.full_like(scenes.shape, SHAPES.index("sphere")))
    rolled = replace(spheres, roll=torch.full_like(scenes.roll, 1.3))
    torch.testing.assert_close(distance(rolled), distance(spheres))  # about the centre
    assert torch.equal(distance(replace(scenes, roll=-scenes.roll)), plain)
    assert not torch.allclose(distance(replace(scenes, roll=scenes.roll + 0.7)), plain)


def test_splits_share_no_combination() -> None:
    parts = {
        split: sample_moving_scenes(600, torch.Generator().manual_seed(4), split)
        for split in ("train", "heldout")
    }
    for split, moving in parts.items():
        held = is_held_out(moving.motion, moving.scene.shape[:, 0], moving.scene.color[:, 0])
        assert (held == (split == "heldout")).all()
        spinning = {SHAPES[i] for i in moving.scene.shape[of(moving, "spin"), 0].tolist()}
        assert spinning <= set(SPINNING)
    with pytest.raises(InputError, match="no split"):
        sample_moving_scenes(3, split="validation")
    with pytest.raises(InputError):
        sample_moving_scenes(0)


def test_captions_say_what_happens_in_known_words(moving: MovingScenes) -> None:
    known = set(grammar.vocabulary()) | set(vocabulary())
    rows = motion_captions(moving, 3, 2)
    assert rows == motion_captions(moving, 3, 2) and rows != motion_captions(moving, 4, 2)
    ways = {"left": "from right to left", "right": "from left to right"}
    for record, scene, row in zip(moving.records(), moving.scene.records(), rows, strict=True):
        for text in row:
            words = re.findall(r"[a-z0-9-]+", text)
            assert set(words) <= known, text
            assert_true(text, words, record, ways)
            assert scene.objects[0].shape == "sphere" or "ball" not in words or len(scene.objects) > 1, text
    assert {word for row in rows for text in row for word in text.replace(",", " ").split()} >= {
        "rolling", "slides", "camera", "falling", "video", "slowly", "quickly", "past", "spinning", "closer",
    }  # fmt: skip


def assert_true(text: str, words: list[str], record: MotionRecord, ways: dict[str, str]) -> None:
    camera = record.name.startswith("camera")
    assert ("camera" in words and not re.search("(from|towards) the camera", text)) == camera, text
    side = record.name.removeprefix("camera_")
    rest = re.sub("(left|right) of", "beside", text.replace(ways.get(side, "-"), side))
    for name in ("left", "right"):
        assert (name in rest.split() or f"{name}," in rest) == (name == side), text
    if not camera and record.name not in ("still", "circle"):
        verbs = {word for pair in VERBS[record.name] for verb in pair for word in verb[:2]}
        assert verbs & set(words), text
    if record.name != "still":
        fast, slow = bool({"fast", "quickly"} & set(words)), "slowly" in words
        assert not fast or record.speed == "fast", text
        assert not slow or record.speed == "slow", text
    assert record.rolls or not {"rolling", "rolls"} & set(words), text


def test_moments_are_pictures_of_the_way(moving: MovingScenes) -> None:
    scenes, texts = moments(moving[:60], 5)
    assert len(scenes) == len(texts) == 60
    low, high = (
        f(moving.frames(64)[:].position[: 60 * 64, 0].unflatten(0, (60, 64)), 1)
        for f in (torch.amin, torch.amax)
    )
    assert ((scenes.position[:, 0] >= low - 0.1) & (scenes.position[:, 0] <= high + 0.1)).all()
    assert texts == [row[0] for row in motion_captions(moving[:60], 5)]


def test_prompts_are_of_held_out_combinations() -> None:
    asked, moving = motion_prompts(60, 1)
    assert {prompt.motion for prompt in asked} == set(JUDGED)
    assert is_held_out(moving.motion, moving.scene.shape[:, 0], moving.scene.color[:, 0]).all()
    assert (moving.scene.present.sum(1) == 1).all()
    assert (asked, moving.motion.tolist()) == (
        motion_prompts(60, 1)[0],
        motion_prompts(60, 1)[1].motion.tolist(),
    )
    with pytest.raises(InputError, match="at least 1"):
        motion_prompts(0)


def test_the_judge_reads_motion_in_pictures() -> None:
    """Of rendered clips, of their first and last frame; played backwards and of another colour they are wrong."""
    asked, moving = motion_prompts(40, 2)
    chosen = [[prompt.motion for prompt in asked].index(name) for name in ("left", "right", "fall")]
    asked, moving = [asked[i] for i in chosen], moving[torch.tensor(chosen)]
    pictures = render(moving.frames(2), supersample=1).rgb
    classifier = load_classifier(CLASSIFIER, "cpu")
    reading = read_pictures(classifier, pictures)
    verdicts = judge_motion(asked, reading, 2)
    assert all(verdict.direction and verdict.color for verdict in verdicts), verdicts
    backwards = read_pictures(classifier, pictures.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
    assert not any(verdict.direction for verdict in judge_motion(asked, backwards, 2))
    others = [replace(prompt, color="white" if prompt.color != "white" else "red") for prompt in asked]
    assert not any(verdict.color for verdict in judge_motion(others, reading, 2))
    with pytest.raises(InputError, match="6 readings for 3 clips of 3 frames"):
        judge_motion(asked, reading, 3)


def test_captions_of_a_given_detail_name_the_floor() -> None:
    from calotype.pocket.motion_captions import motion_caption

    moving = sample_moving_scenes(30, torch.Generator().manual_seed(6))
    rng = random.Random(0)

    def length(detail: float) -> float:
        rows = zip(moving.scene.records(), moving.records(), strict=True)
        return sum(len(motion_caption(scene, motion, rng, detail)) for scene, motion in rows)

    assert length(1.0) > 1.5 * length(0.0)
