"""Files of weights that are damaged, made to deceive, or not the model's."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from calotype.core.errors import WeightsError
from tests.faults.fault import Damage, Fault, both, change, load_unet, remove, write

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
KEY = "conv_in.weight"


def state(file: str, function: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Change the tensors of a file."""

    def damage(folder: Path) -> None:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / file).items()}
        function(tensors)
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return damage


def header(function: Callable[[dict[str, Any]], Any], more: bytes = b"") -> Damage:
    """Change the header of the U-Net's file; ``more`` is put behind its data."""

    def rewrite(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        entries = function(entries) or entries
        text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :] + more

    return change(UNET, rewrite)


def entry(**values: Any) -> Damage:
    """Change the header's entry of one tensor."""
    return header(lambda entries: entries[KEY].update(values))


def _twice(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries)
    return (text[:-1] + f', "{KEY}": {json.dumps(entries[KEY])}}}').encode()


def _overlap(entries: dict[str, Any]) -> None:
    here = entries["conv_in.bias"]
    there = next(one for one in entries.values() if one is not here and _extent(one) == _extent(here))
    there["data_offsets"] = here["data_offsets"]


def _extent(one: dict[str, Any]) -> int:
    begin, end = one.get("data_offsets", (0, 0))
    return end - begin


def sharded(
    weight_map: Callable[[str, str], dict[str, Any]] | None = None, drop: int | None = None
) -> Damage:
    """The U-Net in two shards; ``weight_map`` gives another index, ``drop`` takes a shard away."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / UNET)
        (folder / UNET).unlink()
        names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        half = len(tensors) // 2
        parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
        for name, part in zip(names, parts, strict=True):
            save_file(part, folder / "unet" / name, metadata={"format": "pt"})
        known = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        content = {"metadata": {}, "weight_map": weight_map(*names) if weight_map else known}
        (folder / INDEX).write_text(json.dumps(content))
        if drop is not None:
            (folder / "unet" / names[drop]).unlink()

    return damage


def in_two_shards(folder: Path) -> None:
    sharded()(folder)
    first, second = sorted((folder / "unet").glob("*-of-00002.safetensors"))
    tensors = load_file(second)
    save_file({**tensors, next(iter(load_file(first))): torch.ones(1)}, second, metadata={"format": "pt"})


def linked(file: str) -> Damage:
    """The file is moved out of the checkpoint, and a link left in its place."""

    def damage(folder: Path) -> None:
        elsewhere = folder.parent / "elsewhere"
        (folder / file).rename(elsewhere)
        (folder / file).symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())

    return damage


class Runs:
    """A pickle of it makes a file when it is loaded by a careless reader."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-run"),)


