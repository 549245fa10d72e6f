"""AnimateDiff against the reference: motion adapters, the U-Net that they make, the pipeline."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.pipelines.outputs import AnimateDiffPipelineOutput
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.parity.video_runs import ADAPTER, UNET_MOTION, pair
from tests.tiny import UNET, randomise, stable_diffusion_folder

LIBRARIES = (diffusers, calotype)
NAME = "AnimateDiffPipeline"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "adapter"
    randomise(diffusers.MotionAdapter(**ADAPTER), 5).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion checkpoint."""
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", diffusers)


@pytest.fixture(scope="module")
def pipes(pictures: Path, adapter: Path) -> tuple[Any, Any]:
    """Stable Diffusion and a motion adapter, put together by each library."""
    made = []
    for library in LIBRARIES:
        motion = library.MotionAdapter.from_pretrained(adapter)
        pipe = getattr(library, NAME).from_pretrained(pictures, motion_adapter=motion)
        assert type(pipe.unet) is library.UNetMotionModel
        made.append(quiet(pipe))
    return made[0], made[1]


def run(pipe: Any, make: Case) -> Any:
    arguments = {
        "prompt": "a red ball",
        "num_inference_steps": 3,
        "num_frames": 3,
        "output_type": "np",
        **make(),
    }
    arguments.setdefault("generator", seeded())
    return pipe(**arguments)


def compare(two: tuple[Any, Any], make: Case) -> None:
    theirs, ours = (run(pipe, make)[0] for pipe in two)
    assert type(theirs) is type(ours)
    if isinstance(theirs, list):
        theirs, ours = (
            np.stack([[np.asarray(frame) for frame in video] for video in videos]) / 255
            for videos in (theirs, ours)
        )
        np.testing.assert_allclose(ours, theirs, atol=1.01 / 255)
        return
    expected, found = (np.asarray(video) for video in (theirs, ours))
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, float(expected.std())), rtol=0)


CALLS: dict[str, Case] = {
    "plain": dict,
    "one frame": lambda: {"num_frames": 1},
    "size": lambda: {"height": 48, "width": 80},
    "negative": lambda: {"negative_prompt": "night", "guidance_scale": 4.0},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "batch": lambda: {"prompt": ["a red ball", "a cube"], "negative_prompt": ["night", "day"]},
    "generators": lambda: {"prompt": ["a ball"] * 2, "generator": [seeded(3), seeded(4)]},
    "latents": lambda: {"latents": torch.randn(1, 4, 3, 8, 8, generator=seeded(6))},
    "decoded in parts": lambda: {"decode_chunk_size": 2},
    "tensors": lambda: {"output_type": "pt"},
    "pictures": lambda: {"output_type": "pil"},
    "latent output": lambda: {"output_type": "latent"},
    "tuple": lambda: {"return_dict": False},
}


PACKED = packed(CALLS, alone=("one frame", "pictures"))


@pytest.mark.parametrize("case", PACKED)
def test_calls(pipes: tuple[Any, Any], case: str) -> None:
    compare(pipes, PACKED[case])


