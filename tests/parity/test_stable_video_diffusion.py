"""Stable Video Diffusion against the reference: the same files and arguments, the same frames."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as reference
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.families.clip_image import smoothly_resized
from calotype.guidance import ClassifierFree, FrameRamp, Interval
from calotype.pipelines.outputs import StableVideoDiffusionPipelineOutput
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.parity.stable_video_parts import FRAMES, stable_video

NAME = "StableVideoDiffusionPipeline"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    stable_video(path)
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    theirs = diffusers.StableVideoDiffusionPipeline.from_pretrained(folder)
    return quiet(theirs), quiet(calotype.DiffusionPipeline.from_pretrained(folder))


def photo(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def run(pipe: Any, make: Case) -> Any:
    arguments = {
        "image": photo(),
        "height": 16,
        "width": 24,
        "num_inference_steps": 3,
        "output_type": "np",
        **make(),
    }
    arguments.setdefault("generator", seeded())
    result = pipe(**arguments)
    return result.frames if arguments.get("return_dict", True) else result


def flat(frames: Any) -> np.ndarray:
    if isinstance(frames, list):
        return np.stack([np.stack([np.asarray(frame) for frame in video]) for video in frames]) / 255
    return frames.numpy() if isinstance(frames, torch.Tensor) else frames


def both(pair: tuple[Any, Any], make: Case) -> tuple[np.ndarray, np.ndarray]:
    theirs, ours = (run(pipe, make) for pipe in pair)
    assert type(theirs) is type(ours)
    expected, found = flat(theirs), flat(ours)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.isfinite(expected).all() and expected.std() > 0.01
    return expected, found


CALLS: dict[str, Case] = {
    "plain": dict,
    "large picture": lambda: {"image": photo(900, 500)},
    "tensor": lambda: {"image": torch.rand(1, 3, 224, 224, generator=seeded(2))},
    "several pictures": lambda: {"image": [photo(), photo(seed=1)]},
    "several tensors": lambda: {"image": torch.rand(2, 3, 224, 224, generator=seeded(2))},
    "videos of one picture": lambda: {"num_videos_per_prompt": 2},
    "generators": lambda: {"image": [photo(), photo(seed=1)], "generator": [seeded(3), seeded(4)]},
    "generators of one picture": lambda: {"num_videos_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "frames": lambda: {"num_frames": 5},
    "two frames": lambda: {"num_frames": 2},
    "chunks": lambda: {"num_frames": 5, "decode_chunk_size": 2},
    "one at a time": lambda: {"decode_chunk_size": 1},
    "larger chunks": lambda: {"decode_chunk_size": 8},
    "chunks of several videos": lambda: {"num_frames": 4, "decode_chunk_size": 2, "num_videos_per_prompt": 2},
    "motion": lambda: {"fps": 24, "motion_bucket_id": 30, "noise_aug_strength": 0.5},
    "no noise": lambda: {"noise_aug_strength": 0.0},
    "guidance": lambda: {"min_guidance_scale": 2.5, "max_guidance_scale": 6.0},
    "falling guidance": lambda: {"min_guidance_scale": 4.0, "max_guidance_scale": 1.5},
    "no guidance": lambda: {"max_guidance_scale": 1.0, "num_videos_per_prompt": 2},
    "sigmas": lambda: {"sigmas": [100.0, 10.0, 1.0]},
    "latents": lambda: {"latents": noise(1, FRAMES, 4, 8, 12)},
    "uneven size": lambda: {"height": 24, "width": 40},
    "latent output": lambda: {"output_type": "latent", "sigmas": [20.0, 5.0, 1.0]},
    "tensors": lambda: {"output_type": "pt"},
    "pictures": lambda: {"output_type": "pil"},
    "bare": lambda: {"return_dict": False},
}


# The reference decodes frames of two videos in one chunk: a deviation.
PACKED = packed(CALLS, alone=("larger chunks", "pictures"))


@pytest.mark.parametrize("case", PACKED)
def test_same_frames(pair: tuple[Any, Any], case: str) -> None:
    expected, found = both(pair, PACKED[case])
    tolerance = 1.01 / 255 if PACKED[case]().get("output_type") == "pil" else TOLERANCE
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, float(expected.std())), rtol=0)


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "DDIMScheduler"]
)
def test_other_schedulers(folder: Path, name: str) -> None:
    pipes = []
    for library in (diffusers, calotype):
        pipe = quiet(getattr(library, NAME).from_pretrained(folder))
        config = {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
        pipe.scheduler = getattr(library, name)(**config)
        pipes.append(pipe)
    steps = {"num_inference_steps": 4}
    if (
        name == "EulerAncestralDiscreteScheduler"
    ):  # the reference draws the noise of its steps without the generator
        assert deviation(f"pipelines/{NAME}/scheduler=EulerAncestral")
        torch.manual_seed(0)
        first, again = (run(pipes[1], lambda: steps) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        first, again = (run(pipes[0], lambda: steps) for _ in range(2))
        assert np.abs(first - again).max() > 0.01
        return
    expected, found = both((pipes[0], pipes[1]), lambda: steps)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("method", ["__init__", "__call__"])
def test_signature(method: str) -> None:
    ours, theirs = (
        [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in inspect.signature(getattr(getattr(library, NAME), method)).parameters.values()
        ]
        for library in (calotype, diffusers)
    )
    assert ours == theirs


def test_output_class(pair: tuple[Any, Any]) -> None:
    result = pair[1](photo(), height=16, width=16, num_inference_steps=1, num_frames=2, generator=seeded())
    assert isinstance(result, StableVideoDiffusionPipelineOutput)
    assert list(result) == list(reference.StableVideoDiffusionPipelineOutput(frames=result.frames))
    assert isinstance(result.frames[0][0], Image.Image) and len(result.frames[0]) == 2
    assert pair[1].vae_scale_factor == pair[0].vae_scale_factor == 2
    assert pair[1].video_processor.postprocess_video(torch.zeros(1, 3, 2, 8, 8)).shape == (1, 2, 8, 8, 3)


def test_files_go_both_ways(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    back = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(back) is type(theirs)
    np.testing.assert_array_equal(run(back, dict), run(theirs, dict))
    assert isinstance(calotype.load(tmp_path, device="cpu"), calotype.StableVideoDiffusionPipeline)


def test_callback(pair: tuple[Any, Any]) -> None:
    """It sees the latents of all frames after each step, and may replace them."""
    seen = []

    def halve(pipe: Any, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, tensors["latents"].shape))
        return {"latents": tensors["latents"] * 0.5}

    expected, found = both(pair, lambda: {"callback_on_step_end": halve})
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    assert seen[:3] == seen[3:] == [(i, (1, FRAMES, 4, 8, 12)) for i in range(3)]


# -- where the reference differs --------------------------------------------------------------------------------------


@torch.no_grad()
def test_chunks_end_where_videos_end(pair: tuple[Any, Any]) -> None:
    assert deviation(f"pipelines/{NAME}/chunks across videos")
    make = lambda: {"image": [photo(), photo(seed=1)], "decode_chunk_size": 2}  # noqa: E731
    expected, found = both(pair, make)
    assert np.abs(expected - found)[:, -1].max() > 1e-3
    alone = flat(run(pair[1], lambda: {**make(), "output_type": "latent"}))
    latents = torch.from_numpy(alone[1:])
    frames = torch.cat([pair[1].bound_family().decode(part, None) for part in latents.split(2, dim=1)], dim=1)
    np.testing.assert_allclose(
        (frames / 2 + 0.5).clamp(0, 1).permute(0, 1, 3, 4, 2).numpy(), found[1:], atol=1e-6
    )


@torch.no_grad()
def test_tensors_of_any_size(pair: tuple[Any, Any]) -> None:
    assert deviation(f"pipelines/{NAME}/tensor of another size")
    image = photo(60, 40)
    tensor = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
    with pytest.raises(ValueError, match="size"):
        run(pair[0], lambda: {"image": tensor})
    embeddings = [pair[1].bound_family().embedding(given, torch.device("cpu")) for given in (image, tensor)]
    torch.testing.assert_close(*embeddings)


def test_pictures_of_several_sizes_and_modes(pair: tuple[Any, Any]) -> None:
    assert deviation(f"pipelines/{NAME}/pictures of several sizes")
    images = [photo(), photo(90, 30).convert("RGBA")]
    with pytest.raises(ValueError):
        run(pair[0], lambda: {"image": images})
    together = run(pair[1], lambda: {"image": images, "generator": calotype.seeds(3)})
    alone = run(pair[1], lambda: {"image": images[1].convert("RGB"), "generator": calotype.seeds(4)})
    np.testing.assert_allclose(together[1:], alone, atol=TOLERANCE)


def test_several_videos_of_several_pictures(pair: tuple[Any, Any]) -> None:
    """Those of one picture stand together, and see and are told the same picture."""
    assert deviation(f"pipelines/{NAME}/several videos of several pictures")
    images = [photo(), photo(seed=1)]
    expected, found = both(pair, lambda: {"image": images, "num_videos_per_prompt": 2})
    assert np.abs(expected - found).max() > 0.01
    given = lambda: {"latents": noise(1, FRAMES, 4, 8, 12), "noise_aug_strength": 0.0}  # noqa: E731
    alone = [run(pair[1], lambda image=image: {**given(), "image": image}) for image in images]
    latents = given()["latents"].repeat(4, 1, 1, 1, 1)
    many = {**given(), "image": images, "num_videos_per_prompt": 2, "latents": latents}
    np.testing.assert_allclose(
        run(pair[1], lambda: many), np.repeat(np.concatenate(alone), 2, 0), atol=TOLERANCE
    )


def test_one_frame(pair: tuple[Any, Any]) -> None:
    """It is guided as the first of several is."""
    assert deviation(f"pipelines/{NAME}/one frame")
    with pytest.raises(RuntimeError):
        run(pair[0], lambda: {"num_frames": 1})
    usual = run(pair[1], lambda: {"num_frames": 1, "min_guidance_scale": 2.0})
    np.testing.assert_allclose(
        usual, run(pair[1], lambda: {"num_frames": 1, "guidance": ClassifierFree(2.0)}), atol=1e-6
    )


# -- what is ours -----------------------------------------------------------------------------------------------------


def test_a_video_of_a_batch_can_be_made_again_alone(pair: tuple[Any, Any]) -> None:
    """All that is drawn for a video, the picture's noise included, comes from its own generator."""
    more = {"noise_aug_strength": 0.5}
    batch = run(pair[1], lambda: {**more, "num_videos_per_prompt": 3, "generator": calotype.seeds(7)})
    alone = run(pair[1], lambda: {**more, "generator": calotype.seeds(9)})
    np.testing.assert_allclose(batch[2:], alone, atol=TOLERANCE)
    assert np.abs(batch[0] - batch[2]).max() > 1e-2


