"""The helpers that users import: the reference's results where it is right, an error where it is silently wrong."""

from __future__ import annotations

import logging as standard_logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO

import diffusers.utils
import numpy as np
import PIL.Image
import pytest
import torch

import calotype.utils
from calotype.core import progress
from calotype.core.errors import CalotypeError, InputError
from calotype.utils import (
    contact_sheet,
    load_image,
    logging,
    make_image_grid,
    metadata,
    numpy_to_pil,
    pt_to_pil,
    torch_utils,
)


def noise_image(size=(24, 16), mode="RGB", seed=0) -> PIL.Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return PIL.Image.fromarray(pixels.squeeze())


def same(ours: PIL.Image.Image, theirs: PIL.Image.Image) -> bool:
    return ours.mode == theirs.mode and np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_load_image_turns_pictures_upright(tmp_path, orientation, mode):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    noise_image(mode=mode).save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.png", PIL.Image.open(tmp_path / "a.png")):
        reference = diffusers.utils.load_image(str(source) if source == tmp_path / "a.png" else source)
        assert same(load_image(source), reference)
    assert load_image(tmp_path / "a.png").size == ((16, 24) if orientation > 4 else (24, 16))


def test_load_image_converts_as_it_is_told(tmp_path):
    noise_image(mode="RGBA").save(tmp_path / "a.png")
    assert load_image(str(tmp_path / "a.png")).mode == "RGB"
    assert load_image(str(tmp_path / "a.png"), convert_method=lambda image: image).mode == "RGBA"


def test_load_image_reads_addresses():
    buffer = BytesIO()
    noise_image().save(buffer, format="PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.path == "/a.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(buffer.getvalue() if found else b"")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert same(load_image(f"{address}/a.png"), noise_image())
        with pytest.raises(InputError, match="404"):
            load_image(f"{address}/b.png")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_load_image_says_what_is_wrong(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    noise_image((200, 200)).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:5000])
    for source, words in [
        (tmp_path / "absent.png", "neither an existing file"),
        (tmp_path, "neither an existing file"),
        ("ftp://example.org/a.png", "neither an existing file"),
        (tmp_path / "text.png", "not a picture"),
        (tmp_path / "half.png", "could not be read"),
        (np.zeros((4, 4, 3)), "ndarray"),
    ]:
        with pytest.raises(InputError, match=words):
            load_image(source)


@pytest.mark.parametrize("shape", [(3, 8, 6, 3), (2, 8, 6, 1), (8, 6, 3), (1, 5, 5, 4)])
def test_numpy_to_pil_equals_the_reference(shape):
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    ours, theirs = numpy_to_pil(images), diffusers.utils.numpy_to_pil(images)
    assert len(ours) == len(theirs)
    assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_pt_to_pil_equals_the_reference():
    images = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        ours, theirs = pt_to_pil(images.to(dtype)), diffusers.utils.pt_to_pil(images.to(dtype))
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_values_out_of_range_are_clipped_and_nan_is_refused():
    (image,) = numpy_to_pil(np.array([[[1.2, -0.3, 0.5]]]))
    assert image.getpixel((0, 0)) == (255, 0, 128)
    with pytest.raises(InputError, match="NaN"):
        pt_to_pil(torch.full((1, 3, 2, 2), torch.nan))
    with pytest.raises(InputError, match=r"\(2, 2\)"):
        numpy_to_pil(np.zeros((2, 2)))
    with pytest.raises(InputError, match="channels"):
        numpy_to_pil(np.zeros((1, 2, 2, 5)))


def test_make_image_grid_equals_the_reference():
    images = [noise_image(seed=seed) for seed in range(6)]
    assert same(make_image_grid(images, 2, 3), diffusers.utils.make_image_grid(images, 2, 3))
    mixed = [*images[:5], noise_image((7, 9))]
    ours = make_image_grid(mixed, rows=3, cols=2, resize=10)
    assert same(ours, diffusers.utils.make_image_grid(mixed, rows=3, cols=2, resize=10))


def test_make_image_grid_refuses_what_does_not_fit():
    images = [noise_image(seed=seed) for seed in range(4)]
    with pytest.raises(InputError, match="takes 6 pictures; there are 4"):
        make_image_grid(images, 2, 3)
    with pytest.raises(InputError, match="takes 0"):
        make_image_grid([], 0, 3)
    with pytest.raises(InputError, match="Picture 3 is 7x9 while the first is 24x16"):
        make_image_grid([*images[:3], noise_image((7, 9))], 2, 2)


