"""Importing costs what is used: each line runs in a fresh interpreter that reports the modules it ended with."""

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


@functools.cache
def modules_after(line: str) -> frozenset[str]:
    """The names of all modules that are imported once ``line`` has run."""
    code = f"{line}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return frozenset(json.loads(result.stdout))


def heavy(line: str) -> set[str]:
    return HEAVY & modules_after(line)


def added(line: str, to: str) -> int:
    """How many modules ``line`` imports that ``to`` does not."""
    return len(modules_after(line) - modules_after(to))


def test_the_package_alone_imports_nothing_heavy():
    assert heavy("import calotype") == set()
    assert added("import calotype", to="pass") <= 60


def test_a_pipeline_class_costs_little_more_than_torch():
    line = "from calotype import StableDiffusionPipeline"
    assert heavy(line) - heavy("import torch") == set()
    assert {name.split(".")[0] for name in modules_after(line) - modules_after("import torch")} == {
        "calotype"
    }
    assert added(line, to="import torch") <= 120


def test_the_door_costs_little_more_than_torch():
    assert heavy("from calotype import load") - heavy("import torch") == set()


def test_the_schedulers_need_torch_alone():
    names = [name for name in calotype.__all__ if name.endswith("Scheduler")]
    line = f"from calotype import {', '.join(names)}"
    assert heavy(line) - heavy("import torch") == set()
    assert added(line, to="import torch") <= 60 + 2 * len(names)


def test_helpers_import_what_they_stand_on():
    assert heavy("from calotype.utils import load_image, make_image_grid") == {"PIL"}
    assert heavy("from calotype.utils import BaseOutput, logging, check_min_version") == set()
    assert heavy("from calotype.utils.metadata import read_settings") == set()


def test_the_command_line_starts_without_torch():
    assert heavy("import calotype.cli") == set()
    assert heavy("import calotype.cli.app") == {"rich", "typer"}


def test_no_public_name_imports_the_reference_or_what_only_extras_have():
    code = "import calotype\nfor name in {}: getattr(calotype, name)"
    assert "diffusers" not in modules_after(code.format("calotype.__all__"))
    of_transformers = {
        "LDMBertModel",
        "MultilingualCLIP",
        "StableDiffusionSafetyChecker",
    }  # their models are its own
    ours = [name for name in calotype.__all__ if name not in of_transformers]
    extras = {"accelerate", "matplotlib", "peft", "rich", "scipy", "tokenizers", "transformers", "typer"}
    assert heavy(code.format(ours)).isdisjoint(extras)


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="'StableDifusionPipeline'"):
        calotype.StableDifusionPipeline  # noqa: B018


def test_annotators_import_what_each_stands_on():
    assert heavy("from calotype.annotators import canny, lineart, pose, scribble") == {"PIL", "numpy"}
    assert heavy("import calotype.annotators") == set()
    assert "cv2" not in modules_after("from calotype.annotators import canny")
