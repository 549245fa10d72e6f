"""Single calls of UNets and of the decoder: the reference, calotype, and more and more of its acceleration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._gpu.bench import Bench
from benchmarks._gpu.report import COMPILED, OURS, REFERENCE, Measured, Row
from benchmarks._gpu.timing import RATE, error, middle, operations
from calotype.acceleration import accelerated
from calotype.acceleration.accelerated import Accelerated
from calotype.acceleration.options import Options

NOTHING = Options(
    graphs=False, channels_last=False, kernels=False, packed=False, prompts=False, grouped=False, gates=False,
    convolutions=False, short=False, narrow=False, tuned=False, attention=(), wide=False,
)  # fmt: skip
GRAPH = replace(NOTHING, graphs=True)
VARIANTS = {
    "nothing": NOTHING,
    "graph": GRAPH,
    "graph, kernels": replace(GRAPH, kernels=True),
    "graph, kernels, channels-last": replace(GRAPH, kernels=True, channels_last=True),
    "+ packed": replace(GRAPH, kernels=True, channels_last=True, packed=True),
    "+ prompts": replace(GRAPH, kernels=True, channels_last=True, packed=True, prompts=True),
    "cudnn attention": Options(attention=("cudnn", "flash", "efficient", "math"), narrow=False),
    "flash attention": Options(attention=("flash", "cudnn", "efficient", "math"), narrow=False),
    "tuned": Options(tuned=True),
    "without graph": Options(graphs=False),
    "cuDNN's convolutions": Options(convolutions=False),
    "PyTorch's attention of narrow heads": Options(narrow=False),
    OURS: Options(),
}
COMPILING = 130
"""Seconds within which the reference is compiled."""


@dataclass(frozen=True)
class Work:
    """A call of a model, or of one of its methods."""

    what: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    method: str | None = None
    aim: float | None = None

    def __call__(self, model: Any) -> Tensor:
        function = model if self.method is None else getattr(model, self.method)
        found: Tensor = function(*self.args, **self.kwargs, return_dict=False)[0]
        return found

    def precise(self, model: Any, dtype: torch.dtype) -> Tensor:
        """The result in float32 of a model of type ``dtype``."""
        wide = replace(self, args=_float(self.args), kwargs=_float(self.kwargs))
        try:
            return wide(model.float())
        finally:
            model.to(dtype)


def _float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _float(one) for name, one in value.items()}
    return tuple(map(_float, value)) if isinstance(value, tuple) else value


def unet(
    bench: Bench, part: str, name: str, what: str, rows: int, side: int, aim: float | None = None
) -> None:
    """A UNet's call for ``rows`` pictures, those of both branches of guidance counted."""
    config, draws = bench.sizes.models[name][1], torch.Generator(bench.device).manual_seed(1)
    side = bench.sizes.side(side) // 8
    x = bench.random(rows, 4, side, side, generator=draws)
    context = bench.random(rows, bench.sizes.tokens, config["cross_attention_dim"], generator=draws)
    given: dict[str, Any] = {"encoder_hidden_states": context}
    if config.get("addition_embed_type"):
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        ids = torch.tensor([[8.0 * side, 8.0 * side, 0.0, 0.0, 8.0 * side, 8.0 * side]] * rows)
        given["added_cond_kwargs"] = {
            "text_embeds": bench.random(rows, pooled, generator=draws),
            "time_ids": ids.to(bench.device, bench.stock.dtype),
        }
    work = Work(what, (x, torch.tensor(501, device=bench.device)), given, aim=aim)
    measure(bench, part, name, work, compiles=True)


def decoding(bench: Bench, part: str, what: str, side: int, aim: float | None = None) -> None:
    """A picture out of its latents."""
    side = bench.sizes.side(side) // 8
    z = bench.random(1, 4, side, side, generator=torch.Generator(bench.device).manual_seed(1))
    measure(bench, part, "vae", Work(what, (z,), {}, "decode", aim))


