"""Text-to-video and video-to-video against the reference: the U-Net over videos, the pipelines, the processor."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.video_processor import VideoProcessor as TheirProcessor
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.models.unet_3d_condition import UNet3DConditionOutput
from calotype.pipelines.outputs import TextToVideoSDPipelineOutput
from calotype.video_processor import VideoProcessor
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.parity.video_runs import UNET_3D, as_array, clip, pair, parts
from tests.tiny import randomise

LIBRARIES = (diffusers, calotype)
PIPELINES = ("TextToVideoSDPipeline", "VideoToVideoSDPipeline")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    diffusers.TextToVideoSDPipeline(**parts(diffusers, path.parent / "parts")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipes(folder: Path) -> dict[str, tuple[Any, Any]]:
    return {name: pair(name, folder, LIBRARIES) for name in PIPELINES}


def pictures(video: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray((frame * 255).astype(np.uint8)) for frame in as_array(video)]


def run(pipe: Any, make: Case) -> Any:
    arguments = {"prompt": "a red ball", "num_inference_steps": 3, **make()}
    arguments.setdefault("generator", seeded())
    return pipe(**arguments)


def flat(frames: Any) -> np.ndarray:
    if isinstance(frames, list):
        return np.stack([np.stack([np.asarray(frame) for frame in video]) for video in frames]) / 255
    return frames.numpy() if isinstance(frames, torch.Tensor) else frames


def compare(two: tuple[Any, Any], make: Case) -> None:
    theirs, ours = (run(pipe, make)[0] for pipe in two)
    assert type(theirs) is type(ours)
    expected, found = flat(theirs), flat(ours)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert expected.std() > 0.01
    tolerance = 1.01 / 255 if isinstance(theirs, list) else TOLERANCE
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, float(expected.std())), rtol=0)


TEXT: dict[str, Case] = {
    "plain": lambda: {"num_frames": 4},
    "one frame": lambda: {"num_frames": 1},
    "size": lambda: {"height": 48, "width": 80},
    "negative": lambda: {"negative_prompt": "night", "guidance_scale": 5.0},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "batch": lambda: {
        "prompt": ["a red ball", "a cube"],
        "negative_prompt": ["night", "day"],
    },
    "generators": lambda: {"num_frames": 3, "prompt": ["a ball"] * 2, "generator": [seeded(3), seeded(4)]},
    "latents": lambda: {"latents": torch.randn(1, 4, 3, 8, 8, generator=seeded(6))},
    "tensors": lambda: {"output_type": "pt"},
    "pictures": lambda: {"output_type": "pil"},
    "latent output": lambda: {"output_type": "latent"},
    "embeddings": lambda: {
        "prompt": None,
        "prompt_embeds": torch.randn(1, 16, 32, generator=seeded(7)),
        "negative_prompt_embeds": torch.randn(1, 16, 32, generator=seeded(8)),
    },
    "tuple": lambda: {"return_dict": False},
}

VIDEO: dict[str, Case] = {
    "tensor": lambda: {"video": clip()},
    "array": lambda: {"video": as_array(clip())},
    "pictures": lambda: {"video": pictures(clip())},
    "size": lambda: {"video": pictures(clip(side=50))},
    "list of arrays": lambda: {"video": list(as_array(clip(2)))},
    "weak": lambda: {"video": clip(2), "strength": 0.4, "num_inference_steps": 6},
    "whole": lambda: {"video": clip(2), "strength": 1.0},
    "latents as video": lambda: {"video": torch.randn(1, 2, 4, 8, 8, generator=seeded(5))},
    "latent output": lambda: {"video": clip(2), "output_type": "latent"},
}


ON_TEXT = packed(TEXT, alone=("one frame", "pictures"))


@pytest.mark.parametrize("case", ON_TEXT)
def test_text_to_video(pipes: dict[str, tuple[Any, Any]], case: str) -> None:
    compare(pipes["TextToVideoSDPipeline"], lambda: {"num_frames": 2, **ON_TEXT[case]()})


@pytest.mark.parametrize("case", VIDEO)
def test_video_to_video(pipes: dict[str, tuple[Any, Any]], case: str) -> None:
    compare(pipes["VideoToVideoSDPipeline"], lambda: {"num_inference_steps": 4, **VIDEO[case]()})


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"],
)
@pytest.mark.parametrize("name", PIPELINES)
def test_schedulers(folder: Path, name: str, scheduler: str) -> None:
    """Those that draw noise in each step draw it frame by frame."""
    more = {"num_frames": 3} if name == PIPELINES[0] else {"video": clip()}
    if scheduler == "DDIMScheduler":
        more["eta"] = 0.7
    compare(pair(name, folder, LIBRARIES, scheduler), lambda: {"num_inference_steps": 4, **more})


def test_two_videos(pipes: dict[str, tuple[Any, Any]]) -> None:
    """Each video is made as if it were alone but for the noise; with generators exactly so."""
    theirs, ours = pipes["VideoToVideoSDPipeline"]
    videos = [pictures(clip(2)), pictures(clip(2, seed=6))]
    prompts = ["a red ball", "a cube"]
    assert deviation("pipelines/VideoToVideoSDPipeline/two videos")
    with pytest.raises(RuntimeError):
        run(theirs, lambda: {"prompt": prompts, "video": videos})
    both = run(ours, lambda: {"prompt": prompts, "video": videos, "generator": [seeded(1), seeded(2)]}).frames
    for index in range(2):
        alone = run(
            ours,
            lambda index=index: {
                "prompt": prompts[index],
                "video": videos[index],
                "generator": [seeded(index + 1)],
            },
        ).frames
        np.testing.assert_allclose(both[index : index + 1], alone, atol=TOLERANCE)
    one = run(ours, lambda: {"prompt": prompts, "video": videos[0], "generator": calotype.seeds(1)}).frames
    np.testing.assert_allclose(one[:1], both[:1], atol=TOLERANCE)


def test_latents_to_start_from(pipes: dict[str, tuple[Any, Any]]) -> None:
    """Given latents stand where the way begins; the reference takes them and does not use them."""
    assert deviation("pipelines/VideoToVideoSDPipeline/latents")

    def make(latents: torch.Tensor | None) -> Case:
        return lambda: {"video": clip(2)} if latents is None else {"video": None, "latents": latents}

    latents = torch.randn(1, 4, 2, 8, 8, generator=seeded(9))
    theirs, ours = pipes["VideoToVideoSDPipeline"]
    both = lambda: {"video": clip(2), "latents": latents}  # noqa: E731
    np.testing.assert_array_equal(run(theirs, both).frames, run(theirs, make(None)).frames)
    with pytest.raises(InputError, match="Both video and latents"):
        run(ours, both)
    assert np.abs(run(ours, make(latents)).frames - run(ours, make(None)).frames).max() > 0.05


def test_callback(pipes: dict[str, tuple[Any, Any]]) -> None:
    seen: tuple[list[Any], list[Any]] = ([], [])
    for pipe, calls in zip(pipes["TextToVideoSDPipeline"], seen, strict=True):
        record = lambda step, timestep, latents, calls=calls: calls.append((step, int(timestep), latents))  # noqa: E731
        run(pipe, lambda record=record: {"num_frames": 2, "callback": record, "num_inference_steps": 4})
    assert [call[:2] for call in seen[0]] == [call[:2] for call in seen[1]]
    for (*_, expected), (*_, found) in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("method", ["__init__", "__call__", "encode_prompt"])
def test_signature(name: str, method: str) -> None:
    """Names, order, kinds and defaults of the arguments are the reference's."""
    theirs, ours = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, method)).parameters.values()]
        for cls in (getattr(diffusers, name), getattr(calotype, name))
    )
    assert ours == theirs


