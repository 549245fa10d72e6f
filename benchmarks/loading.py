"""Loading a model: time and peak memory of calotype and of the reference, each in a fresh process.

    python benchmarks/loading.py            # a U-Net of about 2 GB, made once in a temporary folder
    python benchmarks/loading.py --sdxl     # a whole pipeline of the size of Stable Diffusion XL, 6.9 GB in float16
    python benchmarks/loading.py --small    # a few megabytes, to see that it runs
    python benchmarks/loading.py --device cuda    # the whole pipeline, onto a GPU, in the ways that users write it
    python benchmarks/loading.py --device cuda --breakdown    # when calotype does what, beside
    python benchmarks/loading.py --device cuda --settings 8:16:0.5 4:32:5    # with so many threads, MiB, ms

Memory is the highest resident size beyond that after the imports, divided by the size of the files: when loading has
returned, and when every page of the weights has been read once. Files are in the page cache for both, and mapped pages
count as resident. The CPU time is that of loading and reading together. The exit status is 1 if calotype takes more
than the file and 15 %.

Onto a GPU the time is that until everything is there; its context, and a buffer of pinned memory, are made before the
clock starts. Memory is that of the host beyond what it was then, and that of the device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LARGE = {"block_out_channels": (256, 512, 1024, 1024), "cross_attention_dim": 768}
SMALL = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32}
ALLOWED = 1.15

MEASURE = """
import importlib, json, sys, time
from pathlib import Path
import torch

library, folder, dtype, kind = sys.argv[1:]
torch.set_num_threads(1)
cls = getattr(importlib.import_module(library), kind)
import safetensors.torch, transformers
transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer
if kind != "UNet2DConditionModel":
    for name in ("UNet2DConditionModel", "AutoencoderKL", "StableDiffusionXLPipeline", "EulerDiscreteScheduler"):
        getattr(importlib.import_module(library), name)
if library == "diffusers":
    import accelerate
dtype = None if dtype == "None" else getattr(torch, dtype)
torch.zeros(8).to(dtype or torch.float32).sum()

def status(key):
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) * 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
start, work = time.perf_counter(), time.process_time()
model = cls.from_pretrained(folder, torch_dtype=dtype)
loaded = time.perf_counter() - start
so_far = status("VmHWM") - before
models = [model] if hasattr(model, "state_dict") else [m for m in model.components.values() if hasattr(m, "parameters")]
for tensor in [t for m in models for t in m.state_dict().values()]:
    tensor.flatten()[:: 4096 // tensor.element_size()].sum()  # every page
used = time.perf_counter() - start
work = time.process_time() - work
print(json.dumps({"loaded": loaded, "used": used, "work": work, "loading": so_far, "peak": status("VmHWM") - before}))
"""

MEASURE_CUDA = """
import importlib, json, sys, time
from pathlib import Path
import torch

library, folder, dtype, way = sys.argv[1:5]
package = importlib.import_module(library)
import accelerate, safetensors.torch, transformers
transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection, transformers.CLIPTokenizer
for name in ("UNet2DConditionModel", "AutoencoderKL", "EulerDiscreteScheduler", "DiffusionPipeline"):
    getattr(package, name)
cls = package.StableDiffusionXLPipeline
dtype = getattr(torch, dtype)
torch.empty(2**20, dtype=torch.uint8, pin_memory=True).to("cuda").to(torch.float16).to(torch.bfloat16)
torch.cuda.synchronize()
torch.cuda.empty_cache()
torch.cuda.reset_peak_memory_stats()

def status(key):
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) * 1024

try:
    Path("/proc/self/clear_refs").write_text("5")
except OSError:
    pass  # the peak of the imports then counts too; it is below that of loading
before, held = status("VmRSS"), torch.cuda.memory_allocated()
events = []
if len(sys.argv) > 5:
    exec(sys.argv[5])
start, work = time.perf_counter(), time.process_time()
if way == "to":
    pipe = cls.from_pretrained(folder, torch_dtype=dtype).to("cuda")
elif way == "device_map":
    pipe = cls.from_pretrained(folder, torch_dtype=dtype, device_map="cuda")
else:
    pipe = package.load(folder, torch_dtype=dtype, device="cuda")
torch.cuda.synchronize()
seconds = time.perf_counter() - start
work = time.process_time() - work
models = [m for m in pipe.components.values() if hasattr(m, "parameters")]
tensors = [t for m in models for t in m.state_dict().values()]
assert {t.device.type for t in tensors} == {"cuda"}, "not all is on the GPU"
assert {t.dtype for t in tensors if t.is_floating_point()} == {dtype}, "not all is converted"
total = sum(int(t.flatten().view(torch.int16)[::97].sum(dtype=torch.int64)) for t in tensors if t.itemsize == 2)
print(json.dumps({
    "seconds": seconds, "work": work, "host": status("VmHWM") - before, "left": status("VmRSS") - before,
    "device": torch.cuda.max_memory_allocated() - held, "reserved": torch.cuda.max_memory_reserved(),
    "weights": sum(t.nbytes for t in tensors), "sum": total,
    "events": [(name, since - start, until - start) for name, since, until in events],
}))
"""

BREAKDOWN = """
from calotype.core import sending, weights
from calotype.models.modeling import ModelMixin
from calotype.pipelines import components, transformers_models

