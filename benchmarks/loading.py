"""Loading a model: time and peak memory of calotype and of the reference, each in a fresh process.

    python benchmarks/loading.py            # a U-Net of about 2 GB, made once in a temporary folder
    python benchmarks/loading.py --small    # a few megabytes, to see that it runs

Memory is the highest resident size from after the imports until every weight has been read once, divided by the
size of the file. Files are in the page cache for both. The CPU time is that of
loading and reading together. The exit status is 1 if calotype takes more than the file
and 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LARGE = {"block_out_channels": (256, 512, 1024, 1024), "cross_attention_dim": 768}
SMALL = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32}
ALLOWED = 1.15

MEASURE = """
import importlib, json, sys, time
from pathlib import Path
import torch

library, folder, dtype = sys.argv[1:]
torch.set_num_threads(1)
cls = importlib.import_module(library).UNet2DConditionModel
import safetensors.torch
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
for tensor in model.state_dict().values():
    for piece in tensor.flatten().split(2**22):
        assert bool(piece.isfinite().all())
used = time.perf_counter() - start
work = time.process_time() - work
print(json.dumps({"loaded": loaded, "used": used, "work": work, "peak": status("VmHWM") - before}))
"""


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


def measure(library: str, folder: Path, dtype: str) -> dict[str, float]:
    """One load in a process of its own."""
    command = [sys.executable, "-c", MEASURE, library, str(folder), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a checkpoint of a few megabytes")
    parser.add_argument("--repeats", type=int, default=3, help="loads of which the fastest counts")
    arguments = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        parser.error("this benchmark reads the memory of processes from /proc, which only Linux has")

    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = make_checkpoint(folder, SMALL if arguments.small else LARGE).stat().st_size
        print(f"checkpoint: {size / 1e9:.2f} GB, float32; best of {arguments.repeats}")
        columns = f"{'loaded':>9} {'used once':>10} {'CPU time':>9} {'peak memory':>12} {'of file':>8}"
        print(f"{'library':<10} {'dtype':<9} {columns}")
        for dtype in ("None", "float16"):
            for library in ("diffusers", "calotype"):
                runs = [measure(library, folder, dtype) for _ in range(arguments.repeats)]
                keys = ("loaded", "used", "work", "peak")
                loaded, used, work, peak = (min(run[key] for run in runs) for key in keys)
                share = peak / size
                times = f"{loaded:>7.2f} s {used:>8.2f} s {work:>7.2f} s"
                print(f"{library:<10} {dtype:<9} {times} {peak / 1e9:>9.2f} GB {share:>7.0%}")
                failed |= library == "calotype" and share > ALLOWED and not arguments.small
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
