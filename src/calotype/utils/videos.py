"""Videos in files: H.264 and animated GIF. PyAV, which brings FFmpeg along, is imported on first use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageSequence

from calotype.core.errors import InputError
from calotype.core.files import CONTAINERS, replacing
from calotype.utils.reading import download

COARSEST = 51
"""The quantiser of H.264 at which least is kept."""

VideoFrames = Sequence[PIL.Image.Image] | Sequence[np.ndarray] | np.ndarray | Any


def export_to_video(
    video_frames: VideoFrames,
    output_video_path: str | os.PathLike[str] | None = None,
    fps: int = 10,
    quality: float = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
) -> str:
    """Write frames as an H.264 video and return its path, a new temporary file if none is given.

    Frames are PIL images, arrays (height, width, 3) in [0, 1] or of 8 bits, or tensors (3, height, width) in [0, 1].
    ``quality`` is from 0 to 10; a ``bitrate`` in bits a second takes its place. Both sides are scaled up to a multiple
    of ``macro_block_size``, which some players ask for; None or 1 leaves them. Raises ``InputError`` for frames of
    different sizes, odd sizes that are not scaled, endings other than those of ``CONTAINERS``, and without PyAV.
    """
    return write_video(video_frames, output_video_path, fps, quality, bitrate, macro_block_size)


def write_video(
    frames: VideoFrames,
    path: str | os.PathLike[str] | None,
    fps: float,
    quality: float = 5.0,
    bitrate: int | None = None,
    macro_block_size: int | None = 16,
    words: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """:func:`export_to_video` with ``words`` about the video in the file, such as its title or a comment."""
    pixels = _as_bytes(frames)
    if not 0 <= quality <= 10:
        raise InputError(f"quality must be between 0 and 10, not {quality!r}.")
    rate = as_rate(fps)
    path = _target(path, ".mp4")
    if path.suffix.lower() not in CONTAINERS:
        raise InputError(
            f"export_to_video writes files that end in {', '.join(CONTAINERS)}, not {path.name!r}; for GIF there is "
            f"export_to_gif."
        )
    height, width = (_multiple(side, macro_block_size) for side in pixels[0].shape[:2])
    if height % 2 or width % 2:
        raise InputError(
            f"The frames are {width}x{height}, and H.264 needs even sides: leave macro_block_size at 16 to have them "
            f"scaled, or resize them."
        )
    av = pyav("export_to_video")
    with replacing(path) as temporary:
        container = av.open(str(temporary), "w", format=CONTAINERS[path.suffix.lower()])
        with container:
            container.metadata.update(words)
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = _repeatable(width)
            if bitrate is None:
                stream.options |= {"crf": str(int((1 - quality / 10) * COARSEST))}
            else:
                stream.bit_rate = bitrate
            for frame in pixels:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture.reformat(width, height, "yuv420p")))
            container.mux(stream.encode())
    return str(path)


def export_to_gif(
    image: VideoFrames, output_gif_path: str | os.PathLike[str] | None = None, fps: int = 10
) -> str:
    """Write frames as an animated GIF without end and return its path, a new temporary file if none is given.

    The frames are those of :func:`export_to_video`. Raises ``InputError`` for frames of different sizes.
    """
    return write_gif(image, output_gif_path, fps)


def write_gif(frames: VideoFrames, path: str | os.PathLike[str] | None, fps: float, comment: str = "") -> str:
    """:func:`export_to_gif` with a comment in the file."""
    pictures = [PIL.Image.fromarray(frame) for frame in _as_bytes(frames)]
    duration = max(1, int(1000 / as_rate(fps)))
    path = _target(path, ".gif")
    with replacing(path) as temporary:
        pictures[0].save(
            temporary,
            "GIF",
            save_all=True,
            append_images=pictures[1:],
            optimize=False,
            duration=duration,
            loop=0,
            **({"comment": comment.encode()} if comment else {}),
        )
    return str(path)


def load_video(
    video: str | os.PathLike[str],
    convert_method: Callable[[list[PIL.Image.Image]], list[PIL.Image.Image]] | None = None,
    return_fps: bool = False,
) -> list[PIL.Image.Image] | tuple[list[PIL.Image.Image], float]:
    """The frames of a video or GIF at a path or ``http(s)://`` address, in RGB; with ``return_fps`` their rate too.

    ``convert_method`` takes the list and gives another. Raises ``InputError`` for what cannot be read, for a rate that
    the file does not state, and, but for GIF, without PyAV.
    """
    name = os.fspath(video)
    if name.startswith(("http://", "https://")):
        data: str | BytesIO = BytesIO(download(name, "video"))
    elif os.path.isfile(name):
        data = name
    else:
        raise InputError(
            f"{name!r} is neither an existing file nor an address that begins with http:// or https://."
        )
    pictures, fps = _frames_of_gif(data, name) if _is_gif(data) else _frames_of_video(data, name)
    if not pictures:
        raise InputError(f"The video {name!r} has no frames.")
    if convert_method is not None:
        pictures = convert_method(pictures)
    if not return_fps:
        return pictures
    if fps is None:
        raise InputError(f"The video {name!r} does not state how many frames a second it has.")
    return pictures, fps


def words_of(video: str | os.PathLike[str]) -> dict[str, str]:
    """What a video's file says about it, by names in lower case; ``InputError`` where it cannot be read."""
    name = os.fspath(video)
    av = pyav("Reading what a video says about itself")
    try:
        with av.open(name) as container:
            return {str(key).lower(): str(value) for key, value in container.metadata.items()}
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"The video {name!r} could not be read: {error}.") from error


