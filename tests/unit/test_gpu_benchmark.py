"""The benchmark on a GPU: what its table says of what was measured, and its parts with tiny models on the CPU."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import gpu
from benchmarks._gpu import first, models, pictures
from benchmarks._gpu.bench import Bench
from benchmarks._gpu.memory import Peak, apart, tensors_of, together, weight_bytes
from benchmarks._gpu.report import COMPILED, OURS, REFERENCE, Measured, Report, Row, table
from benchmarks._gpu.sizes import tiny
from benchmarks._gpu.stock import Stock
from benchmarks._gpu.timing import Timer

import calotype


def row(ours: Measured, aim: float | None = 10.0, theirs: Measured | None = None) -> Row:
    return Row("part", "work", aim, 2.0, {REFERENCE: theirs or Measured(30, 29), OURS: ours})


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (Measured(10, 9, error=1.2, allocated=4.4, reserved=5.5), "met"),
        (Measured(11, 9, error=1.0, allocated=4.0, reserved=5.0), "missed: time"),
        (Measured(9, 8, error=1.3, allocated=4.5, reserved=5.6), "missed: error, memory, reserved"),
        (Measured(9, 8), "met"),
    ],
)
def test_a_row_says_which_aims_were_missed(ours: Measured, verdict: str) -> None:
    assert row(ours, theirs=Measured(30, 29, error=1.0, allocated=4.0, reserved=5.0)).verdict == verdict


def test_the_table_has_ratios_and_what_is_missing() -> None:
    good, left = row(Measured(10, 9)), Row("part", "other work", missing="no time")
    head, first_line, second_line, _ = table([good, left])
    assert "compiled" not in head
    assert first_line.split() == "work 2.0 30.0 10.0 9.0 3.00 10 - - - met".split()
    assert second_line.split() == "other work - - - - - - - - - no time".split()
    good.found[COMPILED] = Measured(12, 11)
    assert "12.0" in table([good])[1]
    assert row(Measured(10, 9), aim=None).verdict == "-"


def test_a_process_is_timed_from_its_start() -> None:
    said = {"imported": 103.0, "loaded": 105.0, "made": [109.0, 109.5, 109.7], "report": ""}
    picture, both = first.read(said, 100.0)
    assert (picture.middle, both.middle) == (9000, 4500)
    assert [round(value) for value in (picture.first or 0, picture.second or 0)] == [4000, 500]
    assert (picture.more["loaded"], picture.more["third"]) == ("5.00 s", "200")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "sd15,sd16"], "there is no part sd16"),
        (["--device", "cpu"], "--tiny alone"),
        (["--device", "cpu", "--tiny", "--only", "kernels"], "no kernels or attention"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *given])
    with pytest.raises(SystemExit):
        gpu.arguments()
    assert said in capsys.readouterr().err


def bench(out: Path, seconds: float = 600, hurried: bool = False) -> Bench:
    """With calotype in the reference's place, so that all results are equal."""
    device = torch.device("cpu")
    stock = Stock({REFERENCE: calotype, OURS: calotype}, tiny(), device, torch.bfloat16)
    return Bench(stock, Timer(device), Report(out, {}), time.perf_counter() + seconds, tiny=not hurried)


@pytest.fixture(scope="module", autouse=True)
def short() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "MOST", dict.fromkeys(pictures.MOST, (0.0, 1, 1)))
        patch.setattr(Timer, "steady", lambda self, function, seconds=0.0: [self.wall(function)])
        yield


@torch.no_grad()
def test_every_kind_of_part_runs_with_tiny_models(tmp_path: Path) -> None:
    one = bench(tmp_path / "found.json")
    models.decoding(one, "vae", "decode", 512, 30)
    models.unet(one, "sdxl", "xl_unet", "step", 2, 512, 25)
    pictures.measure(one, "turbo", "one")
    assert not one.report.failed, one.report.notes
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len(rows) == 3
    for found in rows:
        assert not found["missing"] and found["floor"] > 0
        theirs, ours = found["found"][REFERENCE], found["found"][OURS]
        assert 0 < theirs["error"] == ours["error"] < 0.2
        assert float(ours["more"]["apart"]) == 0


@torch.no_grad()
def test_the_control_picture_is_heard_and_weights_are_the_same(tmp_path: Path) -> None:
    stock = bench(tmp_path / "found.json").stock
    pair = stock.models("controlnet")
    assert stock.models("controlnet") is pair and pair[REFERENCE] is not pair[OURS]
    for name, tensor in pair[REFERENCE].state_dict().items():
        assert tensor.any(), f"{name} is all zeros"
        assert torch.equal(tensor, pair[OURS].state_dict()[name])
    size = sum(tensor.nbytes for tensor in pair[OURS].parameters())
    assert weight_bytes([pair[OURS], pair[OURS]]) == size


def addresses(model: torch.nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(model)}


@torch.no_grad()
def test_weights_are_brought_together_and_apart_unchanged(tmp_path: Path) -> None:
    one = bench(tmp_path / "found.json")
    model = one.stock.models("controlnet")[OURS]
    assert one.stock.all == [*one.stock.models("controlnet").values()]
    model.to(memory_format=torch.channels_last)
    whole = torch.cat([parameter.data for parameter in (model.time_embedding.linear_1.bias,) * 2])
    model.time_embedding.linear_1.bias.data = whole[: len(whole) // 2]  # part of a larger storage
    before, size = (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        weight_bytes([model]),
    )
    for move, count in ((together, 1), (apart, len(list(tensors_of(model))))):
        move(model)
        assert len(addresses(model)) == count
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) and tensor.is_contiguous()
    assert weight_bytes([model]) == size - whole.nbytes // 2
    kept = addresses(model)
    together(model)
    block = addresses(model)
    together(model)
    assert addresses(model) == block != kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_a_peak_is_the_same_whatever_lies_beside() -> None:
    def layers() -> torch.nn.Sequential:
        return torch.nn.Sequential(*(torch.nn.Linear(1500, 1500) for _ in range(40))).cuda().bfloat16()

    timer, other, model = Timer(torch.device("cuda")), layers(), layers()
    found = []
    for _ in range(3):
        peak = Peak(timer, [model], [other])
        model(torch.ones(60_000, 1500, device="cuda", dtype=torch.bfloat16))
        found.append(peak.gib())
        for one in (other, model):
            one.float().bfloat16()  # leaves free pieces between the weights
    used, held = zip(*found, strict=True)
    size = (weight_bytes([model]) + 3 * 60_000 * 3000) / 2**30
    assert max(used) - min(used) < 0.005 and max(held) - min(held) < 0.03
    assert size - 0.01 < min(used) < size + 0.1 and size - 0.01 < min(held) < size + 0.2


@torch.no_grad()
def test_what_there_is_no_time_for_and_what_fails_is_said(tmp_path: Path) -> None:
    late = bench(tmp_path / "found.json", 5, hurried=True)
    models.decoding(late, "vae", "decode", 512)
    pictures.measure(late, "turbo", "one")
    first.measure(late, "first")
    assert [found.verdict for found in late.report.rows] == ["no time"] * 6 and not late.report.failed
    broken = bench(tmp_path / "broken.json")
    broken.sizes.models["vae"][1]["norm_num_groups"] = 3
    models.decoding(broken, "vae", "decode", 512)
    assert broken.report.failed and broken.report.rows[0].verdict.startswith("reference failed: ")
