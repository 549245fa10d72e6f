"""Pipelines chosen by task: whatever family a checkpoint is of, its class for that task."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from calotype.core import hub
from calotype.core.config import read_json
from calotype.core.errors import InputError, UnknownClassError
from calotype.pipelines.components import INDEX, public_class
from calotype.pipelines.pipeline import DiffusionPipeline

TASKS: dict[str, dict[str, str]] = {
    "stable-diffusion": {
        "text-to-image": "StableDiffusionPipeline",
        "image-to-image": "StableDiffusionImg2ImgPipeline",
        "inpainting": "StableDiffusionInpaintPipeline",
    },
    "stable-diffusion-xl": {
        "text-to-image": "StableDiffusionXLPipeline",
        "image-to-image": "StableDiffusionXLImg2ImgPipeline",
        "inpainting": "StableDiffusionXLInpaintPipeline",
    },
}
"""Family -> task -> the name of the public class."""


def class_for(task: str, class_name: str) -> type[DiffusionPipeline]:
    """The pipeline for ``task`` in the family of the pipeline class ``class_name``."""
    for classes in TASKS.values():
        if class_name in classes.values():
            if task not in classes:
                raise UnknownClassError(
                    f"The family of {class_name} has no pipeline for {task}; it has {', '.join(classes)}."
                )
            found = public_class(classes[task])
            assert issubclass(found, DiffusionPipeline)
            return found
    known = sorted(name for classes in TASKS.values() for name in classes.values())
    raise UnknownClassError(
        f"{class_name} is in no family with a pipeline for {task}; there are {', '.join(known)}."
    )


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
        """The checkpoint's pipeline for this task; arguments as for ``DiffusionPipeline.from_pretrained``."""
        options = hub.HubOptions.take(dict(kwargs))
        index = read_json(hub.find_file(pretrained_model_or_path, INDEX, options=options))
        name = index.get("_class_name")
        if not isinstance(name, str):
            raise InputError(f"The {INDEX} of {os.fspath(pretrained_model_or_path)} names no pipeline class.")
        return class_for(cls.task, name).from_pretrained(pretrained_model_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> DiffusionPipeline:
        """The pipeline for this task with another pipeline's components, which are shared."""
        return class_for(cls.task, type(pipeline).__name__).from_pipe(pipeline, **kwargs)


class AutoPipelineForText2Image(AutoPipeline):
    """Text to image with whatever checkpoint is given."""

    task = "text-to-image"


class AutoPipelineForImage2Image(AutoPipeline):
    """A picture and a text to a picture with whatever checkpoint is given."""

    task = "image-to-image"


class AutoPipelineForInpainting(AutoPipeline):
    """New content where a mask is white with whatever checkpoint is given."""

    task = "inpainting"
