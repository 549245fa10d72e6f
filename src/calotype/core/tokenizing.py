"""What holds for all use of the tokenizers of transformers: one thread at a time, and learned words written out."""

from __future__ import annotations

import re
import threading
from typing import Any

TOKENIZING = threading.Lock()
"""A tokenizer of transformers keeps padding and cutting as its own state: two threads must not use one at once."""


def written_out(tokenizer: Any, text: str) -> str:
    """The text with every learned word of several vectors followed by the tokens of the others, ``name_1``, ….

    A word after which one of these stands already is left.
    """
    added = getattr(tokenizer, "added_tokens_encoder", {})
    for word in added:
        if f"{word}_1" not in added or word not in text:
            continue
        tokens, number = [word], 1
        while (further := f"{word}_{number}") in added:
            tokens.append(further)
            number += 1
        name, whole = re.escape(word), " ".join(tokens).replace("\\", r"\\")
        text = re.sub(rf"{name}(?!_\d)(?!\s+{name}_1)", whole, text)
    return text
