"""The cards of the bundled model and of its family say what training cost, and with which code it can be done again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import calotype

ROOT = Path(calotype.__file__).parent / "pocket"
FOLDERS = [ROOT / "weights", *sorted((ROOT / "members").iterdir())]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_has_seed_time_and_commit(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert re.search(r"^\| seed \| \d+ \|$", card, re.M)
    assert re.search(r"^\| time of (the UNet's )?training \| [\d.]+ (minutes|s)\b", card, re.M)
    assert re.search(r"^\| commit \| [0-9a-f]{7} \|$", card, re.M)
