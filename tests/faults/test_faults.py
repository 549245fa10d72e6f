"""Every fault is refused with the right type of error and the words that name it, and nothing is left behind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import calotype
import calotype.utils
from calotype.core.errors import CalotypeError
from tests.faults import calls, configurations, pictures, weights
from tests.faults.fault import Fault, contents, untouched
from tests.tiny import stable_diffusion_folder

AREAS = {
    "weights": weights.FAULTS,
    "code": configurations.CODE_FAULTS,
    "configurations": configurations.FAULTS,
    "pictures": pictures.FAULTS,
    "calls": calls.FAULTS,
}
CASES = [
    pytest.param(fault, id=f"{area}: {fault.name}") for area, faults in AREAS.items() for fault in faults
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that nothing is wrong with."""
    return stable_diffusion_folder(tmp_path_factory.mktemp("faults") / "sound")


@pytest.fixture
def folder(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage; what is left behind would be in it, beside it or in the folder for temporary files."""
    for name in ("work", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def test_there_are_many_and_each_has_a_name() -> None:
    names = [param.id for param in CASES]
    assert len(names) >= 70
    assert len(set(names)) == len(names)


def test_the_sound_checkpoint_is_sound(sound: Path) -> None:
    image = calotype.load(sound, device="cpu")("a red ball", num_inference_steps=1).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize("fault", CASES)
def test_it_is_refused_in_words(
    fault: Fault, sound: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = sound if fault.damage is untouched else request.getfixturevalue("folder")
    fault.damage(place)
    before = contents(tmp_path)
    with pytest.raises(fault.error) as caught:
        fault.act(calotype, place)
    assert isinstance(caught.value, CalotypeError)
    message = str(caught.value)
    assert re.search(fault.words, message), message
    assert message.endswith((".", ")", "'")) or ":" in message
    assert contents(tmp_path) == before
