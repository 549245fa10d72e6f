"""What comes with the package, by name: a checkpoint, a motion adapter for it, and members of its family.

A member is a pipeline that has parts of its own, such as another denoiser, in place of the checkpoint's or beside them.
Its folder holds these alone, each in a sub-folder that is named like the component, and low-rank weights if it has
some. One that shares nothing is a whole checkpoint. A part that was made of one of the checkpoint's need not repeat
the tensors that are still that one's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from calotype.core.config import init_parameters, read_json
from calotype.core.errors import ModelFilesError
from calotype.pipelines.components import INDEX, Loading, load_components, public_class
from calotype.schedulers.names import scheduler_named

_POCKET = Path(__file__).parents[1] / "pocket"
BASE = "pocket"
"""The checkpoint whose parts the members share."""
LORA_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Member:
    """A pipeline of the family: its public class and what its folder must hold.

    ``borrowed`` are components in the folder of another member, by its name; ``completed`` those whose files lack what
    a component of the checkpoint, by its name, has; ``scheduler`` is the name of one that takes the settings of the
    checkpoint's. ``usual`` are defaults of its calls, ``given`` arguments that it is made
    with: None for a component of the checkpoint that it does not have.
    """

    pipeline: str
    needs: tuple[str, ...] = ("unet",)
    borrowed: Mapping[str, str] = field(default_factory=dict)
    completed: Mapping[str, str] = field(default_factory=dict)
    low_rank: bool = False
    scheduler: str | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)


_ESTIMATOR = "pocket-depth-estimator"
_XL = "pocket-xl"
_STEERED = Member("StableDiffusionControlNetPipeline", ("controlnet",))
MEMBERS: dict[str, Member] = {
    "pocket-inpaint": Member("StableDiffusionInpaintPipeline"),
    "pocket-depth": Member(
        "StableDiffusionDepth2ImgPipeline",
        borrowed={"depth_estimator": _ESTIMATOR, "feature_extractor": _ESTIMATOR},
    ),
    "pocket-controlnet-canny": _STEERED,
    "pocket-controlnet-depth": _STEERED,
    "pocket-controlnet-segmentation": _STEERED,
    "pocket-turbo": Member(
        "StableDiffusionPipeline",
        (),
        low_rank=True,
        scheduler="LCM",
        usual={"num_inference_steps": 4, "guidance_scale": 1.0},
    ),
    "pocket-lora-heart": Member("StableDiffusionPipeline", (), low_rank=True),
    "pocket-unconditional": Member("DDIMPipeline", ("unet", "scheduler")),
    "pocket-upscale": Member(
        "StableDiffusionUpscalePipeline",
        ("unet", "low_res_scheduler", "vae"),
        completed={"unet": "unet", "vae": "vae"},
        usual={"num_inference_steps": 20, "guidance_scale": 1.0},
    ),
    "pocket-tiny-vae": Member("StableDiffusionPipeline", ("vae",)),
    "pocket-xl": Member(
        "StableDiffusionXLPipeline",
        ("unet", "text_encoder_2", "tokenizer_2"),
        completed={"unet": "unet", "text_encoder_2": "text_encoder"},
        given={"force_zeros_for_empty_prompt": False},
    ),
    "pocket-xl-refiner": Member(
        "StableDiffusionXLImg2ImgPipeline",
        borrowed={"text_encoder_2": _XL, "tokenizer_2": _XL},
        completed={"unet": "unet"},
        given={
            "text_encoder": None,
            "tokenizer": None,
            "requires_aesthetics_score": True,
            "force_zeros_for_empty_prompt": False,
        },
    ),
}
"""Name -> what the member is."""

USUAL: dict[str, Mapping[str, Any]] = {name: member.usual for name, member in MEMBERS.items()}
# sixteen pictures a step: so a clip takes no more than a minute on two cores
USUAL |= {"pocket-motion": {"num_inference_steps": 16}}
"""Name -> what is usual for calls of it."""

FOLDER = _POCKET / "members"
BUNDLED = {BASE: _POCKET / "weights", "pocket-motion": _POCKET / "motion_weights"}
BUNDLED |= {name: FOLDER / name for name in (*MEMBERS, _ESTIMATOR)}
"""Name -> its folder, which an installation may lack."""

_MADE_BY = {
    name: f"calotype train pocket-family --member {_XL if name.startswith(_XL) else name} --out DIR"
    for name in (*MEMBERS, _ESTIMATOR)
} | {
    "pocket-motion": "calotype train pocket-motion --out DIR",
    "pocket-lora-heart": "calotype train pocket-lora --out DIR",
}
"""Name -> the command that makes it."""


class Part(NamedTuple):
    """A component in a folder, the library and the class that its files name, and the folder of what they lack."""

    folder: Path
    library: str
    class_name: str
    completing: Path | None = None


def locate(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder of what is bundled by this name; any other name or path, a folder of this name too, as it is.

    Raises ``ModelFilesError`` if it is not in this installation.
    """
    name = os.fspath(name_or_path)
    if os.path.exists(name_or_path) or name not in BUNDLED:
        return name_or_path
    folder = BUNDLED[name]
    if folder.is_dir():
        return folder
    if name not in _MADE_BY:
        raise ModelFilesError(f"The bundled checkpoint {name!r} is not in this installation ({folder}).")
    raise ModelFilesError(
        f'This installation has no {name}: `{_MADE_BY[name]}` makes one, and calotype.load("DIR/{name}") loads it.'
    )


