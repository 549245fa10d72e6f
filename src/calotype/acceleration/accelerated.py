"""A model that stands in for another: what is asked of it is asked of that, and its calls are made faster."""

from __future__ import annotations

import copy
import logging
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from calotype.acceleration.ahead import compiled_first
from calotype.acceleration.captured import Captures, Prepared, Stamp, put_back
from calotype.acceleration.concerned import is_stepwise, settle
from calotype.acceleration.devices import CudaGraphs, Device
from calotype.acceleration.numbers import Amounts, Weighing, without_strength
from calotype.acceleration.options import Options
from calotype.acceleration.quantised import Products
from calotype.acceleration.stand_ins import Prompt, Readers, StandIns
from calotype.acceleration.state import Structure, Weights, channels_last, obstacle, pack
from calotype.acceleration.step_cache import CachedSteps, Counts, fits
from calotype.acceleration.times import TimeReaders, Times
from calotype.acceleration.usable import Kernels, kernels_for
from calotype.acceleration.values import taken_apart
from calotype.nn.replaceable import replaced

logger = logging.getLogger(__name__)

PROMPTS = frozenset({"encoder_hidden_states"})
OF_KERNELS = ("grouped", "products", "gates", "convolutions", "short", "narrow", "wide")
"""The options that are about some of the kernels."""
UNREAD = ("generator",)
"""Arguments of the methods beside ``forward`` that these accept and do not read."""
_DEVICES: dict[str, Callable[[torch.device], Device]] = {"cuda": CudaGraphs}
"""What captures on a device, by its kind."""


