"""Pictures in the tables of Parquet files, as the library ``datasets`` and the Hub write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from calotype.core.errors import InputError

COLUMN = "image"
"""The column of the pictures: each is a struct of its file's ``bytes`` and, perhaps, name."""
_ROWS = 256
"""Rows that are decompressed at a time."""


@dataclass(frozen=True)
class Packed:
    """A picture's file in a row of a table: its bytes, in memory, and where they are from."""

    name: str
    data: bytes = field(repr=False, compare=False)

    def __str__(self) -> str:
        return self.name

    def read_bytes(self) -> bytes:
        """The file's contents."""
        return self.data


class Row(NamedTuple):
    """A picture, what is in the column of its captions, and the picture beside it."""

    picture: Packed
    text: Any
    beside: Packed | None


def read_rows(
    tables: Sequence[Path], caption_column: str | None = None, beside_column: str | None = None
) -> list[Row]:
    """The rows of all tables. ``InputError`` without pyarrow, for a column that is not there, and for no picture."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{tables[0]} has its pictures in a table, for which pyarrow is needed: pip install pyarrow, or write them "
            f"out as picture files with a metadata.jsonl."
        ) from error

    wanted = [name for name in (COLUMN, caption_column, beside_column) if name is not None]
    rows: list[Row] = []
    for path in tables:
        try:
            table = parquet.ParquetFile(path)
        except Exception as error:
            raise InputError(f"{path} is not a Parquet file that can be read: {error}.") from error
        with table:
            there = table.schema_arrow.names
            for name in wanted:
                if name not in there:
                    raise InputError(f"{path} has no column {name!r}; it has {', '.join(map(repr, there))}.")
            number = 0
            for batch in table.iter_batches(_ROWS, columns=wanted):
                for values in batch.to_pylist():
                    number += 1
                    where = f"row {number} of {path}"
                    rows.append(
                        Row(
                            _packed(values, COLUMN, where),
                            None if caption_column is None else values[caption_column],
                            None if beside_column is None else _packed(values, beside_column, where),
                        )
                    )
    if not rows:
        raise InputError(f"There are no rows in {tables[0]}.")
    return rows


def _packed(values: Any, column: str, where: str) -> Packed:
    """The picture in a column; ``InputError`` where its bytes are not there."""
    value = values[column]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise InputError(
            f"{column!r} in {where} is {type(value).__name__} without the bytes of a picture: embed them, as "
            f"push_to_hub and to_parquet of datasets do."
        )
    name = value.get("path") if isinstance(value, dict) else None
    return Packed(f"{name + ', ' if name else ''}{column!r} in {where}", data)