def _is_gif(data: str | BytesIO) -> bool:
    if isinstance(data, BytesIO):
        return data.getvalue()[:4] == b"GIF8"
    with open(data, "rb") as file:
        return file.read(4) == b"GIF8"


def _frames_of_gif(data: str | BytesIO, name: str) -> tuple[list[PIL.Image.Image], float | None]:
    try:
        with PIL.Image.open(data, formats=["GIF"]) as gif:
            milliseconds = gif.info.get("duration")
            pictures = [frame.convert("RGB") for frame in PIL.ImageSequence.Iterator(gif)]
    except (
        OSError,
        ValueError,
        EOFError,
        IndexError,
        SyntaxError,
        PIL.Image.DecompressionBombError,
    ) as error:
        raise InputError(f"The video {name!r} could not be read: {error}.") from error
    return pictures, 1000 / milliseconds if milliseconds else None


def _frames_of_video(data: str | BytesIO, name: str) -> tuple[list[PIL.Image.Image], float | None]:
    av = pyav("load_video")
    try:
        with av.open(data) as container:
            if not container.streams.video:
                raise InputError(f"The file {name!r} holds no video.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            pictures = [frame.to_image() for frame in container.decode(stream)]
            rate = stream.average_rate
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"The video {name!r} could not be read: {error}.") from error
    return pictures, None if rate is None else float(rate)


def pyav(what: str) -> Any:
    """The package ``av``; without it an ``InputError`` that says ``what`` needs it and how to get it."""
    try:
        import av
    except ImportError:
        raise InputError(
            f"{what} needs PyAV, which is not installed: pip install 'calotype[video]'."
        ) from None
    return av


def _as_bytes(frames: VideoFrames) -> list[np.ndarray]:
    """Frames of any kind as arrays (height, width, 3) of 8 bits; all of one size."""
    import torch

    if not len(frames):
        raise InputError("There are no frames to write.")
    pixels: list[np.ndarray] = []
    for number, frame in enumerate(frames):
        if isinstance(frame, PIL.Image.Image):
            frame = np.asarray(frame.convert("RGB"))
        elif isinstance(frame, torch.Tensor):
            frame = (
                frame.detach().float().cpu().movedim(0, -1).numpy()
                if frame.ndim == 3
                else frame.cpu().numpy()
            )
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[-1] != 3:
            found = tuple(frame.shape) if isinstance(frame, np.ndarray) else f"{type(frame).__name__}"
            raise InputError(
                f"Frame {number} must be a picture, an array (height, width, 3) or a tensor (3, height, width), not "
                f"{found}; of several videos pass one at a time, as in frames[0]."
            )
        if frame.dtype != np.uint8:
            if not np.isfinite(frame).all():
                raise InputError(f"Frame {number} holds NaN or infinite values.")
            frame = (frame.clip(0, 1) * 255).round().astype(np.uint8)
        if pixels and frame.shape != pixels[0].shape:
            (height, width), (first_height, first_width) = frame.shape[:2], pixels[0].shape[:2]
            raise InputError(
                f"Frame {number} is {width}x{height} while the first is {first_width}x{first_height}; make them equal."
            )
        pixels.append(np.ascontiguousarray(frame))
    return pixels


def as_rate(fps: float) -> Fraction:
    """Frames a second as containers store them; ``InputError`` for what is no rate."""
    if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction) or not 0 < fps <= 1000:
        raise InputError(f"fps must be a number of frames a second above 0 and at most 1000, not {fps!r}.")
    return Fraction(fps).limit_denominator(1001)


def _repeatable(width: int) -> dict[str, str]:
    """Options with which the same frames always give the same file.

    x264's macroblock tree is computed for eight blocks of a row at a time, and where a row is no multiple of that, from
    memory past its end that nothing was written to. Without the tree such a file is up to twice as large.
    """
    return {} if _multiple(width, 16) % 128 == 0 else {"mbtree": "0"}


def _multiple(side: int, of: int | None) -> int:
    return side if of is None else -(-side // of) * of


def _target(path: str | os.PathLike[str] | None, ending: str) -> Path:
    if path is not None:
        return Path(path)
    handle, name = tempfile.mkstemp(suffix=ending)
    os.close(handle)
    return Path(name)
