"""The recipe of ``pocket-lora-heart``: a shape that the pocket model never saw, taught from twenty pictures.

It does what users do: a folder of pictures with captions, the checkpoint's own pictures beside them so that it does not
forget what it knows, and :func:`calotype.train_lora`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from calotype.core.errors import InputError
from calotype.training.recipes import check_stages

STAGES = ("pictures", "train", "export")


def train_pocket_lora(
    out: Path,
    *,
    stages: Sequence[str] = STAGES,
    preset: str = "full",
    work: Path | None = None,
    base: Path | None = None,
    device: str = "auto",
    seed: int | None = None,
    changes: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Run stages of the recipe, in their order; leaves ``out/pocket-lora-SHAPE``.

    Args:
        out: where the folder with the low-rank weights and their card goes.
        stages: some of :data:`STAGES`.
        preset: ``full``, or ``tiny``, which goes through the motions in seconds.
        work: where the pictures and the training are kept; a folder for temporary files if left out.
        base: the checkpoint that is taught; the bundled one if left out.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: in place of the preset's.
        changes: settings other than the preset's, such as ``rank=8``.

    Raises:
        InputError: an unknown stage, preset or setting, no checkpoint in a folder, or a stage whose predecessor has not
            run.
    """
    check_stages(stages, STAGES)

    from calotype.training.recipes.base import check_base, pick_device
    from calotype.training.recipes.pocket.settings import changed
    from calotype.training.recipes.pocket_family import BASE
    from calotype.training.recipes.pocket_lora import run
    from calotype.training.recipes.pocket_lora.settings import PRESETS

    if preset not in PRESETS:
        raise InputError(f"There is no preset {preset!r} of pocket-lora; there are {', '.join(PRESETS)}.")
    settings = changed(PRESETS[preset], [*changes, *([f"seed={seed}"] if seed is not None else [])])
    folder, where = base or BASE, pick_device(device)
    check_base(folder)
    place = work or Path(tempfile.gettempdir()) / f"calotype-pocket-lora-{preset}"
    if "pictures" in stages:
        run.draw_pictures(settings, folder, place, where, say)
    if "train" in stages:
        run.teach(settings, folder, place, where, say)
    if "export" in stages:
        run.export(settings, place, out, say)
