"""Scenes: ids in range, nothing intersects, splits keep their promise."""

from __future__ import annotations

import pytest
import torch

from calotype.core.errors import InputError
from calotype.pocket.labels import labels_of
from calotype.pocket.placement import heights
from calotype.pocket.scene import ObjectSpec, concatenate, make_scene, sample_scenes
from calotype.pocket.sdf import form_table, pack_bodies, scene_distance
from calotype.pocket.vec3 import Vec3
from calotype.pocket.vocabulary import COLORS, FLOORS, HELD_OUT, MATERIALS, SHAPES, SIZES, SKIES


def drawn(n: int = 512, seed: int = 0, split: str = "train"):
    return sample_scenes(n, torch.Generator().manual_seed(seed), split)


def test_every_attribute_occurs_and_main_object_is_present():
    scenes = drawn(2048)
    seen = scenes.present
    for ids, names in (
        (scenes.shape, SHAPES),
        (scenes.color, COLORS),
        (scenes.size, SIZES),
        (scenes.material, MATERIALS),
    ):
        assert ids[seen].unique().tolist() == list(range(len(names)))
    assert scenes.floor.unique().tolist() == list(range(len(FLOORS)))
    assert scenes.sky.unique().tolist() == list(range(len(SKIES)))
    assert seen[:, 0].all()
    assert seen.sum(1).unique().tolist() == [1, 2, 3]
    assert torch.allclose(scenes.light.norm(dim=1), torch.ones(2048))
    assert (scenes.light[:, 1] > 0).all()


def test_same_seed_same_scenes():
    a, b, c = drawn(64, 5), drawn(64, 5), drawn(64, 6)
    assert torch.equal(a.position, b.position) and torch.equal(a.color, b.color)
    assert not torch.equal(a.position, c.position)


def test_objects_stand_apart():
    """Of many points in space none is inside two objects."""
    scenes = drawn(256, 1)
    packed = pack_bodies(scenes.shape, scenes.position, scenes.scale, scenes.yaw, scenes.roll, scenes.present)
    g = torch.Generator().manual_seed(0)
    depth = torch.full((256, 1500), 1e9)
    second = depth.clone()
    p = torch.rand(256, 1500, 3, generator=g) * torch.tensor([5.0, 3.0, 4.4]) - torch.tensor([2.5, 0.0, 2.4])
    point = Vec3(*p.unbind(-1))
    for k in range(3):
        only = packed.clone()
        for other in range(3):
            if other != k:
                only[:, other, 7] = 1.0  # the flag `absent`
        distance = scene_distance(point, only)
        second = torch.minimum(second, torch.maximum(depth, distance))
        depth = torch.minimum(depth, distance)
    assert (depth < 0).any()
    assert (second > -0.03).all()


def test_objects_are_in_the_frame_and_stand_on_something():
    scenes = drawn(1024, 2)
    x, _, depth = scenes.screen()
    width = (
        form_table("width")[scenes.shape]
        * scenes.scale
        / (depth * torch.tan(torch.deg2rad(scenes.fov / 2))[:, None])
    )
    assert ((x.abs() + width)[scenes.present] < 1).all()
    assert ((width * 128)[scenes.present] > 12).all()
    on_floor = (scenes.support < 0) & scenes.present
    assert (scenes.position[..., 1][on_floor] == 0).all()
    stacked = scenes.support[:, 1] == 0
    assert stacked.any()
    expected = heights(scenes.shape, scenes.scale)[stacked, 0]
    assert torch.allclose(scenes.position[stacked, 1, 1], expected)
    assert (scenes.size[stacked, 1] <= scenes.size[stacked, 0]).all()


def test_splits_hold_out_combinations():
    held = {(SHAPES.index(s), COLORS.index(c)) for s, c in HELD_OUT}
    assert len(held) == len(SHAPES) and len({c for _, c in held}) == len(SHAPES)
    train, heldout = drawn(2048), drawn(2048, split="heldout")

    def pairs(scenes, slots):
        return {
            tuple(p) for k in slots for p in torch.stack((scenes.shape[:, k], scenes.color[:, k]), 1).tolist()
        }

    assert not pairs(train, range(3)) & held
    assert pairs(heldout, [0]) == held
    assert not pairs(heldout, [1, 2]) & held
    assert len(pairs(train, [0])) == len(SHAPES) * len(COLORS) - len(held)


def test_make_scene_spells_out():
    scene = make_scene(
        [
            ObjectSpec("cube", "red", "big"),
            ObjectSpec("sphere", "blue", on=0),
            ObjectSpec("star", "pink", position=(2, 1)),
        ],
        floor="sand",
        sky="night",
    )
    record = scene.records()[0]
    assert [o.shape for o in record.objects] == ["cube", "sphere", "star"]
    assert record.floor == "sand" and record.sky == "night"
    assert record.objects[1].support == 0
    assert record.objects[1].position[1] == pytest.approx(2 * 0.78 * 1.04, abs=1e-5)
    assert record.objects[2].position[::2] == (2.0, 1.0)


def test_tower_of_three_grows_upwards():
    tower = make_scene(
        [ObjectSpec("cube", "red"), ObjectSpec("cube", "blue", on=0), ObjectSpec("cone", "pink", on=1)]
    )
    ys = tower.position[0, :, 1].tolist()
    assert ys == pytest.approx([0.0, 1.56 * 0.74, 2 * 1.56 * 0.74], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_scene([ObjectSpec("teapot", "red")]), "no shape 'teapot'"),
        (lambda: make_scene([ObjectSpec("cube", "mauve")]), "no color 'mauve'"),
        (lambda: make_scene([]), "1 to 3 objects, not 0"),
        (lambda: make_scene([ObjectSpec("cube", "red", on=0)]), "does not come before"),
        (lambda: make_scene([ObjectSpec("cube", "red")], floor="lava"), "no floor 'lava'"),
        (lambda: sample_scenes(0), "at least 1"),
        (lambda: sample_scenes(1, split="test"), "no split 'test'"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_slicing_and_joining():
    scenes = drawn(10)
    parts = list(scenes.chunks(4))
    assert [len(p) for p in parts] == [4, 4, 2]
    joined = concatenate(parts)
    assert torch.equal(joined.position, scenes.position) and torch.equal(joined.light, scenes.light)


def test_labels_run_from_left_to_right_and_stacks_upwards():
    scene = make_scene(
        [
            ObjectSpec("sphere", "red", position=(1.5, 0)),
            ObjectSpec("cube", "blue", position=(-1.5, 0)),
            ObjectSpec("cone", "green", "small", on=1),
        ]
    )
    labels = labels_of(scene)
    assert [COLORS[i] for i in labels.color[0].tolist()] == ["blue", "green", "red"]
    one = labels_of(make_scene([ObjectSpec("star", "white")]))
    assert one.shape[0].tolist() == [SHAPES.index("star"), -1, -1]
    assert one.count.tolist() == [1]
    assert one.center[0, 0, 0].item() == pytest.approx(0.0, abs=1e-5)
