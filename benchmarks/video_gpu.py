"""Stable Video Diffusion on a GPU: a step of its U-Net with guidance, and the decoding of the frames.

    python -m benchmarks.video_gpu --out video.json     # 14 and 25 frames of 576x1024, in bfloat16 and float16
    python -m benchmarks.video_gpu --tiny               # small models, on whatever there is, to see that it runs

The models have the published sizes and random weights, which both libraries share in one process, as they do the
inputs; calls are taken in turn and the median counts. Peak memory is what a call adds to the weights. A part that fails
says why, and the others go on; what would go past ``--seconds`` is left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks._side_by_side import LIBRARIES, median

STAGES = ("CrossAttn{}BlockSpatioTemporal",) * 3
UNET = {
    "sample_size": 96,
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": (*(name.format("Down") for name in STAGES), "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", *(name.format("Up") for name in STAGES)),
    "block_out_channels": (320, 640, 1280, 1280),
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "transformer_layers_per_block": 1,
    "num_attention_heads": (5, 10, 20, 20),
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 768,
}
TINY_UNET = UNET | {"block_out_channels": (32, 64, 64, 64), "num_attention_heads": (2, 4, 4, 4)}
TINY_UNET |= {"cross_attention_dim": 32, "layers_per_block": 1}
TINY_VAE = VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}


@dataclass
class Part:
    """What is measured of one thing: seconds of each call and bytes of each library, and how far they are apart."""

    what: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    furthest: float | None = None
    apart: float | None = None
    failed: str | None = None


class Bench:
    """The models of both libraries on one device, and what is left of the time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.rounds: int = options.rounds
        self.end = time.monotonic() + options.seconds
        self.parts: list[Part] = []
        self.to_come = 2 * len(options.dtypes) * len(options.frames)
        self.libraries: dict[str, Any] = {}
        for name in LIBRARIES:
            try:
                self.libraries[name] = importlib.import_module(name)
            except Exception as error:
                print(f"{name} cannot be imported, so it is left out: {error}", file=sys.stderr)

    def models(self, name: str, config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The model of every library, with the same random weights in memory once."""
        made: dict[str, Any] = {}
        weights: dict[str, torch.Tensor] = {}
        for library, module in self.libraries.items():
            with torch.device("meta"):
                model = getattr(module, name)(**config).eval().requires_grad_(False)
            if not weights:
                generator = torch.Generator(self.device).manual_seed(0)
                weights = {
                    key: self._random(key, value.shape, dtype, generator)
                    for key, value in model.state_dict().items()
                }
            model.load_state_dict(weights, assign=True)
            made[library] = model
        return made

    def _random(
        self, name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        noise = torch.randn(shape, dtype=dtype, device=self.device, generator=generator)
        if len(shape) > 1:
            return noise.mul_(shape[1:].numel() ** -0.5)
        return noise.mul_(0.1).add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)

    @torch.inference_mode()
    def measure(self, what: str, calls: Callable[[], dict[str, Callable[[], torch.Tensor]]]) -> None:
        """Make the models and time their calls in turn; whatever fails is noted."""
        part = Part(what)
        self.parts.append(part)
        now = time.monotonic()
        share = now + max(0.0, self.end - now) / self.to_come
        self.to_come -= 1
        try:
            if now > self.end:
                raise TimeoutError("the time was over")
            made = calls()
            results = {}
            for library, run in made.items():  # the first call chooses kernels, and is compared
                seconds, results[library], part.peak[library] = self._timed(run)
                part.seconds[library] = []
                print(f"{what}: {library} first {seconds:.3f} s", file=sys.stderr, flush=True)
            self._compare(part, results)
            results.clear()
            for _ in range(self.rounds):
                for library, run in made.items():
                    part.seconds[library].append(self._timed(run)[0])
                if time.monotonic() > share:
                    break
        except Exception as error:
            part.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            print(f"{what}: {part.failed}", file=sys.stderr, flush=True)
        finally:
            self._clear()

    def _timed(self, run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor, int]:
        """Seconds of a call, its result, and the most memory that it added."""
        cuda = self.device.type == "cuda"
        before = 0
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        result = run()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return seconds, result, torch.cuda.max_memory_allocated() - before if cuda else 0

    @staticmethod
    def _compare(part: Part, results: dict[str, torch.Tensor]) -> None:
        for library, result in results.items():
            if not torch.isfinite(result).all():
                part.failed = f"{library} gives NaN or infinity"
                return
        if len(results) == 2:
            expected, found = (results[name].float() for name in LIBRARIES)
            difference = (found - expected).abs()
            part.furthest = float(difference.max() / expected.abs().max())
            part.apart = float(difference.mean() / expected.abs().mean())

    def _clear(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def steps(
        self, config: dict[str, Any], dtype: torch.dtype, frames: Sequence[int], size: tuple[int, int]
    ) -> None:
        """A prediction for two branches, as a step with guidance takes it."""
        held: dict[str, Any] = {}
        name = str(dtype).removeprefix("torch.")
        for count in frames:

            def calls(count: int = count) -> dict[str, Callable[[], torch.Tensor]]:
                models = held or self.models("UNetSpatioTemporalConditionModel", config, dtype)
                held.update(models)
                noise = self._noise(dtype, 2, count, config["in_channels"], *(side // 8 for side in size))
                context = self._noise(dtype, 2, 1, config["cross_attention_dim"])
                numbers = torch.tensor([[6.0, 127.0, 0.02]] * 2, dtype=dtype, device=self.device)
                timestep = torch.tensor(1.6, device=self.device)

                def call(model: Any) -> Callable[[], torch.Tensor]:
                    return lambda: model(noise, timestep, context, numbers, return_dict=False)[0]

                return {library: call(model) for library, model in models.items()}

            self.measure(f"U-Net step, {count} frames, {name}", calls)
        held.clear()
        self._clear()

    def decodings(
        self,
        config: dict[str, Any],
        dtype: torch.dtype,
        frames: Sequence[int],
        size: tuple[int, int],
        chunk: int,
    ) -> None:
        """The frames of one video out of its latents, so many at once."""
        held: dict[str, Any] = {}
        name = str(dtype).removeprefix("torch.")
        for count in frames:

            def calls(count: int = count) -> dict[str, Callable[[], torch.Tensor]]:
                models = held or self.models("AutoencoderKLTemporalDecoder", config, dtype)
                held.update(models)
                latents = self._noise(dtype, count, config["latent_channels"], *(side // 8 for side in size))

                def call(model: Any) -> Callable[[], torch.Tensor]:
                    return lambda: torch.cat(
                        [model.decode(part, num_frames=len(part)).sample for part in latents.split(chunk)]
                    )

                return {library: call(model) for library, model in models.items()}

            self.measure(f"decoding, {count} frames by {chunk}, {name}", calls)
        held.clear()
        self._clear()

    def _noise(self, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(1)
        return torch.randn(shape, dtype=dtype, device=self.device, generator=generator)

    def report(self) -> None:
        """One line for each part."""
        width = max(len(part.what) for part in self.parts)
        heads = ("reference", 11), ("calotype", 11), ("ratio", 6), ("peak memory, GiB", 17), ("apart", 7)
        print("\n" + "  ".join([" " * width, *(f"{head:>{wide}}" for head, wide in heads)]))
        for part in self.parts:
            times = {name: median(values) for name, values in part.seconds.items() if values}
            cells = [f"{times[name]:>9.3f} s" if name in times else f"{'-':>11}" for name in LIBRARIES]
            ratio = times["diffusers"] / times["calotype"] if len(times) == 2 else None
            peaks = " / ".join(
                f"{part.peak[name] / 2**30:.2f}" if name in part.peak else "-" for name in LIBRARIES
            )
            apart = "-" if part.apart is None else f"{part.apart:.1e}"
            line = "  ".join(
                [*cells, f"{ratio:>5.2f}x" if ratio else f"{'-':>6}", f"{peaks:>17}", f"{apart:>7}"]
            )
            print(f"{part.what:<{width}}  {line}" + (f"  ({part.failed})" if part.failed else ""))
        print('"apart" is the mean difference of the results, of their mean size.')

    def as_json(self, options: argparse.Namespace) -> dict[str, Any]:
        """Everything that was measured, and where."""
        cuda = self.device.type == "cuda"
        parts = [
            {**vars(part), "median": {k: median(v) for k, v in part.seconds.items() if v}}
            for part in self.parts
        ]
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else platform.processor() or "cpu",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "libraries": {
                name: getattr(module, "__version__", "?") for name, module in self.libraries.items()
            },
            "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
            "parts": parts,
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="small models and frames")
    parser.add_argument("--out", type=Path, help="write everything that is measured there, as JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--frames", nargs="+", type=int, help="14 and 25")
    parser.add_argument("--chunk", type=int, default=8, help="frames that are decoded at once")
    parser.add_argument("--rounds", type=int, default=5, help="at most; each part has its share of --seconds")
    parser.add_argument("--seconds", type=float, default=110.0, help="after which no part is begun")
    options = parser.parse_args()
    options.dtypes = options.dtypes or (["float32"] if options.tiny else ["bfloat16", "float16"])
    options.frames = options.frames or ([2, 3] if options.tiny else [14, 25])
    if options.device == "cpu" and not options.tiny:
        print("There is no GPU for the full size; pass --tiny to see that it runs.", file=sys.stderr)
        return 2

    bench = Bench(options)
    size = (64, 96) if options.tiny else (576, 1024)
    unet, vae = (TINY_UNET, TINY_VAE) if options.tiny else (UNET, VAE)
    for name in options.dtypes:
        dtype = getattr(torch, name)
        bench.steps(unet, dtype, options.frames, size)
        bench.decodings(vae, dtype, options.frames, size, options.chunk)
    bench.report()
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(bench.as_json(options), indent=1))
    return 1 if any(part.failed for part in bench.parts) else 0


if __name__ == "__main__":
    sys.exit(main())
