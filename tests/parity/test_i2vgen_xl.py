"""I2VGen-XL against the reference: the U-Net, and the pipeline from the same files and arguments."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.pipelines.outputs import I2VGenXLPipelineOutput
from tests.parity.deviations import deviation
from tests.parity.i2vgen_parts import UNET, WIDTH, i2vgen_xl
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.tiny import randomise

LIBRARIES = (diffusers, calotype)
NAME = "I2VGenXLPipeline"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    i2vgen_xl(path)
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Any, Any]:
    theirs, ours = (quiet(library.DiffusionPipeline.from_pretrained(folder)) for library in LIBRARIES)
    if not hasattr(theirs.text_encoder, "text_model"):
        # the reference's clip_skip reads this attribute, which transformers 5 took away
        theirs.text_encoder.__dict__["text_model"] = theirs.text_encoder
    return theirs, ours


def photo(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def run(pipe: Any, make: Case) -> Any:
    arguments = {
        "prompt": "a red ball",
        "image": photo(),
        "height": 24,
        "width": 32,
        "num_frames": 2,
        "num_inference_steps": 2,
        "output_type": "np",
        **make(),
    }
    arguments.setdefault("generator", seeded())
    return pipe(**arguments)[0]


def flat(frames: Any) -> np.ndarray:
    if isinstance(frames, list):
        return np.stack([np.stack([np.asarray(frame) for frame in video]) for video in frames]) / 255
    return frames.numpy() if isinstance(frames, torch.Tensor) else frames


def compare(two: tuple[Any, Any], make: Case) -> None:
    theirs, ours = (run(pipe, make) for pipe in two)
    assert type(theirs) is type(ours)
    expected, found = flat(theirs), flat(ours)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.isfinite(expected).all() and expected.std() > 0.01
    tolerance = 1.01 / 255 if isinstance(theirs, list) else TOLERANCE
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, float(expected.std())), rtol=0)


CALLS: dict[str, Case] = {
    "plain": dict,
    "negative": lambda: {"negative_prompt": "night", "guidance_scale": 4.0},
    "no guidance": lambda: {"guidance_scale": 1.0},
    "whole text encoder": lambda: {"clip_skip": None},
    "pace": lambda: {"target_fps": 4, "num_frames": 4},
    "one frame": lambda: {"num_frames": 1},
    "tall picture": lambda: {"image": photo(32, 96)},
    "tensor": lambda: {"image": torch.rand(1, 3, 48, 64, generator=seeded(2))},
    "tensors": lambda: {
        "prompt": ["a ball", "a cube"],
        "image": [torch.rand(3, 48, 64, generator=seeded(n))[None] for n in (2, 3)],
    },
    "batch": lambda: {"prompt": ["a ball", "a cube"], "image": [photo(), photo(seed=1)]},
    "videos of one picture": lambda: {"num_videos_per_prompt": 2, "generator": [seeded(3), seeded(4)]},
    "embeddings": lambda: {
        "prompt": None,
        "prompt_embeds": noise(1, 16, WIDTH),
        "negative_prompt_embeds": noise(1, 16, WIDTH, seed=6),
    },
    "latents": lambda: {"latents": noise(1, 4, 2, 3, 4)},
    "eta": lambda: {"eta": 0.7},
    "chunks": lambda: {"num_frames": 3, "decode_chunk_size": 2},
    "whole decoding": lambda: {"decode_chunk_size": None},
    "own size": lambda: {"height": None, "width": None, "num_frames": 2},
    "pictures": lambda: {"output_type": "pil"},
    "tensor output": lambda: {"output_type": "pt"},
    "latent output": lambda: {"output_type": "latent", "return_dict": False},
}


# The reference draws no noise in steps with several generators.
PACKED = packed(CALLS, alone=("one frame", "eta", "pictures"))


@pytest.mark.parametrize("case", PACKED)
def test_same_frames(pair: tuple[Any, Any], case: str) -> None:
    compare(pair, PACKED[case])


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_other_schedulers(folder: Path, pair: tuple[Any, Any], name: str) -> None:
    schedulers = [pipe.scheduler for pipe in pair]
    try:
        for library, pipe in zip(LIBRARIES, pair, strict=True):
            pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        compare(pair, lambda: {"num_inference_steps": 3})
    finally:
        for pipe, scheduler in zip(pair, schedulers, strict=True):
            pipe.scheduler = scheduler


@pytest.mark.parametrize(
    ("name", "method"),
    [(NAME, "__init__"), (NAME, "__call__"), ("I2VGenXLUNet", "__init__"), ("I2VGenXLUNet", "forward")],
)
def test_signature(name: str, method: str) -> None:
    theirs, ours = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        ]
        for library in LIBRARIES
    )
    assert ours == theirs


def test_files_go_both_ways(pair: tuple[Any, Any], tmp_path: Path) -> None:
    theirs, ours = pair
    ours.save_pretrained(tmp_path)
    back = quiet(diffusers.DiffusionPipeline.from_pretrained(tmp_path))
    assert type(back) is type(theirs)
    for name, part in (("unet", theirs.unet), ("vae", theirs.vae)):
        found = getattr(back, name).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in part.state_dict().items())
    loaded = calotype.load(tmp_path, device="cpu")
    assert isinstance(loaded, calotype.I2VGenXLPipeline)
    result = quiet(loaded)("a ball", photo(), height=24, width=32, num_frames=2, num_inference_steps=1)
    assert isinstance(result, I2VGenXLPipelineOutput)
    assert [[frame.size for frame in video] for video in result.frames] == [[(32, 24)] * 2]


# -- where the reference differs --------------------------------------------------------------------------------------


def test_the_draw_of_the_picture(pair: tuple[Any, Any]) -> None:
    """With a seed the same video; the reference draws the picture's latents from the global state."""
    assert deviation(f"pipelines/{NAME}/posterior")
    biases = [pipe.vae.quant_conv.bias.detach().clone() for pipe in pair]
    try:
        spread = []
        for pipe in pair:
            with torch.no_grad():
                pipe.vae.quant_conv.bias[4:] = 0.0
            first, again = (run(pipe, dict) for _ in range(2))
            spread.append(np.abs(first - again).max())
        assert spread[0] > 1e-3 and spread[1] == 0
        unseeded = []
        for pipe in pair:
            torch.manual_seed(0)
            unseeded.append(run(pipe, lambda: {"generator": None}))
        np.testing.assert_allclose(unseeded[1], unseeded[0], atol=TOLERANCE)
        generators = lambda: [seeded(3), seeded(4)]  # noqa: E731
        both = run(pair[1], lambda: {"num_videos_per_prompt": 2, "generator": generators()})
        alone = [run(pair[1], lambda own=own: {"generator": own}) for own in generators()]
        np.testing.assert_allclose(both, np.concatenate(alone), atol=TOLERANCE)
    finally:
        for pipe, bias in zip(pair, biases, strict=True):
            with torch.no_grad():
                pipe.vae.quant_conv.bias.copy_(bias)


