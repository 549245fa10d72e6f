"""Pictures of a shape that no bundled model knows, for teaching it one as users teach theirs: a folder with captions.

``python -m calotype.pocket.lesson --out DIR`` writes twenty, which ``calotype train lora`` can learn from.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch

from calotype.core.errors import InputError
from calotype.core.files import replacing, write_text
from calotype.pocket.captions import EXTRA_NOUNS, FLOOR_PHRASES, SKY_PHRASES, caption, with_article
from calotype.pocket.prompts import Prompt
from calotype.pocket.renderer import render
from calotype.pocket.scene import SceneBatch, sample_scenes
from calotype.pocket.vocabulary import COLORS, EXTRA_SHAPES, FLOORS, SKIES, index_of

PICTURES, CAPTIONS = 20, 3
_WITH_ANOTHER = 5
"""Every fifth picture shows a second object."""


def seen_floors(color: int) -> list[int]:
    """The floors on which the pictures show the new shape in a colour: all but one, a different one for each colour."""
    return [floor for floor in range(len(FLOORS)) if (color + 2 * floor) % len(FLOORS)]


def lesson_scenes(shape: str, count: int = PICTURES, seed: int = 0) -> SceneBatch:
    """Scenes whose main objects have a new shape, in all colours and on all floors in turn.

    Raises:
        InputError: the shape is none of ``vocabulary.EXTRA_SHAPES``, or ``count`` is not positive.
    """
    index_of(EXTRA_SHAPES, shape, "new shape")
    if count < 1:
        raise InputError(f"A lesson has at least 1 picture, not {count}.")
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    some = sample_scenes(12 * count + 48, generator, "all", shape)
    objects = some.present.sum(1)
    alone, beside = (torch.nonzero(objects == n).flatten().tolist() for n in (1, 2))
    chosen = [(beside if i % _WITH_ANOTHER == _WITH_ANOTHER - 1 else alone)[i] for i in range(count)]
    scenes = some[torch.tensor(chosen)]
    color, floor = scenes.color.clone(), scenes.floor.clone()
    for i in range(count):
        color[i, 0] = i % len(COLORS)
        free = seen_floors(i % len(COLORS))
        floor[i] = free[(i + i // len(COLORS)) % len(free)]
    return replace(scenes, color=color, floor=floor)


def lesson_captions(scenes: SceneBatch, shape: str, seed: int = 0, each: int = CAPTIONS) -> list[list[str]]:
    """Captions of scenes, all of which name the new shape."""
    rng, nouns = random.Random(seed), set(EXTRA_NOUNS[shape])
    found = []
    for record in scenes.records():
        said: list[str] = []
        while len(said) < each:
            text = caption(record, rng)
            if nouns & set(text.replace(",", " ").split()):
                said.append(text)
        found.append(said)
    return found


def write_lesson(
    folder: str | Path,
    shape: str = EXTRA_SHAPES[0],
    count: int = PICTURES,
    seed: int = 0,
    device: torch.device | str = "cpu",
    size: int = 128,
    supersample: int = 2,
) -> Path:
    """Write ``count`` pictures and ``metadata.jsonl``, the captions of each being a list; returns the folder.

    Raises ``InputError`` as :func:`lesson_scenes` does.
    """
    folder = Path(folder)
    scenes = lesson_scenes(shape, count, seed)
    pictures = (render(scenes.to(device), size, supersample).rgb * 255).round().byte().cpu()
    names = [f"{shape}-{number:02d}.png" for number in range(1, count + 1)]
    save_pictures(folder, names, pictures)
    texts = lesson_captions(scenes, shape, seed)
    write_metadata(folder, dict(zip(names, texts, strict=True)))
    return folder


def save_pictures(folder: Path, names: list[str], pictures: torch.Tensor) -> None:
    """Write pictures, uint8 [B, 3, H, W], as PNG files of these names."""
    import PIL.Image

    for name, picture in zip(names, pictures, strict=True):
        with replacing(folder / name) as temporary:
            PIL.Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def write_metadata(folder: Path, captions: dict[str, list[str]]) -> None:
    """Write ``metadata.jsonl``: the captions of each picture by the name of its file."""
    rows = [json.dumps({"file_name": name, "text": texts}) for name, texts in captions.items()]
    write_text(folder / "metadata.jsonl", "\n".join(rows) + "\n")


def lesson_prompts(shape: str, n: int, seed: int = 0) -> list[Prompt]:
    """``n`` prompts for a new shape in colours on floors with which no picture of the lesson shows it.

    Raises ``InputError`` for a shape that is not new and for an ``n`` that is not positive.
    """
    index_of(EXTRA_SHAPES, shape, "new shape")
    if n < 1:
        raise InputError(f"The number of prompts must be at least 1, not {n}.")
    rng = random.Random(seed)
    unseen = [(c, f) for c in range(len(COLORS)) for f in range(len(FLOORS)) if f not in seen_floors(c)]
    rng.shuffle(unseen)
    found = []
    for i in range(n):
        color, floor = (names[j] for names, j in zip((COLORS, FLOORS), unseen[i % len(unseen)], strict=True))
        sky = rng.choice(SKIES)
        subject = with_article(f"{color} {rng.choice(EXTRA_NOUNS[shape])}")
        text = f"{subject} {rng.choice(FLOOR_PHRASES[floor])} {rng.choice(SKY_PHRASES[sky])}"
        found.append(Prompt(text, shape, color, floor, sky))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Write pictures of a new shape with captions."""
    parser = argparse.ArgumentParser(prog="python -m calotype.pocket.lesson", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shape", default=EXTRA_SHAPES[0], choices=EXTRA_SHAPES)
    parser.add_argument("--count", type=int, default=PICTURES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    write_lesson(given.out, given.shape, given.count, given.seed, given.device)
    print(f"{given.count} pictures in {given.out}")


if __name__ == "__main__":
    main()
