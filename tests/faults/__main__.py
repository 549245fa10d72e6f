"""What calotype and the reference do with every fault, as the tables of docs/reliability.md.

python -m tests.faults                  # all of them
python -m tests.faults code pictures    # these areas
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "DIFFUSERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}

import multiprocessing
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from tests.faults.fault import Fault, untouched
from tests.faults.test_faults import AREAS
from tests.tiny import stable_diffusion_folder

SECONDS = 20
PLACES = re.compile(r"(/tmp|/var)[^\s'\",;:)]*/")


def outcome(library: Any, fault: Fault, folder: Path) -> str:
    """The type and the beginning of what is raised, or that nothing is."""
    try:
        made = fault.act(library, folder)
    except BaseException as error:
        lines = str(error).strip().splitlines() or [""]
        public = next(kind for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
        return f"{public.__name__}: {lines[0]}"
    if (folder.parent / "work" / "was-run").exists():
        return "runs the code"
    images = getattr(made, "images", None)
    if images is not None and not all(_finite(image) for image in images):
        return "gives a picture of NaN"
    return "goes on without a word"


def _finite(image: Any) -> bool:
    import numpy as np

    return bool(np.isfinite(np.asarray(image, dtype=float)).all())


def measured(library: str, fault: Fault, sound: Path) -> str:
    """The outcome in a process of its own, which is ended when it takes too long or too much."""
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()

    def work(folder: Path) -> None:
        import importlib
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.chdir(folder.parent / "work")
        warnings.simplefilter("ignore")
        queue.put(outcome(importlib.import_module(library), fault, folder))

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "checkpoint")
        Path(temporary, "work").mkdir()
        shutil.copytree(sound, folder)
        fault.damage(folder)
        process = context.Process(target=work, args=(folder,))
        process.start()
        try:
            return str(queue.get(timeout=SECONDS))
        except Empty:
            return f"is not finished after {SECONDS} seconds" if process.is_alive() else "ends the process"
        finally:
            process.kill()
            process.join()


def _cell(text: str, length: int = 150) -> str:
    text = PLACES.sub("…/", text).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= length else text[: length - 1] + "…"


def main() -> None:
    import diffusers
    import diffusers.utils

    import calotype
    import calotype.utils

    torch.set_num_threads(1)
    for library in (calotype, diffusers):  # imported before the processes are forked off
        for name in (
            "UNet2DConditionModel",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
        ):
            getattr(library, name)
    assert calotype.utils and diffusers.utils
    with tempfile.TemporaryDirectory() as temporary:
        sound = stable_diffusion_folder(Path(temporary, "sound"))
        for area, faults in AREAS.items():
            if sys.argv[1:] and area not in sys.argv[1:]:
                continue
            print(
                f"\n### {area.capitalize()}\n\n| Fault | calotype | Diffusers {diffusers.__version__} |\n|---|---|---|"
            )
            for fault in faults:
                if fault.ours:
                    theirs = "not measured" if fault.damage is not untouched else "has no such reader"
                else:
                    theirs = measured("diffusers", fault, sound)
                row = (fault.name, _cell(measured("calotype", fault, sound)), _cell(theirs, 110))
                print(f"| {' | '.join(row)} |", flush=True)
                print(row[0], file=sys.stderr)


if __name__ == "__main__":
    main()