def test_several_videos_of_several_pictures(pair: tuple[Any, Any]) -> None:
    """Each video reads its own picture; the reference's latents are those of the pictures in turn."""
    assert deviation(f"pipelines/{NAME}/several videos of several pictures")
    pictures = [photo(), photo(seed=1)]
    make: Case = lambda: {  # noqa: E731
        "prompt": ["a ball", "a cube"],
        "image": pictures,
        "num_videos_per_prompt": 2,
        "generator": [seeded(n) for n in range(4)],
    }
    theirs, ours = (run(pipe, make) for pipe in pair)
    assert np.abs(theirs - ours).max() > 1e-3
    second = run(pair[1], lambda: {"prompt": "a ball", "generator": [seeded(1)]})
    np.testing.assert_allclose(ours[1:2], second, atol=TOLERANCE)


def test_pictures_that_are_scaled(pair: tuple[Any, Any]) -> None:
    """A picture covers the frame; rounding leaves the reference's a pixel short, and a black line."""
    assert deviation(f"pipelines/{NAME}/scaled picture")
    white = Image.new("RGB", (60, 40), "white")
    scale = min(60 / 24, 40 / 24)
    assert round(40 // scale) == 23
    call: Case = lambda: {"image": white, "height": 24, "width": 24}  # noqa: E731
    theirs, ours = (run(pipe, call) for pipe in pair)
    assert np.abs(theirs - ours).max() > 1e-3
    larger = run(pair[1], lambda: {"image": white.resize((48, 48)), "height": 24, "width": 24})
    np.testing.assert_allclose(ours, larger, atol=TOLERANCE)
    mixed = lambda: {"prompt": ["a", "b"], "image": [photo(), photo(96, 96, seed=1)]}  # noqa: E731
    assert deviation(f"pipelines/{NAME}/pictures of several sizes")
    theirs, ours = (run(pipe, mixed) for pipe in pair)
    np.testing.assert_allclose(theirs[:1], ours[:1], atol=TOLERANCE)
    assert np.abs(theirs - ours)[1].max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"image": None}, "image is not given"),
        ({"image": np.zeros((8, 8, 3))}, "PIL image, a tensor"),
        ({"image": torch.zeros(1, 4, 8, 8)}, r"\(1, 4|\[1, 4"),
        ({"image": [photo()] * 2}, "2 pictures to start from for 1"),
        ({"target_fps": 0}, "target_fps.*0"),
        ({"height": 20}, "height.*20"),
        ({"num_frames": 0}, "num_frames.*0"),
        ({"decode_chunk_size": 0}, "decode_chunk_size.*0"),
        ({"clip_skip": 9}, "clip_skip is 9"),
    ],
)
def test_refused(pair: tuple[Any, Any], arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        run(pair[1], lambda: arguments)


UNETS: dict[str, dict[str, Any]] = {
    "tiny": {"num_attention_heads": 64},
    "three levels": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        "layers_per_block": 2,
    },
    "odd": {"in_channels": 5, "out_channels": 3, "attention_head_dim": 16},
}