def pickled(
    content: Any = None, name: str = "unet/diffusion_pytorch_model.bin", legacy: bool = False
) -> Damage:
    """The U-Net's weights, or other content, as a pickle."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / UNET) if content is None else content
        (folder / UNET).unlink()
        torch.save(tensors, folder / name, _use_new_zipfile_serialization=not legacy)

    return damage


def bomb(folder: Path) -> None:
    """An archive of few bytes that unpacks to many."""
    (folder / UNET).unlink()
    with zipfile.ZipFile(folder / "unet/diffusion_pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(50_000_000))


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("weights.safetensors", data)
    return buffer.getvalue()


def asked(library: Any, folder: Path) -> Any:
    """Pickles are allowed."""
    return load_unet(library, folder, use_safetensors=False)


def huge_header(folder: Path) -> None:
    """More than the format allows; the file has holes, so it takes no room."""
    with (folder / UNET).open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000) + b'{"')
        file.truncate(300_000_000)


def of_the_unet(name: str, words: str, damage: Damage, **more: Any) -> Fault:
    return Fault(name, words, damage, more.pop("act", load_unet), **more)


def on_two_disks(data: bytes) -> bytes:
    """An archive whose last entry says that it is the second part of two."""
    end = b"PK\x05\x06" + bytes(18)
    return data[:100] + b"PK\x06\x07" + struct.pack("<IQI", 1, 0, 2) + end


FAULTS = [
    of_the_unet(
        "a key is missing",
        r"unet do not fit UNet2DConditionModel: conv_in\.weight is missing",
        state(UNET, lambda tensors: tensors.pop(KEY)),
        error=WeightsError,
    ),
    of_the_unet(
        "a key too many",
        r"extra\.weight is not part of the model",
        state(UNET, lambda tensors: tensors.update({"extra.weight": torch.zeros(1)})),
        error=WeightsError,
    ),
    of_the_unet(
        "a tensor of another shape",
        r"conv_in\.weight \(file: \[1, 2\], model: \[32, 4, 3, 3\]\) has another shape",
        state(UNET, lambda tensors: tensors.update({KEY: torch.zeros(1, 2)})),
        error=WeightsError,
    ),
    Fault(
        "a text encoder's key is missing",
        "text_encoder lack 1 of CLIPTextModel's parameters, such as .*final_layer_norm",
        state(
            TEXT, lambda tensors: tensors.pop(next(key for key in tensors if "final_layer_norm.bias" in key))
        ),
    ),
    of_the_unet("no weights", "has no diffusion_pytorch_model.safetensors", remove(UNET)),
    of_the_unet("an empty file", "is empty; download it again", write(UNET, b"")),
    of_the_unet(
        "a Git LFS pointer",
        "is a Git LFS pointer.*git lfs pull",
        write(UNET, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 335\n"),
    ),
    of_the_unet("a web page", "is a web page", write(UNET, "<!DOCTYPE html><html>not found</html>")),
    of_the_unet("a file cut in its data", "is cut off: its header announces", change(UNET, lambda d: d[:-9])),
    of_the_unet("a file cut in its header", "ends before its header does", change(UNET, lambda d: d[:300])),
    of_the_unet("a file of 5 bytes", "has only 5 bytes", change(UNET, lambda d: d[:5])),
    of_the_unet(
        "a header over 100 MB", "announces a header of 200,000,000 bytes; the format allows", huge_header
    ),
    of_the_unet(
        "a length that is none",
        "does not begin with the length of a header",
        change(UNET, lambda data: b"\xff" * 8 + b"\0" + data[9:]),
    ),
    of_the_unet("a header that is no JSON", "header cannot be read", header(lambda entries: b"{no header")),
    of_the_unet("a header that is a list", "it is a JSON list", header(lambda entries: b"[1, 2, 3]")),
    of_the_unet(
        "a header nested without end", "header cannot be read", header(lambda entries: b"[" * 100_000)
    ),
    of_the_unet("two tensors in one place", "overlap", header(_overlap)),
    of_the_unet("a tensor past the end", r"takes .* bytes, and its offsets", entry(data_offsets=[0, 10**12])),
    of_the_unet("offsets below zero", r"has the offsets \[-4, 0\]", entry(data_offsets=[-4, 0])),
    of_the_unet("offsets in reverse", r"has the offsets \[8, 4\]", entry(data_offsets=[8, 4])),
    of_the_unet("a shape below zero", r"has the shape \[-1\]", entry(shape=[-1])),
    of_the_unet(
        "a shape that takes more", "takes 4,000,000,000 bytes, and its offsets", entry(shape=[10**9])
    ),
    of_the_unet("a dtype that there is none of", "unknown dtype 'F1'", entry(dtype="F1")),
    of_the_unet("the same key twice", f"has the key '{KEY}' twice", header(_twice)),
    of_the_unet("bytes of no tensor", "4 bytes at its end belong to no tensor", header(lambda e: e, b"code")),
    of_the_unet(
        "metadata that is none", "__metadata__", header(lambda entries: {**entries, "__metadata__": {"a": 1}})
    ),
    of_the_unet(
        "a pickle called safetensors",
        "is a PyTorch pickle with the name of a safetensors",
        pickled(name=UNET),
    ),
    of_the_unet(
        "an old pickle called safetensors",
        "is a PyTorch pickle with the name",
        pickled(name=UNET, legacy=True),
    ),
    of_the_unet("an archive called safetensors", "is a PyTorch pickle", change(UNET, zipped)),
    of_the_unet("a shard is missing", "has no diffusion_pytorch_model-00002-of-00002", sharded(drop=1)),
    of_the_unet("a key in two shards", "is in two files", in_two_shards, error=WeightsError),
    of_the_unet(
        "an index that points above",
        r"names a shard '\.\./x\.safetensors' outside its own folder",
        sharded(lambda first, second: {KEY: "../x.safetensors"}),
    ),
    of_the_unet(
        "an index that points anywhere",
        "names a shard '/etc/passwd' outside its own folder",
        sharded(lambda first, second: {KEY: "/etc/passwd"}),
    ),
    of_the_unet("an index of numbers", "names 7 where the name", sharded(lambda first, second: {KEY: 7})),
    of_the_unet(
        "an index of a name that is too long",
        "has no x{100}",
        sharded(lambda first, second: {KEY: "x" * 300}),
    ),
    of_the_unet("an index without shards", "has no `weight_map`", both(sharded(), write(INDEX, "{}"))),
    of_the_unet(
        "an index that is no JSON", "index.json is not valid JSON", both(sharded(), write(INDEX, "{"))
    ),
    of_the_unet("a link out of the folder", "is a link out of its folder, to .*elsewhere", linked(UNET)),
    Fault("a component linked from elsewhere", "unet is a link out of its folder", linked("unet")),
    Fault(
        "a vocabulary linked from elsewhere",
        "is a link out of its folder",
        linked("tokenizer/tokenizer.json"),
    ),
    of_the_unet(
        "a pickle that nobody asked for", "only as .*bin, a pickle.*use_safetensors=False", pickled()
    ),
    of_the_unet(
        "a pickle that runs code", "cannot be read safely|can be read safely", pickled(Runs()), act=asked
    ),
    of_the_unet("a pickle of something else", "does not hold a mapping", pickled([1, 2]), act=asked),
    of_the_unet("a zip bomb", "unpack to 50,000,.*zip bomb", bomb, act=asked),
    of_the_unet(
        "a damaged pickle",
        "is not a PyTorch state dictionary",
        both(pickled(), change("unet/diffusion_pytorch_model.bin", lambda data: data[:5000])),
        act=asked,
    ),
    of_the_unet(
        "an archive on several disks",
        "is a damaged archive .zipfiles that span multiple disks",
        both(pickled(), change("unet/diffusion_pytorch_model.bin", on_two_disks)),
        act=asked,
    ),
    Fault(
        "a variant that there is none of",
        "has files of the variant 'fp16'",
        act=lambda library, folder: library.DiffusionPipeline.from_pretrained(folder, variant="fp16"),
    ),
]