def test_guidance_as_a_value(pair: tuple[Any, Any]) -> None:
    usual = run(pair[1], lambda: {"min_guidance_scale": 1.5, "max_guidance_scale": 5.0})
    ramp = run(pair[1], lambda: {"guidance": FrameRamp(1.5, 5.0)})
    np.testing.assert_array_equal(usual, ramp)
    flat_ramp = run(pair[1], lambda: {"guidance": FrameRamp(3.0, 3.0)})
    np.testing.assert_allclose(run(pair[1], lambda: {"guidance": ClassifierFree(3.0)}), flat_ramp, atol=1e-6)
    late = run(pair[1], lambda: {"guidance": Interval(FrameRamp(1.5, 5.0), 0.5, 1.0)})
    assert np.abs(late - ramp).max() > 1e-3
    with pytest.raises(InputError, match="say the same"):
        run(pair[1], lambda: {"guidance": FrameRamp(), "max_guidance_scale": 2.0})
    with pytest.raises(InputError, match="no frames among them"):
        FrameRamp().combine((torch.zeros(1, 4, 8, 8),) * 2)
    along_third = FrameRamp(0.0, 1.0, axis=2).combine((torch.zeros(1, 2, 3, 4, 4), torch.ones(1, 2, 3, 4, 4)))
    assert along_third[0, 1, :, 0, 0].tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("size", [(40, 60), (500, 900), (224, 224), (30, 700)])
