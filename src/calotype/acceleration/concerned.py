"""Which models' calls are made faster, and of whose code they may consist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from calotype.core.signatures import argument_names

OWN = ("calotype.", "torch.nn.modules.")
"""Where the classes are defined that are known to compute the same each time."""
ENCODERS = ("transformers.models.", "transformers.activations")
"""The same for the layers of transformers' encoders."""
_READ = ("input_ids", "pixel_values")
"""What transformers' encoders are given: tokens or pictures."""
_RECORDS = "transformers.utils.output_capturing"
"""Where transformers' hooks are defined that note what a layer gives."""


def methods_of(kind: type) -> tuple[str, ...] | None:
    """The methods by which models of a class do most of a call's work, beside being called; None if none do.

    These are the models that read a time, which are called in each step; autoencoders, which decode; and encoders of
    transformers, which read prompts and pictures.
    """
    if not issubclass(kind, nn.Module):
        return None
    if is_encoder(kind):
        return ()
    if not kind.__module__.startswith("calotype.models."):
        return None
    if hasattr(kind, "decode"):
        return ("decode",)
    return () if "timestep" in argument_names(kind.forward) else None


def is_stepwise(kind: type) -> bool:
    """Whether models of a class are called in each step."""
    return methods_of(kind) == () and not is_encoder(kind)


def is_encoder(kind: type) -> bool:
    """Whether this is one of transformers' own models that reads tokens or pictures and writes no text."""
    if not kind.__module__.startswith("transformers.models."):
        return False
    writes = getattr(kind, "can_generate", None)
    return getattr(kind, "main_input_name", None) in _READ and writes is not None and not writes()


def place_of(model: nn.Module) -> torch.device:
    """Where a model's first weight is."""
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def is_known(module: nn.Module, model: nn.Module) -> bool:
    """Whether a model's layer computes by code that is known to do the same each time."""
    origin = type(module).__module__
    encoder = is_encoder(type(model))
    if "forward" in module.__dict__ and not (encoder and _is_its_own(module, module.__dict__["forward"])):
        return False
    return origin.startswith((*OWN, *ENCODERS) if encoder else OWN)


def _is_its_own(module: nn.Module, forward: Any) -> bool:
    """Whether it is the class's own procedure, which transformers 4 leaves there when it has noted outputs."""
    own = getattr(forward, "__func__", None) is type(module).forward
    return own and getattr(forward, "__self__", None) is module


def is_record(hook: Any) -> bool:
    """Whether a hook is transformers' own, which only notes what a layer gives while a call asks for that."""
    return getattr(hook, "__module__", None) == _RECORDS


def settle(model: nn.Module) -> None:
    """Let an encoder have the hooks now that it gives itself when it is first asked for hidden states."""
    if not is_encoder(type(model)):
        return
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # another version's way: then its second call is the first that is as all others
        return
    for part in model.modules():
        if hasattr(type(part), "_can_record_outputs"):
            maybe_install_capturing_hooks(part)  # type: ignore[arg-type]


def settings_of(modules: Iterator[nn.Module]) -> list[dict[str, Any]]:
    """What the configurations of transformers' layers hold, such as the way in which attention is computed."""
    found: dict[int, dict[str, Any]] = {}
    for module in modules:
        config = module.__dict__.get("config")
        if type(config).__module__.startswith("transformers."):
            found[id(config)] = vars(config)
    return list(found.values())
