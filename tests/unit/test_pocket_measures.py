"""What the benchmark of the pocket family measures with: each measure on cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks._pocket_family.judges import correlation, edge_f1, frechet, iou, nearest, psnr
from benchmarks._pocket_family.table import Measure, lines, mean, share
from benchmarks._pocket_family.tasks import disparity_pictures, holes, inside
from benchmarks._pocket_family.world import World, as_pictures, as_tensor, rendered, sentences

from calotype.core.errors import ModelFilesError
from calotype.pocket.classifier import Reading
from calotype.pocket.labels import SEGMENTS
from calotype.pocket.scene import ObjectSpec, make_scene
from calotype.pocket.segmenter import Segmenter, load_segmenter, save_segmenter, segment_pictures
from calotype.pocket.vocabulary import COLORS, SHAPES


@pytest.fixture(scope="module")
def world() -> World:
    """A red ball in the middle."""
    return rendered(
        make_scene([ObjectSpec("sphere", "red", size="big")], "grass", "day"), "cpu", supersample=1
    )


def test_edges_are_found_within_a_pixel() -> None:
    asked = np.zeros((32, 32), dtype=bool)
    asked[:, 10] = True
    assert edge_f1(asked, asked) == 1.0
    assert edge_f1(np.roll(asked, 1, axis=1), asked) == 1.0
    assert edge_f1(np.roll(asked, 2, axis=1), asked) == 0.0
    both = asked | np.roll(asked, 9, axis=1)
    assert edge_f1(both, asked) == pytest.approx(2 / 3)
    assert edge_f1(np.zeros_like(asked), asked) == 0.0


def test_correlation_ignores_scale_and_offset() -> None:
    maps = torch.rand((2, 8, 8), generator=torch.Generator().manual_seed(0))
    assert correlation(3 * maps + 1, maps) == pytest.approx([1, 1])
    assert correlation(-maps, maps) == pytest.approx([-1, -1])


def test_iou_is_the_mean_over_what_was_asked_for() -> None:
    asked = torch.zeros((1, 4, 4), dtype=torch.uint8)
    asked[:, :, 2:] = 1
    assert iou(asked, asked) == [1.0]
    shifted = torch.zeros_like(asked)
    shifted[:, :, 3:] = 1
    assert iou(shifted, asked) == pytest.approx([(8 / 12 + 4 / 8) / 2])


def test_psnr_of_a_known_error() -> None:
    zero = torch.zeros(1, 3, 4, 4)
    assert psnr(zero + 0.1, zero) == pytest.approx([20.0], abs=1e-4)


def test_frechet_distance_of_gaussians() -> None:
    noise = torch.randn((4000, 3), generator=torch.Generator().manual_seed(0)).double()
    assert frechet(noise, noise) == pytest.approx(0, abs=1e-6)
    assert frechet(noise + torch.tensor([2.0, 0, 0]), noise) == pytest.approx(4, abs=1e-6)
    # twice as wide in each of three dimensions: (2 - 1)^2 of each variance
    assert frechet(2 * noise, noise) == pytest.approx(
        float(noise.mean(0).square().sum() + noise.var(0).sum())
    )
    assert nearest(noise[:2] + 0.01, noise).max() < 0.02


def test_a_table_says_which_bars_are_met() -> None:
    measures = [
        share("a", "right", [True, True, False], 60.0),
        mean("a", "score", [0.2, 0.4], "", 0.5),
        Measure("b", "lost", 4.0, "%", bar=5.0, at_most=True),
        Measure("b", "shown", 1.0, "dB"),
    ]
    assert [one.met for one in measures] == [True, False, True, None]
    table = lines(measures)
    assert len({len(line) for line in table}) == 1
    assert "66.7 %" in table[2] and "2 of 3" in table[2] and "| yes |" in table[2]
    assert "0.300" in table[3] and ">= 0.5" in table[3] and "NO" in table[3] and "<= 5" in table[4]


def test_a_scene_is_spoken_of_in_its_own_or_in_other_colors(world: World) -> None:
    own, other = (sentences(world.scenes, 0, recolor)[0] for recolor in (False, True))
    assert (own.shape, own.color, own.floor, own.sky) == ("sphere", "red", "grass", "day")
    assert "red" in own.text and other.color != "red" and other.color in other.text
    assert (world.segments == SEGMENTS.index("sphere")).equal(world.instances == 2)
    assert as_tensor(as_pictures(world.pictures)).equal(world.pictures)
    nearest_pixel = np.asarray(disparity_pictures(world.depth)[0])
    assert nearest_pixel[0, 0, 0] == 0 and nearest_pixel.max() == 255


def test_an_object_counts_in_the_hole_and_not_beside_it(world: World) -> None:
    hole = holes(world, 0)[0]
    shown = world.instances[0] == 2
    assert hole.mask(128)[shown.numpy()].min() == 255
    x, y = (hole.box[0] + hole.box[2]) / 128 - 1, 1 - (hole.box[1] + hole.box[3]) / 128
    color, shape = COLORS.index(hole.prompt.color), SHAPES.index(hole.prompt.shape)

    def read(at: tuple[float, float], color: int, shape: int) -> Reading:
        ids = torch.tensor([[[color, -1, -1], [shape, -1, -1]]])
        empty, center = torch.zeros(1), torch.zeros(1, 3, 2)
        center[0, 0] = torch.tensor(at)
        return Reading(torch.ones(1), ids[:, 1], ids[:, 0], empty, empty, center, empty, empty)

    assert inside(read((x, y), color, shape), 0, hole, 128) == (True, True)
    assert inside(read((x, y), color, (shape + 1) % 9), 0, hole, 128) == (True, False)
    assert inside(read((-0.99, 0.99), color, shape), 0, hole, 128) == (False, False)


def test_a_segmenter_is_what_was_saved(tmp_path: Path, world: World) -> None:
    segmenter = Segmenter((8, 8, 16)).eval()
    save_segmenter(segmenter, tmp_path / "one.safetensors")
    again = load_segmenter(tmp_path / "one.safetensors")
    read = segment_pictures(again, world.pictures)
    assert read.shape == (1, 128, 128) and read.dtype == torch.uint8
    assert (read == segment_pictures(segmenter, world.pictures)).float().mean() > 0.98
    (tmp_path / "other.safetensors").write_bytes(b"no weights")
    for name, words in (("none", "There is no segmenter"), ("other", "does not hold a segmenter")):
        with pytest.raises(ModelFilesError, match=words):
            load_segmenter(tmp_path / f"{name}.safetensors")
