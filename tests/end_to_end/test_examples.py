"""Every example runs as it stands, here with a tiny random model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import PIL.Image
import pytest

from tests.tiny import stable_diffusion_folder

EXAMPLES = sorted(Path(__file__).parents[2].joinpath("examples").glob("*.py"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), str(tiny)])
    runpy.run_path(str(example), run_name="__main__")
    (picture,) = tmp_path.glob("*.png")
    with PIL.Image.open(picture) as image:
        assert image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]
