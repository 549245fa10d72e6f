"""The renderer: distances are lower bounds, depth and ids are exact, colours stay themselves."""

from __future__ import annotations

import math

import pytest
import torch

from calotype.core.errors import InputError
from calotype.pocket.renderer import SKY_DEPTH, compiled_renderer, render
from calotype.pocket.scene import EYE, TARGET, ObjectSpec, concatenate, make_scene, sample_scenes
from calotype.pocket.sdf import FORMS, nearest_object, pack_bodies, scene_distance
from calotype.pocket.vec3 import Vec3
from calotype.pocket.vocabulary import COLORS, EVERY_SHAPE, FLOORS, SKIES


def packed_of(scenes):
    return pack_bodies(scenes.shape, scenes.position, scenes.scale, scenes.yaw, scenes.roll, scenes.present)


@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_distance_is_one_lipschitz_and_bounded_by_the_stated_sphere(shape):
    scene = make_scene([ObjectSpec(shape, "red", position=(0.0, 0.0), yaw=0.3)])
    packed, g = packed_of(scene), torch.Generator().manual_seed(0)
    a = torch.rand(1, 20000, 3, generator=g) * 4 - 2
    b = a + torch.randn(1, 20000, 3, generator=g) * 0.05
    da, db = (scene_distance(Vec3(*p.unbind(-1)), packed) for p in (a, b))
    assert ((da - db).abs() <= (a - b).norm(dim=-1) * 1.0001 + 1e-6).all()
    form, scale = FORMS[shape], 0.74
    center = torch.tensor([0.0, form.base * scale, 0.0])
    inside = da < 0
    assert inside.any()
    assert ((a - center).norm(dim=-1)[inside] <= form.bound * scale + 1e-4).all()
    heights = a[..., 1][inside]
    assert heights.min() >= -1e-3
    assert heights.max() <= (form.base + form.top) * scale + 1e-3


def test_sphere_distance_is_exact():
    scene = make_scene([ObjectSpec("sphere", "red", "big", position=(0.4, -0.3))])
    p = torch.randn(1, 1000, 3, generator=torch.Generator().manual_seed(1)) * 2
    radius = 0.95 * 1.04
    expected = (p - torch.tensor([0.4, radius, -0.3])).norm(dim=-1) - radius
    found, slot = nearest_object(Vec3(*p.unbind(-1)), packed_of(scene))
    assert torch.allclose(found, expected, atol=1e-5)
    assert (slot == 0).all()


def axial(point):
    forward = torch.tensor(TARGET) - torch.tensor(EYE)
    return ((torch.tensor(point) - torch.tensor(EYE)) * forward / forward.norm()).sum().item()