def member_at(place: str | os.PathLike[str]) -> Member | None:
    """What the folder of a member, which has its name, stands for; None for a whole checkpoint and anything else."""
    folder = Path(place)
    if folder.name not in MEMBERS or not folder.is_dir() or (folder / INDEX).is_file():
        return None
    return MEMBERS[folder.name]


def pipeline_class(place: str | os.PathLike[str]) -> type:
    """The public class of the member in a folder; ``ModelFilesError`` if none is there."""
    member = member_at(place)
    if member is None:
        raise ModelFilesError(f"{place} is not the folder of a member of the pocket family.")
    return public_class(member.pipeline)


def own_parts(place: str | os.PathLike[str]) -> dict[str, Part]:
    """The components that the member in a folder does not share with the checkpoint, by name.

    Those borrowed from another member lie in its folder beside this one, or in the installation. Raises
    ``ModelFilesError`` where one is missing.
    """
    folder = Path(place)
    member = MEMBERS[folder.name]
    taken = init_parameters(pipeline_class(folder))
    places = {name: folder / name for name in taken if (folder / name).is_dir()}
    for name, lender in member.borrowed.items():
        beside = folder.parent / lender
        places.setdefault(name, (beside if beside.is_dir() else Path(locate(lender))) / name)
    for name in member.needs:
        places.setdefault(name, folder / name)
    if member.low_rank and not (folder / LORA_FILE).is_file():
        raise ModelFilesError(
            f"{folder.name} has no low-rank weights: there is no file {folder / LORA_FILE}."
        )
    return {
        name: Part(where, *_named_in(where / _config(name)), _completing(name, where))
        for name, where in sorted(places.items())
    }


def all_parts(place: str | os.PathLike[str]) -> dict[str, Part]:
    """The components of the member in a folder by name, those of the checkpoint included."""
    own, shared = own_parts(place), BUNDLED[BASE]
    entries = read_json(shared / INDEX)
    member = MEMBERS[Path(place).name]
    taken = [
        name
        for name in init_parameters(pipeline_class(place))
        if name not in own and name not in member.given
    ]
    found = {name: Part(shared / name, *entries[name]) for name in taken if (shared / name).is_dir()}
    scheduler = _scheduler(member)
    if scheduler is not None:
        found["scheduler"] = Part(shared / "scheduler", "diffusers", type(scheduler).__name__)
    return dict(sorted((found | own).items()))


def component_at(name_or_path: str | os.PathLike[str], component: str) -> str | os.PathLike[str]:
    """The folder of a member's own component, by its name or folder; anything else as :func:`locate` has it."""
    place = locate(name_or_path)
    if member_at(place) is None:
        return place
    own = own_parts(place)
    return own[component].folder if component in own else place


def load_own_parts(
    place: str | os.PathLike[str], loading: Loading, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The components of :func:`own_parts` that are not among the ``given`` ones, loaded."""
    loaded: dict[str, Any] = {
        name: value for name, value in MEMBERS[Path(place).name].given.items() if name not in given
    }
    for name, part in own_parts(place).items():
        if name not in given:
            entry = {name: (part.library, part.class_name)}
            whole = {} if part.completing is None else {name: part.completing}
            loaded |= load_components(
                part.folder.parent, entry, replace(loading, completing=whole), lambda: None
            )
    scheduler = _scheduler(MEMBERS[Path(place).name])
    if scheduler is not None and "scheduler" not in given:
        loaded["scheduler"] = scheduler
    return loaded


def folders_of(name_or_path: str | os.PathLike[str]) -> list[Path]:
    """All folders that a bundled model or a model in a folder is made of; none for a Hub repository."""
    place = Path(locate(name_or_path))
    if member_at(place) is None:
        return [place] if place.is_dir() else []
    lent = {part.folder.parent for part in own_parts(place).values()} - {place}
    return [place, *sorted(lent), BUNDLED[BASE]]


def _scheduler(member: Member) -> Any:
    """The scheduler that a member has with the settings of the checkpoint's; None where it has that one."""
    if member.scheduler is None:
        return None
    return scheduler_named(member.scheduler, read_json(BUNDLED[BASE] / "scheduler" / _config("scheduler")))


def _completing(name: str, folder: Path) -> Path | None:
    """The component of the checkpoint that completes a member's in a folder; None where that is whole."""
    member = MEMBERS.get(folder.parent.name)
    if member is None or name not in member.completed:
        return None
    return BUNDLED[BASE] / member.completed[name]


def _config(name: str) -> str:
    """The file with the configuration of a component of this name."""
    if name.endswith("scheduler"):
        return "scheduler_config.json"
    if name.startswith("tokenizer"):
        return "tokenizer_config.json"
    return "preprocessor_config.json" if name == "feature_extractor" else "config.json"


def _named_in(config: Path) -> tuple[str, str]:
    """Library and class of the component with this configuration."""
    if not config.is_file():
        raise ModelFilesError(f"There is no component in {config.parent}: it has no {config.name}.")
    entries = read_json(config)
    if "_class_name" in entries:
        return "diffusers", str(entries["_class_name"])
    kinds = entries.get("architectures") or [
        entries.get("image_processor_type") or entries.get("tokenizer_class")
    ]
    return "transformers", str(kinds[0])