@pytest.mark.parametrize("name", PIPELINES)
def test_what_we_save_the_reference_loads(
    pipes: dict[str, tuple[Any, Any]], name: str, tmp_path: Path
) -> None:
    theirs, ours = pipes[name]
    ours.save_pretrained(tmp_path)
    loaded = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is getattr(diffusers, name)
    again = quiet(calotype.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(again) is getattr(calotype, name)
    case = {"num_frames": 2} if name == PIPELINES[0] else {"video": clip(2)}
    compare((theirs, loaded), lambda: case)
    compare((theirs, again), lambda: case)


def test_result(pipes: dict[str, tuple[Any, Any]]) -> None:
    result = run(pipes["TextToVideoSDPipeline"][1], lambda: {"num_frames": 2, "output_type": "pil"})
    assert type(result) is TextToVideoSDPipelineOutput
    assert [len(video) for video in result.frames] == [2]
    assert result.frames[0][0].size == (64, 64)


def test_guidance_as_a_value(pipes: dict[str, tuple[Any, Any]]) -> None:
    """Guidance in a part of the steps alone, as in pipelines for pictures."""
    ours = pipes["TextToVideoSDPipeline"][1]
    scale = run(ours, lambda: {"num_frames": 2, "guidance_scale": 9.0}).frames
    value = calotype.guidance.ClassifierFree(9.0)
    np.testing.assert_array_equal(run(ours, lambda: {"num_frames": 2, "guidance": value}).frames, scale)
    partly = calotype.guidance.Interval(value, 0.0, 0.5)
    changed = run(ours, lambda: {"num_frames": 2, "guidance": partly}).frames
    assert np.isfinite(changed).all() and np.abs(changed - scale).max() > 0.001


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        (PIPELINES[0], {"num_frames": 0}, "num_frames.*0"),
        (PIPELINES[0], {"num_frames": 2, "height": 60}, "height.*60"),
        (PIPELINES[0], {"num_frames": 10_000, "height": 1024, "width": 1024}, "pixels"),
        (PIPELINES[1], {"video": None}, "video is not given"),
        (PIPELINES[1], {"video": "clip.mp4"}, "A video must be"),
        (PIPELINES[1], {"video": []}, "no frames"),
        (PIPELINES[1], {"video": [list(as_array(clip(2))), list(as_array(clip(3)))]}, r"\[2, 3\] frames"),
        (PIPELINES[1], {"video": clip(), "strength": 1.5}, "strength.*1.5"),
        (
            PIPELINES[1],
            {"video": clip(), "prompt": ["a"] * 3, "generator": [seeded()] * 2},
            "2 generators for 3",
        ),
    ],
)
def test_refused(pipes: dict[str, tuple[Any, Any]], name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        run(pipes[name][1], lambda: arguments)


UNETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "three levels": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "layers_per_block": 2,
    },
    "odd": {"in_channels": 5, "out_channels": 3, "act_fn": "gelu", "norm_eps": 1e-6, "downsample_padding": 0},
    "middle": {"mid_block_scale_factor": 1.5, "attention_head_dim": 16},
    "scale as an embedding": {"time_cond_proj_dim": 12},
}


