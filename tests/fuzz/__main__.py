"""Feeds the readers of weights and configurations with what atheris makes up, guided by the code that it reaches.

python -m tests.fuzz                    # ten minutes
python -m tests.fuzz --seconds 60 header

What is read or refused with a ``CalotypeError`` is fine; any other exception, a hang of 20 seconds and 3 GB of memory
are findings: the process ends with the traceback, and the input stands in the folder that is named first.
Needs ``pip install atheris``; on a failure, ``python -m tests.fuzz --again FILE`` runs one input.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import random
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import torch

from tests.tiny import SCHEDULER, UNET, VAE

CLASSES = (
    "DiffusionPipeline StableDiffusionPipeline UNet2DConditionModel ControlNetModel AutoencoderKL "
    "DPMSolverMultistepScheduler EulerDiscreteScheduler DDIMScheduler"
).split()
with atheris.instrument_imports(include=["calotype"]):
    import calotype
    from calotype.core.config import read_json
    from calotype.core.errors import CalotypeError
    from calotype.core.pickles import read_pickle
    from calotype.core.tensor_files import read_tensors, tensor_infos
    from calotype.core.weights import find_weights, read_index
    from calotype.utils import logging

    for name in CLASSES:  # imported on first use, and followed only if that is here
        getattr(calotype, name)
    import calotype.single_file.models
    import calotype.single_file.pipelines


PLACE = Path(tempfile.mkdtemp(prefix="calotype-fuzz-"))
WEIGHTS = "diffusion_pytorch_model.safetensors"
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 8, 255, 2**31, 2**63, 2**70, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "a", "x" * 300, "\0", "../x", "/etc/passwd", "F32", "F16", "BF16", "F4", [], [0], [1, 2], [2**62, 4], {}, {"a": 1},
    [[1]], "\ud800", "silu", "linear", "CrossAttnDownBlock2D", "UpBlock2D", "DDIMScheduler", "diffusers",
]  # fmt: skip


def safetensors_of(header: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


def read_all(path: Path) -> None:
    """The header, then every tensor that it names."""
    for _ in read_tensors(path, list(tensor_infos(path)), lambda name, stored: stored):
        pass


def raw(data: bytes) -> None:
    path = PLACE / "raw.safetensors"
    path.write_bytes(data)
    read_all(path)


def header(data: bytes) -> None:
    """A header of the right length, before as much data as it announces, up to a megabyte."""
    path = PLACE / "header.safetensors"
    path.write_bytes(safetensors_of(data, announced(data)))
    read_all(path)


def announced(data: bytes) -> int:
    try:
        ends = [entry["data_offsets"][1] for entry in json.loads(data).values() if "data_offsets" in entry]
        return min(max((end for end in ends if isinstance(end, int)), default=0) % 2**63, 2**20)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return 0


def pickled(data: bytes) -> None:
    path = PLACE / "pickled.bin"
    path.write_bytes(data)
    read_pickle(path)


def configuration(data: bytes) -> None:
    path = PLACE / "config.json"
    path.write_bytes(data)
    read_json(path)


def index(data: bytes) -> None:
    folder = PLACE / "index"
    (folder / f"{WEIGHTS}.index.json").write_bytes(data)
    read_index(folder / f"{WEIGHTS}.index.json")
    _ = find_weights(folder).contents


def model(name: str, folder: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        (PLACE / folder / "config.json").write_bytes(data)
        getattr(calotype, name).from_pretrained(PLACE / folder)

    return read


def scheduler(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        (PLACE / "scheduler" / "scheduler_config.json").write_bytes(data)
        getattr(calotype, name).from_pretrained(PLACE / "scheduler")

    return read


def pipeline(data: bytes) -> None:
    (PLACE / "pipeline" / "model_index.json").write_bytes(data)
    calotype.DiffusionPipeline.from_pretrained(PLACE / "pipeline")


def single_file(data: bytes) -> None:
    path = PLACE / "single.safetensors"
    path.write_bytes(safetensors_of(data, announced(data)))
    for name in ("UNet2DConditionModel", "ControlNetModel", "AutoencoderKL", "DiffusionPipeline"):
        try:
            getattr(calotype, name).from_single_file(path)
        except CalotypeError as error:
            assert str(error)


READERS: dict[str, Callable[[bytes], None]] = {
    "raw": raw,
    "header": header,
    "pickled": pickled,
    "configuration": configuration,
    "index": index,
    "unet": model("UNet2DConditionModel", "unet"),
    "vae": model("AutoencoderKL", "vae"),
    "dpm": scheduler("DPMSolverMultistepScheduler"),
    "euler": scheduler("EulerDiscreteScheduler"),
    "pipeline": pipeline,
    "single_file": single_file,
}
"""What is read; the first byte of an input says by which of them."""


def seeds() -> dict[str, bytes]:
    """A sound input for each reader, from which atheris starts."""
    for name in ("index", "scheduler", "pipeline/scheduler"):
        (PLACE / name).mkdir(parents=True)
    calotype.UNet2DConditionModel(**UNET).save_pretrained(PLACE / "unet")
    calotype.AutoencoderKL(**VAE).save_pretrained(PLACE / "vae")
    calotype.DDIMScheduler(**SCHEDULER).save_pretrained(PLACE / "pipeline" / "scheduler")
    shutil.copy(PLACE / "vae" / WEIGHTS, PLACE / "index" / "shard.safetensors")
    calotype.EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(PLACE / "scheduler")
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, PLACE / "sound.bin")
    entries = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    entries["b"] = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
    sound = json.dumps(entries).encode()
    unet_file = (PLACE / "unet" / WEIGHTS).read_bytes()
    settings = (PLACE / "scheduler" / "scheduler_config.json").read_bytes()
    pipe = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    return {
        "raw": safetensors_of(sound, 32),
        "header": sound,
        "pickled": (PLACE / "sound.bin").read_bytes(),
        "configuration": unet_file[8 : 8 + struct.unpack("<Q", unet_file[:8])[0]][:500],
        "index": json.dumps({"weight_map": {"a": "shard.safetensors"}}).encode(),
        "unet": (PLACE / "unet" / "config.json").read_bytes(),
        "vae": (PLACE / "vae" / "config.json").read_bytes(),
        "dpm": settings,
        "euler": settings,
        "pipeline": json.dumps({**pipe, "vae": ["diffusers", "AutoencoderKL"]}).encode(),
        "single_file": json.dumps(original_layout()).encode(),
    }


def original_layout() -> dict[str, Any]:
    """The header of a very small checkpoint in the original layout: enough to be recognised."""
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": [8, 4, 1, 1],
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight": [8],
        "model.diffusion_model.input_blocks.1.0.out_layers.3.weight": [8, 8, 1, 1],
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [8, 768],
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": [8, 8, 1, 1],
        "model.diffusion_model.output_blocks.0.0.in_layers.0.weight": [8],
        "model.diffusion_model.out.2.weight": [4, 8, 1, 1],
        "control_model.input_hint_block.0.weight": [8, 3, 1, 1],
        "first_stage_model.encoder.conv_in.weight": [8, 3, 1, 1],
        "first_stage_model.decoder.conv_out.weight": [3, 8, 1, 1],
        "first_stage_model.decoder.mid.block_1.norm1.weight": [8],
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": [8],
    }
    place, entries = 0, {}
    for name, shape in shapes.items():
        size = 4 * int(torch.Size(shape).numel())
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    return entries


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """One value, name or piece of the JSON exchanged; where there is none, or one time in four, any bytes."""
    chance = random.Random(seed)
    try:
        value = json.loads(data[1:]) if chance.random() < 0.75 else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not value:
        return bytes(atheris.Mutate(data, most))
    inner: Any = value
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        key = chance.choice(keys)
        if not (isinstance(inner[key], dict | list) and inner[key] and chance.random() < 0.7):
            break
        inner = inner[key]
    kind = chance.randrange(6)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[str(chance.choice(ODD))] = inner[key]
    elif kind == 2 and isinstance(inner[key], int | float) and abs(inner[key]) < 2**63:
        inner[key] += chance.choice([-1, 1, 4, 2**32])
    else:
        inner[key] = chance.choice(ODD)
    return (data[:1] + json.dumps(value).encode())[:most]


def read_one(data: bytes) -> None:
    """Read one input, by the reader that its first byte names."""
    if not data:
        return
    try:
        CHOSEN[data[0] % len(CHOSEN)](data[1:])
    except CalotypeError as error:
        assert str(error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", help=f"of {', '.join(READERS)}; all if none is named")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--again", type=Path, help="an input that was found, to run alone")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.readers if name not in READERS]:
        parser.error(f"there is no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    names = arguments.readers or list(READERS)
    CHOSEN.extend(READERS[name] for name in names)
    warnings.simplefilter("ignore")
    logging.set_verbosity(50)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    sound = seeds()
    corpus = PLACE / "corpus"
    corpus.mkdir()
    for number, name in enumerate(names):
        (corpus / name).write_bytes(bytes([number]) + sound[name])
        READERS[name](sound[name]) if name not in ("pipeline", "single_file", "configuration") else None
    if arguments.again:
        read_one(arguments.again.read_bytes())
        return
    print(f"Inputs that fail are put into {PLACE}.", flush=True)
    options = [
        f"-max_total_time={arguments.seconds}", "-timeout=20", "-rss_limit_mb=3072", "-max_len=16384",
        f"-artifact_prefix={PLACE}/", "-print_final_stats=1", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], read_one, custom_mutator=mutated)
    atheris.Fuzz()


CHOSEN: list[Callable[[bytes], None]] = []
"""The readers of this run."""

if __name__ == "__main__":
    main()
