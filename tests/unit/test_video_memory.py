"""Long videos in bounded memory: how much of a video the autoencoder works on at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import calotype
from tests.tiny_videos import stable_video, text_to_video


@dataclass
class Load:
    """The most that a network saw at once: frames, pixels or latents of a frame, and numbers in one activation."""

    frames: int = 0
    area: int = 0
    largest: int = 0


@contextmanager
def watched(network: torch.nn.Module) -> Iterator[Load]:
    load = Load()

    def arrives(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        load.frames = max(load.frames, len(args[0]))
        load.area = max(load.area, args[0].shape[-2] * args[0].shape[-1])

    def leaves(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, torch.Tensor):
            load.largest = max(load.largest, output.numel())

    handles = [network.register_forward_pre_hook(arrives)]
    handles += [part.register_forward_hook(leaves) for part in network.modules()]
    try:
        yield load
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pipeline from a text, one from a video and one from a picture."""
    text = text_to_video(tmp_path_factory.mktemp("models") / "text")
    found = {
        "text": text,
        "video": calotype.VideoToVideoSDPipeline(**text.components),
        "still": stable_video(),
    }
    for pipe in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


def moved(pipe: Any, frames: int, **more: Any) -> np.ndarray:
    picture = PIL.Image.linear_gradient("L").convert("RGB")
    return pipe(
        picture,
        height=32,
        width=48,
        num_frames=frames,
        num_inference_steps=1,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
        **more,
    ).frames


def test_the_chunk_bounds_what_is_decoded_at_once(pipes: dict[str, Any]) -> None:
    """However long the video is; without a chunk it grows with the video."""
    pipe, loads = pipes["still"], []
    for frames in (4, 9):
        with watched(pipe.vae.decoder) as load:
            assert moved(pipe, frames, decode_chunk_size=2).shape[1] == frames
        loads.append(load)
    assert loads[0] == loads[1] and loads[0].frames == 2
    with watched(pipe.vae.decoder) as whole:
        moved(pipe, 9)
    assert whole.frames == 9 and whole.largest == loads[0].largest * 9 // 2


def test_tiles_bound_what_is_decoded_of_a_frame(pipes: dict[str, Any]) -> None:
    """With chunks and tiles neither the length of a video nor its size counts; the frames are nearly the same."""
    pipe = pipes["still"]
    whole = moved(pipe, 5, decode_chunk_size=2)
    pipe.enable_vae_tiling()
    try:
        with watched(pipe.vae.decoder) as load, watched(pipe.vae.encoder) as encoding:
            tiled = moved(pipe, 5, decode_chunk_size=2)
    finally:
        pipe.disable_vae_tiling()
    assert (load.frames, load.area) == (2, 8 * 8) and encoding.area == 16 * 16
    assert tiled.shape == whole.shape
    # the inner part of the first tile is decoded as it is alone
    assert 0 < np.abs(tiled - whole).mean() < 0.2


def test_slicing_bounds_pipelines_without_a_chunk(pipes: dict[str, Any]) -> None:
    """A frame at a time, in and out; the same frames."""
    video = [PIL.Image.linear_gradient("L").convert("RGB").resize((64, 64)).rotate(20 * n) for n in range(5)]
    calls: dict[str, dict[str, Any]] = {"text": {"num_frames": 5}, "video": {"video": video}}
    for name, arguments in calls.items():
        pipe = pipes[name]

        def run(pipe: Any = pipe, arguments: dict[str, Any] = arguments) -> np.ndarray:
            generator = torch.Generator().manual_seed(0)
            return pipe("a red ball", num_inference_steps=2, generator=generator, **arguments).frames

        with watched(pipe.vae.decoder) as at_once:
            whole = run()
        assert at_once.frames == 5
        pipe.enable_vae_slicing()
        try:
            with watched(pipe.vae.decoder) as load, watched(pipe.vae.encoder) as encoding:
                sliced = run()
        finally:
            pipe.disable_vae_slicing()
        assert load.frames == 1 and encoding.frames == (1 if name == "video" else 0)
        assert load.largest * 5 == at_once.largest
        np.testing.assert_allclose(sliced, whole, atol=1e-5)
