"""Videos written to files and read again."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from calotype.core.errors import InputError
from calotype.utils import export_to_gif, export_to_video, load_video


def drive(height: int = 32, width: int = 48, frames: int = 5) -> np.ndarray:
    """A bright bar that moves to the right over a slope of grey, (frames, height, width, 3) in [0, 1]."""
    slope = np.linspace(0.1, 0.4, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    video = np.stack([slope.copy() for _ in range(frames)])
    for index in range(frames):
        video[index, :, 8 * index : 8 * index + 8] = (1.0, 0.6, 0.2)
    return video


def bars(pictures: list[PIL.Image.Image]) -> list[float]:
    """Where the bar is in each frame."""
    found = []
    for picture in pictures:
        red = np.asarray(picture.convert("RGB"))[..., 0].mean(0)
        found.append(float(np.flatnonzero(red > 180).mean()))
    return found


FORMS: dict[str, Any] = {
    "array": lambda v: v,
    "list of arrays": list,
    "8 bits": lambda v: (v * 255).round().astype(np.uint8),
    "tensor": lambda v: torch.from_numpy(v).permute(0, 3, 1, 2),
    "pictures": lambda v: [PIL.Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in v],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_video_is_read_as_it_was_written(form: str, tmp_path: Path) -> None:
    path = tmp_path / "drive.mp4"
    assert export_to_video(FORMS[form](drive()), str(path), fps=7, quality=9) == str(path)
    pictures, fps = load_video(path, return_fps=True)
    assert fps == 7
    assert len(pictures) == 5
    assert all(picture.mode == "RGB" and picture.size == (48, 32) for picture in pictures)
    np.testing.assert_allclose(bars(pictures), [3.5 + 8 * index for index in range(5)], atol=1)
    read = np.stack([np.asarray(picture) for picture in pictures]) / 255
    assert np.abs(read - drive()).mean() < 0.03


@pytest.mark.parametrize("form", FORMS)
def test_a_gif_is_read_as_it_was_written(form: str, tmp_path: Path) -> None:
    path = export_to_gif(FORMS[form](drive()), tmp_path / "drive.gif", fps=8)
    pictures, fps = load_video(path, return_fps=True)
    assert fps == pytest.approx(1000 / 120)  # GIF counts hundredths of a second
    assert bars(pictures) == [3.5 + 8 * index for index in range(5)]


def test_without_a_path_there_is_a_new_file() -> None:
    for write, ending in ((export_to_video, ".mp4"), (export_to_gif, ".gif")):
        path = Path(write(drive()))
        assert path.suffix == ending
        assert len(load_video(path)) == 5
        path.unlink()


def test_sides_are_scaled_to_whole_blocks(tmp_path: Path) -> None:
    sizes = {}
    for block in (16, 2, None):
        path = export_to_video(drive(34, 50), tmp_path / f"{block}.mp4", macro_block_size=block)
        sizes[block] = load_video(path)[0].size
    assert sizes == {16: (64, 48), 2: (50, 34), None: (50, 34)}
    with pytest.raises(InputError, match="49x33.*even"):
        export_to_video(drive(33, 49), tmp_path / "odd.mp4", macro_block_size=None)


def test_more_quality_is_a_larger_file_and_a_nearer_picture(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random((8, 64, 64, 3))
    paths = [Path(export_to_video(noise, tmp_path / f"{q}.mp4", quality=q)) for q in (1, 5, 9)]
    sizes = [path.stat().st_size for path in paths]
    assert sizes == sorted(sizes) and sizes[0] * 2 < sizes[2]
    slow = Path(export_to_video(noise, tmp_path / "rate.mp4", bitrate=20_000))
    assert slow.stat().st_size < sizes[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone fills memory that is given out")
@pytest.mark.parametrize("width", [72, 128])
def test_the_same_frames_are_the_same_file(width: int, tmp_path: Path) -> None:
    """Whatever was in the memory that the encoder works in."""
    tiles = np.random.default_rng(0).random((8, 8, 3)).repeat(8, 0).repeat(24, 1)[:, :width]
    frames = [np.roll(tiles, (2 * i, 3 * i), (0, 1)) for i in range(14)]
    fill, m_perturb = ctypes.CDLL(None).mallopt, -6
    written = set()
    try:
        for value in (17, 99, 200):
            fill(m_perturb, value)
            written.add(Path(export_to_video(frames, tmp_path / "again.mp4")).read_bytes())
    finally:
        fill(m_perturb, 0)
    assert len(written) == 1


def test_a_converter_sees_all_frames(tmp_path: Path) -> None:
    path = export_to_gif(drive(), tmp_path / "drive.gif")
    assert len(load_video(path, convert_method=lambda pictures: pictures[::2])) == 3


@pytest.mark.parametrize(
    ("frames", "arguments", "says"),
    [
        ([], {}, "no frames"),
        (drive()[None], {}, r"Frame 0.*\(5, 32, 48, 3\).*one at a time"),
        ([drive()[0], drive(16)[0]], {}, "Frame 1 is 48x16 while the first is 48x32"),
        (np.full((1, 8, 8, 3), np.nan), {}, "NaN"),
        (["a"], {}, "Frame 0.*str"),
        (drive(), {"fps": 0}, "fps.*0"),
        (drive(), {"quality": 11}, "quality.*11"),
        (drive(), {"output_video_path": "a.webm"}, "a.webm"),
    ],
)
def test_what_cannot_be_written_is_refused(
    frames: Any, arguments: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"(?s){says}"):
        export_to_video(frames, **{"output_video_path": "a.mp4", **arguments})
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for name, data in (("text.mp4", b"no video"), ("cut.gif", b"GIF89a\x01")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name):
            load_video(tmp_path / name)
    with pytest.raises(InputError, match="neither an existing file nor an address"):
        load_video(str(tmp_path / "missing.mp4"))
    still = tmp_path / "still.gif"
    PIL.Image.new("RGB", (8, 8)).save(still)
    assert len(load_video(still)) == 1
    with pytest.raises(InputError, match="does not state"):
        load_video(still, return_fps=True)
