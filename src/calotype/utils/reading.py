"""Pictures out of files: the formats that are read, and what is refused before a pixel is decoded."""

from __future__ import annotations

import os
from io import BytesIO

import PIL.Image
import PIL.ImageMath

from calotype.core.errors import InputError
from calotype.utils.addresses import fetch

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are read; others need decoders that are rarely tested, or run programs, as EPS does."""

DOWNLOAD_SECONDS = 60
DOWNLOAD_BYTES = 512 * 2**20

UNTRUSTED_PIXELS = 2**26
"""The most pixels of a picture from others; for one's own the limit is Pillow's, about 2.7 times that."""

Data = str | BytesIO


def open_picture(name: str, untrusted: bool) -> PIL.Image.Image:
    """The picture at a path or address, fully read, so that no file stays open.

    ``untrusted`` reads no files, only addresses of the public internet, and less of them.
    """
    remote = name.startswith(("http://", "https://"))
    if untrusted:
        data: Data = BytesIO(fetch(name))
    elif remote:
        data = BytesIO(download(name))
    elif os.path.isfile(name):
        data = name
    else:
        raise InputError(
            f"{name!r} is neither an existing file nor an address that begins with http:// or https://."
        )
    return _decoded(data, name, untrusted)


def _decoded(data: Data, name: str, untrusted: bool) -> PIL.Image.Image:
    try:
        with PIL.Image.open(data, formats=FORMATS) as picture:
            width, height = picture.size
            if untrusted and width * height > UNTRUSTED_PIXELS:
                raise InputError(
                    f"The picture {name!r} is {width}x{height}; at most {UNTRUSTED_PIXELS:,} pixels are read."
                )
            picture.load()
            return picture
    except PIL.UnidentifiedImageError:
        raise InputError(
            f"{name!r} is not a picture in one of the formats that are read: {', '.join(FORMATS)}. If Pillow reads it, "
            f"open it with PIL.Image.open and pass the picture."
        ) from None
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
        ZeroDivisionError, PIL.Image.DecompressionBombError,
    ) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        raise InputError(f"The picture {name!r} could not be read: {error}.") from error


def eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A grey picture of 16 bits in 8, which Pillow's own conversion would cut at 255; others as they are.

    Raises ``InputError`` for values of 32 bits.
    """
    if picture.mode.startswith("I;16"):
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if picture.mode in ("I", "F"):
        raise InputError(
            f"The picture has values of 32 bits (mode {picture.mode}), of which it is not known what is white: scale "
            f"them to 0…255 and convert it with .convert('L'), or pass convert_method."
        )
    return picture


def download(address: str, what: str = "picture") -> bytes:
    """What an address answers; ``InputError`` says which kind of thing could not be read."""
    import urllib.request

    request = urllib.request.Request(address, headers={"User-Agent": "calotype"})
    try:
        with urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS) as answer:
            data: bytes = answer.read(DOWNLOAD_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"The {what} {address!r} could not be read: {error}.") from error
    if len(data) > DOWNLOAD_BYTES:
        raise InputError(
            f"The {what} {address!r} could not be read: it is larger than {DOWNLOAD_BYTES // 2**20} MiB."
        )
    return data
