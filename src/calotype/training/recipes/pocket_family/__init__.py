"""The recipe of the pocket family: views of scenes, members trained on them one by one, and their model cards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from calotype.core.errors import InputError
from calotype.training.recipes import check_stages

STAGES = ("views", "train", "export")
BASE = Path(__file__).parents[3] / "pocket" / "weights"
"""The bundled checkpoint."""


def train_pocket_family(
    out: Path,
    *,
    stages: Sequence[str] = STAGES,
    member: str | None = None,
    preset: str = "full",
    work: Path | None = None,
    base: Path | None = None,
    init: Path | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
    seed: int | None = None,
    compile: bool | None = None,
    workers: int | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Run stages of the recipe, in their order.

    Several processes may share ``work``: one makes the views, others train a member each on those that are there.

    Args:
        out: where results go: a folder of the member's name, a sheet and the log.
        stages: some of :data:`STAGES`; ``train`` and ``export`` are of one member.
        member: the name of one in ``member.MEMBERS``.
        preset: ``full``, or ``tiny``, which goes through the motions in seconds.
        work: where views are kept; a folder for temporary files if left out.
        base: the checkpoint whose parts the members share; the bundled one if left out.
        init: the folder of the member's earlier weights to go on from.
        max_minutes: for all stages of this call together, waiting for views included; learning rates fall to zero by
            then.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: in place of the preset's.
        compile: use ``torch.compile``; by default on a GPU.
        workers: processes that write captions; by default by the number of processors.
        changes: settings other than the preset's, such as ``views.count=1024`` or, of the member, ``train.batch=64``.

    Raises:
        InputError: an unknown stage, member, preset or setting, no checkpoint in a folder, or a stage whose predecessor
            has not run.
    """
    check_stages(stages, STAGES)

    from calotype.training.recipes.base import check_base, load_base, pick_device
    from calotype.training.recipes.pocket.data import caption_workers
    from calotype.training.recipes.pocket.run import Run
    from calotype.training.recipes.pocket_family import run as stage_functions
    from calotype.training.recipes.pocket_family.member import member_of
    from calotype.training.recipes.pocket_family.settings import (
        family_settings,
        member_settings,
        split_changes,
    )

    settings = family_settings(preset, changes, seed)
    chosen = None if tuple(stages) == ("views",) else member_of(member)
    theirs = None if chosen is None else member_settings(chosen, preset, changes, seed)
    if chosen is None and split_changes(changes)[1]:
        raise InputError(f"The stage views has no setting {split_changes(changes)[1][0]!r}.")
    where = pick_device(device)
    folder = base or BASE
    check_base(folder)
    run = Run(
        device=where,
        work=work or Path(tempfile.gettempdir()) / f"calotype-pocket-family-{preset}",
        out=out,
        stages=tuple(stages),
        max_minutes=max_minutes,
        workers=caption_workers() if workers is None else workers,
        compile=where.type == "cuda" if compile is None else compile,
        init=init,
        weights=stage_functions.STAGE_WEIGHTS,
        reserve=stage_functions.RESERVE,
    )
    if theirs is not None:
        run.check_length("train", theirs.train.steps)
    run.work.mkdir(parents=True, exist_ok=True)
    run.out.mkdir(parents=True, exist_ok=True)
    parts = load_base(folder, where) if {"views", "train"} & set(stages) else None
    if "views" in stages and parts is not None:
        run.say(f"stage views on {where}, work in {run.work}")
        stage_functions.prepare_views(settings, run, parts, folder / "tokenizer")
    if "train" in stages and parts is not None and chosen is not None and theirs is not None:
        run.say(f"stage train of {chosen.name} on {where}, work in {run.work}")
        stage_functions.train_member(chosen, theirs, run, parts, init)
    if "export" in stages and chosen is not None:
        stage_functions.export(chosen, run)
    run.say("done")
