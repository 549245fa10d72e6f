"""LoRA weights: the time to load, exchange and take out a rank-64 adapter of an SDXL-shaped U-Net.

    python -m benchmarks.lora            # all attention layers of a U-Net of SDXL's shape, random weights in float16
    python -m benchmarks.lora --small    # a small one, to see that it runs

Each library runs in processes of its own, taken in turn; the median of the rounds counts. "load" is from a file in the
page cache to an adapter that acts, "exchange in place" puts a second file's weights where the first one's are
(``hotswap=True``), "exchange" deletes them and loads the first again, "take out" is ``unload_lora_weights``. The
weights are read once after each step, within its time, so that what is only mapped into memory is counted too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks._gpu.sizes import SDXL
from benchmarks._side_by_side import LIBRARIES, Row, in_turn, machine, median, print_table

SMALL = {**SDXL, "block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 1)}
SMALL |= {"attention_head_dim": 4, "cross_attention_dim": 64}

STEPS = ("load", "exchange in place", "exchange", "take out")

MEASURE = """
import gc, importlib, json, logging, sys, time, warnings
import torch

library, config, first, second, threads = sys.argv[1:]
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(int(threads))
module = importlib.import_module(library)
if library == "diffusers":
    import peft
    module.utils.logging.set_verbosity_error()
torch.manual_seed(0)
with torch.device("meta"):
    unet = module.UNet2DConditionModel(**json.loads(config))
unet = unet.to(torch.float16).to_empty(device="cpu")
for parameter in unet.parameters():
    parameter.detach().zero_()
parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
scheduler = module.EulerDiscreteScheduler()
pipe = module.StableDiffusionXLPipeline(**parts, unet=unet, scheduler=scheduler)

def adapter_tensors():
    seen = [t for name, t in unet.named_parameters() if "lora_" in name]
    return seen or [t for name, t in unet.named_buffers() if "updates" in name]

def timed(action):
    gc.collect()
    start = time.perf_counter()
    action()
    total = sum(float(tensor.flatten()[::11].sum()) for tensor in adapter_tensors())
    return time.perf_counter() - start, total

load = lambda file, **more: pipe.load_lora_weights(file, adapter_name="one", **more)
def exchange():
    pipe.delete_adapters("one")
    load(first)

results = {}
results["load"], a = timed(lambda: load(first))
results["exchange in place"], b = timed(lambda: load(second, hotswap=True))
results["exchange"], c = timed(exchange)
assert abs(a - c) < 1e-3 * abs(a) and abs(a - b) > 1e-3 * abs(a), (a, b, c)
results["take out"], rest = timed(pipe.unload_lora_weights)
assert rest == 0
print(json.dumps(results))
"""


def make_files(folder: Path, config: dict[str, object], rank: int) -> list[Path]:
    """Two files of random weights for all attention projections, in the reference's layout."""
    import torch
    from safetensors.torch import save_file

    from calotype import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    paths = []
    for number in (1, 2):
        draw = torch.Generator().manual_seed(number)
        state = {}
        for key, weight in unet.state_dict().items():
            name = key.removesuffix(".weight")
            if name.rpartition(".attn")[0] and weight.ndim == 2:
                for part, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                    values = torch.randn(shape, generator=draw, dtype=torch.float32) * 0.02 * number
                    state[f"unet.{name}.lora_{part}.weight"] = values.to(torch.float16)
        paths.append(folder / f"{number}.safetensors")
        save_file(state, paths[-1])
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small U-Net")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import json

    config = SMALL if arguments.small else SDXL
    with tempfile.TemporaryDirectory() as temporary:
        files = make_files(Path(temporary), config, arguments.rank)
        size = files[0].stat().st_size
        given = [json.dumps(config), *map(str, files), str(arguments.threads)]
        runs = in_turn(MEASURE, {library: [library, *given] for library in LIBRARIES}, arguments.rounds)
    rows = [
        Row(step, *(median([run[step] for run in runs[library]]) for library in LIBRARIES)) for step in STEPS
    ]
    notes = [f"rank {arguments.rank}, files of {size / 1e6:.0f} MB; median of {arguments.rounds} rounds"]
    print_table("LoRA weights", rows, [*notes, machine(arguments.threads)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