def unets(changes: dict[str, Any]) -> tuple[Any, Any]:
    theirs = randomise(diffusers.UNet3DConditionModel(**UNET_3D | changes))
    ours = calotype.UNet3DConditionModel(**UNET_3D | changes).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def told(model: Any, frames: int = 3, height: int = 8, width: int = 12, **more: Any) -> torch.Tensor:
    sample = torch.randn(2, model.config.in_channels, frames, height, width, generator=seeded(1))
    context = torch.randn(2, 5, 32, generator=seeded(2))
    with torch.no_grad():
        return model(sample, torch.tensor([5, 700]), context, **more).sample


@pytest.mark.parametrize("changes", UNETS.values(), ids=UNETS)
def test_unet(changes: dict[str, Any]) -> None:
    two = unets(changes)
    width = changes.get("time_cond_proj_dim")
    more = {"timestep_cond": torch.randn(2, width, generator=seeded(4))} if width else {}
    expected, found = (told(model, **more) for model in two)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_unet_uses() -> None:
    """Any size, one frame, residuals, FreeU, fused projections and training."""
    two = unets({})
    for size in ({"height": 9, "width": 7}, {"frames": 1}):
        expected, found = (told(model, **size) for model in two)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    shapes = [(16, 8, 12), (16, 8, 12), (16, 4, 6), (32, 4, 6)]
    residuals = {
        "down_block_additional_residuals": tuple(
            torch.randn(6, *shape, generator=seeded(index)) for index, shape in enumerate(shapes)
        ),
        "mid_block_additional_residual": torch.randn(6, 32, 4, 6, generator=seeded(9)),
    }
    plain = told(two[1])
    for change in (
        lambda model: None,
        lambda model: model.enable_freeu(0.9, 0.2, 1.2, 1.4),
        lambda model: model.disable_freeu(),
        lambda model: model.fuse_qkv_projections(),
        lambda model: model.unfuse_qkv_projections(),
    ):
        for model in two:
            change(model)
        expected, found = (told(model, **residuals) for model in two)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert (found - plain).abs().max() > 0.01
    model = two[1].train()
    model.enable_gradient_checkpointing()
    sample = torch.randn(1, 4, 2, 8, 8, generator=seeded())
    model(sample, 3, torch.randn(1, 5, 32, generator=seeded())).sample.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradients[name] is not None for name in gradients)
    assert all(
        g.abs().max() > 0 for name, g in gradients.items() if "temp_" in name and name.endswith("weight")
    )


