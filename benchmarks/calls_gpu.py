"""Whole calls on one GPU, from the prompt to the picture, and where their time goes.

    python -m benchmarks.calls_gpu [--only one,sd15,sdxl] [--out FILE]

Models of full size, text encoders included, with random weights in bfloat16. The first call of a process, the second
(which captures) and those after the third are told apart. A row of the second table is a model in one settled call:
when the host came to it and left it, and when the device began and ended, in ms after the call began.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import SD15, SDXL, VAE, random_model, wall

CALLS = {
    "one": ("SDXL, 1 step, 512, no guidance", True, {"num_inference_steps": 1, "guidance_scale": 0.0}, 512),
    "sd15": ("SD 1.5, 50 steps, 512", False, {"num_inference_steps": 50}, 512),
    "sdxl": ("SDXL, 30 steps, 1024", True, {"num_inference_steps": 30}, 1024),
}


def text_encoder(tokenizer: Any, large: bool) -> Any:
    """CLIP ViT-L's text model, or OpenCLIP bigG's with its projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, layers, heads = (1280, 32, 20) if large else (768, 12, 12)
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, projection_dim=1280, hidden_act="gelu" if large else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.device("cuda"):
        model = (CLIPTextModelWithProjection if large else CLIPTextModel)(config)
    found: Any = model.bfloat16().eval().requires_grad_(False)
    return found


def pipeline(xl: bool, folder: Path) -> Any:
    """A pipeline with everything that a call from prompt to picture needs."""
    from tests.tiny import tokenizer_folder
    from transformers import CLIPTokenizer

    import calotype

    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(folder, 77))
    vae = random_model(calotype, "AutoencoderKL", VAE)
    unet = random_model(calotype, "UNet2DConditionModel", SDXL if xl else SD15)
    scheduler = calotype.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "tokenizer": tokenizer}
    parts["text_encoder"] = text_encoder(tokenizer, large=False)
    if xl:
        parts |= {"text_encoder_2": text_encoder(tokenizer, large=True), "tokenizer_2": tokenizer}
        pipe = calotype.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipe = calotype.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def watched(rows: list[Any]) -> Iterator[None]:
    """Within this, each call of a model leaves its name, times of the host and events of the device in ``rows``."""
    from calotype.acceleration.accelerated import Accelerated

    kind: Any = Accelerated
    plain = kind._run

    def run(self: Any, *args: Any) -> Any:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        at = time.perf_counter()
        begin.record()
        found = plain(self, *args)
        end.record()
        rows.append((type(self.__dict__["_orig_mod"]).__name__, at, time.perf_counter(), begin, end))
        return found

    kind._run = run
    try:
        yield
    finally:
        kind._run = plain


def where_time_goes(run: Any) -> list[str]:
    """Lines of the second table, from one call."""
    rows: list[Any] = []
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    at = time.perf_counter()
    with watched(rows):
        run()
    end.record()
    torch.cuda.synchronize()
    whole = (time.perf_counter() - at) * 1e3
    lines = [f"  {'':28s} {'host from':>10s} {'to':>8s}   {'device from':>12s} {'to':>8s} {'ms':>8s}"]
    shown = rows if len(rows) <= 8 else [*rows[:5], *rows[-3:]]
    for name, begin, left, first, last in shown:
        one, two = start.elapsed_time(first), start.elapsed_time(last)
        lines.append(
            f"  {name:28s} {(begin - at) * 1e3:10.2f} {(left - at) * 1e3:8.2f}   "
            f"{one:12.2f} {two:8.2f} {two - one:8.2f}"
        )
    models = sum(first.elapsed_time(last) for *_, first, last in rows)
    lines.append(
        f"  the call {whole:.2f} ms, the device's {start.elapsed_time(end):.2f}, in models {models:.2f}, beside them "
        f"{whole - models:.2f}; {len(rows)} calls of models"
    )
    return lines


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description="Time whole calls on a GPU, from the prompt to the picture.")
    parser.add_argument("--only", default=",".join(CALLS), help=f"some of {', '.join(CALLS)}")
    parser.add_argument("--out", type=Path, help="a file for what acceleration says of the models")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device.", file=sys.stderr)
        return 2
    lines, reports = [], []
    made: dict[bool, Any] = {}
    for name in options.only.split(","):
        what, xl, arguments, side = CALLS[name]
        with tempfile.TemporaryDirectory() as folder:
            if xl not in made:
                made.clear()
                gc.collect()
                torch.cuda.empty_cache()
                made[xl] = pipeline(xl, Path(folder) / "tokenizer")

        def run(form: str = "pt", pipe: Any = made[xl], side: int = side, arguments: Any = arguments) -> Any:
            generator = torch.Generator("cuda").manual_seed(0)
            more = {"height": side, "width": side, "generator": generator, "output_type": form, **arguments}
            return pipe("a red ball on the grass at night", **more).images

        first, second = wall(run), wall(run)
        wall(run)
        settled = [wall(run) for _ in range(9)]
        pil = statistics.median(wall(lambda run=run: run("pil")) for _ in range(5))
        lines.append(
            f"{what}: first {first:.0f} ms, second {second:.0f}, settled {statistics.median(settled):.1f} "
            f"(best {min(settled):.1f}), as PIL {pil:.1f}; {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"
        )
        lines += where_time_goes(run)
        reports.append(f"{what}\n{made[xl].acceleration.report() if made[xl].acceleration else 'off'}")
    if options.out is not None:
        options.out.write_text("\n\n".join([*reports, *lines]) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
