"""Views: pictures of scenes with all that is exactly known of them, made in chunks once and read by every member.

A chunk is a file with a dictionary of tensors, see :data:`FIELDS`. Scenes are drawn on the CPU from a seed for each
chunk, so that worker processes write the captions of the very scenes that the device renders.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calotype.core.files import replacing, write_text
from calotype.training.gradients import precision
from calotype.training.loop import TrainingError
from calotype.training.recipes.base import Base
from calotype.training.recipes.chunks import DONE, VALIDATION, ChunkFolder, chunk_name, clear
from calotype.training.recipes.pocket.data import caption_executor, chunk_ids, chunks_of, encoder_of
from calotype.training.recipes.pocket.pictures import chunk_scenes, scene_renderer, wait_for
from calotype.training.recipes.pocket.settings import DataSettings, PocketSettings, TextSettings
from calotype.training.recipes.pocket_family.settings import FamilySettings

FIELDS = {
    "pictures": torch.uint8,  # [N, 3, P, P]
    "latents": torch.float16,  # [N, C, h, w], standardised
    "depth": torch.float16,  # [N, P, P], along the camera's axis in world units; the sky's is 100
    "labels": torch.uint8,  # [N, P, P]: which of pocket.labels.SEGMENTS
    "instances": torch.uint8,  # [N, P, P]: 0 sky, 1 floor, 2 + k the object k
    "ids": torch.int16,  # [N, K, L]: captions of the scene
    "object_ids": torch.int16,  # [N, 3, L]: a short caption of each object alone, the empty one where there is none
    "swapped": torch.uint8,  # [N, 3, P, P]: the scene with another object in the place of its first
    "swapped_first": torch.uint8,  # [N, P, P]: 1 where that one is shown
    "swapped_ids": torch.int16,  # [N, L]: a short caption of that one
}
"""What a chunk has, by name."""
PLAN = "plan.json"
"""Beside the chunks: how many views there will be."""
_PART = 256
"""Pictures encoded at a time."""
_SWAP_SEEDS = 2_000_003
"""Seeds of other objects of different purposes are multiples of this apart."""
_FLOOR_NAMED = 0.3
"""Share of the captions of an object alone that say what it stands on."""


def pocket_settings(settings: FamilySettings, base: Base) -> PocketSettings:
    """The settings of the base recipe by which scenes are drawn, rendered and captioned."""
    chosen = settings.views
    return PocketSettings(
        seed=settings.seed,
        pixels=base.pixels,
        supersample=chosen.supersample,
        text=TextSettings(length=base.length),
        data=DataSettings(moving=0.0, captions=chosen.captions, chunk=chosen.chunk),
    )


def swap_scenes(settings: PocketSettings, purpose: str, chunk: int, scenes: Any) -> Any:
    """The scenes of a chunk with another object, of a pair of their split, where the first stands; its size stays.

    One that carries another keeps its shape. The new picture within a hole about that place and the old one around it
    are what editing asks for: the shadow outside says nothing of what is inside.
    """
    from calotype.pocket.scene import pairs_of

    generator = torch.Generator().manual_seed(settings.seed + _SWAP_SEEDS * (1 + len(purpose)) + chunk)
    pairs = pairs_of("heldout" if purpose == "validation" else "train")[0]
    other = pairs[torch.randint(len(pairs), (len(scenes),), generator=generator)]
    shape, color = scenes.shape.clone(), scenes.color.clone()
    carries = ((scenes.support == 0) & scenes.present).any(1)
    shape[:, 0] = torch.where(carries, shape[:, 0], other[:, 0])
    color[:, 0] = torch.where(carries, color[:, 0], other[:, 1])
    return replace(scenes, shape=shape, color=color)


def object_captions(settings: PocketSettings, purpose: str, chunk: int, count: int) -> list[list[str]]:
    """For each scene of a chunk three captions, one of each object alone, empty where there is none."""
    from calotype.pocket.vocabulary import MAX_OBJECTS

    rng = random.Random(f"{settings.seed} objects {purpose} {chunk}")
    rows = []
    for record in chunk_scenes(settings, purpose, chunk, count).records():
        row = [_named(thing, record.floor, rng) for thing in record.objects]
        rows.append(row + [""] * (MAX_OBJECTS - len(row)))
    return rows


def _named(thing: Any, floor: str, rng: random.Random) -> str:
    """A short caption of one object."""
    from calotype.pocket.captions import COLOR_WORDS, FLOOR_PHRASES, NOUNS, describe, with_article

    plain = f"{rng.choice(COLOR_WORDS[thing.color])} {rng.choice(NOUNS[thing.shape])}"
    text = with_article(plain if rng.random() < 0.6 else describe(thing, rng, rng.random()))
    return f"{text} {rng.choice(FLOOR_PHRASES[floor])}" if rng.random() < _FLOOR_NAMED else text


def chunk_words(
    settings: PocketSettings, tokenizer: Path, purpose: str, chunk: int, count: int
) -> dict[str, torch.Tensor]:
    """``ids`` and ``object_ids`` of a chunk; worker processes run this."""
    ids = chunk_ids(settings, tokenizer, purpose, chunk, count)
    encoder, length = encoder_of(tokenizer), settings.text.length
    rows = object_captions(settings, purpose, chunk, count)
    alone = torch.tensor([[encoder.encode(text, length) for text in row] for row in rows], dtype=torch.int16)
    rng = random.Random(f"{settings.seed} swapped {purpose} {chunk}")
    swapped = swap_scenes(settings, purpose, chunk, chunk_scenes(settings, purpose, chunk, count)).records()
    named = [encoder.encode(_named(record.objects[0], record.floor, rng), length) for record in swapped]
    return {"ids": ids, "object_ids": alone, "swapped_ids": torch.tensor(named, dtype=torch.int16)}


@torch.no_grad()
def chunk_pictures(
    render: Callable[[Any], Any], scenes: Any, swapped: Any, base: Base
) -> dict[str, torch.Tensor]:
    """All fields of a chunk but its captions, on the device."""
    from calotype.pocket.labels import instances_of, segments_of

    rendering, other = render(scenes), render(swapped)
    instances = instances_of(rendering)
    latents = []
    for part in rendering.rgb.split(_PART):
        with precision(base.device, torch.bfloat16 if base.device.type == "cuda" else None):
            latents.append(base.latents(part).half())
    return {
        "pictures": (rendering.rgb * 255).round().byte(),
        "latents": torch.cat(latents),
        "depth": rendering.depth[:, 0].half(),
        "labels": segments_of(instances, scenes),
        "instances": instances,
        "swapped": (other.rgb * 255).round().byte(),
        "swapped_first": (other.object_id[:, 0] == 1).byte(),
    }


def make_views(
    settings: FamilySettings,
    folder: Path,
    base: Base,
    tokenizer: Path,
    *,
    seconds: float,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Write chunks of views to ``folder`` until all are made or ``seconds`` are over, then an empty file ``done``.

    The held-out split's, for validation, are made after the first chunk.
    """
    chosen, device, began = settings.views, base.device, time.monotonic()
    clear(folder)
    write_text(folder / PLAN, json.dumps({"count": chosen.count}))
    pocket = pocket_settings(settings, base)
    order = [("views", *each) for each in chunks_of(chosen.count, chosen.chunk)]
    order.insert(1, ("validation", 0, chosen.validation))
    made = said = 0
    with caption_executor(workers) as executor:
        # without workers captions are made in this process, and none for chunks that time may not allow
        ahead = [executor.submit(chunk_words, pocket, tokenizer, *each) for each in order] if workers else []
        render = scene_renderer(pocket, device, say)
        scenes = chunk_scenes(pocket, *order[0])
        for position, each in enumerate(order):
            purpose, number, count = each
            swapped = swap_scenes(pocket, purpose, number, scenes)
            fields = chunk_pictures(render, scenes, swapped, base)
            if position + 1 < len(order):  # drawn while the device is busy
                scenes = chunk_scenes(pocket, *order[position + 1])
            words = ahead[position] if workers else executor.submit(chunk_words, pocket, tokenizer, *each)
            fields |= words.result()
            wait_for(device)
            with replacing(folder / (chunk_name(number) if purpose == "views" else VALIDATION)) as temporary:
                torch.save({name: value.cpu() for name, value in fields.items()}, temporary)
            made += count if purpose == "views" else 0
            now = time.monotonic()
            if now - began > said + 15:
                said = int(now - began)
                say(f"{made:,} of {chosen.count:,} views, {made / (now - began):,.0f} a second")
            if position > 0 and now - began > seconds:
                break
        for words in ahead[position + 1 :]:
            words.cancel()
    (folder / DONE).touch()
    say(f"{made:,} views after {time.monotonic() - began:.0f} s")


