"""Times on one GPU, reference and calotype in one process: the same weights, inputs and numbers.

    python -m benchmarks.gpu [--only kernels,attention,sd15,vae,sdxl,pictures] [--quick] [--seconds 240] [--out FILE]
                             [--profile]

Models are of full size with random weights in bfloat16. For each piece of work the reference runs eagerly, then
calotype with more and more of its acceleration; the error is that of the output against the reference's in float32. A
part that fails is told of in the log, and the others go on. What does not fit in ``--seconds`` is left out; ``--quick``
leaves out single kernels and all rows but the default ones.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calotype import acceleration
from calotype.acceleration import accelerated
from calotype.acceleration.accelerated import Accelerated
from calotype.acceleration.options import Options

RATE = 788e12
"""bf16 operations a second that a large matrix product reaches on an H200."""

NOTHING = Options(
    graphs=False,
    channels_last=False,
    kernels=False,
    packed=False,
    prompts=False,
    grouped=False,
    gates=False,
    convolutions=False,
    short=False,
    narrow=False,
    tuned=False,
    attention=(),
    wide=False,
    overlapped=False,
)
GRAPH = replace(NOTHING, graphs=True)
CUDNN = ("cudnn", "flash", "efficient", "math")
VARIANTS = {
    "nothing": NOTHING,
    "graph": GRAPH,
    "graph, kernels": replace(GRAPH, kernels=True),
    "graph, kernels, channels-last": replace(GRAPH, kernels=True, channels_last=True),
    "+ packed": replace(GRAPH, kernels=True, channels_last=True, packed=True),
    "+ prompts": replace(GRAPH, kernels=True, channels_last=True, packed=True, prompts=True),
    "default": Options(),
    "default, not overlapped": Options(overlapped=False),
    "default, cuDNN's convolutions": Options(convolutions=False),
    "default, PyTorch's attention of narrow heads": Options(narrow=False),
    "default, cudnn attention": Options(narrow=False, attention=CUDNN),
    "default, flash attention": Options(narrow=False, attention=("flash", "cudnn", "efficient", "math")),
    "default, tuned": Options(tuned=True),
    "default without graph": Options(graphs=False),
}
"""In an order in which what is done to the weights stays."""
PROFILED = Options()

SD15 = {"cross_attention_dim": 768, "sample_size": 64}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


class Log:
    """A file, or nothing."""

    def __init__(self, path: Path | None) -> None:
        self.file = None if path is None else path.open("w")

    def __call__(self, text: str) -> None:
        if self.file is not None:
            self.file.write(text + "\n")
            self.file.flush()


@dataclass
class Measured:
    """Times in ms of the first, second and a later call, and of replaying alone; error and memory in GiB."""

    work: str
    variant: str
    first: float
    second: float
    call: float
    replay: float | None
    error: float
    reserved: float

    def line(self, floor: float) -> str:
        replay = f"{self.replay:8.2f}" if self.replay is not None else " " * 8
        return (
            f"{self.work:24s} {self.variant:32s} {self.call:8.2f} {replay} {floor:7.2f} {self.first:9.0f} "
            f"{self.second:8.0f} {self.error:9.2e} {self.reserved:7.2f}"
        )


HEAD = (
    f"{'work':24s} {'variant':32s} {'call':>8s} {'replay':>8s} {'floor':>7s} {'1st':>9s} {'2nd':>8s} {'error':>9s} "
    f"{'GiB':>7s}   (ms)"
)


def wall(function: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def steady(function: Callable[[], Any], budget: float = 0.6) -> float:
    """The median of five times in ms, each of several calls in a row."""
    once = wall(function)
    count = max(min(int(budget * 1e3 / 5 / max(once, 0.05)), 40), 1)
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(count):
            function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / count)
    return statistics.median(times)


def error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right.double()).norm() / right.double().norm())


def random_model(library: Any, name: str, config: dict[str, Any], seed: int = 0) -> Any:
    """A model of full size on the device; norms and biases differ from ones and zeros."""
    torch.manual_seed(seed)
    with torch.device("cuda"):
        model = getattr(library, name)(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


class Bench:
    def __init__(self, seconds: float, log: Log, profile: bool) -> None:
        import diffusers

        import calotype

        self.calotype, self.diffusers = calotype, diffusers
        self.deadline = time.perf_counter() + seconds
        self.log, self.profile = log, profile
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.log(line)

    @property
    def late(self) -> bool:
        return time.perf_counter() > self.deadline

    # -- models ------------------------------------------------------------------------------------------------

    def pair(self, name: str, config: dict[str, Any]) -> tuple[Any, Any]:
        reference = random_model(self.diffusers, name, config)
        with torch.device("cuda"):
            ours = getattr(self.calotype, name)(**config)
        ours = ours.to(torch.bfloat16).eval().requires_grad_(False)
        ours.load_state_dict(reference.state_dict())
        return reference, ours

    def work(
        self,
        what: str,
        reference: Any,
        ours: Any,
        run: Callable[[Any], Tensor],
        right: Callable[[Any], Tensor],
        variants: list[str],
    ) -> None:
        """The rows of one piece of work; ``right`` runs a model in float32."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            run(reference)
        floor = counter.get_total_flops() / RATE * 1e3
        precise = right(reference)
        first = wall(lambda: run(reference))
        torch.cuda.reset_peak_memory_stats()
        self.say(
            Measured(
                what, "reference", first, wall(lambda: run(reference)), steady(lambda: run(reference)), None,
                error(run(reference), precise), torch.cuda.max_memory_reserved() / 2**30,
            ).line(floor)
        )  # fmt: skip
        for variant in variants:
            if self.late:
                self.say(f"{what:24s} {variant:32s} left out: no time")
                continue
            try:
                self.say(self.measured(what, variant, ours, run, precise).line(floor))
            except Exception:
                self.say(f"{what:24s} {variant:32s} failed, see the log")
                self.log(traceback.format_exc())
            gc.collect()
            torch.cuda.empty_cache()

    def measured(
        self, what: str, variant: str, ours: Any, run: Callable[[Any], Tensor], precise: Tensor
    ) -> Measured:
        torch.cuda.reset_peak_memory_stats()
        accelerated._RUNNERS.pop(ours, None)
        fast = Accelerated(ours, VARIANTS[variant], ("decode",))
        first = wall(lambda: run(fast))
        second = wall(lambda: run(fast))
        call = steady(lambda: run(fast))
        found = run(fast)
        replay = None
        for captures in fast._runner.captures.values():
            for why in captures.failed.values():
                self.log(f"{what}, {variant}: not captured: {why}")
            for capture in captures.kept.values():
                replay = steady(capture.work.replay)
        if fast._runner.why:
            self.log(f"{what}, {variant}: {fast._runner.why}")
        return Measured(
            what, variant, first, second, call, replay, error(found, precise),
            torch.cuda.max_memory_reserved() / 2**30,
        )  # fmt: skip

    def unet(
        self, what: str, models: tuple[Any, Any], rows: int, side: int, width: int, variants: list[str]
    ) -> None:
        generator = torch.Generator("cuda").manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device="cuda", generator=generator)

        x, context, t = random(rows, 4, side, side), random(rows, 77, width), torch.tensor(501, device="cuda")
        added = None
        if width == 2048:
            ids = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]] * rows, device="cuda")
            added = {"text_embeds": random(rows, 1280), "time_ids": ids}

        def inputs(dtype: torch.dtype) -> dict[str, Any]:
            more = None if added is None else {k: v.to(dtype) for k, v in added.items()}
            return {
                "encoder_hidden_states": context.to(dtype),
                "added_cond_kwargs": more,
                "return_dict": False,
            }

        half = x.bfloat16(), inputs(torch.bfloat16)

        def run(model: Any) -> Tensor:
            found: Tensor = model(half[0], t, **half[1])[0]
            return found

        def right(model: Any) -> Tensor:
            model.float()
            given = {
                "encoder_hidden_states": half[1]["encoder_hidden_states"].float(),
                "added_cond_kwargs": None
                if added is None
                else {k: v.float() for k, v in half[1]["added_cond_kwargs"].items()},
                "return_dict": False,
            }
            found: Tensor = model(half[0].float(), t, **given)[0]
            model.bfloat16()
            return found

        self.work(what, *models, run, right, variants)
        if self.profile and not self.late:
            try:
                self.profiled(what, models[1], run)
            except Exception:
                self.log(traceback.format_exc())

    def vae(self, what: str, models: tuple[Any, Any], side: int, variants: list[str]) -> None:
        z = torch.randn(1, 4, side, side, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
        half = z.bfloat16()

        def run(model: Any) -> Tensor:
            found: Tensor = model.decode(half, return_dict=False)[0]
            return found

        def right(model: Any) -> Tensor:
            model.float()
            found: Tensor = model.decode(half.float(), return_dict=False)[0]
            model.bfloat16()
            return found

        self.work(what, *models, run, right, variants)
        if self.profile and not self.late:
            try:
                self.profiled(what, models[1], run)
            except Exception:
                self.log(traceback.format_exc())

    def pictures(
        self, what: str, kind: str, folder: Path, models: list[tuple[Any, Any]], count: int = 1, side: int = 512,
        **more: Any,
    ) -> None:  # fmt: skip
        """Prompt embeddings to pictures by a whole pipeline: the reference, calotype as it is, and unaccelerated."""
        generator = torch.Generator("cuda").manual_seed(1)
        width = 2048 if kind == "StableDiffusionXLPipeline" else 768
        given: dict[str, Any] = {
            name: torch.randn(1, 77, width, device="cuda", generator=generator).bfloat16()
            for name in ("prompt_embeds", "negative_prompt_embeds")
        }
        if width == 2048:
            for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
                given[name] = torch.randn(1, 1280, device="cuda", generator=generator).bfloat16()
        found: dict[str, Tensor] = {}
        for index, (who, library) in enumerate(
            (("reference", self.diffusers), ("calotype", self.calotype), ("plain", self.calotype))
        ):
            if self.late:
                self.say(f"{what:36s} {who:12s} left out: no time")
                continue
            pipe = getattr(library, kind).from_pretrained(folder, torch_dtype=torch.bfloat16).to("cuda")
            pipe.unet, pipe.vae = (pair[min(index, 1)] for pair in models)
            pipe.set_progress_bar_config(disable=True)
            if width == 2048:
                pipe.text_encoder = pipe.text_encoder_2 = None  # whose width is not that of the embeddings
            if who == "plain":
                pipe.acceleration = None
                for _, ours in models:
                    accelerated._RUNNERS.pop(ours, None)

            def run(pipe: Any = pipe) -> Tensor:
                images: Tensor = pipe(
                    **given, height=side, width=side, num_images_per_prompt=count,
                    generator=torch.Generator("cuda").manual_seed(0), output_type="pt", **more,
                ).images  # fmt: skip
                return images

            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            first, second = wall(run), wall(run)
            wall(run)  # what is captured at the second call is settled from here on
            times = [wall(lambda who=who, run=run: found.update({who: run()})) for _ in range(5)]
            apart = error(found[who], found["reference"])
            self.say(
                f"{what:36s} {who:12s} first {first:7.0f} ms, second {second:7.0f}, "
                f"settled {statistics.median(times):7.1f}, "
                f"at best {min(times):7.1f} ms; "
                f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB used, "
                f"{torch.cuda.max_memory_reserved() / 2**30:.2f} reserved; apart {apart:.1e}"
            )
            if who == "calotype":
                self.log(pipe.acceleration.report() if pipe.acceleration else "acceleration is off")

    def profiled(self, what: str, ours: Any, run: Callable[[Any], Tensor]) -> None:
        """The kernels that take most of the time, into the log."""
        accelerated._RUNNERS.pop(ours, None)
        fast = Accelerated(ours, PROFILED, ("decode",))
        for _ in range(3):
            run(fast)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run(fast)
            torch.cuda.synchronize()
        totals: dict[str, list[float]] = {}
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                totals.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
        everything = sum(map(sum, totals.values()))
        count = sum(map(len, totals.values()))
        self.log(f"\n{what}: {count} kernels, {everything:.2f} ms in all")
        for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[:45]:
            self.log(f"  {sum(times):8.3f} ms {len(times):5d}x  {name[:150]}")
        self.log("")

    # -- kernels -----------------------------------------------------------------------------------------------

    def kernels(self) -> None:
        from triton.testing import do_bench_cudagraph

        from calotype.acceleration.kernels import group_norm, layer_norm, pointwise

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device="cuda").bfloat16()

        def row(what: str, ours: Callable[[], Any], theirs: Callable[[], Any], bytes_: int) -> None:
            found, right = ours(), theirs()
            found, right = (y[-1] if isinstance(y, tuple) else y for y in (found, right))
            a, b = do_bench_cudagraph(ours, rep=15), do_bench_cudagraph(theirs, rep=15)
            self.say(
                f"{what:52s} triton {a * 1e3:8.1f} us   torch {b * 1e3:8.1f} us   bytes "
                f"{bytes_ / 4.3e12 * 1e6:7.1f} us   apart {error(found, right):.1e}"
            )

        maps = [
            (2, 320, 64, 64), (2, 640, 32, 32), (2, 1280, 16, 16), (2, 2560, 16, 16), (2, 960, 64, 64),
            (16, 320, 64, 64), (2, 320, 128, 128), (2, 1280, 32, 32), (1, 512, 128, 128), (1, 512, 512, 512),
            (1, 256, 1024, 1024), (1, 128, 1024, 1024),
        ]  # fmt: skip
        for shape in maps:
            w, b, s = random(shape[1]), random(shape[1]), random(shape[0], shape[1])
            for last in (True, False):
                x = random(*shape)
                x = x.contiguous(memory_format=torch.channels_last) if last else x
                kind = "channels-last" if last else "contiguous"
                row(
                    f"GroupNorm SiLU {shape} {kind}",
                    lambda x=x, w=w, b=b, s=s: group_norm.fused(x, 32, w, b, 1e-5, silu=True, shift=s),
                    lambda x=x, w=w, b=b, s=s: group_norm.plain(x, 32, w, b, 1e-5, silu=True, shift=s),
                    2 * x.nbytes,
                )
                if last:
                    row(
                        f"bias + sum {shape}",
                        lambda x=x, b=b: pointwise.residual(x, x, b),
                        lambda x=x, b=b: pointwise.plain_residual(x, x, b),
                        3 * x.nbytes,
                    )
        for rows, width in ((8192, 320), (2048, 640), (512, 1280), (8192, 640), (2048, 1280), (65536, 320)):
            x, m, w, b = random(rows, width), random(rows, width), random(width), random(width)
            row(
                f"sum, LayerNorm ({rows}, {width})",
                lambda x=x, m=m, w=w, b=b: layer_norm.fused(x, w, b, 1e-5, m),
                lambda x=x, m=m, w=w, b=b: layer_norm.plain(x, w, b, 1e-5, m),
                4 * x.nbytes,
            )
            g = random(rows, 8 * width)
            row(
                f"GEGLU ({rows}, {8 * width})",
                lambda g=g: pointwise.geglu(g),
                lambda g=g: pointwise.plain_geglu(g),
                g.nbytes * 3 // 2,
            )

    def backend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> str:
        """The time of attention by one of PyTorch's backends, in microseconds; or "none"."""
        import torch.nn.functional as F
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from triton.testing import do_bench_cudagraph

        def attend() -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

        wanted = [backend for backend in SDPBackend.__members__.values() if backend.name == name]
        try:
            with sdpa_kernel(wanted) if wanted else nullcontext():
                attend()
                return f"{do_bench_cudagraph(attend, rep=15) * 1e3:8.1f}"
        except Exception as problem:
            self.log(f"{name} {tuple(q.shape)}: {str(problem)[:200]}")
            torch.cuda.synchronize()
            return "none"

    def products(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        """The time of attention by matrix products and a softmax, in microseconds."""
        from triton.testing import do_bench_cudagraph

        from calotype.acceleration.stand_ins import StandIns
        from calotype.acceleration.usable import kernels_for

        stand_ins = StandIns(Options(), kernels_for(q.device))
        q, k, v = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
        return f"{do_bench_cudagraph(lambda: stand_ins.wide(q, k, v, 512**-0.5), rep=15) * 1e3:8.1f}"

    def attention(self) -> None:
        shapes = [
            (2, 8, 4096, 4096, 40), (2, 8, 4096, 77, 40), (2, 8, 1024, 1024, 80), (2, 8, 256, 256, 160),
            (16, 8, 4096, 4096, 40), (16, 8, 1024, 1024, 80), (2, 10, 4096, 4096, 64), (2, 10, 4096, 77, 64),
            (2, 20, 1024, 1024, 64), (2, 20, 1024, 77, 64), (1, 1, 4096, 4096, 512), (1, 1, 16384, 16384, 512),
        ]  # fmt: skip
        for batch, heads, n, m, width in shapes:
            q = torch.randn(batch, n, heads, width, device="cuda").bfloat16().transpose(1, 2)
            k, v = (
                torch.randn(batch, m, heads, width, device="cuda").bfloat16().transpose(1, 2)
                for _ in range(2)
            )
            floor = 4 * batch * heads * n * m * width / RATE * 1e6
            names = ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "default"]
            names += ["MATH"] if width == 512 else []
            cells = [f"{name.split('_')[0].lower()} {self.backend(name, q, k, v)}" for name in names]
            if width == 512:
                cells.append(f"products {self.products(q, k, v)}")
            self.say(
                f"attention {(batch, heads, n, m, width)!s:26s} us: {'  '.join(cells)}  floor {floor:.1f}"
            )