def told(model: Any, frames: int = 3, height: int = 8, width: int = 12) -> dict[str, Any]:
    return {
        "sample": noise(2, model.config.in_channels, frames, height, width),
        "timestep": torch.tensor([5, 700]),
        "fps": torch.tensor([16, 8]),
        "image_latents": noise(2, 4, frames, height, width, seed=1),
        "image_embeddings": noise(2, 1, WIDTH, seed=2),
        "encoder_hidden_states": noise(2, 5, WIDTH, seed=3),
    }


@pytest.mark.parametrize("changes", UNETS.values(), ids=UNETS)
def test_unet(changes: dict[str, Any]) -> None:
    """Numbers and gradients, of any size."""
    theirs = randomise(diffusers.I2VGenXLUNet(**UNET | changes), 3)
    ours = calotype.I2VGenXLUNet(**UNET | changes).eval()
    ours.load_state_dict(theirs.state_dict())
    for size in ({}, {"height": 9, "width": 7, "frames": 1}):
        outputs = [model(**told(model, **size)).sample for model in (theirs, ours)]
        assert outputs[0].std() > 0.1
        torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    for output in outputs:
        (output * noise(*output.shape, seed=9)).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-4 * largest, name


def test_published_shapes() -> None:
    """In the size of the published checkpoint every weight has its name and shape."""
    with torch.device("meta"):
        ours, theirs = (library.I2VGenXLUNet(num_attention_heads=64).state_dict() for library in LIBRARIES)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fps": torch.tensor([16])}, r"fps must be \(2,\)"),
        ({"image_latents": torch.zeros(2, 4, 2, 8, 12)}, "image_latents must be"),
        ({"image_embeddings": None}, "image_embeddings must be"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 8)}, "encoder_hidden_states must be"),
        ({"timestep_cond": torch.zeros(2, 8)}, "timestep_cond"),
    ],
)
def test_unet_refuses(changes: dict[str, Any], says: str) -> None:
    model = calotype.I2VGenXLUNet(**UNET)
    with pytest.raises(InputError, match=says):
        model(**told(model) | changes)
