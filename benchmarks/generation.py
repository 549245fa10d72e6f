"""How long a picture takes on the CPU: the same checkpoint, seed and steps in both libraries.

    python -m benchmarks.generation [--rounds 3] [--pictures 3] [--threads 2] [--steps 20] [--model FOLDER]

A tiny random Stable Diffusion shows what the library itself costs beside the arithmetic; the bundled ``pocket``
is a real model. Each measurement is a fresh process that loads the folder, makes one picture to warm up, and times
the next ones, of which the fastest counts; the two libraries take turns. The largest difference between their
pictures is printed below the times.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks._side_by_side import LIBRARIES, Row, in_turn, machine, median, print_table

MEASURE = """
import importlib, json, sys, time
import numpy as np
import torch

library, folder, steps, threads, pictures, prompt, output = sys.argv[1:]
torch.set_num_threads(int(threads))
start = time.perf_counter()
pipe = importlib.import_module(library).DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
loaded = time.perf_counter() - start
pipe.set_progress_bar_config(disable=True)

def picture():
    generator = torch.Generator("cpu").manual_seed(0)
    return pipe(prompt, num_inference_steps=int(steps), generator=generator, output_type="np").images

np.save(output, picture())
seconds = []
for _ in range(int(pictures)):
    start = time.perf_counter()
    picture()
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": min(seconds), "loaded": loaded}))
"""


def measure(name: str, folder: Path, prompt: str, options: argparse.Namespace) -> tuple[list[Row], str]:
    """A checkpoint's rows, and a note on how far the two pictures are apart."""
    import numpy as np

    with tempfile.TemporaryDirectory() as temporary:
        outputs = {library: str(Path(temporary, f"{library}.npy")) for library in LIBRARIES}
        shared = [str(folder), str(options.steps), str(options.threads), str(options.pictures), prompt]
        arguments = {library: [library, *shared, outputs[library]] for library in LIBRARIES}
        results = in_turn(MEASURE, arguments, options.rounds)
        theirs, ours = (np.load(outputs[library]) for library in LIBRARIES)
    rows = [
        Row(what, *(median([run[key] for run in results[library]]) for library in LIBRARIES))
        for what, key in (
            (f"{name}: one picture, {options.steps} steps", "seconds"),
            (f"{name}: loading", "loaded"),
        )
    ]
    size = "x".join(str(side) for side in ours.shape[1:3])
    return rows, f"{name} ({size}): the pictures differ by at most {np.abs(theirs - ours).max():.1e} of 1"


def tiny_checkpoint(folder: Path) -> Path:
    """A random Stable Diffusion of a million parameters, saved by the reference."""
    import diffusers
    from tests.tiny import stable_diffusion_folder

    return stable_diffusion_folder(folder, diffusers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time pictures by calotype and by the reference on the CPU.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=3, help="timed in each process; the fastest counts")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", type=Path, help="another folder in place of pocket")
    options = parser.parse_args()
    from calotype.pipelines.bundled import locate

    with tempfile.TemporaryDirectory() as temporary:
        models = {"tiny": tiny_checkpoint(Path(temporary, "tiny"))}
        real = options.model or Path(locate("pocket"))
        models[real.name if options.model else "pocket"] = real
        rows = []
        notes = [
            f"median of {options.rounds} fresh processes, the fastest of {options.pictures} pictures in each; float32",
            machine(options.threads),
        ]
        for name, folder in models.items():
            measured, note = measure(name, folder, "a red ball on grass", options)
            rows += measured
            notes.append(note)
    print_table("generation on the CPU", rows, notes)


if __name__ == "__main__":
    main()
