"""The adapters of one model: put in, chosen, fused, taken out again, from outside; works on any ``nn.Module``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from calotype.adapters import strength
from calotype.adapters.layer import ADAPTABLE, Adapted
from calotype.adapters.updates import Decomposed, Update, rank_of, with_rank
from calotype.core.errors import InputError
from calotype.nn.attention import Attention

SCALED = "cross_attention_kwargs"
"""The argument of a model that may hold ``scale``, the strength of all adapters in this call."""

Strengths = Callable[[str], float]
"""Name of a layer -> how strongly an adapter acts there."""


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that updates are for, by name, whether they have some already or not."""
    parts = _outermost(model, (*ADAPTABLE, Adapted))
    return {name: part.layer if isinstance(part, Adapted) else part for name, part in parts}


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """The layers that have updates, by name."""
    return {name: part for name, part in _outermost(model, (Adapted,)) if isinstance(part, Adapted)}


def _outermost(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[tuple[str, nn.Module]]:
    """The parts of these kinds that are in no other such part, in the model's order; each one once."""
    found, seen = [], set()
    waiting = [("", model)]
    while waiting:  # named_modules() hands every name up through all levels, which counts in a large model
        name, part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, kinds):
            found.append((name, part))
            continue
        start = f"{name}." if name else ""
        below = [(start + key, child) for key, child in part._modules.items() if child is not None]
        waiting += reversed(below)
    return found


def adapters(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's adapters, in the order in which they came."""
    return tuple(sorted(turns := _turns(model), key=lambda name: turns[name]))


def active(model: nn.Module) -> tuple[str, ...]:
    """The adapters that are switched on, in the order in which they were chosen."""
    return tuple(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.strengths))


def fused(model: nn.Module) -> tuple[str, ...]:
    """The adapters that are a part of the weights."""
    return tuple(dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.fused))


def add(model: nn.Module, name: str, updates: Mapping[str, Update]) -> None:
    """Give the model an adapter: an update for each of the named layers; it is the one that acts."""
    turn = 1 + max(_turns(model).values(), default=-1)
    for path, update in updates.items():
        _wrapped(model, path).put(name, update, turn)
    for layer in adapted_layers(model).values():
        layer.choose({name: 1.0})
        layer.switch(True)
    _listen(model)


@torch.no_grad()
def exchange(models: Mapping[str, nn.Module], name: str, updates: Mapping[str, Mapping[str, Update]]) -> None:
    """Give an adapter of several models other values, where its tensors are; layers that get none get zeros.

    ``updates`` are by model and layer. Raises ``InputError``, before anything is changed, for a layer that the adapter
    does not have and for values that do not fit, as those of a higher rank.
    """
    fitting: list[tuple[Update, Update | None]] = []
    for key, model in models.items():
        if name in fused(model):
            raise InputError(f"The adapter {name!r} is fused; call unfuse_lora() before it is exchanged.")
        new = updates.get(key, {})
        own = {path: layer.update_named(name) for path, layer in adapted_layers(model).items()}
        if any(update is not None and update.in_training for update in own.values()):
            raise InputError(f"The adapter {name!r} is made to be trained, so it is not exchanged in place.")
        for path in new:
            if own.get(path) is None:
                raise InputError(
                    f"The adapter {name!r} cannot be exchanged in place: the new weights are also for {key}.{path}, "
                    f"for which it has none. Delete it and load the new one."
                )
        for path, old in own.items():
            if old is None:
                continue
            if path not in new and isinstance(old, Decomposed):  # no magnitude of its own changes nothing
                raise InputError(
                    f"The adapter {name!r} cannot be exchanged in place: it has magnitudes (DoRA) for {key}.{path}, "
                    f"and the new weights have nothing there. Delete it and load the new one."
                )
            fitting.append((old, _fitted(new[path], old, f"{key}.{path}") if path in new else None))
    for old, update in fitting:
        if update is None:
            for tensor in old.tensors().values():
                tensor.zero_()
        else:
            old.become(update)


def _fitted(update: Update, old: Update, path: str) -> Update:
    """``update`` with the shapes of ``old``, in whose place it is to stand."""
    update = with_rank(update, rank_of(old))
    if not old.takes(update):
        raise InputError(
            f"The adapter cannot be exchanged in place: at {path} the new weights are {_shapes(update)} and its own "
            f"{_shapes(old)}. Call enable_lora_hotswap(target_rank=…) before the first is loaded, or delete it and "
            f"load the new one."
        )
    return update


def choose(model: nn.Module, chosen: Mapping[str, Strengths]) -> None:
    """Let these adapters act, and no others. Raises ``InputError`` for a name that the model does not have."""
    check_names(model, chosen)
    for path, layer in adapted_layers(model).items():
        layer.choose({name: amount(path) for name, amount in chosen.items()})


def switch(model: nn.Module, on: bool) -> None:
    """Switch all adapters off, or on again as they were; what is fused stays in the weights."""
    for layer in adapted_layers(model).values():
        layer.switch(on)


