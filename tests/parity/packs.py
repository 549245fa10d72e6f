"""Several cases of a table in one call.

A table of calls names what differs from the plain call in each case. Cases that say nothing of the same argument, and
of which none hides what another one does, hold in one call as well as in several: a picture that is right with both is
right with each, since two errors would have to cancel to the last digit. So every value of every argument is still
called with, and many pairs of them that no call had before, in fewer calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tests.parity.pipeline_runs import Case

HIDING = frozenset(
    "num_inference_steps prior_num_inference_steps decoder_num_inference_steps super_res_num_inference_steps "
    "strength timesteps sigmas guess_mode padding_mask_crop denoising_end denoising_start original_inference_steps "
    "callback callback_on_step_end".split()
)
"""Arguments that change how far a call goes or what it reads, so that others might no longer show: called alone."""
COUNTS = frozenset(
    "prompt num_images_per_prompt num_videos_per_prompt generator latents prompt_embeds image_embeds video".split()
)
SHAPES = frozenset(
    "image mask_image control control_image hint height width latents video num_frames".split()
)
TEXTS = frozenset("prompt prompt_embeds image_embeds negative_prompt_embeds negative_image_embeds".split())


MOST = 6
"""Cases of one call: more would leave too many to look at where it fails."""


def _several(value: Any) -> bool:
    is_array = isinstance(value, torch.Tensor | np.ndarray)
    return isinstance(value, list | tuple) or (is_array and len(value) > 1)


def _kinds(given: Mapping[str, Any]) -> set[str]:
    """What of the call a case changes, beside its arguments: the number of pictures, their shape, the text,
    how they are decoded."""
    kinds = set()
    if COUNTS & given.keys() or any(_several(value) for value in given.values()):
        kinds.add("count")
    if SHAPES & given.keys() or given.get("output_type") == "latent":
        kinds.add("shape")  # what has not been decoded has another shape
    if "decode_chunk_size" in given or given.get("output_type") == "latent":
        kinds.add("decoding")
    if TEXTS & given.keys() or {"negative_prompt", "clip_skip"} & given.keys():
        kinds.add("text")
    return kinds


def _alone(given: Mapping[str, Any]) -> bool:
    """Whether a case must be called alone; without guidance much of what is given has no effect."""
    scales = [value for key, value in given.items() if "guidance_scale" in key]
    return bool(HIDING & given.keys()) or any(not isinstance(s, float | int) or s <= 1 for s in scales)


def packed(cases: Mapping[str, Case], alone: tuple[str, ...] = ()) -> dict[str, Case]:
    """The cases in as few calls as they go into, in the table's order; a call's name is those of its cases.

    ``alone`` names those that agree with no other one, for a reason that their arguments do not show: one frame hides
    how several are decoded, and what is compared in eight bits hides small differences.
    """
    packs: list[tuple[list[str], set[str]]] = []
    for name, make in cases.items():
        given = make()
        features = set(given) | _kinds(given)
        if name in alone or _alone(given):
            packs.append(([name], {"*"}))
            continue
        for names, taken in packs:
            if "*" not in taken and not taken & features and len(names) < MOST:
                names.append(name)
                taken |= features
                break
        else:
            packs.append(([name], features))
    return {" + ".join(names): _merged([cases[name] for name in names]) for names, _ in packs}


def _merged(makes: list[Case]) -> Case:
    def make() -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for one in makes:
            arguments |= one()
        return arguments

    return make


def in_turn(
    cases: Iterable[str], schedulers: Sequence[str | None], stepping: tuple[str, ...] = ()
) -> list[tuple[str, str | None]]:
    """Cases with the schedulers in turn, and those of ``stepping`` with each.

    A pipeline tells its scheduler which steps to take, and hands it each prediction; so the two can only go wrong
    together in a case that says which steps are taken. What else a case changes is the same for every scheduler.
    """
    turns = itertools.cycle(schedulers)
    return [(case, one) for case in cases for one in (schedulers if case in stepping else [next(turns)])]
