"""Pictures of files and addresses, and pictures of pictures: grids and contact sheets."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

from calotype.core.errors import InputError
from calotype.utils.reading import eight_bits, open_picture

PIL_INTERPOLATION = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "linear": PIL.Image.Resampling.BILINEAR,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}
"""Names of resampling filters, as configurations spell them."""


def load_image(
    image: str | os.PathLike[str] | PIL.Image.Image,
    convert_method: Callable[[PIL.Image.Image], PIL.Image.Image] | None = None,
    *,
    untrusted: bool = False,
) -> PIL.Image.Image:
    """A picture from a path, an ``http(s)://`` address or a PIL image: upright, and RGB in 8 bits.

    PNG, JPEG, WebP, GIF, BMP and TIFF are read. ``convert_method`` takes the place of the conversion to RGB. With
    ``untrusted``, for names that come from others, only addresses of the public internet are read, no files, within
    limits of time, size and pixels. Raises ``InputError`` if there is no such file, the address does not answer or is
    refused, or it holds no picture that can be read.
    """
    if isinstance(image, PIL.Image.Image):
        picture = image
    elif isinstance(image, str | os.PathLike):
        picture = open_picture(os.fspath(image), untrusted)
    else:
        raise InputError(
            f"load_image takes a path, an http(s) address or a PIL image, not {type(image).__name__}."
        )
    picture = PIL.ImageOps.exif_transpose(picture)
    return convert_method(picture) if convert_method is not None else eight_bits(picture).convert("RGB")


def make_image_grid(
    images: Sequence[PIL.Image.Image], rows: int, cols: int, resize: int | None = None
) -> PIL.Image.Image:
    """One picture from ``rows * cols`` pictures of one size, filled row by row.

    ``resize`` makes each of them a square of that side first. Raises ``InputError`` if their number or their
    sizes do not fit.
    """
    if not images or len(images) != rows * cols:
        raise InputError(
            f"A grid of {rows} rows and {cols} columns takes {rows * cols} pictures; there are {len(images)}."
        )
    cells = [image.resize((resize, resize)) for image in images] if resize is not None else list(images)
    width, height = cells[0].size
    for number, cell in enumerate(cells):
        if cell.size != (width, height):
            raise InputError(
                f"Picture {number} is {cell.width}x{cell.height} while the first is {width}x{height}: pass "
                f"resize=... to make them equal."
            )
    grid = PIL.Image.new("RGB", (cols * width, rows * height))
    for number, cell in enumerate(cells):
        grid.paste(cell, (number % cols * width, number // cols * height))
    return grid


def contact_sheet(
    images: Sequence[PIL.Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    cell: int = 256,
) -> PIL.Image.Image:
    """A sheet of pictures of any sizes on white, each fitted into a square of ``cell`` pixels, caption below.

    Without ``columns``, up to four pictures stand in one row, and more of them fill about a square.
    """
    if not images:
        raise InputError("A contact sheet needs at least one picture.")
    if captions is not None and len(captions) != len(images):
        raise InputError(f"There are {len(captions)} captions for {len(images)} pictures.")
    count = len(images)
    columns = min(columns or (count if count <= 4 else math.ceil(math.sqrt(count))), count)
    gap, size = cell // 16, max(10, cell // 18)
    font = PIL.ImageFont.load_default(size=size)
    wrapped = ["\n".join(_lines(caption, cell, font)) for caption in captions or ()]
    line = round(size * 1.3)
    room = max((text.count("\n") + 1 for text in wrapped), default=0) * line + (gap // 2 if wrapped else 0)
    rows = math.ceil(count / columns)
    sheet = PIL.Image.new(
        "RGB", (columns * (cell + gap) + gap, rows * (cell + room + gap) + gap), (255, 255, 255)
    )
    draw = PIL.ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        left = gap + number % columns * (cell + gap)
        top = gap + number // columns * (cell + room + gap)
        scale = cell / max(image.size)
        fitted = image.convert("RGB").resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
            PIL.Image.Resampling.LANCZOS,
        )
        sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
        if wrapped:
            draw.multiline_text(
                (left, top + cell + gap // 2),
                wrapped[number],
                fill=(40, 40, 40),
                font=font,
                spacing=line - size,
            )
    return sheet


def _lines(text: str, width: int, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont) -> list[str]:
    """The text broken so that each line is at most ``width`` pixels wide, four lines at most."""
    letters = max(8, round(width / max(1.0, font.getlength("abcdefghij") / 10)))
    return textwrap.wrap(" ".join(text.split()), letters, max_lines=4, placeholder=" …") or [""]
