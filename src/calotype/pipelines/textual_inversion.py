"""Learned words in a pipeline: for its text encoders and their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from calotype.core import hub
from calotype.core.errors import InputError
from calotype.core.tokenizing import written_out

_PAIRS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Text encoder -> the key of its vectors in files that have some for two."""

_NO_EFFECT = ("low_cpu_mem_usage", "mean_resizing")


class LearnedWords:
    """The calls of a pipeline that concern textual inversion."""

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | list[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        **kwargs: Any,
    ) -> None:
        """Teach the text encoder a word, or several, each from a file, folder, Hub repository, mapping or tensor.

        ``token`` is how the word is written in prompts; by default as the file has it. A word of several vectors is
        written as one. A file with vectors for two text encoders teaches both; for a file that is for the second alone
        pass ``tokenizer=pipe.tokenizer_2, text_encoder=pipe.text_encoder_2``. Further: ``weight_name``, ``subfolder``,
        ``use_safetensors`` (``False`` allows pickles, as A1111's ``.pt``) and the Hub's options.

        Raises ``WeightsError`` for vectors that are for another text encoder, ``ModelFilesError`` for files that are
        missing or damaged and ``InputError`` for a token that is there already. Nothing is changed then.
        """
        from calotype.adapters import words

        options = hub.HubOptions.take(kwargs)
        chosen = {name: kwargs.pop(name, None) for name in ("weight_name", "subfolder", "use_safetensors")}
        unknown = [name for name in kwargs if name not in _NO_EFFECT]
        if unknown:
            raise InputError(f"load_textual_inversion takes no argument {', '.join(unknown)}.")
        several = isinstance(pretrained_model_name_or_path, list | tuple)
        sources = list(pretrained_model_name_or_path) if several else [pretrained_model_name_or_path]
        tokens = list(token) if isinstance(token, list | tuple) else [token] * len(sources)
        if len(tokens) != len(sources) or (several and isinstance(token, str) and len(sources) > 1):
            raise InputError(f"There are {len(sources)} words and token={token!r}; give a token for each.")
        encoders = self._encoders(tokenizer, text_encoder)
        additions: list[tuple[words.Encoder, list[str], torch.Tensor]] = []
        for source, name in zip(sources, tokens, strict=True):
            word = words.read(source, options=options, **chosen)
            name = name or word.name
            if name is None:
                raise InputError(f"{word.origin} does not say how the word is written; pass token='…'.")
            for key, vectors in _vectors(word, encoders).items():
                names = words.names_of(name, len(vectors))
                words.check(encoders[key], names, vectors, word.origin)
                if taken := [
                    n for own, others, _ in additions if own == encoders[key] for n in others if n in names
                ]:
                    raise InputError(
                        f"Two of the words are written {taken[0]!r}; give each a token of its own."
                    )
                additions.append((encoders[key], names, vectors))
        with self._at_home(None):  # type: ignore[attr-defined]
            for addition in additions:
                words.add(*addition)

    def unload_textual_inversion(
        self, tokens: str | list[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """Forget these words, or all that were taught; raises ``InputError`` for one that there is none of."""
        from calotype.adapters import words

        asked = [tokens] if isinstance(tokens, str) else tokens
        encoders = {
            k: e for k, e in self._encoders(tokenizer, text_encoder).items() if words.learned(e.tokenizer)
        }
        known = {name for encoder in encoders.values() for name in words.learned(encoder.tokenizer)}
        if wrong := [name for name in asked or () if name not in known]:
            raise InputError(
                f"There is no learned word {wrong[0]!r}; there are {', '.join(sorted(known)) or 'none'}."
            )
        with self._at_home(None):  # type: ignore[attr-defined]
            for encoder in encoders.values():
                own = words.learned(encoder.tokenizer)
                here = own if asked is None else [name for name in asked if name in own]
                if here:
                    words.remove(encoder, words.with_all_vectors(encoder.tokenizer, here))

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
        """The prompt with learned words of several vectors written out, which calls do by themselves."""
        if isinstance(prompt, str):
            return written_out(tokenizer, prompt)
        return [written_out(tokenizer, text) for text in prompt]

    def _encoders(self, tokenizer: Any, text_encoder: Any) -> dict[str, Any]:
        """The text encoders in question, with their tokenizers; what is passed, or all that the pipeline has."""
        from calotype.adapters.words import Encoder

        components: Mapping[str, Any] = self.components  # type: ignore[attr-defined]
        own = {
            model: Encoder(components[reader], components[model])
            for reader, model in _PAIRS
            if components.get(reader) is not None and components.get(model) is not None
        }
        if tokenizer is None and text_encoder is None:
            if not own:
                raise InputError(
                    f"This {type(self).__name__} has no text encoder with a tokenizer that words could be taught; pass "
                    f"tokenizer=… and text_encoder=…."
                )
            return own
        for key, encoder in own.items():
            if tokenizer in (None, encoder.tokenizer) and text_encoder in (None, encoder.model):
                return {key: encoder}
        if tokenizer is None or text_encoder is None:
            raise InputError(
                "A tokenizer and a text encoder that are not the pipeline's own go together: pass both."
            )
        return {"text_encoder": Encoder(tokenizer, text_encoder)}


def _vectors(word: Any, encoders: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A word's vectors by the text encoder that they are for."""
    if not set(word.vectors) & set(_KEYS.values()):
        first = next(iter(encoders))
        return {first: next(iter(word.vectors.values()))}
    found = {
        key: word.vectors[name] for key, name in _KEYS.items() if key in encoders and name in word.vectors
    }
    if not found:
        raise InputError(
            f"{word.origin} has vectors for {' and '.join(word.vectors)}, and none for {' or '.join(encoders)}."
        )
    return found
