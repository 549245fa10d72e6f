"""Pictures that are damaged, deceive or are none, and addresses that must not be read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calotype.core.errors import InputError
from tests.faults.fault import Damage, Fault

FILE = "picture"


def picture(
    size: tuple[int, int] = (40, 30),
    mode: str = "RGB",
    kind: str = "PNG",
    cut: int | None = None,
    **options: Any,
) -> Damage:
    """A picture of noise in the checkpoint's folder; ``cut`` keeps only so many bytes of it."""

    def damage(folder: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(folder / FILE, format=kind, **options)
        if cut is not None:
            (folder / FILE).write_bytes((folder / FILE).read_bytes()[:cut])

    return damage


def data(content: bytes) -> Damage:
    return lambda folder: (folder / FILE).write_bytes(content)


def of_numbers(values: np.ndarray) -> Damage:
    """A TIFF with values of another type than bytes."""
    return lambda folder: Image.fromarray(values).save(folder / FILE, format="TIFF")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG of few bytes that says that it is large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def png_of_text(size: int) -> bytes:
    """A PNG whose comment unpacks to much more than the picture."""
    body = b"Comment\0\0" + zlib.compress(bytes(size))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    plain = png_of_size(1, 1)
    return plain[:33] + chunk + plain[33:]


def open_file(library: Any, folder: Path) -> Any:
    return library.utils.load_image(str(folder / FILE))


def from_others(address: str) -> Callable[[Any, Path], Any]:
    return lambda library, folder: library.utils.load_image(address, untrusted=True)


def file(name: str, words: str, damage: Damage, **more: Any) -> Fault:
    return Fault(name, words, damage, open_file, InputError, **more)


def refused(name: str, words: str, address: str) -> Fault:
    return Fault(name, words, act=from_others(address), error=InputError, ours=True)


FAULTS = [
    file("a text called picture", "is not a picture in one of the formats", data(b"no picture")),
    file("an empty picture", "is not a picture", data(b"")),
    file("a picture cut off", "could not be read", picture((200, 200), cut=5000)),
    file("a JPEG cut off", "could not be read", picture((200, 200), kind="JPEG", cut=3000)),
    file("a WebP cut off", "could not be read|is not a picture", picture((200, 200), kind="WEBP", cut=3000)),
    file("a GIF cut off", "could not be read", picture((200, 200), mode="P", kind="GIF", cut=3000)),
    file("a TIFF cut off", "could not be read|is not a picture", picture((200, 200), kind="TIFF", cut=3000)),
    file("a decompression bomb", "decompression bomb", data(png_of_size(60_000, 60_000))),
    file("a comment that is a bomb", "could not be read", data(png_of_text(100_000_000))),
    file("a program called picture", "is not a picture in one of the formats", picture(kind="EPS")),
    file("a format that is not read", "is not a picture in one of the formats", picture(kind="PPM")),
    file("an icon", "is not a picture in one of the formats", picture(kind="ICO")),
    file(
        "whole numbers of 32 bits",
        "32 bits .mode I.*not known",
        of_numbers(np.array([[0, 70000]], "int32")),
    ),
    file("fractions", "32 bits .mode F", of_numbers(np.array([[0.0, 0.5]], "float32"))),
    refused("a file of this machine", "only http:// and https://", "file:///etc/passwd"),
    refused("a path of this machine", "only http:// and https://", "/etc/passwd"),
    refused("another protocol", "only http:// and https://", "ftp://example.org/a.png"),
    refused("data in the address", "only http:// and https://", "data:image/png;base64,AAAA"),
    refused(
        "this machine by its name",
        "'localhost' is at .*not an address of the public internet",
        "http://localhost/a",
    ),
    refused("this machine", "127.0.0.1, which is not", "http://127.0.0.1:8000/a.png"),
    refused("this machine as one number", "127.0.0.1, which is not", "http://2130706433/a.png"),
    refused("this machine as IPv6", "::1, which is not", "http://[::1]/a.png"),
    refused("this machine inside of IPv6", "127.0.0.1, which is not", "http://[::ffff:127.0.0.1]/a.png"),
    refused("a private network", "10.1.2.3, which is not", "https://10.1.2.3/a.png"),
    refused("another private network", "192.168.0.1, which is not", "http://192.168.0.1/a.png"),
    refused("a cloud's own data", "169.254.169.254, which is not", "http://169.254.169.254/latest/meta-data"),
    refused("no host at all", "0.0.0.0, which is not", "http://0.0.0.0/a.png"),
    refused("many hosts", "224.0.0.1, which is not", "http://224.0.0.1/a.png"),
    refused("a private address by translation", "which is not", "http://[64:ff9b::a00:1]/a.png"),
    refused("a name before the host", "name a host, and no user", "http://example.org@127.0.0.1/a.png"),
    refused("no host", "must name a host", "http:///a.png"),
    refused("a port that is none", "is not an address", "http://example.org:99999/a.png"),
    refused("a line break", "control characters", "http://example.org/a\r\nHost: other"),
]