class ViewSet:
    """Some fields of the views of a folder on a device, as many as there are; more come with :meth:`look`.

    Fields are attributes: ``views.latents``. ``maker`` is the process that makes them, if this one has started it;
    ``patience`` are the seconds to wait for one that was started elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        fields: Sequence[str] = tuple(FIELDS),
        maker: Any = None,
        patience: float = 0.0,
    ) -> None:
        self.device, self.fields = device, tuple(fields)
        self._source = ChunkFolder(folder, "views", maker, patience)
        self._made = 0
        self._room: dict[str, torch.Tensor] = {}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], device: torch.device) -> ViewSet:
        """A set of just these views."""
        views = cls(Path(), device, tuple(tensors))
        views._source.complete = True
        views._room = {name: value.to(device) for name, value in tensors.items()}
        views._made = len(next(iter(views._room.values())))
        return views

    @classmethod
    def blank(cls, base: Base, fields: Sequence[str], count: int = 4) -> ViewSet:
        """Views of nothing, in the shapes of real ones, to compile with."""
        pixels, length = base.pixels, base.length
        shapes: dict[str, tuple[int, ...]] = {
            "pictures": (3, pixels, pixels),
            "latents": base.latent_shape,
            "depth": (pixels, pixels),
            "labels": (pixels, pixels),
            "instances": (pixels, pixels),
            "ids": (2, length),
            "object_ids": (3, length),
            "swapped": (3, pixels, pixels),
            "swapped_first": (pixels, pixels),
            "swapped_ids": (length,),
        }
        generator = torch.Generator().manual_seed(0)
        return cls.of(
            {
                name: (1 + 3 * torch.rand((count, *shapes[name]), generator=generator)).to(FIELDS[name])
                for name in fields
            },
            base.device,
        )

    def __len__(self) -> int:
        return self._made

    def __getattr__(self, name: str) -> torch.Tensor:
        room: dict[str, torch.Tensor] = self.__dict__.get("_room", {})
        if name not in room:
            raise AttributeError(f"These views have no {name}; they have {', '.join(room) or 'nothing yet'}.")
        return room[name][: self._made]

    def look(self) -> None:
        """Take in the chunks that have been written since."""
        for path in self._source.fresh():
            chunk = torch.load(path, weights_only=True, mmap=True)
            count = len(chunk["latents"])
            if not self._room:
                planned = json.loads((path.parent / PLAN).read_text(encoding="utf-8"))["count"]
                self._room = {
                    name: torch.empty(
                        (planned, *chunk[name].shape[1:]), dtype=chunk[name].dtype, device=self.device
                    )
                    for name in self.fields
                }
            if any(self._made + count > len(room) for room in self._room.values()):
                raise TrainingError(
                    f"{path.parent} holds more views than were planned: run the stage views again."
                )
            for name, room in self._room.items():
                room[self._made : self._made + count] = chunk[name].to(self.device)
            self._made += count

    def wait(self, name: str) -> Path:
        """The path of a file that is being made. ``TrainingError`` if nobody makes it."""
        return self._source.wait(name)

    def validation(self) -> ViewSet:
        """The views of the held-out split, in the same fields; waits for them as :meth:`wait` does."""
        stored = torch.load(self.wait(VALIDATION), weights_only=True, mmap=True)
        return ViewSet.of({name: stored[name] for name in self.fields}, self.device)
