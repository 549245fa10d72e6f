"""Importing costs what is used: each line runs in an interpreter of its own that reports the modules it ended with."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

import calotype

HEAVY = {
    "PIL", "accelerate", "diffusers", "huggingface_hub", "matplotlib", "numpy", "peft", "requests", "rich",
    "safetensors", "scipy", "tokenizers", "torch", "torchvision", "transformers", "typer",
}  # fmt: skip


SCHEDULERS = [name for name in calotype.__all__ if name.endswith("Scheduler")]
OF_TRANSFORMERS = ["LDMBertModel", "MultilingualCLIP", "StableDiffusionSafetyChecker"]
"""Public names whose models are those of transformers."""


def each(names: list[str]) -> str:
    """A line that looks up each of the public names."""
    return f"import calotype\nfor name in {names}: getattr(calotype, name)"


PIPELINE = "from calotype import StableDiffusionPipeline"
DOOR = "from calotype import load"
ALL_SCHEDULERS = f"from calotype import {', '.join(SCHEDULERS)}"
OURS = each([name for name in calotype.__all__ if name not in OF_TRANSFORMERS])
THEIRS = each(OF_TRANSFORMERS)
ON_TORCH = ("pass", PIPELINE, DOOR, ALL_SCHEDULERS, OURS, THEIRS)
"""Lines that need torch, which is imported once: the interpreter forks for each of them."""

FORK = """
import json, os, sys
import torch
for line in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        exec(line, {})
        os.write(writer, json.dumps(sorted(sys.modules)).encode())
        os._exit(0)
    os.close(writer)
    print(open(reader).read())
    assert os.waitpid(child, 0)[1] == 0, line
"""


def output(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@functools.cache
def with_torch() -> dict[str, frozenset[str]]:
    lines = output(FORK, json.dumps(ON_TORCH)).splitlines()
    return {line: frozenset(json.loads(found)) for line, found in zip(ON_TORCH, lines, strict=True)}


@functools.cache
def modules_after(line: str) -> frozenset[str]:
    """The names of all modules that are imported once ``line`` has run."""
    if line in ON_TORCH:
        return with_torch()[line]
    return frozenset(json.loads(output(f"{line}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))")))


TORCH = ON_TORCH[0]


def heavy(line: str) -> set[str]:
    return HEAVY & modules_after(line)


def added(line: str, to: str) -> int:
    """How many modules ``line`` imports that ``to`` does not."""
    return len(modules_after(line) - modules_after(to))


def test_the_package_alone_imports_nothing_heavy():
    assert heavy("import calotype") == set()
    assert added("import calotype", to="import json") <= 60


def test_a_pipeline_class_costs_little_more_than_torch():
    assert heavy(PIPELINE) - heavy(TORCH) == set()
    assert {name.split(".")[0] for name in modules_after(PIPELINE) - modules_after(TORCH)} == {"calotype"}
    assert added(PIPELINE, to=TORCH) <= 120


def test_the_door_costs_little_more_than_torch():
    assert heavy(DOOR) - heavy(TORCH) == set()


def test_the_schedulers_need_torch_alone():
    assert heavy(ALL_SCHEDULERS) - heavy(TORCH) == set()
    assert added(ALL_SCHEDULERS, to=TORCH) <= 60 + 2 * len(SCHEDULERS)


def test_helpers_import_what_they_stand_on():
    assert heavy("from calotype.utils import load_image, make_image_grid") == {"PIL"}
    assert heavy("from calotype.utils import BaseOutput, logging, check_min_version") == set()
    assert heavy("from calotype.utils.metadata import read_settings") == set()


def test_the_command_line_starts_without_torch():
    assert heavy("import calotype.cli") == set()
    assert heavy("import calotype.cli.app") == {"rich", "typer"}


def test_no_public_name_imports_the_reference_or_what_only_extras_have():
    assert "diffusers" not in modules_after(OURS) | modules_after(THEIRS)
    extras = {"accelerate", "matplotlib", "peft", "rich", "scipy", "tokenizers", "transformers", "typer"}
    assert heavy(OURS).isdisjoint(extras)


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="'StableDifusionPipeline'"):
        calotype.StableDifusionPipeline  # noqa: B018


def test_annotators_import_what_each_stands_on():
    assert heavy("from calotype.annotators import canny, lineart, pose, scribble") == {"PIL", "numpy"}
    assert heavy("import calotype.annotators") == set()
    assert "cv2" not in modules_after("from calotype.annotators import canny")