def test_depth_of_floor_and_sphere_is_exact():
    size = 65
    scene = make_scene([ObjectSpec("sphere", "red", "big", position=(0.0, 0.5))])
    shot = render(scene, size, 1)
    assert shot.depth[0, 0, 0, 0].item() == SKY_DEPTH
    # the lowest middle pixel looks at the floor: intersect by hand
    eye, target = torch.tensor(EYE), torch.tensor(TARGET)
    forward = (target - eye) / (target - eye).norm()
    up = torch.tensor([0.0, forward[2].item() * -1, forward[1].item()])
    t = math.tan(math.radians(20))
    low = -(1 - 1 / size) * t
    direction = forward + low * up
    distance = -eye[1] / direction[1]
    assert shot.depth[0, 0, -1, size // 2].item() == pytest.approx(distance.item(), rel=1e-4)
    ball = torch.tensor([0.0, 0.95 * 1.04, 0.5])
    row = round((1 - ((ball - eye) @ up) / ((ball - eye) @ forward) / t).item() / 2 * size - 0.5)
    assert shot.object_id[0, 0, row, size // 2].item() == 1
    expected = axial(ball.tolist()) - 0.95 * 1.04
    assert shot.depth[0, 0, row, size // 2].item() == pytest.approx(expected, abs=0.02)
    normal = shot.normal[0, :, row, size // 2]
    assert (normal @ -forward).item() > 0.99


def test_object_ids_depth_and_edges_agree():
    scenes = sample_scenes(6, torch.Generator().manual_seed(4), "all")
    shot = render(scenes, 64, 1)
    for i, record in enumerate(scenes.records()):
        assert shot.object_id[i].unique().tolist() == list(range(len(record.objects) + 1))
    on_object = shot.object_id > 0
    lengths = shot.normal.norm(dim=1, keepdim=True)
    assert torch.allclose(lengths[on_object], torch.ones(1).expand_as(lengths[on_object]), atol=1e-4)
    assert (shot.depth[on_object] < 12).all()
    assert shot.rgb.min() >= 0 and shot.rgb.max() <= 1
    assert 0.01 < shot.edges.mean() < 0.25
    # outlines: wherever the id changes to the right there is an edge
    change = shot.object_id[..., 1:] != shot.object_id[..., :-1]
    assert (shot.edges[..., :-1][change] == 1).all()


def test_nearer_object_hides_farther_one():
    scene = make_scene(
        [
            ObjectSpec("sphere", "red", "small", position=(0.0, 2.0)),
            ObjectSpec("cube", "blue", "big", position=(0.0, -1.0), yaw=0.0),
        ]
    )
    ids = render(scene, 64, 1).object_id[0, 0]
    ball = (ids == 1).nonzero().float().mean(0).round().long()
    assert ids[ball[0], ball[1]] == 1
    alone = render(
        make_scene([ObjectSpec("cube", "blue", "big", position=(0.0, -1.0), yaw=0.0)]), 64, 1
    ).object_id[0, 0]
    assert ((alone == 1) & (ids == 1)).any()


@pytest.mark.parametrize("sky", SKIES)
@pytest.mark.parametrize("material", ["matte", "shiny", "metal"])
def test_colours_keep_their_hue(sky, material):
    """In every light and material the mean colour of a ball is nearest to its own kind's channel order."""
    names = ("red", "green", "blue")
    scenes = concatenate(
        [make_scene([ObjectSpec("sphere", c, "big", material)], sky=sky, floor="tiles") for c in names]
    )
    shot = render(scenes, 48, 1)
    for i in range(3):
        mean = shot.rgb[i][:, shot.object_id[i, 0] == 1].mean(1)
        assert mean.argmax().item() == i
        assert mean.max() > 1.25 * mean.sort().values[1]


def test_all_ten_colours_are_apart_in_every_sky():
    for sky in SKIES:
        scenes = concatenate(
            [make_scene([ObjectSpec("sphere", c, "big")], sky=sky, floor="wood") for c in COLORS]
        )
        shot = render(scenes, 40, 1)
        means = torch.stack([shot.rgb[i][:, shot.object_id[i, 0] == 1].mean(1) for i in range(len(COLORS))])
        apart = torch.cdist(means, means) + torch.eye(len(COLORS))
        assert apart.min() > 0.085, (sky, apart.min())


def test_shadow_darkens_the_floor_away_from_the_light():
    lit = make_scene([ObjectSpec("sphere", "red", "big", position=(0.0, 0.0))], floor="snow", light=(90, 35))
    ids_free = make_scene(
        [ObjectSpec("sphere", "red", "big", position=(0.0, -30.0))], floor="snow", light=(90, 35)
    )
    with_ball, without = render(lit, 96, 1), render(ids_free, 96, 1)
    floor = (with_ball.object_id == 0)[0, 0] & (without.depth[0, 0] < 12)
    change = (with_ball.rgb - without.rgb).mean(1)[0]
    left, right = floor.clone(), floor.clone()
    left[:, 48:], right[:, :48] = False, False
    assert change[left].min() < -0.15
    assert change[left].sum() < 3 * change[right].sum()


def test_floors_and_skies_look_different():
    thing = [ObjectSpec("sphere", "red", "small")]
    floors = torch.cat([render(make_scene(thing, floor=f), 48, 1).rgb[:, :, -16:] for f in FLOORS])
    skies = torch.cat([render(make_scene(thing, sky=s), 48, 1).rgb[:, :, :8] for s in SKIES])
    for pictures in (floors, skies):
        means = pictures.mean((2, 3))
        assert (torch.cdist(means, means) + torch.eye(len(means))).min() > 0.06


def test_parts_and_whole_agree_and_memory_is_bounded(monkeypatch):
    scenes = sample_scenes(5, torch.Generator().manual_seed(8), "all")
    whole = render(scenes, 24, 2)
    monkeypatch.setattr("calotype.pocket.renderer.RAYS_AT_A_TIME_CPU", 2 * 48 * 48)
    parts = render(scenes, 24, 2)
    for name in ("rgb", "depth", "normal", "object_id", "edges"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)), name


def test_supersampling_converges():
    scene = make_scene([ObjectSpec("star", "yellow"), ObjectSpec("torus", "blue")])
    coarse, fine, finest = (render(scene, 32, n).rgb for n in (1, 2, 6))
    assert (fine - finest).abs().mean() < 0.7 * (coarse - finest).abs().mean()


@pytest.mark.parametrize(("size", "supersample"), [(0, 1), (4096, 1), (64, 0), (64, 9)])
def test_sizes_out_of_bounds_are_refused(size, supersample):
    scene = make_scene([ObjectSpec("cube", "red")])
    with pytest.raises(InputError, match="must be 1 to"):
        render(scene, size, supersample)
    with pytest.raises(InputError, match="must be 1 to"):
        compiled_renderer(size, supersample)


def test_stages_compile_to_graphs_without_breaks(monkeypatch):
    """torch.compile traces every stage whole (the backend here runs the graph as it is, so no C++ is built)."""
    from dataclasses import fields

    from calotype.pocket import renderer

    monkeypatch.setattr(renderer, "_STRIDE", 1)  # half as much to trace, the same steps
    plain = renderer._PLAIN
    traced = renderer._Stages(
        *(
            torch.compile(getattr(plain, f.name), backend="eager", fullgraph=True, dynamic=False)
            for f in fields(plain)
        )
    )
    scenes = sample_scenes(3, torch.Generator().manual_seed(1), "all")
    found = renderer._render(scenes, 16, 2, traced, 2)
    expected = render(scenes, 16, 2)
    assert found.rgb.shape == (3, 3, 16, 16)
    assert torch.allclose(found.rgb, expected.rgb, atol=1e-5)
    assert torch.equal(found.object_id, expected.object_id)
