"""Configurations that are no JSON, describe nothing, or name code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from calotype.core.errors import InputError, UnknownClassError
from tests.faults.fault import Fault, both, edit, load, load_unet, remove, write

INDEX = "model_index.json"
CONFIG = "unet/config.json"

CODE = "from pathlib import Path\nPath('was-run').touch()\nclass Mine:\n    pass\n"


def index(name: str, words: str, **entries: Any) -> Fault:
    return Fault(name, words, edit(INDEX, **entries), error=UnknownClassError)


SCHEDULER = "scheduler/scheduler_config.json"


def config(name: str, words: str, **entries: Any) -> Fault:
    return Fault(name, words, edit(CONFIG, **entries), load_unet)


CODE_FAULTS = [
    index(
        "a class that there is none of",
        "nearest is UNet2DConditionModel",
        unet=["diffusers", "UNet2DConditionModul"],
    ),
    index("a function of Python", r"os\.system is neither", tokenizer=["os", "system"]),
    index("a module of Python", r"subprocess\.Popen is neither", tokenizer=["subprocess", "Popen"]),
    index("a trainer", r"transformers\.Trainer is not among", tokenizer=["transformers", "Trainer"]),
    index(
        "a function of transformers", r"transformers\.pipeline is not", tokenizer=["transformers", "pipeline"]
    ),
    index(
        "a class that follows the files",
        r"transformers\.AutoModel is not",
        text_encoder=["transformers", "AutoModel"],
    ),
    index(
        "a pipeline that there is none of", "'StableDiffusoinPipeline'", _class_name="StableDiffusoinPipeline"
    ),
    index("a pipeline that is a model", "UNet2DModel, which is not a pipeline", _class_name="UNet2DModel"),
    index("a pipeline of a file", "names no pipeline class", _class_name=["pipeline", "Mine"]),
    index(
        "an entry of no names",
        r"'unet'.*named as \['diffusers', \[0\]\] where the names",
        unet=["diffusers", [0]],
    ),
    Fault(
        "a component of a file",
        "'unet'.*my_unet.Mine is neither.*code that comes with a checkpoint is never run",
        both(edit(INDEX, unet=["my_unet", "Mine"]), write("unet/my_unet.py", CODE)),
        error=UnknownClassError,
    ),
    Fault(
        "a pipeline of another author",
        "custom_pipeline: code from a repository is never run",
        write("pipeline.py", CODE),
        lambda library, folder: load(library, folder, custom_pipeline=str(folder)),
        InputError,
    ),
    Fault(
        "trust for any code",
        "trust_remote_code: code from a repository is never run",
        act=lambda library, folder: load(library, folder, trust_remote_code=True),
        error=InputError,
    ),
]


def nested(depth: int) -> str:
    return '{"a": ' + "[" * depth + "]" * depth + "}"


def folder_in_place(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / INDEX).mkdir()


FAULTS = [
    Fault("an index that is no JSON", r"model_index\.json is not valid JSON", write(INDEX, "{")),
    Fault("an index that is a list", "holds a JSON list where an object", write(INDEX, "[]")),
    Fault("no index", r"has no model_index\.json", remove(INDEX)),
    Fault("a folder called index", r"has no model_index\.json", folder_in_place),
    Fault("a component without its folder", "there is no folder .*vae", remove("vae")),
    Fault("no configuration", r"has no config\.json", remove(CONFIG), load_unet),
    Fault("a configuration that is no JSON", "is not valid JSON", write(CONFIG, "{'a': 1}"), load_unet),
    Fault("a configuration that is empty", "is not valid JSON", write(CONFIG, ""), load_unet),
    Fault(
        "a configuration that is no text", "is not valid JSON", write(CONFIG, b'{"a": "\xff\xfe"}'), load_unet
    ),
    Fault(
        "a number of 5000 digits", "is not valid JSON", write(CONFIG, '{"a": ' + "1" * 5000 + "}"), load_unet
    ),
    Fault("nested 100 deep", "nested deeper than 32 levels", write(CONFIG, nested(100)), load_unet),
    Fault("nested 200,000 deep", "nested deeper than 32 levels", write(CONFIG, nested(200_000)), load_unet),
    Fault("the same entry twice", "has the key 'a' twice", write(CONFIG, '{"a": 1, "a": 2}'), load_unet),
    *(
        Fault(f"a scheduler with {name}={value!r}", words, edit(SCHEDULER, **{name: value}), error=InputError)
        for name, value, words in (
            ("beta_start", "small", "beta_start='small' is not a number"),
            ("beta_end", 4, "beta_end=4 is not between 0 and 1"),
            (
                "num_train_timesteps",
                2**31 - 1,
                "num_train_timesteps=2147483647 is not between 1 and 1,000,000",
            ),
            ("trained_betas", "x", "trained_betas='x' is not a list of numbers"),
            ("steps_offset", 0.5, "steps_offset=0.5 is not a whole number"),
            ("set_alpha_to_one", "yes", "set_alpha_to_one='yes' is not true or false"),
        )
    ),
    Fault(
        "a configuration of 100 MB",
        "a configuration takes at most",
        write(CONFIG, " " * 10**8),
        load_unet,
        ours=True,
    ),
    Fault(
        "a model of transformers",
        "holds a Transformers model",
        write(CONFIG, json.dumps({"model_type": "clip"})),
        load_unet,
        UnknownClassError,
    ),
    config(
        "sizes beyond any memory",
        r"parameters or more \(.* in float32\), and its weights have",
        block_out_channels=[10**6, 10**6],
    ),
    config(
        "layers without end",
        "layers_per_block=1000000000, and its weights hold only",
        layers_per_block=10**9,
    ),
    config(
        "a block that there is none of",
        "does not describe .*down_block_types has no block 'Mystery'",
        down_block_types=["Mystery", "DownBlock2D"],
    ),
    config(
        "a text for a number", "does not describe a UNet2DConditionModel: TypeError", layers_per_block="two"
    ),
    config("a size below zero", "does not describe a UNet2DConditionModel", in_channels=-4),
    config("weights in another form", "quantised, which is not supported", quantization_config={"bits": 4}),
    Fault(
        "a schedule that there is none of",
        "beta_schedule.*'mystery'",
        edit("scheduler/scheduler_config.json", beta_schedule="mystery"),
        error=InputError,
    ),
]