def remove(model: nn.Module, names: Iterable[str]) -> None:
    """Take adapters out; layers without any are the ones that they were. ``InputError`` for an unknown name."""
    names = tuple(names)
    check_names(model, names)
    changed = bool(fused(model))
    for path, layer in adapted_layers(model).items():
        for name in names:
            layer.drop(name)
        if not layer.names:
            _unwrap(model, path, layer)
    _settle(model, changed)


def unload(model: nn.Module) -> None:
    """Take all adapters out; the layers are the ones that they were, with what is fused in their weights."""
    changed = bool(fused(model))
    for path, layer in adapted_layers(model).items():
        _unwrap(model, path, layer)
    _settle(model, changed)


def fuse(model: nn.Module, names: Sequence[str] | None, scale: float) -> None:
    """Make adapters (by default the active ones) a part of the weights, each at its strength times ``scale``.

    Raises ``InputError``, with all weights as they were, where one would not be finite.
    """
    wanted = active(model) if names is None else tuple(names)
    check_names(model, wanted)
    layers = adapted_layers(model).values()
    done: list[Adapted] = []
    try:
        for layer in layers:
            done.append(layer)
            layer.fuse(wanted, scale)
    except InputError:
        for layer in done:
            layer.unfuse()
        raise
    finally:
        _settle(model, True)


def unfuse(model: nn.Module) -> None:
    """Give all weights back the values that they had before :func:`fuse`, bit for bit."""
    for layer in adapted_layers(model).values():
        layer.unfuse()
    _settle(model, True)


def check_names(model: nn.Module, names: Iterable[str]) -> None:
    """``InputError`` for the name of an adapter that the model does not have."""
    known = adapters(model)
    for name in names:
        if name not in known:
            raise InputError(
                f"There is no adapter {name!r}; there are {', '.join(map(repr, known)) or 'none'}."
            )


def _turns(model: nn.Module) -> dict[str, int]:
    """The place of each adapter in the order in which they came."""
    return {name: turn for layer in adapted_layers(model).values() for name, turn in layer.turns.items()}


def _wrapped(model: nn.Module, path: str) -> Adapted:
    part = model.get_submodule(path)
    if isinstance(part, Adapted):
        return part
    layer = Adapted(part)
    layer.train(part.training)
    _place(model, path, layer)
    return layer


def _unwrap(model: nn.Module, path: str, layer: Adapted) -> None:
    _place(model, path, layer.layer)


def _place(model: nn.Module, path: str, part: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = part


def _settle(model: nn.Module, changed: bool) -> None:
    """After layers were taken out or weights were changed: what was made of those weights is made anew."""
    if not adapted_layers(model):
        _listen_no_more(model)
    if changed:
        for part in model.modules():
            if isinstance(part, Attention) and part.fused_weight is not None:
                part.fuse_projections()


# -- the strength of a call, where a model is told it -----------------------------------------------------------


def _listen(model: nn.Module) -> None:
    """Hooks that read the strength from the model's arguments, if it takes it there."""
    parameters = list(inspect.signature(model.forward).parameters)
    if SCALED not in parameters or any(is_strength_hook(hook) for hook in model._forward_pre_hooks.values()):
        return
    place = parameters.index(SCALED)
    model.register_forward_pre_hook(partial(_enter, place), with_kwargs=True)
    model.register_forward_hook(partial(_leave, place), with_kwargs=True, always_call=True)


def _listen_no_more(model: nn.Module) -> None:
    marks: Any = (
        (model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs, {}),
        (model._forward_hooks, model._forward_hooks_with_kwargs, model._forward_hooks_always_called),
    )
    for hooks, *marked in marks:
        for key in [key for key, hook in hooks.items() if is_strength_hook(hook)]:
            del hooks[key]
            for mark in marked:
                mark.pop(key, None)


def is_strength_hook(hook: Any) -> bool:
    """Whether a hook on a model does nothing but tell its adapters how strongly they act in this call."""
    return isinstance(hook, partial) and hook.func in (_enter, _leave)


def _told(place: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    given = kwargs.get(SCALED) if len(args) <= place else args[place]
    return given.get("scale") if given else None


def _enter(place: int, model: nn.Module, args: Any, kwargs: Any) -> None:
    if (scale := _told(place, args, kwargs)) is not None:
        strength.push(scale)


def _leave(place: int, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    if _told(place, args, kwargs) is not None:
        strength.pop()


def _shapes(update: Update) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in update.tensors().items())


def tensors(model: nn.Module, name: str) -> dict[str, Any]:
    """An adapter's tensors by their keys in files: layer, and the tensor's name. ``InputError`` for an unknown name."""
    check_names(model, [name])
    found: dict[str, Any] = {}
    for path, layer in adapted_layers(model).items():
        update = layer.update_named(name)
        if update is not None:
            found |= {f"{path}.{key}": tensor for key, tensor in update.tensors().items()}
    return found