def test_unet_files(tmp_path: Path) -> None:
    theirs, ours = unets({})
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    expected = told(theirs)
    for library, name in ((diffusers, "ours"), (calotype, "theirs")):
        loaded = library.UNet3DConditionModel.from_pretrained(tmp_path / name)
        torch.testing.assert_close(told(loaded), expected, atol=1e-5, rtol=1e-5)
    public = {name: value for name, value in ours.config.items() if not name.startswith("_")}
    assert public == {name: theirs.config[name] for name in public}


@pytest.mark.parametrize("method", ["__init__", "forward", "enable_freeu"])
def test_unet_signature(method: str) -> None:
    theirs, ours = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(library.UNet3DConditionModel, method)).parameters.values()
        ]
        for library in LIBRARIES
    )
    assert ours == theirs


def test_unet_refuses() -> None:
    for changes, says in (
        ({"num_attention_heads": 4}, "attention_head_dim"),
        (
            {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock3D")},
            "CrossAttnDownBlock2D.*not for videos",
        ),
        ({"block_out_channels": (16,)}, "block_out_channels"),
    ):
        with pytest.raises(InputError, match=f"(?s){says}"):
            calotype.UNet3DConditionModel(**UNET_3D | changes)
    with pytest.raises(InputError, match="CrossAttnDownBlock3D.*is for videos"):
        calotype.UNet2DConditionModel(down_block_types=("CrossAttnDownBlock3D",) * 4)
    theirs, ours = unets({})
    for name in ("class_labels", "attention_mask"):
        assert deviation(f"unets/UNet3DConditionModel/{name}")
        torch.testing.assert_close(told(theirs, **{name: torch.ones(2, 96)}), told(theirs))
        with pytest.raises(InputError, match=name):
            told(ours, **{name: torch.ones(2, 96)})
    assert type(ours(torch.randn(1, 4, 2, 8, 8), 3, torch.randn(1, 5, 32))) is UNet3DConditionOutput


PROCESSED = {
    "pictures": lambda: pictures(clip(side=50)),
    "videos of pictures": lambda: [pictures(clip()), pictures(clip(seed=6))],
    "array": lambda: as_array(clip()),
    "arrays": lambda: np.stack([as_array(clip()), as_array(clip(seed=6))]),
    "list of arrays": lambda: [as_array(clip()), as_array(clip(seed=6))],
    "tensor": lambda: clip(side=50),
    "tensors": lambda: torch.stack([clip(), clip(seed=6)]),
    "list of stacks": lambda: [clip()[None], clip(seed=6)[None]],
    "frames": lambda: list(clip()),
}


@pytest.mark.parametrize("make", PROCESSED.values(), ids=PROCESSED)
def test_processor(make: Any) -> None:
    for size in ({}, {"height": 40, "width": 56}):
        theirs, ours = (cls().preprocess_video(make(), **size) for cls in (TheirProcessor, VideoProcessor))
        torch.testing.assert_close(ours, theirs)
    for output_type in ("np", "pt", "pil"):
        expected, found = (
            cls().postprocess_video(theirs, output_type) for cls in (TheirProcessor, VideoProcessor)
        )
        assert type(found) is type(expected)
        np.testing.assert_array_equal(flat(found), flat(expected))


def test_processor_sizes() -> None:
    ratios = {"0.5": [32.0, 64.0], "1.0": [48.0, 48.0], "2.0": [64.0, 32.0]}
    for size in ((10, 10), (70, 100), (300, 100)):
        assert VideoProcessor.classify_height_width_bin(
            *size, ratios
        ) == TheirProcessor.classify_height_width_bin(*size, ratios)
    for size in ((40, 30), (64, 64), (100, 90)):
        expected, found = (
            cls.resize_and_crop_tensor(clip()[None], *size) for cls in (TheirProcessor, VideoProcessor)
        )
        torch.testing.assert_close(found, expected)
    for method in (
        "preprocess_video",
        "postprocess_video",
        "classify_height_width_bin",
        "resize_and_crop_tensor",
    ):
        assert list(inspect.signature(getattr(VideoProcessor, method)).parameters) == list(
            inspect.signature(getattr(TheirProcessor, method)).parameters
        )
