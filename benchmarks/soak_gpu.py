"""A thousand accelerated generations on a GPU: memory stays flat, nothing is captured again, pictures are right.

python -m benchmarks.soak_gpu                                     # 1,000 with the bundled model, in float32
python -m benchmarks.soak_gpu --count 200
python -m benchmarks.soak_gpu --model sd15 --compare-every 10     # with one of Stable Diffusion 1.5's size, in bfloat16

Prompts, seeds, guidance, three shapes, and the strengths of two LoRAs change from call to call, at times in the middle
of one. ``sd15`` has random weights and takes all kernels, those in CUDA C++ too; layers with adapters are computed
without some of them, so the adapters are taken out for every second fifty calls and put in again. Pictures are compared
with those that the same models make without acceleration. The exit status is 1 if

- the memory that tensors take or that PyTorch holds on the device grows after the first 100 calls by more than 20 MB
  (``sd15``, which is captured anew twenty times: what is held by 100 MB, where one capture's memory is 600),
- the UNet is captured more often than there are shapes, each time that adapters come or go, or anything is computed
  without a capture, or
- pictures differ by more than rounding. In float32 and of the bundled model that is 0.02 of full scale in the mean
  (bfloat16: 0.05), of which a wrong strength makes more. What bfloat16 does to a picture of random weights is not known
  beforehand, so it is measured: the same models in float32 compute what is right from the same noise. Where the fast
  picture is as far from that as the plain one, the two are apart by twice as much at most, and by less where their
  roundings have nothing to do with each other. So no two may differ by more than twice the plain one's error, and in
  the mean over all calls the fast ones' error may be 1.2 times the plain ones'.
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._gpu.report import MOST_ERROR
from benchmarks._gpu.sizes import FULL, Sizes
from benchmarks._gpu.stock import Stock
from benchmarks._gpu.timing import Timer

WORDS = (
    "a red ball on grass",
    "two blue cubes on snow",
    "a yellow cone at night",
    "",
    "a green heart on wood",
)
WARM = 100
AWAY = 50
"""Calls after which the adapters of ``sd15`` are taken out or put in."""
LIMITS = {torch.float32: 0.02, torch.bfloat16: 0.05}
APART = 2.0
"""Times the plain picture's error."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERY = (*ATTENTION, "ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class Subject:
    """Pipelines that share their models, one accelerated, and what is asked of them."""

    fast: Any
    plain: Any
    adapters: Mapping[str, Any]
    """What LoRA weights are loaded from."""
    shapes: tuple[tuple[int, int, int], ...]
    """Height, width, and how many pictures."""
    limit: float = 0.0
    """The difference of two pictures at most, in the mean, where there is no ``right``."""
    right: Any = None
    """A pipeline of the same models in float32, with adapters of its own."""
    away: int | None = None
    """Calls after which adapters are taken out or put in; never, without."""
    grows: float = 20e6
    """Bytes by which what PyTorch holds may grow."""

    @property
    def pipelines(self) -> dict[str, Any]:
        found = {"fast": self.fast, "plain": self.plain}
        return found if self.right is None else {**found, "right": self.right}

    def adapt(self) -> None:
        """Put the adapters in."""
        for pipe in (self.fast, *[self.right] * (self.right is not None)):
            for name, source in self.adapters.items():
                pipe.load_lora_weights(source, adapter_name=name)

    def unload(self) -> None:
        """Take them out."""
        for pipe in (self.fast, *[self.right] * (self.right is not None)):
            pipe.unload_lora_weights()


