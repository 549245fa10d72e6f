"""``python -m calotype.training pocket``: recipes from a plain checkout, with nothing installed but torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calotype.core.errors import CalotypeError
from calotype.training.recipes.pocket import STAGES, train_pocket


def parser() -> argparse.ArgumentParser:
    """The arguments; the same words as ``calotype train``."""
    arguments = argparse.ArgumentParser(
        prog="python -m calotype.training", description="Train a model by a recipe."
    )
    arguments.add_argument("recipe", choices=["pocket"])
    arguments.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments.add_argument("--stage", default=",".join(STAGES), help="stages, separated by commas")
    arguments.add_argument(
        "--preset", default="full", help="full, cpu for a smaller model, or tiny for a dry run"
    )
    arguments.add_argument("--work", type=Path, help="folder for checkpoints and intermediate data")
    arguments.add_argument("--vae", type=Path, help="folder of a trained VAE")
    arguments.add_argument("--init", type=Path, help="folder of a pocket checkpoint to go on from")
    arguments.add_argument("--max-minutes", type=float, help="time for all stages together")
    arguments.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--compile", action=argparse.BooleanOptionalAction, help="use torch.compile")
    arguments.add_argument("--resume", action="store_true", help="go on from the checkpoints in --work")
    arguments.add_argument("--workers", type=int, help="processes that write captions")
    arguments.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="as in unet.batch=256"
    )
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the recipe; an error of the user's is one line, without a traceback."""
    given = parser().parse_args(words)
    try:
        train_pocket(
            given.out,
            stages=given.stage.split(","),
            preset=given.preset,
            work=given.work,
            vae=given.vae,
            init=given.init,
            max_minutes=given.max_minutes,
            device=given.device,
            seed=given.seed,
            compile=given.compile,
            resume=given.resume,
            workers=given.workers,
            changes=given.set,
        )
    except CalotypeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