def parts(bench: Bench, quick: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    most = ["default"] if quick else [name for name in VARIANTS if name != "nothing"]

    def sd15() -> None:
        models = bench.pair("UNet2DConditionModel", SD15)
        bench.unet("SD 1.5 UNet 2x512", models, 2, 64, 768, ["nothing", *most])
        few = ["default"] if quick else ["graph, kernels, channels-last", "+ prompts", "default"]
        bench.unet("SD 1.5 UNet 16x512", models, 16, 64, 768, few)

    def sdxl() -> None:
        models = bench.pair("UNet2DConditionModel", SDXL)
        bench.unet("SDXL UNet 2x1024", models, 2, 128, 2048, most)
        if not quick:
            bench.unet("SDXL UNet 1x512", models, 1, 64, 2048, ["default"])

    def vae() -> None:
        models = bench.pair("AutoencoderKL", VAE)
        few = ["graph", "graph, kernels", "graph, kernels, channels-last"]
        few = ["+ prompts", "default"] if quick else [*few, "default", "default without graph"]
        bench.vae("VAE decode 512", models, 64, few)
        bench.vae("VAE decode 1024", models, 128, few)

    def pictures() -> None:
        from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder

        vae = bench.pair("AutoencoderKL", VAE)
        with tempfile.TemporaryDirectory() as place:
            folder = stable_diffusion_folder(Path(place) / "sd", bench.calotype)
            unet = bench.pair("UNet2DConditionModel", SD15)
            for count in (1, 8):
                what = f"SD 1.5, 50 steps, {count} x 512"
                bench.pictures(
                    what, "StableDiffusionPipeline", folder, [unet, vae], count, num_inference_steps=50
                )
            del unet
            kind = "StableDiffusionXLPipeline"
            folder = stable_diffusion_xl_folder(Path(place) / "xl", bench.calotype)
            models = [bench.pair("UNet2DConditionModel", SDXL), vae]
            bench.pictures(
                "SDXL, 1 step, 512", kind, folder, models, num_inference_steps=1, guidance_scale=0.0
            )
            bench.pictures("SDXL, 30 steps, 1024", kind, folder, models, side=1024, num_inference_steps=30)

    if not quick:
        yield "kernels", bench.kernels
        yield "attention", bench.attention
    yield "sd15", sd15
    yield "vae", vae
    yield "sdxl", sdxl
    yield "pictures", pictures


@torch.no_grad()
def main() -> int:
    acceleration.on()
    parser = argparse.ArgumentParser(
        description="Time the models on a GPU, in the reference and in calotype."
    )
    parser.add_argument(
        "--only", default="", help="parts, separated by commas: kernels, attention, sd15, vae, sdxl, pictures"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the default settings alone, and no single kernels"
    )
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--out", type=Path, help="a file for the whole log")
    parser.add_argument("--profile", action="store_true", help="name the kernels that take most, in the log")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device.", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        False  # float32 is what is right
    )
    log = Log(options.out)
    log(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    bench = Bench(options.seconds, log, options.profile)
    wanted = [name for name in options.only.split(",") if name]
    failed = False
    for name, part in parts(bench, options.quick):
        if wanted and name not in wanted:
            continue
        start = time.perf_counter()
        if bench.late:
            bench.say(f"{name}: left out: no time")
            continue
        try:
            if name in ("sd15", "vae", "sdxl"):
                bench.say(HEAD)
            part()
        except Exception:
            failed = True
            bench.say(f"{name}: failed, see the log")
            log(traceback.format_exc())
        gc.collect()
        torch.cuda.empty_cache()
        bench.say(f"({name}: {time.perf_counter() - start:.0f} s)")
    print("\n".join(bench.lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