@pytest.mark.parametrize(
    "scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_schedulers(pipes: tuple[Any, Any], scheduler: str) -> None:
    """Those that draw noise in each step draw it for the video as a whole."""
    more = {"eta": 0.7} if scheduler == "DDIMScheduler" else {}
    before = [pipe.scheduler for pipe in pipes]
    try:
        for pipe, library in zip(pipes, LIBRARIES, strict=True):
            pipe.scheduler = getattr(library, scheduler).from_config(pipe.scheduler.config)
        compare(pipes, lambda: {"num_inference_steps": 4, **more})
    finally:
        for pipe, old in zip(pipes, before, strict=True):
            pipe.scheduler = old


def test_several_videos_of_a_prompt(pipes: tuple[Any, Any]) -> None:
    assert deviation("pipelines/AnimateDiffPipeline/num_videos_per_prompt=2")
    theirs, ours = (run(pipe, lambda: {"num_videos_per_prompt": 2}).frames for pipe in pipes)
    assert len(theirs) == 1 and len(ours) == 2
    both = run(pipes[1], lambda: {"num_videos_per_prompt": 2, "generator": calotype.seeds(3)}).frames
    alone = run(pipes[1], lambda: {"generator": calotype.seeds(4)}).frames
    np.testing.assert_allclose(both[1:], alone, atol=TOLERANCE)


def test_files(pipes: tuple[Any, Any], tmp_path: Path) -> None:
    """What one saves the other loads."""
    for index, library in ((0, calotype), (1, diffusers)):
        pipes[index].save_pretrained(tmp_path / str(index))
        loaded = quiet(library.DiffusionPipeline.from_pretrained(tmp_path / str(index)))
        assert type(loaded) is getattr(library, NAME)
        compare((pipes[0], loaded), dict)
    again = pair(NAME, tmp_path / "1", LIBRARIES)
    compare(again, dict)


def test_result(pipes: tuple[Any, Any]) -> None:
    result = run(pipes[1], lambda: {"output_type": "pil"})
    assert type(result) is AnimateDiffPipelineOutput
    assert [len(video) for video in result.frames] == [3]


@pytest.mark.parametrize("method", ["__init__", "__call__", "encode_prompt"])
def test_signature(method: str) -> None:
    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, NAME), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)


@pytest.mark.parametrize(
    ("cls", "method"),
    [
        ("MotionAdapter", "__init__"),
        ("UNetMotionModel", "__init__"),
        ("UNetMotionModel", "forward"),
        ("UNetMotionModel", "from_unet2d"),
        ("UNetMotionModel", "load_motion_modules"),
        ("UNetMotionModel", "save_motion_modules"),
        ("UNetMotionModel", "freeze_unet2d_params"),
    ],
)
def test_model_signature(cls: str, method: str) -> None:
    theirs, ours = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(getattr(library, cls), method)).parameters.values()
        ]
        for library in LIBRARIES
    )
    assert ours == theirs


def told(model: Any, per_frame: bool, frames: int = 3, **more: Any) -> torch.Tensor:
    sample = torch.randn(2, model.config.in_channels, frames, 8, 12, generator=seeded(1))
    context = torch.randn(2, 5, 32, generator=seeded(2))
    if per_frame:
        context = context.repeat_interleave(frames, dim=0)
    with torch.no_grad():
        return model(sample, torch.tensor([5, 700]), context, **more).sample


MODELS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "still middle": {"use_motion_mid_block": False},
    "deep": {
        "mid_block_layers": 2,
        "transformer_layers_per_block": (2, 1),
        "temporal_transformer_layers_per_block": (2, 1),
        "temporal_transformer_layers_per_mid_block": 2,
        "transformer_layers_per_mid_block": 3,
    },
    "reversed": {
        "reverse_transformer_layers_per_block": (2, 1),
        "reverse_temporal_transformer_layers_per_block": (1, 2),
    },
    "heads": {"motion_num_attention_heads": (2, 4), "num_attention_heads": (2, 4)},
    "linear": {
        "use_linear_projection": True,
        "act_fn": "gelu",
        "norm_eps": 1e-4,
        "mid_block_scale_factor": 1.5,
    },
    "scale as an embedding": {"time_cond_proj_dim": 12},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_unet(changes: dict[str, Any]) -> None:
    theirs = randomise(diffusers.UNetMotionModel(**UNET_MOTION | changes))
    ours = calotype.UNetMotionModel(**UNET_MOTION | changes).eval()
    ours.load_state_dict(theirs.state_dict())
    expected = told(theirs, True)
    assert expected.std() > 0.1
    for per_frame in (True, False):
        torch.testing.assert_close(told(ours, per_frame), expected, atol=1e-5, rtol=1e-5)


