"""``calotype check`` finds what loading refuses, all of it at once, and the numbers that loading does not look at."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from calotype.cli.app import app
from tests.faults import configurations, weights
from tests.faults.fault import Fault, load, load_unet, untouched
from tests.tiny import stable_diffusion_folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("check") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def errors(folder: Path, *options: str) -> dict[str, str]:
    """The parts with errors and what was said, of a command that must have failed."""
    result = run(folder, "--json", *options)
    found = json.loads(result.stdout)
    said = {one["where"]: one["text"] for one in found["findings"] if one["level"] == "error"}
    assert result.exit_code == (1 if said else 0)
    return said


def test_a_sound_checkpoint(sound: Path) -> None:
    result = run(sound)
    assert result.exit_code == 0, result.output
    assert "No errors." in result.output
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert part in result.stdout
    assert run(sound / "unet").exit_code == 0


def test_everything_is_reported_not_only_the_first(folder: Path) -> None:
    weights.state(weights.UNET, lambda tensors: tensors["conv_in.bias"].fill_(float("inf")))(folder)
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"")
    (folder / "scheduler/scheduler_config.json").write_text("{")
    shutil.rmtree(folder / "tokenizer")
    said = errors(folder)
    assert set(said) == {"unet", "vae", "scheduler", "tokenizer"}
    assert "conv_in.bias in diffusion_pytorch_model.safetensors holds 32 values that are NaN" in said["unet"]
    assert "is empty" in said["vae"]
    assert "unet" not in errors(folder, "--fast")
    assert "Errors: 4." in run(folder).output


def test_variants_are_checked_as_well(folder: Path) -> None:
    good = folder / weights.UNET
    bad = folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    bad.write_bytes(good.read_bytes()[:-3])
    assert "is cut off" in errors(folder)["unet"]


OF_FILES = [
    fault
    for fault in (*weights.FAULTS, *configurations.CODE_FAULTS, *configurations.FAULTS)
    if fault.act in (load, load_unet) and fault.damage is not untouched and "pipeline" not in fault.name
]


@pytest.mark.parametrize("fault", OF_FILES, ids=lambda fault: fault.name)
def test_what_loading_refuses_is_found(fault: Fault, folder: Path) -> None:
    fault.damage(folder)
    if fault.name in ("no index", "a folder called index"):
        assert "holds neither a pipeline" in next(iter(errors(folder).values()))
        return
    assert errors(folder)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    assert "holds neither a pipeline" in next(iter(errors(tmp_path).values()))
    result = run("no/such-model")
    assert result.exit_code == 1
    assert "HF_HUB_OFFLINE is set" in result.stderr


def test_half_precision_is_read_as_it_is(folder: Path) -> None:
    weights.state(weights.UNET, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))(
        folder
    )
    assert errors(folder) == {}
    weights.state(weights.UNET, lambda tensors: tensors["conv_in.weight"].view(torch.int16)[0].fill_(0x7C01))(
        folder
    )
    assert "conv_in.weight" in errors(folder)["unet"]
