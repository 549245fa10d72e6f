"""How a map is divided among clusters: everything is taken once, there is room for it, and groups are whole."""

from __future__ import annotations

import importlib.util
import re
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from calotype.acceleration.kernels import group_norm_cluster as cluster

SHARED = 227 * 1024  # bytes near a processor of an H100

SIDES = {64: (320, 640, 960), 32: (320, 640, 960, 1280, 1920), 16: (640, 1280, 1920, 2560), 8: (1280, 2560)}
LARGE = {64: (320, 640, 960, 1280, 1920), 32: (640, 1280, 1920, 2560)}
MAPS = {
    *((side, channels) for sides in (SIDES, LARGE) for side, some in sides.items() for channels in some),
    (128, 512), (9, 128), (1, 256), (17, 1280),
}  # fmt: skip


def walk(plan: cluster.Plan, size: int, width: int) -> tuple[Any, Any]:
    """How often each (pixel, channel) of a slice is taken, and by how many each group's statistics are found."""
    channels = plan.vectors * cluster.VECTOR
    taken = np.zeros((size, channels), dtype=int)
    counted = np.zeros(plan.groups, dtype=int)
    thread = np.arange(plan.threads)
    row, vector = thread // plan.vectors, thread % plan.vectors
    for rank in range(plan.programs):
        begin = rank * plan.share
        own = min(max(size - begin, 0), plan.share)
        mine = np.where((row < plan.rows) & (row < own), (own - row + plan.rows - 1) // plan.rows, 0)
        assert mine.max() <= plan.slots
        for slot in range(plan.slots):
            has = mine > slot
            pixel = begin + slot * plan.rows + row[has]
            for lane in range(cluster.VECTOR):
                np.add.at(taken, (pixel, vector[has] * cluster.VECTOR + lane), 1)
        # two groups at most meet in a vector: the first one's channels are those inside
        first = cluster.VECTOR * vector // width
        inside = np.minimum((first + 1) * width - cluster.VECTOR * vector, cluster.VECTOR)
        np.add.at(counted, first, inside * mine)
        second = inside < cluster.VECTOR
        assert np.all(cluster.VECTOR - inside[second] <= width)
        np.add.at(counted, first[second] + 1, (cluster.VECTOR - inside[second]) * mine[second])
    return taken, counted


@pytest.mark.parametrize("given", sorted(MAPS))
@pytest.mark.parametrize("batch", [2, 16])
def test_everything_is_taken_once_and_is_near(given: tuple[int, int], batch: int) -> None:
    side, channels = given
    size, width = side * side, channels // 32
    plan = cluster.plan_of(batch, size, channels, 32, 132, SHARED)
    assert plan is not None
    assert plan.groups * width == plan.vectors * cluster.VECTOR
    assert 32 % plan.groups == 0
    assert 2 * plan.groups * width >= cluster.NARROWEST
    assert plan.threads % cluster.WARP == 0
    assert plan.vectors <= plan.threads <= cluster.EVEN
    assert plan.programs in (2, 4, 8)  # never one alone
    assert plan.bytes <= cluster.rounded(plan.bytes, SHARED) <= SHARED
    taken, counted = walk(plan, size, width)
    assert np.all(taken == 1)
    assert np.all(counted == size * width)


def test_fewer_threads_than_vectors_of_whole_warps_leave_some_idle() -> None:
    plan = cluster.divided(50, 320, 32, 4, 2, 64)
    assert plan is not None
    assert (plan.threads, plan.rows) == (64, 12)
    taken, counted = walk(plan, 50, 10)
    assert np.all(taken == 1)
    assert np.all(counted == 500)


@pytest.mark.parametrize(
    "given",
    [
        (128 * 128, 960, 32),  # 3.9 MB in the narrowest slice
        (128 * 128, 320, 32),  # 165 KiB a program, which is slower
        (1024 * 1024, 128, 32),
        (256 * 256, 256, 32),  # only in runs of 16 bytes
        (64, 64, 32),  # two channels in each group: a vector meets four
        (64, 4 * 33, 33),  # no whole vectors
        (64, 100, 32),
    ],
)
def test_what_does_not_fit_is_left_to_three_launches(given: tuple[int, ...]) -> None:
    assert cluster.plan_of(2, *given, 132, SHARED) is None


def test_memory_is_asked_for_in_few_sizes() -> None:
    sizes = {cluster.rounded(needed, SHARED) for needed in range(0, SHARED + 1, 128)}
    assert len(sizes) == 8
    for needed in range(0, SHARED + 1, 1024):
        given = cluster.rounded(needed, SHARED)
        assert needed <= given <= SHARED
        assert cluster.fitting(given, SHARED) == min(cluster.fitting(needed, SHARED), 8)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the kernel is given by name, on a CPU that pretends to be an H100."""
    found: dict[str, Any] = {}
    code = (resources.files("calotype.acceleration.cuda") / "group_norm.cu").read_text()
    signature = re.search(r"group_norm\((.*?)\) \{", code, re.DOTALL)
    assert signature is not None
    names = [one.split()[-1] for one in signature[1].split(",")]

    def launch(source: Any, grid: Any, threads: int, args: Any, **how: Any) -> None:
        found.update(zip(names, args, strict=True))

    for name, stub in {"available": True, "processors": 132, "shared_memory": SHARED}.items():
        monkeypatch.setattr(cluster, name, lambda device, stub=stub: stub)
    monkeypatch.setattr(cluster, "launch", launch)
    cluster._plan.cache_clear()
    yield found
    cluster._plan.cache_clear()


def test_the_kernel_is_told_where_the_second_map_is_and_begins(launched: dict[str, Any]) -> None:
    last = torch.channels_last
    x, beside = (
        torch.zeros(2, n, 16, 16, dtype=torch.bfloat16).contiguous(memory_format=last) for n in (640, 320)
    )
    weight = torch.zeros(960, dtype=torch.bfloat16)
    given = weight, weight, weight, weight

    def fit(x: torch.Tensor, beside: torch.Tensor) -> bool:
        return cluster.fit(x, 32, *given, beside=beside)

    assert fit(x, beside)
    assert not fit(x, beside.half())
    assert not fit(x, beside.contiguous())
    assert not fit(x.contiguous(), beside)
    assert not fit(x[:, :20].contiguous(memory_format=last), x[:, :300].contiguous(memory_format=last))
    shifted = torch.zeros(beside.numel() + 1, dtype=torch.bfloat16)[1:].view(2, 16, 16, 320)
    assert not fit(x, shifted.permute(0, 3, 1, 2))
    y = cluster.fused(x, 32, weight, weight, 1e-5, True, weight, weight, 0, beside=beside)
    assert (y.shape, y.is_contiguous(memory_format=last)) == ((2, 960, 16, 16), True)
    assert launched["x"] is x and launched["other_map"] is beside and launched["y"] is y
    assert (launched["first"], launched["channels"], launched["width"], launched["size"]) == (
        640,
        960,
        30,
        256,
    )
    y = cluster.fused(x, 32, weight, weight, 1e-5, True, weight, weight, 0)
    assert (launched["first"], launched["channels"], y.stride()) == (640, 640, x.stride())
