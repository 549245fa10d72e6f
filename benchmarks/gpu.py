"""Times on one GPU, reference and calotype in one process: the same weights, inputs and numbers.

    python -m benchmarks.gpu [--only sd15,vae,…] [--seconds 240] [--out FILE] [--compiled] [--mechanisms] [--profile]
    python -m benchmarks.gpu --tiny --device cpu        # shows that it runs, and nothing else

Models are of full size with random weights in bfloat16. The parts:

- ``sd15``, ``vae``, ``sdxl``: single calls of the UNets and of the decoder;
- ``pictures``, ``controlnet``, ``turbo``, ``xlpictures``: from a prompt to pictures, text encoders included;
- ``first``: from the start of a fresh process, which imports, loads and draws, to its first picture in 20 steps, with
  no compiled kernels kept and with those of the run before; and its first two calls, after which all are replayed;
- ``kernels``, ``attention``: single ones, where they are named or with ``--mechanisms``.

Each row has the reference (eager) first. ``--compiled`` adds it compiled and graphed for the UNets, which takes one to
two minutes each (with ``--seconds 590 --only sd15,sdxl``, say); ``--mechanisms`` adds calotype with more and more of
its acceleration. Times are medians of settled calls. The error is that of the output against the reference's models in
float32, of pictures that of the first one; peaks of memory are what a process would take that has one library's models
alone. What does not fit in ``--seconds`` is left out, what fails is noted, and the rest goes on; the exit status is 1
where something failed. ``--out`` has all of it as JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._gpu import first, kernels, models, pictures
from benchmarks._gpu.bench import Bench
from benchmarks._gpu.report import HEAD, OURS, REFERENCE, Report, table
from benchmarks._gpu.sizes import FULL, tiny
from benchmarks._gpu.stock import Stock
from benchmarks._gpu.timing import Timer


def sd15(bench: Bench, part: str) -> None:
    models.unet(bench, part, "unet", "SD 1.5 UNet, 2 x 512", 2, 512, 5)
    models.unet(bench, part, "unet", "SD 1.5 UNet, 16 x 512", 16, 512, 26)


def vae(bench: Bench, part: str) -> None:
    models.decoding(bench, part, "VAE decode, 512", 512)
    models.decoding(bench, part, "VAE decode, 1024", 1024, 30)


def sdxl(bench: Bench, part: str) -> None:
    bench.stock.drop("unet", "controlnet")
    models.unet(bench, part, "xl_unet", "SDXL UNet, 2 x 1024", 2, 1024, 25)
    if bench.mechanisms:
        models.unet(bench, part, "xl_unet", "SDXL UNet, 1 x 512", 1, 512)


def sd15_pictures(bench: Bench, part: str) -> None:
    pictures.measure(bench, part, "sd15")
    pictures.measure(bench, part, "sd15x8")


def controlnet(bench: Bench, part: str) -> None:
    pictures.measure(bench, part, "controlnet")
    bench.stock.drop("controlnet")


def turbo(bench: Bench, part: str) -> None:
    bench.stock.drop("unet")
    pictures.measure(bench, part, "one")
    pictures.measure(bench, part, "four")


def sdxl_pictures(bench: Bench, part: str) -> None:
    pictures.measure(bench, part, "sdxl")


PARTS: dict[str, Callable[[Bench, str], None]] = {
    "sd15": sd15,
    "vae": vae,
    "pictures": sd15_pictures,
    "controlnet": controlnet,
    "first": first.measure,
    "sdxl": sdxl,
    "turbo": turbo,
    "xlpictures": sdxl_pictures,
}
"""In an order in which models that parts share are made once."""
SINGLE: dict[str, Callable[[Bench], None]] = {"kernels": kernels.kernels, "attention": kernels.attention}


def run(bench: Bench, names: list[str]) -> None:
    """The parts that are named."""
    report = bench.report
    report.say(HEAD)
    for name in names:
        start = time.perf_counter()
        try:
            if name not in SINGLE:
                PARTS[name](bench, name)
            elif bench.left < 0:
                report.say(f"{name}: no time")
            else:
                SINGLE[name](bench)
        except Exception:
            report.fail(name, traceback.format_exc())
        bench.timer.clear()
        report.say(f"({name}: {time.perf_counter() - start:.0f} s)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [*PARTS, *SINGLE]
    parser.add_argument("--only", default="", help=f"parts, separated by commas: {', '.join(every)}")
    parser.add_argument("--seconds", type=float, default=240, help="after which nothing is begun")
    parser.add_argument("--out", type=Path, help="a file for everything, as JSON")
    parser.add_argument(
        "--compiled", action="store_true", help="the reference's UNets compiled and graphed too"
    )
    parser.add_argument(
        "--mechanisms", action="store_true", help="rows for each mechanism, and single kernels"
    )
    parser.add_argument("--profile", action="store_true", help="note the kernels that take most")
    parser.add_argument("--tiny", action="store_true", help="tiny models, small pictures, at most two steps")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    options.parts = [name for name in options.only.split(",") if name]
    if unknown := [name for name in options.parts if name not in every]:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(every)}")
    if not options.parts:
        options.parts = every if options.mechanisms else list(PARTS)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this needs a CUDA device; --tiny --device cpu shows that it runs")
    if options.device == "cpu" and (not options.tiny or {*SINGLE} & {*options.parts}):
        parser.error(f"without a GPU there is --tiny alone, and no {' or '.join(SINGLE)}")
    return options


@torch.no_grad()
def main() -> int:
    since, options = time.perf_counter(), arguments()
    import diffusers

    import calotype

    diffusers.utils.logging.set_verbosity_error()
    calotype.acceleration.on()
    # float32 is what is right
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    about = {
        "device": where, "torch": torch.__version__, "reference": diffusers.__version__,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
    }  # fmt: skip
    report = Report(options.out, about)
    report.say(f"{where}, PyTorch {torch.__version__}, Diffusers {diffusers.__version__}")
    libraries = {REFERENCE: diffusers, OURS: calotype}
    bench = Bench(
        Stock(libraries, tiny() if options.tiny else FULL, device, torch.bfloat16), Timer(device), report,
        since + options.seconds, options.tiny, options.mechanisms, options.compiled, options.profile,
    )  # fmt: skip
    run(bench, options.parts)
    for line in ["", *table(report.rows), f"{time.perf_counter() - since:.0f} s in all"]:
        report.say(line)
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