def test_contact_sheet_shows_every_picture_once():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    images = [
        PIL.Image.new("RGB", size, colour)
        for size, colour in zip([(64, 64), (32, 64), (64, 16), (1, 1), (300, 200)], colours, strict=True)
    ]
    bare = np.asarray(contact_sheet(images, cell=64))
    named = np.asarray(contact_sheet(images, captions=["word " * 40, "", "Würfel", "a", "b"], cell=64))
    for sheet in (bare, named):
        areas = [int((sheet == colour).all(-1).sum()) for colour in colours]
        assert areas == [64 * 64, 32 * 64, 64 * 16, 64 * 64, 64 * 43]
    assert named.shape[0] > bare.shape[0]
    assert named.shape[1] == bare.shape[1] == 3 * (64 + 4) + 4
    with pytest.raises(InputError, match="2 captions for 5"):
        contact_sheet(images, captions=["a", "b"])
    with pytest.raises(InputError, match="at least one"):
        contact_sheet([])


def test_every_public_name_resolves_and_unknown_ones_are_named():
    for name in calotype.utils.__all__:
        assert getattr(calotype.utils, name) is not None
    assert set(calotype.utils.__all__) <= set(dir(calotype.utils))
    with pytest.raises(AttributeError, match="'load_imagee'"):
        calotype.utils.load_imagee  # noqa: B018
    assert calotype.utils.BaseOutput is calotype.core.outputs.BaseOutput
    assert calotype.utils.metadata is metadata


def test_torch_utils_recognise_compiled_modules():
    module = torch.nn.Linear(2, 2)
    assert not torch_utils.is_compiled_module(module)
    assert torch_utils.is_compiled_module(torch.compile(module, backend="eager"))
    generator = torch.Generator().manual_seed(3)
    drawn = torch_utils.randn_tensor((2, 3), generator=generator)
    assert torch.equal(drawn, torch.randn(2, 3, generator=torch.Generator().manual_seed(3)))


def test_check_min_version():
    calotype.utils.check_min_version("0.30.0.dev0")
    calotype.utils.check_min_version("0.42.1")
    with pytest.raises(CalotypeError, match=r"0\.99\.0"):
        calotype.utils.check_min_version("0.99.0")


@pytest.fixture
def restored():
    root = logging.get_logger()
    before = (root.level, root.propagate, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.propagate, root.handlers = before[1], before[2]
    progress.show(True)


def test_logging_has_the_reference_names():
    wanted = {name for name in dir(diffusers.utils.logging) if name.split("_")[0] in ("set", "get", "enable")}
    wanted |= {
        name for name in dir(diffusers.utils.logging) if name.split("_")[0] in ("disable", "add", "remove")
    }
    assert wanted <= set(dir(logging))


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_verbosity_decides_what_is_shown(restored, capsys, level, monkeypatch):
    monkeypatch.setattr(standard_logging.getLogger(), "handlers", [])
    getattr(logging, f"set_verbosity_{level}")()
    assert logging.get_verbosity() == logging.get_log_levels_dict()[level]
    logger = logging.get_logger("calotype.somewhere")
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)("it says %s", name)
    shown = capsys.readouterr().err.split("\n")[:-1]
    order = ["debug", "info", "warning", "error"]
    assert shown == [f"it says {name}" for name in order[order.index(level) :]]


def test_nothing_is_said_twice(restored, capsys, monkeypatch):
    logger = logging.get_logger("calotype.somewhere")
    own = standard_logging.StreamHandler()
    monkeypatch.setattr(standard_logging.getLogger(), "handlers", [own])
    logger.warning("once")
    logging.disable_propagation()
    logger.warning("twice")
    logging.enable_propagation()
    assert capsys.readouterr().err.splitlines() == ["once", "twice"]


def test_handlers_and_format(restored, capsys, monkeypatch):
    monkeypatch.setattr(standard_logging.getLogger(), "handlers", [])
    logger = logging.get_logger("calotype.somewhere")
    logging.enable_explicit_format()
    logger.warning("explicit")
    assert capsys.readouterr().err.startswith("[WARNING|test_utils.py:")
    logging.reset_format()
    logging.disable_default_handler()
    records = []
    handler = standard_logging.Handler()
    handler.emit = records.append
    logging.add_handler(handler)
    logger.warning("elsewhere")
    logging.remove_handler(handler)
    assert [record.getMessage() for record in records] == ["elsewhere"]
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="not one of"):
        logging.remove_handler(handler)
    logging.enable_default_handler()


def test_the_switch_silences_progress_bars(restored, capsys):
    assert logging.is_progress_bar_enabled()
    assert list(progress.progress_bar(range(3), desc="visible")) == [0, 1, 2]
    assert "visible" in capsys.readouterr().err
    logging.disable_progress_bar()
    assert not logging.is_progress_bar_enabled()
    assert list(progress.progress_bar(range(3), desc="hidden")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