def two(adapter: Path | None = None, unet: dict[str, Any] | None = None) -> list[Any]:
    """The U-Net of Stable Diffusion made one over videos by each library."""
    made = []
    for library in LIBRARIES:
        plain = randomise(library.UNet2DConditionModel(**UNET | (unet or {})))
        motion = None if adapter is None else library.MotionAdapter.from_pretrained(adapter)
        made.append(library.UNetMotionModel.from_unet2d(plain, motion).eval())
    return made


def test_from_unet2d(adapter: Path) -> None:
    theirs, ours = two(adapter)
    torch.testing.assert_close(told(ours, False), told(theirs, True), atol=1e-5, rtol=1e-5)
    public = {name: value for name, value in ours.config.items() if not name.startswith("_")}
    assert public == {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in ((name, theirs.config[name]) for name in public)
    }
    bare = two()[1]
    keys = [key for key in bare.state_dict() if "motion_modules" not in key]
    torch.testing.assert_close(
        {k: bare.state_dict()[k] for k in keys}, {k: ours.state_dict()[k] for k in keys}
    )
    other = calotype.MotionAdapter(**ADAPTER)
    ours.load_motion_modules(other)
    taken = {k: v for k, v in ours.state_dict().items() if "motion_modules" in k}
    torch.testing.assert_close(taken, dict(other.state_dict()))


def test_motion_alone(adapter: Path, tmp_path: Path) -> None:
    """Motion modules go to a file of their own and back, and are trained alone."""
    ours = two(adapter)[1]
    ours.save_motion_modules(tmp_path / "motion")
    first = calotype.MotionAdapter.from_pretrained(adapter)
    for library in LIBRARIES:
        loaded = library.MotionAdapter.from_pretrained(tmp_path / "motion")
        torch.testing.assert_close(dict(loaded.state_dict()), dict(first.state_dict()))
    ours.freeze_unet2d_params()
    learned = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert learned == {name for name, _ in ours.named_parameters() if "motion_modules" in name}


def test_an_adapter_that_reads_more(tmp_path: Path) -> None:
    """The first convolution keeps what it knows of latents and takes the rest from the adapter."""
    randomise(diffusers.MotionAdapter(**ADAPTER, conv_in_channels=9), 5).save_pretrained(tmp_path)
    theirs, ours = two(tmp_path)
    assert ours.config.in_channels == 9
    torch.testing.assert_close(told(ours, False), told(theirs, True), atol=1e-5, rtol=1e-5)


def test_refused(adapter: Path, pipes: tuple[Any, Any]) -> None:
    motion = calotype.MotionAdapter.from_pretrained(adapter)
    plain = calotype.UNet2DConditionModel(**UNET)
    parts = {
        name: part for name, part in pipes[1].components.items() if name not in ("unet", "motion_adapter")
    }
    cases = (
        (lambda: calotype.UNetMotionModel(**UNET_MOTION, reverse_motion_num_attention_heads=2), "never had"),
        (
            lambda: calotype.UNetMotionModel(**UNET_MOTION | {"motion_num_attention_heads": 5}),
            "5 attention heads",
        ),
        (lambda: calotype.MotionAdapter(**ADAPTER | {"motion_num_attention_heads": (2, 2, 2)}), "3 entries"),
        (lambda: motion(torch.zeros(1)), "UNetMotionModel"),
        (
            lambda: calotype.UNetMotionModel.from_unet2d(
                calotype.UNet2DConditionModel(**UNET | {"layers_per_block": 2}), motion
            ),
            "layers",
        ),
        (lambda: calotype.AnimateDiffPipeline(**parts, unet=plain, motion_adapter=None), "motion_adapter="),
        (lambda: run(pipes[1], lambda: {"num_frames": 25}), "25 frames.*24"),
        (lambda: run(pipes[1], lambda: {"decode_chunk_size": 0}), "decode_chunk_size.*0"),
    )
    for make, says in cases:
        with pytest.raises(InputError, match=f"(?s){says}"):
            make()