def timed(owner, name, label):
    original = vars(owner)[name]
    call = getattr(original, "__func__", original)
    def wrapper(*args, **kwargs):
        since = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            events.append((label(args), since, time.perf_counter()))
    setattr(owner, name, classmethod(wrapper) if isinstance(original, classmethod) else wrapper)

timed(components, "load_components", lambda args: "all components")
timed(components, "_load_component", lambda args: f"component {args[1]}")
timed(components, "read_model", lambda args: f"  read_model {args[0].__name__}")
timed(transformers_models, "fill", lambda args: "  fill")
timed(weights, "fill", lambda args: "  fill")
timed(ModelMixin, "_empty", lambda args: "  made on meta")
timed(sending.Sender, "send", lambda args: "  targets made, pieces queued")
timed(sending.Sender, "__exit__", lambda args: "waiting for the readers")
timed(sending._Memory, "__init__", lambda args: "* pinned")
timed(sending.InFile, "read", lambda args: "* read")
timed(sending.InMemory, "read", lambda args: "* read")
timed(sending.Sender, "_take", lambda args: "* piece taken")
"""
"""Notes what calotype does meanwhile; what readers do is marked with a star."""

SETTINGS = """
from calotype.core import interpreter, sending
sending.READERS, sending.PIECE, interpreter.SWITCH = {readers}, {piece} * 2**20, {switch} / 1000
"""

WAYS = {
    "to": 'from_pretrained(…).to("cuda")',
    "device_map": 'from_pretrained(…, device_map="cuda")',
    "load": 'calotype.load(…, device="cuda")',
}


def make_checkpoint(folder: Path, config: dict[str, object]) -> Path:
    """A U-Net with random weights in float32."""
    import torch

    from calotype import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(**config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.uniform_(-0.1, 0.1)
    model.save_pretrained(folder)
    return folder / "diffusion_pytorch_model.safetensors"


XL_UNET = {
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
XL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}


def make_sdxl(folder: Path) -> int:
    """A pipeline of the size of Stable Diffusion XL, random weights in float16; gives the size of its files."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    import calotype

    source = Path(calotype.__file__).parent / "pocket" / "weights"
    tokenizer = CLIPTokenizer.from_pretrained(source / "tokenizer")
    block = torch.empty(2**24, dtype=torch.float16).uniform_(-0.1, 0.1)

    def random(make: Any) -> Any:
        with torch.device("meta"):
            model = make().half()
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                for piece in tensor.data.flatten().split(len(block)):
                    piece.copy_(block[: len(piece)])
            else:
                tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
        return model.eval()

    shape = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    }
    large = {
        "num_hidden_layers": 32,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
    }
    calotype.StableDiffusionXLPipeline(
        vae=random(lambda: calotype.AutoencoderKL(**XL_VAE)),
        text_encoder=random(lambda: CLIPTextModel(CLIPTextConfig(**shape))),
        text_encoder_2=random(
            lambda: CLIPTextModelWithProjection(CLIPTextConfig(**large, projection_dim=1280))
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=random(lambda: calotype.UNet2DConditionModel(**XL_UNET)),
        scheduler=calotype.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    ).save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def measure(
    library: str, folder: Path, dtype: str, how: str, program: str = MEASURE, first: str | None = None
) -> dict[str, Any]:
    """One load in a process of its own, which executes ``first`` before the clock starts."""
    command = [sys.executable, "-c", program, library, str(folder), dtype, how, *([first] if first else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"A measured process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def print_events(events: list[tuple[str, float, float]]) -> None:
    """What the calling thread did and when, in milliseconds; of what readers do the sums."""
    print(f"  {'from':>8} {'to':>8}")
    for name, since, until in sorted(events, key=lambda event: (event[1], -event[2])):
        if not name.startswith("*"):
            print(f"  {since * 1e3:>8.1f} {until * 1e3:>8.1f}  {name}")
    for name in sorted({name for name, *_ in events if name.startswith("*")}):
        spans = [(since, until) for other, since, until in events if other == name]
        first, last = min(since for since, _ in spans), max(until for _, until in spans)
        together = sum(until - since for since, until in spans)
        print(
            f"  {first * 1e3:>8.1f} {last * 1e3:>8.1f}  {name}: {len(spans)} times, "
            f"{together * 1e3:.1f} ms in all threads together"
        )


def break_down_cuda(folder: Path, dtypes: list[str]) -> None:
    """When calotype does what."""
    for dtype in dtypes:
        for way in WAYS:
            run = measure("calotype", folder, dtype, way, MEASURE_CUDA, BREAKDOWN)
            print(f"{dtype}, {WAYS[way]}: {run['seconds'] * 1e3:.1f} ms")
            print_events(run["events"])


def try_settings(folder: Path, dtypes: list[str], settings: list[str], repeats: int) -> None:
    """How long it takes with other numbers of threads and sizes of pieces."""
    for setting in settings:
        readers, piece, switch = setting.split(":")
        first = SETTINGS.format(readers=int(readers), piece=int(piece), switch=float(switch))
        times = {
            (dtype, way): min(
                measure("calotype", folder, dtype, way, MEASURE_CUDA, first)["seconds"]
                for _ in range(repeats)
            )
            for dtype in dtypes
            for way in ("to", "device_map")
        }
        print(
            f"{readers} readers, pieces of {piece} MiB, {switch} ms: "
            + ", ".join(f"{dtype} {way} {seconds:.2f} s" for (dtype, way), seconds in times.items()),
            flush=True,
        )


def measure_cuda(folder: Path, repeats: int, dtypes: list[str], output: Path | None) -> int:
    """All ways onto a GPU; gives 1 if two of them do not bring the same weights there."""
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) or make_sdxl(folder)
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(2**24):  # into the page cache
                pass
    print(f"checkpoint: {size / 1e9:.2f} GB, float16; best of {repeats}")
    print(
        f"{'library':<10} {'dtype':<9} {'way':<40} {'time':>8} {'CPU':>8} {'host peak':>10} {'host after':>10} "
        f"{'device peak':>11}"
    )
    rows: list[dict[str, Any]] = []
    sums: dict[str, set[float]] = {}
    for dtype in dtypes:
        for library, way in [("diffusers", w) for w in ("to", "device_map")] + [
            ("calotype", w) for w in WAYS
        ]:
            runs = [measure(library, folder, dtype, way, MEASURE_CUDA) for _ in range(repeats)]
            best = {key: min(run[key] for run in runs) for key in runs[0] if key != "events"}
            rows.append({"library": library, "dtype": dtype, "way": way, "runs": runs})
            sums.setdefault(dtype, set()).update(run["sum"] for run in runs)
            print(
                f"{library:<10} {dtype:<9} {WAYS[way]:<40} {best['seconds']:>6.2f} s {best['work']:>6.2f} s "
                f"{best['host'] / 1e9:>7.2f} GB {best['left'] / 1e9:>7.2f} GB {best['device'] / 1e9:>8.2f} GB",
                flush=True,
            )
            if output is not None:
                output.write_text(json.dumps(rows, indent=1))
    differing = [dtype for dtype, found in sums.items() if len(found) > 1]
    for dtype in differing:
        print(f"the weights on the GPU are not the same in {dtype}")
    return int(bool(differing))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a checkpoint of a few megabytes")
    parser.add_argument("--sdxl", action="store_true", help="a whole pipeline, 6.9 GB")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is kept, in place of a temporary folder"
    )
    parser.add_argument("--repeats", type=int, default=3, help="loads of which the fastest counts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtypes", nargs="+", default=["float16", "bfloat16"], help="of --device cuda")
    parser.add_argument("--breakdown", action="store_true", help="of --device cuda: when calotype does what")
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[],
        help="of --device cuda: readers:MiB of a piece:ms until they go on, each tried beside",
    )
    parser.add_argument("--output", type=Path, help="all runs of --device cuda as JSON")
    arguments = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        parser.error("this benchmark reads the memory of processes from /proc, which only Linux has")

    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if arguments.device == "cuda":
            differing = measure_cuda(folder, arguments.repeats, arguments.dtypes, arguments.output)
            if arguments.breakdown:
                break_down_cuda(folder, arguments.dtypes)
            try_settings(folder, arguments.dtypes, arguments.settings, arguments.repeats)
            return differing
        kind, dtypes, stored = "UNet2DConditionModel", ("None", "float16"), "float32"
        if arguments.sdxl:
            kind, dtypes, stored = "DiffusionPipeline", ("float16", "bfloat16"), "float16"
            size = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) or make_sdxl(folder)
        else:
            size = make_checkpoint(folder, SMALL if arguments.small else LARGE).stat().st_size
        print(f"checkpoint: {size / 1e9:.2f} GB, {stored}; best of {arguments.repeats}")
        columns = f"{'loaded':>9} {'used once':>10} {'CPU time':>9} {'peak loading':>18} {'peak':>18}"
        print(f"{'library':<10} {'dtype':<9} {columns}")
        for dtype in dtypes:
            for library in ("diffusers", "calotype"):
                runs = [measure(library, folder, dtype, kind) for _ in range(arguments.repeats)]
                keys = ("loaded", "used", "work", "loading", "peak")
                loaded, used, work, loading, peak = (min(run[key] for run in runs) for key in keys)
                times = f"{loaded:>7.2f} s {used:>8.2f} s {work:>7.2f} s"
                memory = " ".join(f"{m / 1e9:>9.2f} GB {m / size:>4.0%}" for m in (loading, peak))
                print(f"{library:<10} {dtype:<9} {times} {memory}", flush=True)
                failed |= library == "calotype" and peak / size > ALLOWED
    return int(failed and not arguments.small)


if __name__ == "__main__":
    sys.exit(main())
