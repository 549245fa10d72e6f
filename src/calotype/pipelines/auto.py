"""Pipelines chosen by task: whatever family a checkpoint is of, its class for that task."""

from __future__ import annotations

import os
from typing import Any, ClassVar, NamedTuple

from calotype.core import hub
from calotype.core.config import init_parameters
from calotype.core.errors import InputError, UnknownClassError
from calotype.pipelines.components import INDEX, index_of, library_of, public_class
from calotype.pipelines.connected import COMBINED
from calotype.pipelines.pipeline import DiffusionPipeline


class Kind(NamedTuple):
    """What a pipeline class is for: the task, the control beside the prompt, and whether it perturbs attention."""

    task: str
    control: str | None = None
    perturbed: bool = False

    def __str__(self) -> str:
        more = [self.control] if self.control else []
        more += ["perturbed attention"] if self.perturbed else []
        return f"{self.task} with {' and '.join(more)}" if more else self.task


UNIONS = ("ControlNetUnionModel", "MultiControlNetUnionModel")
"""The classes of ControlNets that have pipelines of their own."""


TASKS = {"text-to-image": "", "image-to-image": "Img2Img", "inpainting": "Inpaint"}
"""Task -> what stands for it in the names of classes."""


def _combined(prefix: str) -> dict[Kind, str]:
    """The classes of a family that sample a prior, too."""
    return {Kind(task): COMBINED[f"{prefix}{end}Pipeline"] for task, end in TASKS.items()}


def _family(prefix: str, *more: str, perturbed: tuple[str, ...]) -> dict[Kind, str]:
    """The classes of a family by the names that they have had from the start; ``more`` are controls of some alone.

    Attention is perturbed in every task, and with a ControlNet in the tasks ``perturbed``.
    """
    controls = {None: "", "controlnet": "ControlNet"} | {
        f"controlnet-{name.lower()}": f"ControlNet{name}" for name in more
    }
    found = {
        Kind(task, control): f"{prefix}{middle}{end}Pipeline"
        for task, end in TASKS.items()
        for control, middle in controls.items()
    }
    found |= {Kind(task, None, True): f"{prefix}PAG{end}Pipeline" for task, end in TASKS.items()}
    nets = {
        Kind(task, "controlnet", True): f"{prefix}ControlNetPAG{TASKS[task]}Pipeline" for task in perturbed
    }
    return found | nets


FAMILIES: dict[str, dict[Kind, str]] = {
    "stable-diffusion": _family("StableDiffusion", perturbed=("text-to-image", "inpainting")),
    "stable-diffusion-xl": _family(
        "StableDiffusionXL", "Union", perturbed=("text-to-image", "image-to-image")
    ),
    "latent-consistency": {
        Kind("text-to-image"): "LatentConsistencyModelPipeline",
        Kind("image-to-image"): "LatentConsistencyModelImg2ImgPipeline",
    },
    "kandinsky-2.0": {Kind(task): f"KandinskyV20{end}Pipeline" for task, end in TASKS.items()},
    "kandinsky-2.1": _combined("Kandinsky"),
    "kandinsky-2.2": _combined("KandinskyV22"),
    "kandinsky-3": {
        Kind("text-to-image"): "Kandinsky3Pipeline",
        Kind("image-to-image"): "Kandinsky3Img2ImgPipeline",
    },
}
"""Family -> kind -> the name of the public class."""


