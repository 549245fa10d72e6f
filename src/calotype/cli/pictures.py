"""Pictures that go in: opened, known by their contents, and recorded so that the result can be made again."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from calotype.cli.request import Request
from calotype.core.errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    import torch


def opened(asked: Request) -> dict[str, Any]:
    """The pictures of a request by option, ``control`` as a list.

    Raises ``InputError`` if one cannot be read, or is not what it was when another picture was made from it.
    """
    found: dict[str, Any] = {}
    if asked.image is not None:
        found["image"] = _picture(asked.image, "--image", asked.known)
    if asked.mask is not None:
        found["mask"] = _picture(asked.mask, "--mask", asked.known, "L")
    if asked.control:
        found["control"] = [_picture(file, "--control", asked.known) for file in asked.control]
    if asked.ip_image:
        found["ip_image"] = [_picture(file, "--ip-image", asked.known) for file in asked.ip_image]
    return found


def _picture(file: str, option: str, known: dict[str, str], mode: str = "RGB") -> PIL.Image.Image:
    from calotype.utils import load_image

    picture = load_image(file, lambda image: image.convert(mode))
    if known.get(file, digest(picture)) != digest(picture):
        raise InputError(
            f"{file!r} has changed since the picture was made from it; give the former one with {option}, or this one."
        )
    return picture


def digest(picture: PIL.Image.Image) -> str:
    """The SHA-256 (hexadecimal) of a picture's size and pixels, whatever file they were in."""
    head = f"{picture.mode} {picture.width}x{picture.height}\0".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


def steering_models(asked: Request, device: torch.device, dtype: torch.dtype | None) -> list[Any]:
    """The ControlNets and T2I-Adapters that are named, one for each control picture."""
    import calotype
    from calotype.core import hub
    from calotype.core.config import read_json
    from calotype.pipelines.bundled import component_at
    from calotype.pipelines.components import public_class

    models = []
    for name in asked.controlnet:
        at: dict[str, Any] = {"revision": asked.known[name]} if name in asked.known else {}
        place = component_at(name, "controlnet")
        config = read_json(hub.find_file(place, "config.json", options=hub.HubOptions(**at)))
        found = public_class(str(config.get("_class_name")))
        if found not in (calotype.ControlNetModel, calotype.T2IAdapter):
            raise InputError(f"--controlnet {name}: a {found.__name__} is no ControlNet and no T2I-Adapter.")
        model: Any = found
        models.append(model.from_pretrained(place, torch_dtype=dtype, **at).to(device))
    return models


def arguments(asked: Request, pictures: dict[str, Any], models: list[Any]) -> dict[str, Any]:
    """What the pictures are as arguments of a pipeline's call; around a mask the picture stays, pixel for pixel."""
    import calotype

    found = {} if "image" not in pictures else {"image": pictures["image"]}
    if "mask" in pictures:
        found |= {"mask_image": pictures["mask"], "composite": True}
    if asked.strength is not None:
        found["strength"] = asked.strength
    if "control" in pictures:
        given = pictures["control"]
        pairs = zip(models, given, strict=True) if models else ()
        found["control"] = [calotype.control(*pair) for pair in pairs] or given
    if "ip_image" in pictures:
        found["ip_adapter_image"] = pictures["ip_image"]
    return found


def record(asked: Request, pictures: dict[str, Any]) -> dict[str, Any]:
    """The pictures as the settings of what is made from them, and what else belongs to such a call."""
    from calotype.cli.model import identify

    if not pictures:
        return {}
    found: dict[str, Any] = {
        name: {"file": getattr(asked, name), "sha256": digest(pictures[name])}
        for name in ("image", "mask")
        if name in pictures
    }
    for name in ("control", "ip_image"):
        if name in pictures:
            pairs = zip(getattr(asked, name), pictures[name], strict=True)
            found[name] = [{"file": file, "sha256": digest(picture)} for file, picture in pairs]
    if asked.controlnet:
        found["controlnet"] = [
            {"model": name, **asdict(identify(name, "config.json"))} for name in asked.controlnet
        ]
    rest = {"strength": asked.strength, "width": asked.width, "height": asked.height}
    return found | {name: value for name, value in rest.items() if value is not None}
