"""Whatever the bytes are, reading gives what is in them or an error of the library, and never anything else."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import calotype
from calotype.core.config import Config, freeze, read_json
from calotype.core.errors import CalotypeError, ModelFilesError
from calotype.core.safetensors_header import read_header
from calotype.core.weights import read_index
from tests.tiny import UNET

QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)

JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = some.integers(-4, 40) | some.sampled_from([2**31, 2**63, 2**70])
ENTRY = some.fixed_dictionaries(
    {
        "dtype": some.sampled_from(["F32", "F16", "I64", "U8", "BOOL", "F4", "X"]) | JSON,
        "shape": some.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": some.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)


def file_of(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def read(path: Path) -> dict[str, Any] | None:
    """What the header holds; None where it is refused in a sentence about this file."""
    try:
        return read_header(path)
    except ModelFilesError as error:
        assert str(path) in str(error)
        return None


def check_against_the_library(path: Path) -> None:
    """What is accepted here the format's own reader accepts too, with the same names and shapes."""
    infos = read(path)
    if infos is None or any(info.dtype.startswith("F4") for info in infos.values()):
        return
    with safe_open(path, framework="pt") as theirs:
        assert set(theirs.keys()) == set(infos)
        for name, info in infos.items():
            assert tuple(theirs.get_slice(name).get_shape()) == info.shape


@QUICK
@given(data=some.binary(max_size=200))
def test_any_bytes_for_a_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    check_against_the_library(path)


@QUICK
@given(
    header=some.dictionaries(some.text(max_size=4), ENTRY | JSON, max_size=3), data=some.binary(max_size=40)
)
def test_any_header(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_of(json.dumps(header).encode(), data))
    check_against_the_library(path)


@QUICK
@given(
    shapes=some.dictionaries(
        some.text("abc.", min_size=1, max_size=5), some.lists(some.integers(0, 4), max_size=3), max_size=4
    ),
    place=some.floats(0, 1, exclude_max=True),
    byte=some.integers(0, 255),
)
def test_a_sound_file_with_one_byte_changed(tmp_path: Path, shapes: Any, place: float, byte: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    infos = read_header(path)
    assert {name: list(info.shape) for name, info in infos.items()} == shapes
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] = byte
    path.write_bytes(data)
    try:
        check_against_the_library(path)
    except SafetensorError as error:
        pytest.fail(f"accepted here and refused by the format's reader: {error}")


@QUICK
@given(data=some.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_a_configuration(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    for reader in (read_json, read_index):
        try:
            reader(path)
        except ModelFilesError as error:
            assert str(path) in str(error)


@QUICK
@given(value=some.dictionaries(some.text(max_size=8), JSON, max_size=4))
def test_a_configuration_is_frozen_and_keeps_what_it_was_given(value: dict[str, Any]) -> None:
    config = freeze(value)
    assert isinstance(config, Config)
    assert json.dumps(config) == json.dumps(value)
    for name in value:
        with pytest.raises(TypeError, match="frozen"):
            config[name] = 1


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    calotype.UNet2DConditionModel(**UNET).save_pretrained(folder)
    return folder


@settings(QUICK, max_examples=60)
@given(name=some.sampled_from(sorted(UNET)), value=JSON | NUMBERS | some.lists(NUMBERS, max_size=3))
def test_any_value_in_a_model_configuration(unet: Path, tmp_path: Path, name: str, value: Any) -> None:
    folder = tmp_path / "copy"
    if not folder.exists():
        shutil.copytree(unet, folder)
    config = json.loads((unet / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, name: value}))
    try:
        model = calotype.UNet2DConditionModel.from_pretrained(folder)
    except CalotypeError as error:
        assert str(error)
    else:
        assert model.state_dict().keys()