def test_resizing_for_clip(size: tuple[int, int]) -> None:
    pixels = torch.rand(2, 3, *size, generator=seeded(1))
    expected = reference._resize_with_antialiasing(pixels, (224, 224))
    torch.testing.assert_close(smoothly_resized(pixels, (224, 224)), expected, atol=1e-5, rtol=0)


def test_half_precision(folder: Path) -> None:
    """The picture is encoded in float32 where the autoencoder says that it overflows; frames come in float32."""
    pipe = quiet(calotype.StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16))
    frames = pipe(
        photo(), height=16, width=16, num_inference_steps=2, output_type="pt", generator=seeded()
    ).frames
    assert frames.dtype == torch.float32 and torch.isfinite(frames).all()
    half = calotype.AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae", torch_dtype=torch.float16)
    pipe.vae = half
    assert pipe.bound_family().seen(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
    assert pipe.vae is half and half.dtype == torch.float16


REFUSED: dict[str, tuple[Case, str]] = {
    "no picture": (lambda: {"image": None}, "image is not given"),
    "array": (lambda: {"image": np.zeros((40, 60, 3), np.float32)}, "not an array"),
    "one tensor without a batch": (lambda: {"image": torch.zeros(3, 224, 224)}, "image must be a tensor"),
    "odd size": (lambda: {"height": 20}, "height must be divisible by 8"),
    "no frames": (lambda: {"num_frames": 0}, "num_frames"),
    "chunks of nothing": (lambda: {"decode_chunk_size": 0}, "decode_chunk_size"),
    "noise below nothing": (lambda: {"noise_aug_strength": -1.0}, "noise_aug_strength must be 0 or more"),
    "endless": (lambda: {"fps": float("inf")}, "fps must be a finite number"),
    "videos": (lambda: {"num_videos_per_prompt": 0}, "num_videos_per_prompt"),
    "latents of a picture": (lambda: {"latents": noise(1, 4, 8, 12)}, "latents must be"),
    "latents of another size": (lambda: {"latents": noise(1, FRAMES, 4, 8, 8)}, "this call needs"),
    "generators": (lambda: {"generator": [seeded(), seeded()]}, "2 generators for 1"),
    "callback": (lambda: {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "prompt_embeds"),
    "too long": (lambda: {"num_frames": 10**6}, "over the limit"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(pair: tuple[Any, Any], case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        run(pair[1], make)


def test_a_unet_that_is_told_something_else(folder: Path) -> None:
    pipe = quiet(calotype.StableVideoDiffusionPipeline.from_pretrained(folder))
    config = {**pipe.unet.config, "projection_class_embeddings_input_dim": 32}
    pipe.unet = calotype.UNetSpatioTemporalConditionModel.from_config(config)
    with pytest.raises(InputError, match="4 numbers about a video"):
        run(pipe, dict)
    config = {**config, "projection_class_embeddings_input_dim": 24, "in_channels": 4}
    pipe.unet = calotype.UNetSpatioTemporalConditionModel.from_config(config)
    with pytest.raises(InputError, match="reads 4 channels; this task needs one that reads 8"):
        run(pipe, dict)
