"""Text encoding: threads that share a tokenizer, and texts that are cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calotype.families import clip_text
from tests.tiny import tokenizer_folder

LENGTH = 16


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


def test_only_a_text_that_fills_what_is_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(tmp_path))
    again: list[Any] = []
    usual = clip_text.warn_of_cut
    monkeypatch.setattr(clip_text, "warn_of_cut", lambda *given: (again.append(given[1]), usual(*given)))

    class Encoder:
        config, device = SimpleNamespace(num_hidden_layers=2), torch.device("cpu")

        def __call__(self, ids: torch.Tensor, **asked: Any) -> Any:
            states = ids[..., None].float()
            return type("Output", (tuple,), {"hidden_states": [states] * 3})((states[:, 0],))

    def read(*texts: str, remedy: str | None) -> list[list[str]]:
        again.clear()
        caplog.clear()
        clip_text.encode_penultimate(Encoder(), tokenizer, texts, LENGTH, remedy=remedy)
        return list(again)

    long = "a red ball on the green grass and a zebra in the dark far away"
    assert read("a cat", long, remedy="") == [[long]]
    assert any("is cut" in message and "away" in message for message in caplog.messages)
    assert read("a cat", remedy="") == [[]]
    assert read(long, remedy=None) == []
    assert not caplog.messages
