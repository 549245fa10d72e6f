"""The soak test with CUDA kernels, on the CPU with tiny models: what it passes and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks import soak_gpu
from benchmarks._gpu.sizes import tiny
from benchmarks.soak_gpu import Differences, Subject

from calotype.acceleration import accelerated, pipeline
from calotype.acceleration.numbers import Amounts
from tests.unit.test_acceleration import Repeats


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setitem(accelerated._DEVICES, "cpu", Repeats)
    monkeypatch.setattr(pipeline, "KINDS", {"cpu"})
    return soak_gpu.sd15(torch.device("cpu"), torch.bfloat16, tiny(), away=6)


def test_pictures_with_adapters_and_without_pass_and_stale_strengths_do_not(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak_gpu.soak(subject, 12, 2, every=3, warm=6)
    said = capsys.readouterr().out
    assert "4 pictures compared" in said and "unet (UNet2DConditionModel): graphs" in said
    assert [line.split()[5] for line in said.splitlines()[1:3]] == ["3", "6"]  # captured, once for each shape
    accelerated.forget(subject.fast.unet)  # what repeats cannot be repeated with other layers
    monkeypatch.setattr(Amounts, "settle", lambda self, epoch, overall: 0)
    assert not soak_gpu.soak(replace(subject, away=None), 6, 2, every=3, warm=3)
    said = capsys.readouterr().out
    assert "unet (UNet2DConditionModel): graphs" in said
    assert float(said.split("at most ")[1].split()[0]) > 4


def test_errors_decide_where_they_are_known() -> None:
    zero = torch.zeros(1, 3, 4, 4)

    def right(limit: float, **each: float) -> bool:
        found = Differences(limit)
        found.add({name: zero + value for name, value in each.items()})
        return found.right

    assert not Differences(1.0).right  # nothing was compared
    assert right(0.1, fast=0.05, plain=0.0) and not right(0.1, fast=0.2, plain=0.0)
    assert right(0, fast=0.1, plain=-0.1, right=0.0)
    assert not right(0, fast=0.13, plain=0.1, right=0.0)  # farther from what is right
    assert not right(0, fast=-0.1, plain=0.04, right=0.0)
