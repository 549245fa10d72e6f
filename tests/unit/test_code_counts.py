"""The parts stay small: one denoising loop, declarations of a few lines, families that fit in the head."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "figures" / "code_counts.py"


@pytest.fixture(scope="module")
def counts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("code_counts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_denoising_loop(counts: ModuleType) -> None:
    assert counts.loops() == ["diffusion/loop.py: denoise"]


def test_public_pipelines_are_declarations(counts: ModuleType) -> None:
    classes = counts.declarations()
    assert len(classes) > 40
    assert {name: count for name, count in classes.items() if count > 20} == {}


def test_a_family_fits_in_a_file_of_300_lines(counts: ModuleType) -> None:
    files = sorted((counts.SOURCE / "families").rglob("*.py"))
    assert files
    assert {path.name: counts.lines(path) for path in files if counts.lines(path) > 300} == {}
