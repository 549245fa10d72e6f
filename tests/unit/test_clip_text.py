"""Text encoding: threads that share a tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from calotype.families import clip_text
from tests.tiny import tokenizer_folder


@pytest.fixture
def nervous() -> Iterator[None]:
    """Threads that take turns very often."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("nervous")
def test_threads_share_a_tokenizer(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(tmp_path))

    def tokens(number: int) -> tuple[int, ...]:
        clip_text.warn_of_cut(tokenizer, ("a red ball",), 16)
        return tuple(clip_text.tokenize(tokenizer, ("a ball on green grass",), 16).input_ids[0].tolist())

    alone = tokens(0)
    assert len(alone) == 16
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(tokens, range(2000))) == {alone}