def measure(bench: Bench, part: str, name: str, work: Work, compiles: bool = False) -> None:
    """The row of one piece of work."""
    row = bench.report.row(part, work.what, work.aim)
    if bench.has(10, row):
        with bench.going_on(row, REFERENCE):
            _measure(bench, row, bench.stock.models(name), work, compiles and bench.compiled)


def _measure(bench: Bench, row: Row, models: dict[str, Any], work: Work, compiles: bool) -> None:
    timer, reference, ours = bench.timer, models[REFERENCE], models[OURS]
    row.floor = operations(lambda: work(reference)) / RATE * 1e3
    right = work.precise(reference, bench.stock.dtype).cpu()
    peak = bench.peak([reference])
    first, second = (timer.wall(lambda: work(reference)) for _ in range(2))
    times, found = timer.steady(lambda: work(reference)), work(reference).cpu()
    theirs = Measured(middle(times), min(times), first, second, error(found, right), *peak.gib())
    bench.report.add(row, REFERENCE, theirs)
    for variant in VARIANTS if bench.mechanisms else [OURS]:
        if bench.has(3, row, variant):
            with bench.going_on(row, variant):
                bench.report.add(row, variant, fast(bench, work, variant, ours, right, found))
    if compiles and bench.has(COMPILING, row, "compiled"):
        with bench.going_on(row, "compiled"):
            bench.report.add(row, COMPILED, compiled(bench, work, reference, right))
    if bench.profile and timer.cuda and bench.has(5, row, "profile"):
        with bench.going_on(row, "profile"):
            profiled(bench, work, ours)


def fast(bench: Bench, work: Work, variant: str, ours: Any, right: Tensor, theirs: Tensor) -> Measured:
    """What calotype takes by one of the variants."""
    timer = bench.timer
    accelerated.forget(ours)
    peak = bench.peak([ours])
    model = Accelerated(ours, VARIANTS[variant], ("decode",))
    first, second = (timer.wall(lambda: work(model)) for _ in range(2))
    times, found = timer.steady(lambda: work(model)), work(model).cpu()
    one = Measured(middle(times), min(times), first, second, error(found, right), *peak.gib())
    one.more["apart"] = f"{error(found, theirs):.1e}"
    for captures in model._runner.captures.values():
        for capture in captures.kept.values():
            one.more["replay"] = f"{middle(timer.steady(capture.work.replay)):.2f}"
    one.more["report"] = model._runner.report()
    if timer.cuda and ("plain" in one.more["report"] or "not captured" in one.more["report"]):
        bench.report.note(f"{work.what}, {variant}: {one.more['report']}")
    accelerated.forget(ours)
    return one


def compiled(bench: Bench, work: Work, reference: Any, right: Tensor) -> Measured:
    """What the reference takes once PyTorch has compiled and captured it, which is its first call."""
    torch._dynamo.reset()
    peak = bench.peak([reference])
    model = torch.compile(reference, mode="reduce-overhead", dynamic=False)

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return work(model)

    try:
        first, second = (bench.timer.wall(run) for _ in range(2))
        bench.timer.wall(run)
        times, found = bench.timer.steady(run), run().cpu()
        return Measured(middle(times), min(times), first, second, error(found, right), *peak.gib())
    finally:
        torch._dynamo.reset()


def profiled(bench: Bench, work: Work, ours: Any) -> None:
    """A note of the kernels that take most of the time."""
    accelerated.forget(ours)
    model = Accelerated(ours, Options(), ("decode",))
    for _ in range(3):
        work(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        bench.timer.wall(lambda: work(model))
    totals: dict[str, list[float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            totals.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    count, everything = sum(map(len, totals.values())), sum(map(sum, totals.values()))
    lines = [f"{work.what}: {count} kernels, {everything:.2f} ms in all"]
    for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[:45]:
        lines.append(f"  {sum(times):8.3f} ms {len(times):5d}x  {name[:150]}")
    bench.report.note("\n".join(lines))
    accelerated.forget(ours)