def class_for(
    task: str, class_name: str, control: str | None, perturbed: bool | None = None
) -> type[DiffusionPipeline]:
    """The pipeline for ``task`` with ``control`` in the family of the pipeline class ``class_name``.

    Whether it perturbs attention is as ``perturbed`` says, or by default as in that class. For a decoder it is the one
    that samples the prior, too.
    """
    class_name = COMBINED.get(class_name, class_name)
    for classes in FAMILIES.values():
        if class_name in classes.values():
            own = next(kind for kind, name in classes.items() if name == class_name)
            kind = Kind(task, control, own.perturbed if perturbed is None else perturbed)
            if kind not in classes:
                hint = (
                    " Any pipeline takes guidance=calotype.guidance.PerturbedAttention(…)." * kind.perturbed
                )
                raise UnknownClassError(
                    f"The family of {class_name} has no pipeline for {kind}; it has {', '.join(classes.values())}."
                    + hint
                )
            found = public_class(classes[kind])
            assert issubclass(found, DiffusionPipeline)
            return found
    known = sorted(name for classes in FAMILIES.values() for name in classes.values())
    raise UnknownClassError(
        f"{class_name} is in no family with a pipeline for {task}; there are {', '.join(known)}."
    )


def _control(given: dict[str, Any], pipeline: DiffusionPipeline | None = None) -> str | None:
    """Which control is asked for by an argument, or is in the pipeline already; None for one that is switched off."""
    if "controlnet" in given:
        return _kind_of_controlnet(given["controlnet"])
    if pipeline is None or "controlnet" not in init_parameters(type(pipeline)):
        return None
    return _kind_of_controlnet(pipeline.components["controlnet"])


def _kind_of_controlnet(net: Any) -> str | None:
    """The control that a ControlNet, or a list of them, is; None where there is none."""
    if net is None:
        return None
    first = net[0] if isinstance(net, list | tuple) and net else net
    return _control_named(library_of(first)[1])


def _control_named(class_name: str | None) -> str:
    return "controlnet-union" if class_name in UNIONS else "controlnet"


class AutoPipeline:
    """A pipeline for one task, of the family of whatever checkpoint is given; abstract."""

    config_name = INDEX
    task: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise OSError(
            f"{type(self).__name__} is not made directly: use its from_pretrained(…) or from_pipe(…)."
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> DiffusionPipeline:
        """The checkpoint's pipeline for this task, with ControlNets if ``controlnet`` is given.

        With ``enable_pag=True`` it is the one with perturbed-attention guidance, in the layers ``pag_applied_layers``.
        Other arguments as for ``DiffusionPipeline.from_pretrained``.
        """
        perturbed = kwargs.pop("enable_pag", None)
        index = index_of(pretrained_model_or_path, hub.HubOptions.take(dict(kwargs)))
        name = index.get("_class_name")
        if not isinstance(name, str):
            raise InputError(f"The {INDEX} of {os.fspath(pretrained_model_or_path)} names no pipeline class.")
        control = _control(kwargs) if "controlnet" in kwargs else _stored(index)
        found = class_for(cls.task, name, control, perturbed)
        return found.from_pretrained(pretrained_model_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> DiffusionPipeline:
        """The pipeline for this task with another pipeline's components, which are shared.

        ``controlnet`` adds ControlNets, and ``controlnet=None`` leaves them out; so ``enable_pag=True`` and
        ``enable_pag=False`` with perturbed-attention guidance.
        """
        perturbed = kwargs.pop("enable_pag", None)
        control = _control(kwargs, pipeline)
        if control is None:
            kwargs.pop("controlnet", None)
        found = class_for(cls.task, type(pipeline).__name__, control, perturbed)
        return found.from_pipe(pipeline, **kwargs)


def _stored(index: dict[str, Any]) -> str | None:
    """Which control a checkpoint brings of its own."""
    entry = index.get("controlnet")
    return _control_named(entry[-1]) if isinstance(entry, list) and entry[:1] != [None] else None


class AutoPipelineForText2Image(AutoPipeline):
    """Text to image with whatever checkpoint is given."""

    task = "text-to-image"


class AutoPipelineForImage2Image(AutoPipeline):
    """A picture and a text to a picture with whatever checkpoint is given."""

    task = "image-to-image"


class AutoPipelineForInpainting(AutoPipeline):
    """New content where a mask is white with whatever checkpoint is given."""

    task = "inpainting"
