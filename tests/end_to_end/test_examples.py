"""Every example runs as it stands, on tiny checkpoints; under the reference's name all import the same, some run."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

import calotype.compat
from calotype.utils import load_video
from tests.tiny import stable_diffusion_folder

FOLDER = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "tiny")
ON_POCKET = ("compare_schedulers", "prompt_to_picture", "watch_the_steps")
"""Those whose checkpoint comes with the package, which takes longer than a tiny one."""

RUN_UNDER_ANOTHER_NAME = ("inpainting", "video_from_a_model_of_pictures")
UNDER_ANOTHER_NAME = [path for path in PROGRAMS if "\nfrom calotype import" in path.read_text()]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples keep their tiny checkpoints."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture
def room(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, in which examples find their helper."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("CALOTYPE_TINY", str(checkpoints))
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny")


def run(script: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")


def check_result(room: Path) -> None:
    """One picture, or videos, with something on them."""
    videos = [load_video(video) for video in room.glob("*.mp4")]
    pictures = [frame for video in videos for frame in video]
    if not videos:
        (path,) = room.glob("*.png")
        pictures.append(PIL.Image.open(path))
    for image in pictures:
        low, high = image.convert("L").getextrema()
        assert low < high


@pytest.mark.parametrize("script", PROGRAMS, ids=lambda path: path.stem)
def test_example(script: Path, room: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(script, *([str(tiny)] if script.stem in ON_POCKET else []), monkeypatch=monkeypatch)
    check_result(room)


def for_the_reference(script: Path) -> str:
    """The program with the reference's name in its imports."""
    text = re.sub(
        r"^from calotype(\.utils)? import", r"from diffusers\1 import", script.read_text(), flags=re.M
    )
    assert "from diffusers import" in text
    return text


@pytest.fixture
def installed() -> Iterator[None]:
    calotype.compat.install()
    yield
    calotype.compat.uninstall()


@pytest.mark.parametrize("script", UNDER_ANOTHER_NAME, ids=lambda path: path.stem)
def test_names_as_written_for_the_reference(script: Path, installed: None) -> None:
    """What is imported under the reference's name is what the example runs with."""
    said, meant = (
        [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
        for text in (for_the_reference(script), script.read_text())
    )
    for one, other in zip(said, meant, strict=True):
        if one.module.split(".")[0] == "diffusers":
            found, expected = {}, {}
            exec(ast.unparse(one), found)
            exec(ast.unparse(other), expected)
            for name in one.names:
                bound = name.asname or name.name
                assert found[bound] is expected[bound], f"{one.module}.{name.name}"


@pytest.mark.parametrize("name", RUN_UNDER_ANOTHER_NAME)
def test_example_as_written_for_the_reference(
    name: str, room: Path, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room / "program.py").write_text(for_the_reference(FOLDER / f"{name}.py"))
    run(room / "program.py", monkeypatch=monkeypatch)
    check_result(room)


def test_the_list_is_whole() -> None:
    """The folder's README names every program."""
    listed = set(re.findall(r"`(\w+\.py)`", (FOLDER / "README.md").read_text()))
    assert listed == {path.name for path in FOLDER.glob("*.py")}