@dataclass
class Differences:
    """Mean absolute differences of pictures, as parts of full scale."""

    limit: float
    apart: list[float] = field(default_factory=list)
    fast: list[float] = field(default_factory=list)
    """Errors of accelerated pictures against those in float32, and of plain ones, if they are known."""
    plain: list[float] = field(default_factory=list)

    def add(self, pictures: Mapping[str, Tensor]) -> None:
        def between(one: str, other: str) -> float:
            return float((pictures[one].float() - pictures[other].float()).abs().mean())

        self.apart.append(between("fast", "plain"))
        if "right" in pictures:
            self.fast.append(between("fast", "right"))
            self.plain.append(between("plain", "right"))

    @property
    def largest(self) -> float:
        return max(self.apart, default=0.0)

    @property
    def right(self) -> bool:
        """Whether all are within the limits; not if nothing was compared."""
        if not self.plain:
            return bool(self.apart) and self.largest <= self.limit
        each = all(apart <= APART * error for apart, error in zip(self.apart, self.plain, strict=True))
        return each and sum(self.fast) <= MOST_ERROR * sum(self.plain)

    def __str__(self) -> str:
        count = max(len(self.apart), 1)
        said = f"{len(self.apart)} pictures compared, mean difference {sum(self.apart) / count:.6f}"
        if not self.plain:
            return said
        most = max(
            apart / error if error else 0.0 for apart, error in zip(self.apart, self.plain, strict=True)
        )
        return (
            f"{said}, at most {most:.2f} times the plain one's error; mean errors {sum(self.fast) / count:.6f} and, "
            f"without acceleration, {sum(self.plain) / count:.6f}"
        )


def pocket(device: torch.device, dtype: torch.dtype) -> Subject:
    """The bundled model and LoRAs."""
    import calotype
    from calotype.pipelines.bundled import FOLDER

    fast: Any = calotype.load("pocket", device=str(device), torch_dtype=dtype)
    adapters = {"turbo": FOLDER / "pocket-turbo", "heart": FOLDER / "pocket-lora-heart"}
    plain = type(fast)(**fast.components)
    return Subject(fast, plain, adapters, ((128, 128, 1), (96, 128, 1), (128, 128, 2)), LIMITS[dtype])


def sd15(device: torch.device, dtype: torch.dtype, sizes: Sizes = FULL, away: int = AWAY) -> Subject:
    """Stable Diffusion 1.5 in its own size with random weights, and two random LoRAs."""
    import calotype

    stock = Stock({"calotype": calotype}, sizes, device, dtype)
    fast, plain = (stock.pipeline("calotype", False, "pndm") for _ in range(2))
    parts = {
        name: copy.deepcopy(part).float() if isinstance(part, nn.Module) else part
        for name, part in fast.components.items()
    }
    adapters = {"four": low_rank(fast.unet, 4, ATTENTION, 1), "eight": low_rank(fast.unet, 8, EVERY, 2)}
    shapes = tuple(
        (sizes.side(height), sizes.side(width), count)
        for height, width, count in ((512, 512, 1), (384, 512, 1), (512, 512, 2))
    )
    right = type(fast)(**parts, requires_safety_checker=False)
    return Subject(fast, plain, adapters, shapes, right=right, away=away, grows=100e6)


