"""Latent consistency distillation of users' checkpoints: low-rank weights (LCM-LoRA, arXiv:2311.05556) or a UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.adapters import model as adapters
from calotype.training.consistency import ConsistencyObjective, Distillation, frozen_twin
from calotype.training.data.beside import Guidances
from calotype.training.data.folder import read_captioned
from calotype.training.fine_tuning import low_rank, whole
from calotype.training.fine_tuning.base import Base
from calotype.training.fine_tuning.network_settings import LcmSettings
from calotype.training.fine_tuning.run import Lesson, Say, begin, dtype_of, picture_set, teach
from calotype.training.low_rank import add_trainable, layers_for

LAYERS = (
    "to_q,to_k,to_v,to_out.0,proj_in,proj_out,ff.net.0.proj,ff.net.2,conv1,conv2,conv_shortcut,time_emb_proj,"
    "downsamplers.0.conv,upsamplers.0.conv"
).split(",")
"""What the blocks of a UNet are made of, by the ends of the names."""


def train_lcm(*, say: Say = print, **options: Any) -> Path:
    """Distil a checkpoint to a few steps on captioned pictures; writes ``pytorch_lora_weights.safetensors``.

    With ``lora=False`` it writes a whole checkpoint, whose UNet is told the guidance. ``options`` are the fields of
    :class:`LcmSettings`; the rest is as for ``train_text_to_image``. (https://arxiv.org/abs/2310.04378)
    """
    from calotype.schedulers.distilled import LCMScheduler

    settings = LcmSettings.of(options)
    examples = read_captioned(settings.train_data_dir, settings.caption_column)
    base = begin(settings, examples)
    # the teacher's noise, before there is a scheduler for the student
    alphas_cumprod = base.training_scheduler.alphas_cumprod.to(base.device)
    base.pipe.scheduler = LCMScheduler.from_config(base.pipe.scheduler.config, **_sampling(settings))
    teacher, student = _pair(settings, base)
    empty = _empty(base)
    base.pipe.unet = student
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    objective = ConsistencyObjective(
        student,
        teacher,
        alphas_cumprod,
        base.prediction,
        empty,
        Distillation(
            steps=settings.num_ddim_timesteps,
            loss=settings.loss_type,
            huber_c=settings.huber_c,
            timestep_scaling=settings.timestep_scaling_factor,
        ),
        target_decay=None if settings.lora else settings.target_decay,
    )
    make = _low_rank if settings.lora else _whole
    lesson = make(settings, base, objective)
    return teach(settings, base, lesson, [(picture_set(settings, base, examples), 1.0)], say)


def _sampling(settings: LcmSettings) -> dict[str, Any]:
    """What ``LCMScheduler`` must know of the training."""
    return {
        "original_inference_steps": settings.num_ddim_timesteps,
        "timestep_scaling": settings.timestep_scaling_factor,
    }


def _pair(settings: LcmSettings, base: Base) -> tuple[Any, Any]:
    """Teacher and student; what is frozen is kept in the type that is computed in, what is trained in float32."""
    if settings.lora:
        base.lighten(dtype_of(settings))
        teacher, student = frozen_twin(base.pipe.unet), base.pipe.unet
        add_trainable(student, low_rank.NAME, _layers(settings, student), settings.rank)
        return teacher, student
    student = _told_guidance(base.pipe.unet, settings.unet_time_cond_proj_dim).to(base.device)
    base.lighten(dtype_of(settings))
    return base.pipe.unet.eval(), student


def _low_rank(settings: LcmSettings, base: Base, objective: ConsistencyObjective) -> Lesson:
    told = "".join(f", {name}={value}" for name, value in _sampling(settings).items())
    return Lesson(
        kind="lcm",
        objective=objective,
        read=base.states,
        read_identity=base.text_identity,
        write=lambda folder: low_rank.write({"unet": base.pipe.unet}, 1.0, folder),
        usage=f"pipe = calotype.load({base.name!r})\n"
        f"pipe.scheduler = calotype.LCMScheduler.from_config(pipe.scheduler.config{told})\n"
        f"pipe.load_lora_weights({settings.output.name!r})\n"
        f'pipe("…", num_inference_steps=4, guidance_scale=1.0).images[0]',
        facts={"rank": settings.rank, "teacher's guidance scale": _scales(settings)},
        extras=[_guidances(settings)],
    )


def _whole(settings: LcmSettings, base: Base, objective: ConsistencyObjective) -> Lesson:
    middle = 1 + (settings.w_min + settings.w_max) / 2
    return Lesson(
        kind="lcm",
        objective=objective,
        read=base.states,
        read_identity=base.text_identity,
        write=lambda folder: whole.write(base, folder),
        usage=f"pipe = calotype.load({settings.output.name!r})\n"
        f'pipe("…", num_inference_steps=4, guidance_scale={middle}).images[0]',
        facts={"text encoder": "as it was", "teacher's guidance scale": _scales(settings)},
        extras=[_guidances(settings)],
        after_step=objective.follow,
    )


def _guidances(settings: LcmSettings) -> Guidances:
    return Guidances(1 + settings.w_min, 1 + settings.w_max)


def _scales(settings: LcmSettings) -> str:
    return f"{1 + settings.w_min} to {1 + settings.w_max}"


def _layers(settings: LcmSettings, unet: nn.Module) -> list[str]:
    """The layers that get low-rank weights; ``InputError`` where one that was asked for is not there."""
    if settings.target_modules:
        return layers_for(unet, [name.strip() for name in settings.target_modules.split(",") if name.strip()])
    ends = tuple(f".{name}" for name in LAYERS)
    return [name for name in adapters.layers_of(unet) if f".{name}".endswith(ends)]


@torch.no_grad()
def _empty(base: Base) -> dict[str, torch.Tensor]:
    """What the teacher reads where there is no prompt: the empty one, or zeros if its pipeline has it so."""
    empty = base.states([""])
    zeros = base.xl and base.pipe.config.get("force_zeros_for_empty_prompt", False)
    return {name: torch.zeros_like(value) if zeros else value for name, value in empty.items()}


def _told_guidance(teacher: Any, width: int) -> Any:
    """A UNet with the teacher's weights that is told the guidance, of which it makes nothing yet."""
    from calotype.models.unet_2d_condition import UNet2DConditionModel

    student = UNet2DConditionModel.from_config(teacher.config, time_cond_proj_dim=width)
    projection = "time_embedding.cond_proj.weight"
    nothing = torch.zeros_like(student.get_parameter(projection))
    student.load_state_dict({**teacher.state_dict(), projection: nothing})
    return student.requires_grad_(True)
