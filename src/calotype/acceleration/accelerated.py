"""A model that stands in for another: what is asked of it is asked of that, and its calls are made faster."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from calotype.acceleration.captured import Captures, Prepared, put_back
from calotype.acceleration.devices import CudaGraphs, Device
from calotype.acceleration.options import Options
from calotype.acceleration.stand_ins import Kernels, Prompt, StandIns
from calotype.acceleration.state import Weights, channels_last, obstacle, pack, structure
from calotype.nn.replaceable import replaced

logger = logging.getLogger(__name__)

PROMPTS = frozenset({"encoder_hidden_states"})


@cache
def kernels() -> Kernels | None:
    """The Triton kernels, where Triton is."""
    try:
        import triton
    except ImportError:
        return None
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        return None
    from calotype.acceleration.kernels import group_norm, layer_norm, pointwise

    return Kernels(group_norm, layer_norm, pointwise)


class Accelerated:
    """A model whose calls, and those of the named methods, run by ``options``; all else is the model's own."""

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        methods: tuple[str, ...] = (),
        device: Device | None = None,
    ) -> None:
        self.__dict__["_orig_mod"] = model
        self.__dict__["_runner"] = Runner(model, options, device)
        self.__dict__["_methods"] = methods

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._runner("__call__", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_methods"]:
            runner = self.__dict__["_runner"]
            return lambda *args, **kwargs: runner(name, *args, **kwargs)
        return getattr(self.__dict__["_orig_mod"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_orig_mod"], name, value)


class Runner:
    """Runs a model's calls by options and knows what its captures depend on."""

    def __init__(self, model: nn.Module, options: Options, device: Device | None = None) -> None:
        self.model, self.options = model, options
        self._device = device
        self.captures: dict[str, Captures] = {}
        self.kernels = kernels() if options.kernels else None
        self.lock = threading.RLock()
        self.weights: Weights | None = None
        self.structure: tuple[Any, ...] | None = None
        self.versions: tuple[int, ...] = ()
        self.why: str | None = None
        """Why calls are not captured."""

    def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.weights is None or not self.weights.stand():
                self._anew()
        function = self.model if method == "__call__" else getattr(self.model, method)

        def ordinary(*args: Any, **kwargs: Any) -> Any:
            with self._faster(StandIns(self.options, self.kernels)):
                return function(*args, **kwargs)

        if self.why is not None or not self.options.graphs:
            return ordinary(*args, **kwargs)
        with self.lock:
            captures = self._captures_of(method, function)
            versions = self._versions()
            prompts_stand = versions == self.versions
            self.versions = versions
            return captures(ordinary, prompts_stand, *args, **kwargs)

    def begin(self) -> None:
        """Look whether the model is what it was, as the beginning of a pipeline's call does."""
        with self.lock:
            if self.weights is None or not self.weights.stand() or structure(self.model) != self.structure:
                self._anew()

    def _anew(self) -> None:
        """Forget what was captured, and look at the model again."""
        for captures in self.captures.values():
            captures.clear()
        self.why = None if self._device is not None else obstacle(self.model)
        if self.why is not None:
            logger.info("%s is not captured: %s.", type(self.model).__name__, self.why)
        if self.why is None or "hooks" not in self.why:
            if self.options.channels_last:
                channels_last(self.model)
            if self.options.packed:
                pack(self.model)
        self.weights = Weights(self.model)
        self.structure = structure(self.model)

    def _versions(self) -> tuple[int, ...]:
        """How often the weights have been changed in place, which concerns what is computed once for a prompt."""
        if not self.options.prompts or self.weights is None:
            return ()
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in self.weights.tensors)

    def _captures_of(self, method: str, function: Callable[..., Any]) -> Captures:
        if method not in self.captures:
            assert self.weights is not None
            if self._device is None:
                self._device = graphs_of(self.weights.tensors[0].device)
            self.captures[method] = Captures(
                type(self.model).__name__,
                self._device,
                lambda buffers, form, prompts: self._prepared(function, buffers, form, prompts),
                self.options.shapes,
                PROMPTS if self.options.prompts else frozenset(),
            )
        return self.captures[method]

    def _prepared(
        self, function: Callable[..., Any], buffers: list[Tensor], form: Hashable, prompts: frozenset[int]
    ) -> Prepared:
        args, kwargs = put_back(form, buffers)
        prompt = Prompt(buffers[next(iter(prompts))]) if prompts else None

        def call() -> Any:
            with self._faster(StandIns(self.options, self.kernels, prompt)):
                return function(*args, **kwargs)

        if prompt is None:
            return Prepared(None, call)
        call()  # which layers read the prompt is seen in an ordinary call
        layers = list(prompt.found)
        if not layers:
            return Prepared(None, call)

        def before() -> list[Any]:
            with self._faster(StandIns(self.options, self.kernels)):
                return [prompt.computed(layer) for layer in layers]

        def use(found: list[Any]) -> None:
            prompt.found = dict(zip(layers, found, strict=True))

        return Prepared(before, call, use)

    @contextmanager
    def _faster(self, stand_ins: StandIns) -> Iterator[None]:
        with replaced(stand_ins.table), tuned(self.options.tuned):
            yield


@contextmanager
def tuned(wanted: bool) -> Iterator[None]:
    """Within this cuDNN tries its algorithms on shapes that are new to it."""
    if not wanted or torch.backends.cudnn.benchmark:
        yield
        return
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


_GRAPHS: weakref.WeakValueDictionary[torch.device, CudaGraphs] = weakref.WeakValueDictionary()


def graphs_of(device: torch.device) -> CudaGraphs:
    """The graphs of a device, which share memory."""
    found = _GRAPHS.get(device)
    if found is None:
        found = _GRAPHS[device] = CudaGraphs(device)
    return found