def low_rank(model: nn.Module, rank: int, ends: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """Updates of a third of what the layers whose names so end do, on the host, by their names in files."""
    generator, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(ends):
            wide, high = layer.in_features, layer.out_features
            down = torch.randn(rank, wide, generator=generator) * wide**-0.5
            up = torch.randn(high, rank, generator=generator) * 0.2 * rank**-0.5
            found |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    return found


MODELS = {"pocket": (pocket, torch.float32), "sd15": (sd15, torch.bfloat16)}


def soak(subject: Subject, count: int, steps: int, every: int = 1, warm: int = WARM) -> bool:
    """Whether ``count`` calls went as they should, every so many of which are compared."""
    from calotype.acceleration.accelerated import runner_of

    fast, names, chance = subject.fast, list(subject.adapters), random.Random(0)
    device = fast.unet.device
    timer, memory = Timer(device), list[tuple[int, int]]()
    subject.plain.acceleration = None
    if subject.right is not None:
        subject.right.acceleration = None
    for pipe in subject.pipelines.values():
        pipe.set_progress_bar_config(disable=True)
    found, kept, turns, adapted = Differences(subject.limit), list[Any](), 0, False
    seconds = dict.fromkeys(subject.pipelines, 0.0)

    def strengths() -> list[float]:
        return [chance.choice((0.0, 0.3, 1.0)), chance.random()]

    print(f"{'calls':>6} {'used':>10} {'held':>10} {'captured':>9} {'largest difference':>19}", end="")
    print("".join(f" {name:>8}" for name in seconds))
    for call in range(1, count + 1):
        turn, index = divmod(call - 1, subject.away or count)
        if index == 0:
            turns, adapted = turns + 1, turn % 2 == 0
            (subject.adapt if adapted else subject.unload)()
        height, width, pictures_each = subject.shapes[index % len(subject.shapes)]
        first, later = strengths(), strengths()
        arguments = {
            "prompt": chance.choice(WORDS), "height": height, "width": width,
            "num_images_per_prompt": pictures_each, "num_inference_steps": steps,
            "guidance_scale": 1.5 + 5 * chance.random(), "output_type": "pt",
            "cross_attention_kwargs": {"scale": chance.choice((1.0, 0.5))},
        }  # fmt: skip
        seed, changes = chance.randrange(2**31), chance.random() < 0.1

        def change(
            running: Any, index: int, timestep: Any, tensors: Any, to: list[float] = later
        ) -> dict[str, Any]:
            if index == 1:
                running.set_adapters(names, to)
            return {}

        if changes and adapted:
            arguments["callback_on_step_end"] = change
        pictures = {}
        for name, pipe in subject.pipelines.items() if call % every == 0 else [("fast", fast)]:
            if adapted:
                pipe.set_adapters(names, first)
            generator, side = torch.Generator(device).manual_seed(seed), fast.vae_scale_factor
            noise = torch.randn(
                pictures_each, fast.unet.config.in_channels, height // side, width // side,
                generator=generator, device=device, dtype=fast.unet.dtype,
            )  # fmt: skip
            timer.settle()
            since = time.perf_counter()
            pictures[name] = pipe(**arguments, latents=noise.to(pipe.unet.dtype), generator=generator).images
            timer.settle()
            seconds[name] += time.perf_counter() - since
        if len(pictures) > 1:
            found.add(pictures)
        captures = runner_of(fast.unet, fast.acceleration.options).captures.get("__call__")
        if captures is not None and not any(one is captures for one in kept):
            kept.append(captures)
        if call % warm == 0:
            memory.append(taken(device))
            used, held = (f"{size / 1e6:>7.1f} MB" for size in memory[-1])
            times = "".join(f" {value:>6.1f} s" for value in seconds.values())
            captured = sum(one.count for one in kept)
            print(f"{call:>6} {used} {held} {captured:>9} {found.largest:>19.5f}{times}", flush=True)
    grown, more = (last - first for first, last in zip(memory[0], memory[-1], strict=True))
    captured, report = sum(one.count for one in kept), fast.acceleration.report()
    print(
        f"{found}; after the first {warm} calls {grown / 1e6:+.1f} MB used, {more / 1e6:+.1f} MB held\n{report}"
    )
    return (
        grown <= 20e6 and more <= subject.grows and 0 < captured <= turns * len(subject.shapes)
        and "plain" not in report and "not captured" not in report and found.right
    )  # fmt: skip


def taken(device: torch.device) -> tuple[int, int]:
    """Bytes of tensors on a device, and what PyTorch holds of it; nothing is known of a CPU."""
    if device.type != "cuda":
        return 0, 0
    return torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pocket", choices=list(MODELS))
    parser.add_argument("--count", type=int, default=1000, help=f"generations, {2 * WARM} or more")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--compare-every", type=int, default=1, help="compare every so manieth picture alone")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of pocket; sd15 is always in bfloat16"
    )
    options = parser.parse_args()
    make, dtype = MODELS[options.model]
    if options.count < 2 * WARM:
        parser.error(f"--count must be {2 * WARM} or more: memory is compared after the first {WARM} calls")
    if not 1 <= options.compare_every <= options.count:
        parser.error("--compare-every must be between 1 and --count: some pictures have to be compared")
    if options.dtype is not None:
        if options.model != "pocket":
            parser.error("--dtype is for pocket: the kernels that sd15 is there for take 16 bits")
        dtype = getattr(torch, options.dtype)
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA device")
    if options.model == "sd15":
        # float32 is what is right
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    subject = make(torch.device("cuda"), dtype)
    return int(not soak(subject, options.count, options.steps, options.compare_every))


if __name__ == "__main__":
    sys.exit(main())
