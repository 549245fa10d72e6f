"""The model card of a fine-tuning: what was learned from what, how, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calotype.core.files import write_text
from calotype.core.version import __version__
from calotype.training.fine_tuning.settings import LearningSettings
from calotype.training.processes import current


@dataclass(frozen=True)
class Subject:
    """What the card is about: a kind of training, from which checkpoint if from one, and how the Hub files it."""

    kind: str
    base: str | None
    pipeline_tag: str
    tags: tuple[str, ...]


def write_card(
    settings: LearningSettings,
    subject: Subject,
    pictures: int,
    usage: str,
    facts: Mapping[str, Any],
    log: Path,
) -> None:
    """Write ``README.md`` into the output folder."""
    reports = [entry for entry in _entries(log) if "loss" in entry]
    last = reports[-10:]
    table: dict[str, Any] = {
        **({} if subject.base is None else {"base": subject.base}),
        "pictures": pictures,
        "steps": reports[-1]["step"] if reports else 0,
        "pictures a step": settings.train_batch_size * settings.gradient_accumulation_steps * current().count,
        **facts,
    }
    if last:
        table["loss, mean of the last reports"] = f"{sum(entry['loss'] for entry in last) / len(last):.4f}"
        table["seconds"] = f"{reports[-1]['seconds']:.0f}"
    of = "" if subject.base is None else f" of `{subject.base}`"
    lines = [
        "---",
        *([] if subject.base is None else [f"base_model: {json.dumps(subject.base)}"]),
        "library_name: diffusers",
        f"pipeline_tag: {subject.pipeline_tag}",
        f"tags: [{', '.join((*subject.tags, subject.kind, 'calotype'))}]",
        "---",
        "",
        f"# {settings.output.resolve().name}",
        "",
        f"{subject.kind}{of}, trained with calotype {__version__}.",
        "",
        "```python",
        usage,
        "```",
        "",
        *_table(table),
    ]
    if sheets := sorted((settings.output / "samples").glob("step-*.png")):
        lines += ["", f"![Samples of the last step](samples/{sheets[-1].name})"]
    options = {k: v for k, v in asdict(settings).items() if v is not None and v is not False and v != ()}
    lines += ["", "## Settings", "", *_table({f"`{name}`": value for name, value in options.items()}), ""]
    write_text(settings.output / "README.md", "\n".join(lines))


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())]


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _entries(log: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    )
