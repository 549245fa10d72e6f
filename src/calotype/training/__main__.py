"""``python -m calotype.training pocket``: recipes from a plain checkout, with nothing installed but torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from calotype.core.errors import CalotypeError
from calotype.training.recipes import RECIPES, train


def parser() -> argparse.ArgumentParser:
    """The arguments; the same words as ``calotype train``."""
    arguments = argparse.ArgumentParser(
        prog="python -m calotype.training", description="Train a model by a recipe."
    )
    arguments.add_argument("recipe", choices=RECIPES)
    arguments.add_argument("--out", type=Path, required=True, help="folder for the results")
    arguments.add_argument("--stage", help="stages, separated by commas; by default all of the recipe")
    arguments.add_argument(
        "--preset", default="full", help="full, cpu for a smaller model, or tiny for a dry run"
    )
    arguments.add_argument("--work", type=Path, help="folder for checkpoints and intermediate data")
    arguments.add_argument(
        "--member", help="pocket-family: which of the small models, such as pocket-inpaint"
    )
    arguments.add_argument("--vae", type=Path, help="pocket: folder of a trained VAE")
    arguments.add_argument(
        "--base",
        type=Path,
        help="pocket-motion, pocket-family: folder of the checkpoint that they are for, if not the bundled one",
    )
    arguments.add_argument(
        "--init",
        type=Path,
        help="folder of a checkpoint, of an adapter or of a member's weights, to go on from",
    )
    arguments.add_argument("--max-minutes", type=float, help="time for all stages together")
    arguments.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--compile", action=argparse.BooleanOptionalAction, help="use torch.compile")
    arguments.add_argument(
        "--resume", action="store_const", const=True, help="pocket: go on from the checkpoints in --work"
    )
    arguments.add_argument("--workers", type=int, help="pocket, pocket-family: processes that write captions")
    arguments.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="as in unet.batch=256"
    )
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the recipe; an error of the user's is one line, without a traceback."""
    given = parser().parse_args(words)
    options = vars(given)
    recipe, out = options.pop("recipe"), options.pop("out")
    stage, changes = options.pop("stage"), options.pop("set")
    options |= {"stages": stage.split(",") if stage else None, "changes": changes or None}
    try:
        train(recipe, out, options)
    except CalotypeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