class Accelerated:
    """A model whose calls, and those of the named methods, run by ``options``; all else is the model's own."""

    def __init__(self, model: nn.Module, options: Options, methods: tuple[str, ...] = ()) -> None:
        self.__dict__["_orig_mod"] = model
        self.__dict__["_runner"] = runner_of(model, options)
        self.__dict__["_methods"] = methods
        self.__dict__["_begun"] = False
        """Whether the model has been called since the call began or a user's code ran in it."""
        self.__dict__["_steps"] = None
        if options.step_cache is not None and fits(model):
            self.__dict__["_steps"] = CachedSteps(model, options.step_cache, self._runner.steps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run("__call__", args, kwargs)

    def _run(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if method == "__call__" and self._steps is not None:
            return self._steps(self._through_runner, args, kwargs)
        return self._through_runner(method, None, args, kwargs)

    def _through_runner(
        self, name: str, function: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        begun, self.__dict__["_begun"] = self.__dict__["_begun"], True
        runner, model = self._runner, self._orig_mod
        with nullcontext() if runner.products is None else runner.products.within(model, looks=not begun):
            return runner(model, name, args, kwargs, begins=not begun, function=function)

    def __getattr__(self, name: str) -> Any:
        model = self.__dict__["_orig_mod"]
        if name in self.__dict__["_methods"]:
            return lambda *args, **kwargs: self._run(name, args, kwargs)
        return getattr(model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_orig_mod"], name, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model, which computes by itself."""
        return copy.deepcopy(self.__dict__["_orig_mod"], memo)


class Runner:
    """Runs a model's calls by options and knows what its captures depend on; it does not keep the model alive."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.name, self.options = type(model).__name__, options
        # weights in eight bits are known one by one
        self.inside = options if options.linears is None else replace(options, packed=False, products=False)
        self.device: Device | None = None
        self.captures: dict[str, Captures] = {}
        self.kernels: Kernels | None = None
        self.lock = threading.RLock()
        self.weights: Weights | None = None
        self.structure: Structure | None = None
        self.amounts: Amounts | None = None
        self.weighed: Weighing | None = None
        self.epoch = 0
        """How often a pipeline's call has begun, or a user's code has run in one."""
        self.why: str | None = None
        """Why the model is left to compute by itself."""
        self.broken: str | None = None
        """What failed, which is not tried again."""
        self.products: Products | None = None
        if options.linears is not None and is_stepwise(type(model)):
            self.products = Products(options.linears)
        self.is_cached = options.step_cache is not None and fits(model)
        self.steps = Counts()
        """What calls with cached steps have computed so far."""
        self._said: set[str] = set()

    def _anew(self, model: nn.Module) -> None:
        """Forget what was captured, and look at the model again."""
        for captures in self.captures.values():
            captures.clear()
        self.captures.clear()
        place = next((tensor.device for tensor in model.parameters()), torch.device("meta"))
        self.why = self.broken or obstacle(model, place.type)
        if self.why is None and place.type not in _DEVICES:
            self.why = f"its weights are on {place.type}"
        if self.why is not None:
            self._say(self.why)
            self.device = self.kernels = self.weights = self.structure = None
            self.amounts = self.weighed = None
        else:
            self.device = device_of(place)
            settle(model)
            with torch.inference_mode(False), torch.no_grad():
                if self.options.kernels:
                    self.kernels = kernels_for(place)
                if self.options.channels_last:
                    channels_last(model)
                if self.inside.packed:
                    pack(model)
            self.weights, self.structure = Weights(model), Structure(model)
            self.amounts, self.weighed = Amounts(model, place), Weighing(place)

    def __call__(
        self,
        model: nn.Module,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        begins: bool = False,
        function: Callable[..., Any] | None = None,
    ) -> Any:
        """The result of a model's method; ``begins``: the first since a pipeline's call began or a user's code ran.

        With a ``function`` of the model and its arguments it is the result of that, which ``method`` then names.
        Then the model is looked at: whether its weights are where they were, and whether it is what it was. The latter
        takes longer, and replaying what was captured before a change does no harm, so it is found out while the device
        computes; then the result is given up.
        """
        given, own = function, kwargs
        if given is None:
            function = model if method == "__call__" else getattr(model, method)
        else:
            function = partial(given, model)
        with self.lock:
            self.epoch += begins
            moved = self.why is None and (self.weights is None or not self.weights.stand())
            if moved or (begins and self.why is not None):
                self._anew(model)
                begins = False
            device, kernels, weights = self.device, self.kernels, self.weights
            amounts, weighed = self.amounts, self.weighed
        if device is None or weights is None or amounts is None or weighed is None:
            return function(*args, **kwargs)
        if method != "__call__" and given is None:
            kwargs = {name: value for name, value in kwargs.items() if name not in UNREAD}
        overall, live = without_strength(weighed(kwargs))
        why, tensors, form = taken(args, live, weights.tensors[0].device)
        replays = why is None and method in self.captures and form in self.captures[method].kept
        if begins and not replays and self._changed(model, weights):
            return self(model, method, args, own, function=given)
        if why is not None:
            self._say(why)
            return function(*args, **kwargs)

        def ordinary(readers: Readers | None = None, time_readers: TimeReaders | None = None) -> Any:
            stand_ins = StandIns(self.inside, kernels, readers=readers, time_readers=time_readers)
            with device.current(), self._faster(stand_ins):
                return function(*args, **kwargs)

        def noting() -> tuple[Any, tuple[Readers, TimeReaders]]:
            contexts = [kwargs[name] for name in PROMPTS if isinstance(kwargs.get(name), Tensor)]
            readers, time_readers = Readers(contexts), TimeReaders()

            def first() -> Any:
                result = ordinary(readers, time_readers)
                # what captures launch beside it, so that its kernels are compiled with the others
                with device.current():
                    if contexts and readers.layers and self.options.grouped:
                        prompt = Prompt(contexts[0].contiguous(), readers.layers, kernels)
                        if prompt.table is not None:
                            prompt.compute()
                    if (times := self._times(time_readers, kernels)) is not None:
                        times.compute()
                return result

            return compiled_first(first), (readers.done(), time_readers.done())

        try:
            if not self.options.graphs:
                return ordinary()
            with self.lock:
                if self.weights is not weights:  # another thread has found that the model has changed
                    return ordinary()
                captures = self._captures_of(method, device)
                stamp = Stamp(self.epoch, weights.versions, partial(amounts.settle, self.epoch, overall))
                with device.current():
                    result = captures(ordinary, noting, self._preparing(function), stamp, tensors, form)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = function(*args, **kwargs)  # what is wrong with the arguments is wrong here too
            with self.lock:
                self.device = None
                self.broken = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
                self.why = self.broken
                logger.warning("%s is computed without acceleration: %s.", self.name, self.why)
            return result
        if begins and replays and self._changed(model, weights):
            return self(model, method, args, own, function=given)
        return result

    def _changed(self, model: nn.Module, weights: Weights) -> bool:
        """Whether the model is not what it was; then all is forgotten."""
        with self.lock:
            if self.weights is not weights or self.structure is None:  # another thread has found out
                return True
            if weights.are_alike() and self.structure.stands(model):
                return False
            self._anew(model)
            return True

    def _captures_of(self, method: str, device: Device) -> Captures:
        if method not in self.captures:
            prompts = PROMPTS if self.options.prompts else frozenset()
            self.captures[method] = Captures(self.name, device, self.options.shapes, prompts)
        return self.captures[method]

    def _preparing(self, function: Callable[..., Any]) -> Callable[..., Prepared]:
        """How a call of ``function`` is captured."""

        def prepared(
            buffers: list[Tensor],
            form: Hashable,
            prompts: frozenset[int],
            noted: tuple[Readers, TimeReaders],
        ) -> Prepared:
            args, kwargs = put_back(form, buffers)
            readers, time_readers = noted
            layers, kernels, amounts = list(readers.layers), self.kernels, self.amounts
            times = self._times(time_readers, kernels)
            memory = [] if times is None else times.memory()
            prompt = None
            if prompts and layers:
                grouped = kernels if self.options.grouped else None
                prompt = Prompt(buffers[next(iter(prompts))], layers, grouped)

            def call() -> Any:
                with self._faster(StandIns(self.inside, kernels, prompt, amounts=amounts, times=times)):
                    return function(*args, **kwargs)

            if prompt is None:
                return Prepared(call, memory=memory)

            def before() -> None:
                with self._faster(StandIns(self.inside, kernels, amounts=amounts)):
                    prompt.compute()

            before()
            return Prepared(call, before, memory + prompt.memory())

        return prepared

    def _times(self, readers: TimeReaders, kernels: Kernels | None) -> Times | None:
        """How the blocks that read times compute what they add together, if they do."""
        if kernels is None or not self.options.grouped or self.options.linears is not None:
            return None  # weights in eight bits are known one by one
        return Times(readers, kernels)

    @contextmanager
    def _faster(self, stand_ins: StandIns) -> Iterator[None]:
        with replaced(stand_ins.table), tuned() if self.options.tuned else nullcontext():
            yield

    def _say(self, why: str) -> None:
        """Say once why something is computed by the plain model."""
        if why not in self._said:
            self._said.add(why)
            logger.info("%s is computed without acceleration: %s.", self.name, why)

    def _by_name(self) -> list[str]:
        """What is asked for by name, and what has come of it."""
        said = []
        if self.is_cached and self.options.step_cache is not None:
            said.append(f"{self.options.step_cache}: {self.steps}")
        if self.products is not None:
            said.append(self.products.report())
        return said

    def report(self) -> str:
        """What is in use and why not, in one line."""
        named = self._by_name()
        if self.why is not None:
            return "; ".join([*named, f"plain: {self.why}"])
        if self.weights is None:
            return "has not been called"
        names = (
            "graphs", "channels_last", "kernels", "packed", "prompts", "grouped", "products", "gates",
            "convolutions", "short", "narrow", "wide", "tuned",
        )  # fmt: skip
        used = [name for name in names if getattr(self.inside, name)]
        if self.kernels is None:
            used = [name for name in used if name not in OF_KERNELS]
            if self.options.kernels:
                used[used.index("kernels")] = "PyTorch in place of kernels, which Triton cannot build here"
        else:
            place = self.weights.tensors[0].device
            of = {
                "products": self.kernels.matrix_products,
                "gates": self.kernels.gate_products,
                "convolutions": self.kernels.convolutions,
                "narrow": self.kernels.narrow_attention,
            }
            used = [name for name in used if name not in of or of[name].available(place)]
        if self.options.attention:
            used.append(f"attention by {', '.join(self.options.attention)}")
        kept = sum(len(captures.kept) for captures in self.captures.values())
        line = "; ".join([*named, f"{', '.join(used)}; {kept} of at most {self.options.shapes} graphs kept"])
        failed = [why for captures in self.captures.values() for why in captures.failed.values()]
        if failed:
            line += f"; not captured: {failed[0]}"
        if self._said:
            line += f"; computed plainly when {' or '.join(sorted(self._said))}"
        return line


def taken(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: torch.device
) -> tuple[str | None, list[Tensor], Hashable]:
    """Why a call is left to the model, if it is; its tensors, and the form that captures are known by."""
    if torch.is_grad_enabled():
        return "gradients are recorded", [], None
    if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
        return "autocast is on", [], None
    if torch._C._len_torch_dispatch_stack() or torch.compiler.is_compiling():
        return "something watches each operation", [], None
    if any(isinstance(argument, Mapping) for argument in args):
        return "arguments for attention are given by position", [], None
    if unknown := sorted({*(kwargs.get("cross_attention_kwargs") or {})} - {"scale"}):
        return f"cross_attention_kwargs have {', '.join(unknown)}", [], None
    try:
        tensors, form = taken_apart((args, kwargs, settings()))
    except TypeError as error:
        return f"an argument cannot be kept ({error})", [], None
    # a time may be given from elsewhere
    tensors = [tensor if tensor.ndim else tensor.to(place) for tensor in tensors]
    if any(tensor.device != place or tensor.requires_grad for tensor in tensors):
        return f"an argument is not on {place}", [], None
    return None, tensors, form


def settings() -> tuple[Hashable, ...]:
    """What PyTorch lets users choose for all computations, which a capture keeps as it was."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        torch.get_float32_matmul_precision(), cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.matmul.allow_bf16_reduced_precision_reduction, cudnn.enabled, cudnn.allow_tf32, cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(),
    )  # fmt: skip


@contextmanager
def tuned() -> Iterator[None]:
    """Within this cuDNN tries its algorithms on shapes that are new to it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


MOST = 2
"""Ways of running a model that are kept, for pipelines that share it and differ in their options."""
_LOCK = threading.RLock()
_OF_DEVICES: weakref.WeakValueDictionary[torch.device, Device] = weakref.WeakValueDictionary()
_RUNNERS: weakref.WeakKeyDictionary[nn.Module, dict[Options, Runner]] = weakref.WeakKeyDictionary()


def device_of(place: torch.device) -> Device:
    """What captures on a device; all its graphs share memory."""
    with _LOCK:
        found = _OF_DEVICES.get(place)
        if found is None:
            found = _OF_DEVICES[place] = _DEVICES[place.type](place)
        return found


def runner_of(model: nn.Module, options: Options) -> Runner:
    """The runner of a model, one for all pipelines that have it; it goes with the model."""
    with _LOCK:
        by_options = _RUNNERS.setdefault(model, {})
        runner = by_options.pop(options, None) or Runner(model, options)
        by_options[options] = runner
        while len(by_options) > MOST:
            del by_options[next(iter(by_options))]
        return runner


def forget(model: nn.Module) -> None:
    """Give back all that was captured of a model."""
    with _LOCK:
        runners = _RUNNERS.pop(model, {})
    for runner in runners.values():
        with runner.lock:
            for captures in runner.captures.values():
                captures.clear()
            runner.captures.clear()
            runner.weights = runner.structure = None
