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

    ``scaler`` is that of the loss, where there is one.
    """
    frozen = _frozen(module)
    random_states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_states["cuda"] = torch.cuda.get_rng_state()
    state = {
        "format": _FORMAT,
        "settings": dict(settings),
        "step": position.step,
        "seconds": position.seconds,
        "weights": {name: value for name, value in module.state_dict().items() if name not in frozen},
        "ema": ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {} if scaler is None else scaler.state_dict(),
        "random": random_states,
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
    missing, superfluous = module.load_state_dict(state["weights"], strict=False)
    if superfluous or (missing := [name for name in missing if name not in _frozen(module)]):
        raise ModelFilesError(
            f"The training checkpoint {path} is of another model: {', '.join([*missing, *superfluous][:3])} differ."
        )
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    optimizer.load_state_dict(state["optimizer"])
    ema.load_state_dict(state["ema"])
    torch.set_rng_state(state["random"]["cpu"])
    if torch.cuda.is_available() and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"])
    return Position(step=state["step"], seconds=state["seconds"])


def _frozen(module: nn.Module) -> set[str]:
    """The names of the parameters that are not trained."""
    return {name for name, value in module.named_parameters() if not value.requires_grad}
