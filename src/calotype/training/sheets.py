"""Sheets of pictures with a line of text under each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from calotype.core.files import replacing

_LINE = 12


def write_sheet(path: Path, images: torch.Tensor, captions: Sequence[str], columns: int = 4) -> None:
    """Write images [N, 3, H, W] in [0, 1] as one PNG, ``columns`` a row, captions wrapped beneath."""
    from PIL import Image, ImageDraw, ImageFont

    pixels = (images.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    count, height, width, _ = pixels.shape
    font = ImageFont.load_default()
    letters = max(8, width // 7)
    texts = [_wrapped(caption, letters) for caption in captions]
    strip = _LINE * max((len(lines) for lines in texts), default=0) + 4
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + strip)), "white")
    draw = ImageDraw.Draw(sheet)
    for index in range(count):
        x, y = index % columns * (width + 4), index // columns * (height + strip)
        sheet.paste(Image.fromarray(pixels[index]), (x, y))
        for line, text in enumerate(texts[index] if index < len(texts) else []):
            draw.text((x + 2, y + height + line * _LINE), text, fill="black", font=font)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _wrapped(text: str, letters: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, letters)
