"""The recipe of the pocket model: VAE, tokenizer, a text encoder that reads, latents, UNet, export."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from calotype.core.errors import InputError
from calotype.training.recipes import check_stages

STAGES = ("vae", "tokenizer", "text", "latents", "unet", "export")


def train_pocket(
    out: Path,
    *,
    stages: Sequence[str] = STAGES,
    preset: str = "full",
    work: Path | None = None,
    vae: Path | None = None,
    init: Path | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
    seed: int | None = None,
    compile: bool | None = None,
    resume: bool = False,
    workers: int | None = None,
    changes: Sequence[str] = (),
) -> None:
    """Run stages of the recipe, in their order.

    Args:
        out: where results go: few files, none above 16 MB.
        stages: some of :data:`STAGES`.
        preset: ``full``; ``cpu``, smaller, for an hour on a CPU; or ``tiny``, which goes through the motions in
            seconds.
        work: where checkpoints and data for later stages are kept; a folder for temporary files if left out.
        vae: a folder with a trained VAE, in place of the stage ``vae``.
        init: a folder with a pocket checkpoint of the same sizes to go on from: the weights that the UNet begins with,
            and in place of stages that are left out its VAE, its tokenizer and its text encoder.
        max_minutes: for all stages of this call together; learning rates fall to zero by then.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: in place of the preset's.
        compile: use ``torch.compile``; by default on a GPU.
        resume: go on from checkpoints in ``work``.
        workers: processes that write captions; by default by the number of processors.
        changes: settings other than the preset's, such as ``unet.batch=256``.

    Raises:
        InputError: an unknown stage, preset or setting, a stage whose predecessor has not run, or a preset without
            numbers of steps and no ``max_minutes``.
    """
    check_stages(stages, STAGES)

    from calotype.training.recipes.base import pick_device
    from calotype.training.recipes.pocket import data, export
    from calotype.training.recipes.pocket import stages as stage_functions
    from calotype.training.recipes.pocket.run import Run
    from calotype.training.recipes.pocket.settings import changed
    from calotype.training.recipes.pocket.settings import preset as preset_of

    settings = changed(preset_of(preset), [*changes, *([f"seed={seed}"] if seed is not None else [])])
    where = pick_device(device)
    run = Run(
        device=where,
        work=work or Path(tempfile.gettempdir()) / f"calotype-pocket-{preset}",
        out=out,
        stages=tuple(stages),
        max_minutes=max_minutes,
        resume=resume,
        workers=data.caption_workers() if workers is None else workers,
        compile=where.type == "cuda" if compile is None else compile,
        init=init,
    )
    for stage, chosen in (("vae", settings.vae), ("text", settings.text), ("unet", settings.unet)):
        run.check_length(stage, chosen.steps)
    run.work.mkdir(parents=True, exist_ok=True)
    run.out.mkdir(parents=True, exist_ok=True)
    if init is not None:
        if not (init / "model_index.json").is_file():
            raise InputError(f"There is no checkpoint in {init}: name a folder with model_index.json.")
        if vae is None and "vae" not in stages:
            vae = init / "vae"
        for part, stage in (("tokenizer", "tokenizer"), ("text_encoder", "text")):
            if stage not in stages and not (run.work / part).exists():
                shutil.copytree(init / part, run.work / part)
    if vae is not None:
        if not (vae / "config.json").is_file():
            raise InputError(
                f"There is no VAE in {vae}: name the folder that the stage vae left, with config.json."
            )
        shutil.copytree(vae, run.work / "vae", dirs_exist_ok=True)
    actions: dict[str, Callable[..., object]] = {
        "vae": stage_functions.train_vae,
        "tokenizer": stage_functions.make_tokenizer,
        "text": stage_functions.train_text,
        "latents": stage_functions.make_data,
        "unet": stage_functions.train_unet,
        "export": export.export,
    }
    for stage in STAGES:
        if stage in stages:
            run.say(f"stage {stage} on {where}, work in {run.work}")
            actions[stage](settings, run)
    run.say("done")
