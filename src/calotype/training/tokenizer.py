"""A byte-level BPE tokenizer in CLIP's format, learned from a small corpus.

Sennrich et al., "Neural machine translation of rare words with subword units" (2016), on bytes, with CLIP's
conventions: text in lower case, split into words, digits and punctuation; a word's last symbol carries ``</w>``.
Every byte is a symbol, so that any text encodes, however unlike the corpus.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from calotype.core.errors import InputError
from calotype.core.files import write_text

START, END = "<|startoftext|>", "<|endoftext|>"
_SUFFIX = "</w>"
_CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")


def byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes: itself where it prints, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def split_words(text: str) -> list[str]:
    """CLIP's words: contractions, runs of letters, single digits, runs of anything else."""
    words: list[str] = []
    for chunk in unicodedata.normalize("NFC", text).lower().split():
        start = 0
        while start < len(chunk):
            end = _word_end(chunk, start)
            words.append(chunk[start:end])
            start = end
    return words


def _word_end(chunk: str, start: int) -> int:
    for contraction in _CONTRACTIONS:
        if chunk.startswith(contraction, start):
            return start + len(contraction)
    kind = unicodedata.category(chunk[start])[0]
    end = start + 1
    if kind == "N":
        return end
    while end < len(chunk):
        other = unicodedata.category(chunk[end])[0]
        if (kind == "L") != (other == "L") or other == "N":
            break
        end += 1
    return end


def learn_merges(word_counts: Counter[str], limit: int) -> list[tuple[str, str]]:
    """Up to ``limit`` merges of the most frequent adjacent symbols, ties in alphabetical order.

    Ends sooner when every word is one symbol.
    """
    if limit < 0:
        raise InputError(f"The number of merges must not be negative, but it is {limit}.")
    letters = byte_symbols()
    words: dict[str, list[str]] = {}
    for word in word_counts:
        symbols = [letters[byte] for byte in word.encode("utf-8")]
        words[word] = [*symbols[:-1], symbols[-1] + _SUFFIX]
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += word_counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for symbols in words.values():
            _merge(symbols, best)
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> None:
    index = 0
    while index < len(symbols) - 1:
        if (symbols[index], symbols[index + 1]) == pair:
            symbols[index : index + 2] = ["".join(pair)]
        index += 1


def vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Symbol -> id: bytes, bytes that end a word, merges in order, then start and end of text."""
    letters = byte_symbols()
    symbols = [
        *letters,
        *(letter + _SUFFIX for letter in letters),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    return {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}


def write_tokenizer(folder: Path, merges: list[tuple[str, str]], length: int = 77) -> int:
    """Write ``vocab.json``, ``merges.txt`` and the two JSON files that ``CLIPTokenizer`` reads; returns the size.

    ``length`` is the number of tokens to which prompts are padded or cut.
    """
    ids = vocabulary(merges)
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
        **special,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps(ids, ensure_ascii=False, separators=(",", ":")))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")
    return len(ids)


def train_tokenizer(folder: Path, texts: Iterable[str], merges: int = 1500, length: int = 77) -> int:
    """Learn a tokenizer from ``texts`` and write it to ``folder``; returns the size of its vocabulary."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text))
    if not counts:
        raise InputError("There is no word in the texts that a tokenizer should be learned from.")
    return write_tokenizer(folder, learn_merges(counts, merges), length)


class Encoder:
    """Encodes as ``CLIPTokenizer`` does with the files of :func:`write_tokenizer`, remembering each word.

    For captions by the hundred thousand in worker processes, where importing transformers would cost more than
    the work.
    """

    def __init__(self, folder: Path) -> None:
        self.ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[1:]
        self._ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(lines) if line}
        self._letters = byte_symbols()
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str, length: int = 77) -> list[int]:
        """Exactly ``length`` ids: start, the words, end, and end again as padding; a longer text is cut."""
        ids = [self.ids[START]]
        for word in split_words(text):
            if word not in self._words:
                self._words[word] = self._encode_word(word)
            ids += self._words[word]
        end = self.ids[END]
        ids = [*ids[: length - 1], end]
        return ids + [end] * (length - len(ids))

    def _encode_word(self, word: str) -> list[int]:
        symbols = [self._letters[byte] for byte in word.encode("utf-8")]
        symbols[-1] += _SUFFIX
        while len(symbols) > 1:
            known = [pair for pair in itertools.pairwise(symbols) if pair in self._ranks]
            if not known:
                break
            _merge(symbols, min(known, key=self._ranks.__getitem__))
        return [self.ids[symbol] for symbol in symbols]
