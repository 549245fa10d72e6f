"""The recipe of the pocket model's motion: render clips, train an adapter for the frozen model, write its card."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from calotype.training.recipes import check_stages

STAGES = ("clips", "motion", "export")
BASE = Path(__file__).parents[3] / "pocket" / "weights"
"""The bundled checkpoint."""


def train_pocket_motion(
    out: Path,
    *,
    stages: Sequence[str] = STAGES,
    preset: str = "full",
    work: Path | None = None,
    base: Path | None = None,
    init: Path | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
    seed: int | None = None,
    compile: bool | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Run stages of the recipe, in their order; on a GPU ``clips`` and ``motion`` at the same time.

    Args:
        out: where results go: the folder ``pocket-motion``, a sheet and the log.
        stages: some of :data:`STAGES`.
        preset: ``full``, or ``tiny``, which goes through the motions in seconds.
        work: where clips are kept; a folder for temporary files if left out.
        base: the checkpoint that is to move; the bundled one if left out.
        init: the folder of an adapter for it to go on from.
        max_minutes: for all stages of this call together; learning rates fall to zero by then.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: in place of the preset's.
        compile: use ``torch.compile``; by default on a GPU.
        changes: settings other than the preset's, such as ``train.batch=16``.

    Raises:
        InputError: an unknown stage, preset or setting, no checkpoint or adapter in a folder, or a stage whose
            predecessor has not run.
    """
    check_stages(stages, STAGES)

    from calotype.training.recipes.base import check_base, load_base, pick_device
    from calotype.training.recipes.pocket.run import Run
    from calotype.training.recipes.pocket.settings import changed
    from calotype.training.recipes.pocket_motion import stages as stage_functions
    from calotype.training.recipes.pocket_motion.clips import start_clips
    from calotype.training.recipes.pocket_motion.settings import preset as preset_of

    settings = changed(preset_of(preset), [*changes, *([f"seed={seed}"] if seed is not None else [])])
    where = pick_device(device)
    folder = base or BASE
    check_base(folder)
    run = Run(
        device=where,
        work=work or Path(tempfile.gettempdir()) / f"calotype-pocket-motion-{preset}",
        out=out,
        stages=tuple(stages),
        max_minutes=max_minutes,
        compile=where.type == "cuda" if compile is None else compile,
        init=init,
        weights=stage_functions.STAGE_WEIGHTS,
    )
    run.check_length("motion", settings.train.steps)
    run.work.mkdir(parents=True, exist_ok=True)
    run.out.mkdir(parents=True, exist_ok=True)
    aside = where.type == "cuda" and "clips" in stages and "motion" in stages
    maker = None
    if aside:
        seconds = 60.0 * (max_minutes or 10) * 0.6
        maker = start_clips(settings, stage_functions.clips_folder(run), folder, seconds, str(where))
    try:
        parts = load_base(folder, where)
        if "clips" in stages and not aside:
            run.say(f"stage clips on {where}, work in {run.work}")
            stage_functions.prepare_clips(settings, run, parts)
        if "motion" in stages:
            run.say(f"stage motion on {where}, work in {run.work}")
            stage_functions.train_motion(settings, run, parts, init, maker)
    finally:
        if maker is not None:
            maker.terminate()
            maker.join()
    if "export" in stages:
        stage_functions.export(settings, run, init)
    run.say("done")
