"""What is odd but not wrong is taken as it is meant."""

from __future__ import annotations

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.utils import addresses, load_image
from tests.tiny import stable_diffusion_folder

RAMP = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]], axis=-1)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    return saved(Image.fromarray(COLOURS), "JPEG", quality=100, subsampling=0, exif=exif)


SIXTEEN = RAMP.astype(np.uint16) * 257
ODD: dict[str, tuple[bytes, np.ndarray, int]] = {
    "palette": (saved(Image.fromarray(RAMP).convert("P")), np.stack([RAMP] * 3, -1), 0),
    "grey": (saved(Image.fromarray(RAMP)), np.stack([RAMP] * 3, -1), 0),
    "grey of 16 bits": (saved(Image.fromarray(SIXTEEN)), np.stack([RAMP] * 3, -1), 0),
    "grey of 16 bits in TIFF": (saved(Image.fromarray(SIXTEEN), "TIFF"), np.stack([RAMP] * 3, -1), 0),
    "black and white": (saved(Image.fromarray(RAMP > 99)), np.stack([(RAMP > 99) * 255] * 3, -1), 0),
    "transparent": (saved(Image.fromarray(np.dstack([COLOURS, RAMP]))), COLOURS, 0),
    "printing colours": (saved(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS, 2),
    "turned by the camera": (turned(), np.rot90(COLOURS, -1), 6),
    "one pixel": (saved(Image.fromarray(COLOURS[:1, :1])), COLOURS[:1, :1], 0),
    "WebP": (saved(Image.fromarray(COLOURS), "WEBP", lossless=True), COLOURS, 0),
    "moving": (
        saved(Image.fromarray(RAMP), "GIF", save_all=True, append_images=[Image.fromarray(255 - RAMP)]),
        np.stack([RAMP] * 3, -1),
        0,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_pictures_of_any_mode_are_read_as_they_look(name: str, tmp_path: Path) -> None:
    data, expected, tolerance = ODD[name]
    (tmp_path / "picture").write_bytes(data)
    picture = load_image(tmp_path / "picture")
    assert picture.mode == "RGB"
    seen = np.asarray(picture).astype(int)
    assert seen.shape == expected.shape
    assert np.abs(seen - expected).max() <= tolerance


# -- a call ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe = calotype.load(stable_diffusion_folder(tmp_path_factory.mktemp("odd") / "sound"), device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, prompt: Any = "a red ball", **arguments: Any) -> torch.Tensor:
    usual = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    return pipe(prompt, **{**usual, **arguments}).images


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "\0",
        "a\0b",
        "\n\t",
        "\U0001f98a",
        "e\u0301",
        "\u202eright to left",
        "<|endoftext|>",
        "a " * 5000,
        "\ufffe",
    ],
    ids=ascii,
)
def test_prompts_of_any_characters_make_a_picture(pipe: Any, prompt: str) -> None:
    assert torch.isfinite(run(pipe, prompt)).all()


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGBA", (64, 64), (1, 2, 3, 0)),
        Image.new("CMYK", (64, 64)),
        Image.new("P", (64, 64)),
        Image.new("L", (64, 64)),
        Image.new("1", (64, 64)),
    ],
    ids=lambda image: image.mode,
)
def test_pictures_of_any_mode_may_be_given(pipe: Any, image: Image.Image) -> None:
    assert torch.isfinite(run(pipe, image=image, strength=0.5)).all()


def test_a_picture_of_one_pixel(pipe: Any) -> None:
    with pytest.raises(InputError, match="1"):
        run(pipe, image=Image.new("RGB", (1, 1)), strength=0.5)
    assert run(pipe, image=Image.new("RGB", (1, 1)).resize((64, 64)), strength=0.5).shape == (1, 3, 64, 64)


def test_a_mask_of_another_size_is_resized(pipe: Any) -> None:
    picture = Image.new("RGB", (64, 64), (200, 100, 50))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    small = mask.resize((16, 16), Image.Resampling.NEAREST)
    there = run(pipe, image=picture, mask_image=mask)
    assert torch.equal(run(pipe, image=picture, mask_image=small), there)


def test_an_empty_mask_changes_nothing(pipe: Any) -> None:
    picture = Image.fromarray(COLOURS).resize((64, 64))
    mask = Image.new("L", (64, 64))
    (made,) = run(pipe, image=picture, mask_image=mask, composite=True, output_type="pil")
    assert np.array_equal(np.asarray(made), np.asarray(picture))


# -- addresses -------------------------------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = self.server.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in body:
                self.wfile.write(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_: Any) -> None:
        pass


def drip() -> Any:
    """A byte now and then, without end."""
    import time

    while True:
        time.sleep(0.05)
        yield b"x"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server on this machine, which alone counts as public for the time of the test."""
    monkeypatch.setattr(addresses, "is_public", lambda address: address == "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    picture = saved(Image.fromarray(COLOURS))
    server.answers = {
        "/a.png": (200, {}, [picture]),
        "/moved": (302, {"Location": "/a.png"}, []),
        "/round": (302, {"Location": "/round"}, []),
        "/inside": (302, {"Location": "http://10.0.0.1/a.png"}, []),
        "/file": (302, {"Location": "file:///etc/passwd"}, []),
        "/large": (200, {}, [bytes(2**20)] * 40),
        "/slow": (200, {}, drip()),
        "/text": (200, {}, [b"no picture"]),
        "/gone": (404, {}, [picture]),
        "/bomb": (200, {}, [saved(Image.new("1", (9000, 9000)))]),
    }
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_public_address_is_read(server: str) -> None:
    for path in ("/a.png", "/moved"):
        assert np.array_equal(load_image(server + path, untrusted=True), COLOURS)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/round", "more than 5 redirections"),
        ("/inside", "10.0.0.1, which is not an address of the public internet"),
        ("/file", "only http:// and https:// are read"),
        ("/large", "larger than 32 MiB"),
        ("/text", "is not a picture"),
        ("/gone", "answered 404"),
        ("/bomb", "9000x9000; at most 67,108,864 pixels"),
    ],
)
def test_what_a_public_address_may_not_do(server: str, path: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_image(server + path, untrusted=True)


def test_a_slow_address_ends_in_time(server: str) -> None:
    with pytest.raises(InputError, match="longer than 0.5 seconds"):
        addresses.fetch(f"{server}/slow", addresses.Rules(seconds=0.5))


def test_the_address_that_was_checked_is_the_one_that_is_asked(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers differently the second time changes nothing."""
    port = int(server.rsplit(":", 1)[1])
    answers = iter(["127.0.0.1", "10.0.0.1"])
    asked: Callable[..., Any] = lambda *_, **__: [(0, 0, 0, "", (next(answers), port))]  # noqa: E731
    monkeypatch.setattr(addresses.socket, "getaddrinfo", asked)
    found = addresses.public_address(addresses.urlsplit(f"http://rebinding.example:{port}/a.png"))
    assert found == "127.0.0.1"
