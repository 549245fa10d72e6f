"""Does the pocket family draw what it is asked for, in combinations and scenes that it never saw?

    python -m benchmarks.pocket_quality [--members pocket,pocket-inpaint,… | all] [--count 100] [--steps 20]
                                        [--guidance 5] [--batch 100] [--device cpu] [--json FILE] [--out sheet.png]

Prompts name (shape, colour) pairs that were left out of training, and scenes are fresh ones. Judges are a classifier, a
depth estimator, a network that reads segments and one that finds hearts; all of them only ever saw rendered scenes, and
fresh renders show how well they read. `--members lora` first teaches the bundled checkpoint hearts, from twenty
pictures. Scenes are rendered without compiling, which takes 2 or 3 seconds a picture on one core. Exits with 1 if a bar
is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks._pocket_family import lora, tasks, xl
from benchmarks._pocket_family.drawing import Options, draw
from benchmarks._pocket_family.table import Measure, lines
from benchmarks._pocket_family.tasks import Bench
from benchmarks._pocket_family.unconditional import unconditional
from benchmarks._pocket_family.world import as_tensor
from calotype.core.errors import CalotypeError, InputError
from calotype.core.files import write_text
from calotype.pocket.classifier_training import evaluate_classifier
from calotype.pocket.judging import Verdict, judge
from calotype.pocket.prompts import Prompt, prompts
from calotype.utils.images import contact_sheet

__all__ = ["CLASSIFIER", "as_tensor", "main"]

CLASSIFIER = Path(__file__).parent / tasks.CLASSIFIER
READER_BARS = {"shape": 98.0, "color": 98.0, "floor": 98.0, "order": 98.0, "count": None, "sky": None}
"""Percent of fresh renders that the classifier itself must read rightly."""


def reader(bench: Bench) -> list[Measure]:
    """The classifier, on rendered pictures."""
    scenes = bench.options.renders
    read = evaluate_classifier(bench.classifier, scenes)
    return [
        Measure("judge", f"classifier on renders: {name}", 100 * read[name], "%", f"{scenes} scenes", bar)
        for name, bar in READER_BARS.items()
    ]


TASKS: dict[str, tuple[Callable[[Bench], list[Measure]], ...]] = {
    "pocket": (reader, tasks.text_to_image, tasks.image_to_image),
    "pocket-inpaint": (tasks.inpainting,),
    "pocket-depth-estimator": (tasks.estimator,),
    "pocket-depth": (tasks.depth_to_image,),
    "pocket-controlnet-canny": (tasks.controlnet_canny,),
    "pocket-controlnet-depth": (tasks.controlnet_depth,),
    "pocket-controlnet-segmentation": (tasks.segmenter, tasks.controlnet_segmentation),
    "pocket-turbo": (tasks.turbo,),
    "pocket-unconditional": (unconditional,),
    "pocket-tiny-vae": (tasks.tiny_vae,),
    "pocket-upscale": (tasks.upscale,),
    "pocket-xl": (xl.text_to_image, xl.micro_conditions),
    "pocket-xl-refiner": (xl.refined,),
    lora.SHIPPED: (lora.shipped,),
    "lora": (lora.taught,),
}
"""Member -> what is measured of it; ``lora`` is trained for it first, which is not done for ``all``."""


def chosen(asked: str, options: Options) -> list[str]:
    """The members that are asked for; of ``all`` those that are there, and a line about the others."""
    if asked != "all":
        names = [name.strip() for name in asked.split(",")]
        if unknown := [name for name in names if name not in TASKS]:
            raise InputError(f"There is no member {', '.join(unknown)}; there are {', '.join(TASKS)}.")
        return names
    members = [name for name in TASKS if name != "lora"]
    there = [name for name in members if options.has(name)]
    for name in members:
        if name not in there:
            print(f"{name} is not in this installation, and left out.", file=sys.stderr)
    return there


def caption(prompt: Prompt, verdict: Verdict) -> str:
    """The prompt, and what is wrong in its picture."""
    wrong = [name for name in tasks.NAMES if getattr(verdict, name) is False]
    return prompt.text + (f" [not: {', '.join(wrong)}]" if wrong else "")


def write_sheet(bench: Bench, path: Path, count: int) -> None:
    """A contact sheet of the bundled checkpoint's first pictures."""
    asked = prompts(bench.options.split, bench.options.count, bench.options.seed)[:count]
    images = draw(bench.options.load(bench.options.base), [prompt.text for prompt in asked], bench.options)
    found = judge(asked, bench.read(images))
    texts = [caption(prompt, verdict) for prompt, verdict in zip(asked, found, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(images, texts, columns=6, cell=192).save(path)
    print(f"contact sheet: {path}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--members", default="pocket", help="names, with commas between, or all")
    parser.add_argument("--family", type=Path, help="a folder of members in place of the installed ones")
    parser.add_argument("--model", default="pocket", help="name, folder or repository of the base")
    parser.add_argument("--split", default="heldout", choices=("heldout", "train"))
    parser.add_argument("--count", type=int, default=100, help="pictures of each task")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--renders", type=int, help="to check the classifier on; 512, on a CPU as many as --count"
    )
    parser.add_argument("--json", type=Path, help="file for the measures and the seconds that they took")
    parser.add_argument(
        "--out", type=Path, help="PNG for a contact sheet of the bundled checkpoint's pictures"
    )
    parser.add_argument("--sheet", type=int, default=24, help="pictures on the sheet")
    given = parser.parse_args()
    if given.count < 1 or given.batch < 1:
        raise InputError(f"--count and --batch are at least 1, not {given.count} and {given.batch}.")
    options = Options(
        count=given.count,
        batch=given.batch,
        steps=given.steps,
        guidance=given.guidance,
        seed=given.seed,
        device=given.device,
        base=given.model,
        split=given.split,
        renders=given.renders or (given.count if given.device == "cpu" else 512),
        family=given.family,
    )
    bench = Bench(options)
    measures: list[Measure] = []
    seconds: dict[str, float] = {}
    for name in chosen(given.members, options):
        start = time.perf_counter()
        for task in TASKS[name]:
            measures += task(bench)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]} s", file=sys.stderr, flush=True)
    print(
        f"{options.count} a task, {options.steps} steps, guidance {options.guidance:g}, {options.device}, "
        f"{sum(seconds.values()):.0f} s"
    )
    print("\n".join(lines(measures)))
    if given.json:
        report = {"measures": [one.as_dict() for one in measures], "seconds": seconds, "count": options.count}
        write_text(given.json, json.dumps(report, indent=2) + "\n")
    if given.out:
        write_sheet(bench, given.out, given.sheet)
    return 0 if all(one.met is not False for one in measures) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CalotypeError as error:
        sys.exit(f"pocket_quality: {error}")
