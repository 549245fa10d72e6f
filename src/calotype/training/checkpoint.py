"""Saving a training so that it goes on exactly: weights, averages, optimiser, random states, position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calotype.core.errors import InputError, ModelFilesError
from calotype.core.files import replacing
from calotype.training.ema import EMA
from calotype.training.processes import current
from calotype.training.sharding import spread_like, whole

_FORMAT = 1


@dataclass
class Position:
    """Where a training stands: steps done (which is also the position in the data) and seconds spent."""

    step: int = 0
    seconds: float = 0.0


def save_training(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    position: Position,
    settings: Mapping[str, Any],
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write everything that the next step depends on, atomically; what is not trained is left out.

    ``scaler`` is that of the loss, where there is one. All processes call this, and the main one writes.
    """
    processes = current()
    random_states = processes.gathered(_random_state())
    frozen, trained = _parted(module)
    weights = {
        name: value
        for name, value in module.state_dict().items()
        if name not in frozen and name not in trained
    }
    # those of adapters stay out of their model's state dictionary
    parts = whole(
        {
            "weights": weights | {name: value.detach() for name, value in trained.items()},
            "ema": ema.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
    )
    if not processes.main:
        return
    state = {
        "format": _FORMAT,
        "settings": dict(settings),
        "step": position.step,
        "seconds": position.seconds,
        **parts,
        "scaler": {} if scaler is None else scaler.state_dict(),
        "random": random_states[0],
        "random_of_others": random_states[1:],
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def resume_training(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    settings: Mapping[str, Any],
    scaler: torch.amp.GradScaler | None = None,
) -> Position:
    """Load what :func:`save_training` wrote and return the position to go on from.

    Raises ``ModelFilesError`` if the file is damaged and ``InputError`` if it is of a run with other settings.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelFilesError(
            f"The training checkpoint {path} cannot be read ({error}); delete it."
        ) from error
    if state.get("format") != _FORMAT:
        raise ModelFilesError(
            f"The training checkpoint {path} has format {state.get('format')}, not {_FORMAT}."
        )
    stored = state["settings"]
    changed = sorted(k for k in {*stored, *settings} if stored.get(k) != settings.get(k))
    if changed:
        listed = "; ".join(f"{k}: {stored.get(k)!r} then, {settings.get(k)!r} now" for k in changed)
        raise InputError(f"The checkpoint {path} is of a run with other settings ({listed}).")
    _, trained = _parted(module)
    weights, known = dict(state["weights"]), module.state_dict().keys()
    other = [name for name in (*trained, *weights) if name not in weights or name not in {*trained, *known}]
    if other:
        raise ModelFilesError(
            f"The training checkpoint {path} is of another model: {', '.join(other[:3])} differ."
        )
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(spread_like(weights.pop(name), value))
    module.load_state_dict(weights, strict=False)
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    optimizer.load_state_dict(_spread(state["optimizer"], optimizer))
    ema.load_state_dict(state["ema"])
    own = [state["random"], *state.get("random_of_others", [])][current().rank]
    torch.set_rng_state(own["cpu"])
    if torch.cuda.is_available() and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"])
    return Position(step=state["step"], seconds=state["seconds"])


def _spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state with its tensors spread as the parameters are that they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            number: {name: spread_like(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        },
    }


def _random_state() -> dict[str, torch.Tensor]:
    """What random numbers come next in this process."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _parted(module: nn.Module) -> tuple[set[str], dict[str, nn.Parameter]]:
    """The names of the parameters that are not trained, and those that are."""
    named = dict(module.named_parameters())
    trained = {name: value for name, value in named.items() if value.requires_grad}
    return named.keys() - trained.keys(), trained
