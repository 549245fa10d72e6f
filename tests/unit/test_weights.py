"""Files of tensors: what is refused, and what reading and writing cost."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from calotype.core.errors import InputError, ModelFilesError, WeightsError
from calotype.core.meta import on_meta
from calotype.core.safetensors_header import read_header
from calotype.core.saving import parse_size, plan_shards, save_state
from calotype.core.tensor_files import read_tensors
from calotype.core.weights import WeightFiles, fill, find_weights, with_variant


def _good(path: Path) -> bytes:
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int32)}, path)
    return path.read_bytes()


def test_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _good(path)
    infos = read_header(path)
    assert infos["a"].shape == (2, 3)
    assert infos["a"].dtype == "F32"
    assert infos["b"].nbytes == 8


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 335\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda good: b"", "is empty"),
        (lambda good: _LFS, "is a Git LFS pointer.*git lfs pull"),
        (lambda good: good[:5], "has only 5 bytes"),
        (lambda good: good[:40], "ends before its header does"),
        (lambda good: good[:-1], "is cut off"),
        (lambda good: b"PK\x03\x04" + bytes(60), "is a PyTorch pickle"),
        (lambda good: b"\x80\x02}q\x00." + bytes(60), "is a PyTorch pickle"),
        (lambda good: b"<!DOCTYPE html><html>" + bytes(60), "is a web page"),
        (lambda good: b"\xff" * 64, "does not begin with the length of a header"),
        (lambda good: struct.pack("<Q", 20) + b"this is not a header" + bytes(60), "header cannot be read"),
        (lambda good: struct.pack("<Q", 2) + b"[]" + bytes(60), "header cannot be read"),
        (lambda good: struct.pack("<Q", 12) + b'{"a": {"b":1' + bytes(60), "header cannot be read"),
        (lambda good: struct.pack("<Q", 8) + b'{"a": 1}' + bytes(60), "header cannot be read"),
    ],
)
def test_files_that_are_not_weights(tmp_path: Path, content, words: str) -> None:
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    path.write_bytes(content(_good(path)))
    with pytest.raises(ModelFilesError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_that_contradicts_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}  '
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(ModelFilesError, match="damaged safetensors file"):
        list(read_tensors(path, ["a"], lambda _, tensor: tensor))


def test_pickles_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for content, words in (
        (b"", "is empty"),
        (_LFS, "LFS"),
        (b"hello", "read safely"),
        (b"J}", "read safely"),  # a number of four bytes, cut off
        (b"<html>", "web page"),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFilesError, match=words):
            fill(nn.Linear(1, 1), WeightFiles((path,), "here"))
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ModelFilesError, match="mapping from names to tensors"):
        fill(nn.Linear(1, 1), WeightFiles((path,), "here"))


def test_nothing_is_assigned_when_something_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.ones(1, 1), "other": torch.ones(1)}, path)
    layer = nn.Linear(1, 1)
    before = layer.weight
    with pytest.raises(WeightsError, match="bias is missing; other is not part"):
        fill(layer, WeightFiles((path,), "here"))
    assert layer.weight is before
    assert not torch.equal(before, torch.ones(1, 1))


def test_unchanged_tensors_are_views_of_the_file_and_writable(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, path)
    with on_meta():
        layer = nn.Linear(2, 2)
    fill(layer, WeightFiles((path,), "here"))
    layer.weight.data.mul_(3)
    assert torch.equal(load_file(path)["weight"], torch.ones(2, 2))
    assert torch.equal(layer.weight, torch.full((2, 2), 3.0))


def test_keep_in_fp32(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"0.weight": torch.ones(2, 2), "1.weight": torch.ones(2, 2)}, path)
    with on_meta():
        layers = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    fill(layers, WeightFiles((path,), "here"), dtype=torch.float16, keep_in_fp32=("1",))
    assert [layer.weight.dtype for layer in layers] == [torch.float16, torch.float32]


def test_shards_with_one_missing(tmp_path: Path) -> None:
    state = {f"k{i}": torch.zeros(100) for i in range(3)}
    save_state(state, tmp_path, max_shard_size=400)
    (tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFilesError, match="has no diffusion_pytorch_model-00002-of-00003"):
        find_weights(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "no", '{"weight_map": {}}'])
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelFilesError, match="index"):
        find_weights(tmp_path)


def test_an_index_may_not_point_outside(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../../secret.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFilesError, match="outside its own folder"):
        find_weights(tmp_path)


def test_the_older_names_of_sharded_variants(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model-00001-of-00001.fp16.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00001.fp16.safetensors"}}
    (tmp_path / "diffusion_pytorch_model.safetensors.fp16.index.json").write_text(json.dumps(index))
    (path,) = find_weights(tmp_path, variant="fp16").paths
    assert path.name == "diffusion_pytorch_model-00001-of-00001.fp16.safetensors"


def test_names() -> None:
    assert with_variant("model.safetensors", None) == "model.safetensors"
    assert with_variant("model.safetensors.index.json", "fp16") == "model.safetensors.index.fp16.json"


@pytest.mark.parametrize(
    ("text", "count"),
    [("10GB", 10**10), ("1.5 MB", 1_500_000), ("2GiB", 2**31), ("300kb", 300_000), (77, 77), ("77", 77)],
)
def test_sizes(text, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", 0, "10 GBit", "1e3", None])
def test_what_is_no_size(text) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


def test_shards_keep_the_order_and_the_limit() -> None:
    state = {f"k{i}": torch.zeros(size) for i, size in enumerate([1, 5, 2, 30, 1, 1])}
    shards = plan_shards(state, 4 * 8)
    assert [list(shard) for shard in shards] == [["k0", "k1", "k2"], ["k3"], ["k4", "k5"]]


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"row": whole[1], "column": whole[:, 1], "again": whole[1], "empty": torch.zeros(0)}
    for safe in (True, False):
        save_state(state, tmp_path, safe_serialization=safe)
    read = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    pickled = torch.load(tmp_path / "diffusion_pytorch_model.bin", weights_only=True)
    for name, tensor in state.items():
        assert torch.equal(read[name], tensor)
        assert torch.equal(pickled[name], tensor)
    assert pickled["row"].untyped_storage().nbytes() == 16


_PEAK = """
import sys, threading, time
import torch
from torch import nn
from pathlib import Path
from calotype.core.meta import on_meta
from calotype.core.weights import WeightFiles, fill
import safetensors
torch.set_num_threads(1)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

with on_meta():
    model = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(24)])
torch.ones(4).half()
before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
fill(model, WeightFiles((Path(sys.argv[1]),), "here"), dtype=getattr(torch, sys.argv[2]))
total = sum(float(p.float().mean()) for p in model.parameters())
done = True
watcher.join()
print(peak - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_loading_takes_no_more_memory_than_the_file(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"{i}.weight": torch.full((2048, 2048), 0.5) for i in range(24)}, path)
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), dtype], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    peak, total = done.stdout.split()
    assert float(total) == 12.0
    # 17 MB are for the float32 copy of one tensor that the sum makes
    assert int(peak) < 1.15 * path.stat().st_size + 17e6
