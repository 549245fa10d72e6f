"""Text2Video-Zero against the reference: the same files, arguments and draws, the same frames."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from calotype.diffusion.inputs import Drift
from calotype.diffusion.tasks.zero_shot import shift
from calotype.nn.attention import Attention
from calotype.nn.cross_frame import CrossFrame
from calotype.pipelines.outputs import TextToVideoPipelineOutput, TextToVideoSDXLPipelineOutput
from tests.parity.deviations import deviation
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.tiny import randomise, stable_diffusion_parts, stable_diffusion_xl_parts

LIBRARIES = (diffusers, calotype)
PLAIN, XL = "TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    root = tmp_path_factory.mktemp("models")
    parts = {
        PLAIN: stable_diffusion_parts(diffusers, root / "sd-parts") | {"requires_safety_checker": False},
        XL: stable_diffusion_xl_parts(diffusers, root / "xl-parts"),
    }
    found = {}
    for name, made in parts.items():
        made["scheduler"] = diffusers.DDIMScheduler.from_config(made["scheduler"].config, clip_sample=False)
        getattr(diffusers, name)(**made).save_pretrained(root / name)
        # the reference cannot load what it saved without a safety checker unless it is told so again
        without = {part: None for part in ("safety_checker", "feature_extractor") if part in made}
        loaded = [
            quiet(library.DiffusionPipeline.from_pretrained(root / name, **more))
            for library, more in zip(LIBRARIES, (without, {}), strict=True)
        ]
        assert type(loaded[0]) is getattr(diffusers, name) and type(loaded[1]) is getattr(calotype, name)
        found[name] = (loaded[0], loaded[1])
    return found


def noise(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def run(pipe: Any, make: Case) -> Any:
    arguments = {
        "prompt": "a red ball",
        "video_length": 3,
        "num_inference_steps": 4,
        "t0": 1,
        "t1": 2,
        "height": 32,
        "width": 48,
        # the field has 512 pixels a side, and the latents have 4 and 6
        "motion_field_strength_x": 90,
        "motion_field_strength_y": -130,
        **make(),
    }
    arguments.setdefault("generator", seeded())
    return pipe(**arguments)[0]


def flat(images: Any) -> np.ndarray:
    if isinstance(images, list):
        return np.stack([np.asarray(image) for image in images]) / 255
    return images.float().numpy() if isinstance(images, torch.Tensor) else images


def compare(two: tuple[Any, Any], make: Case) -> None:
    theirs, ours = (run(pipe, make) for pipe in two)
    assert type(theirs) is type(ours)
    expected, found = flat(theirs), flat(ours)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.isfinite(expected).all() and expected.std() > 0.01
    if len(expected) > 1:
        assert np.abs(expected[1:] - expected[:1]).max() > 0.01
    tolerance = 1.01 / 255 if isinstance(theirs, list) else TOLERANCE
    np.testing.assert_allclose(found, expected, atol=tolerance * max(1.0, float(expected.std())), rtol=0)


BOTH: dict[str, Case] = {
    "plain": dict,
    "one frame": lambda: {"video_length": 1},
    "numbered frames": lambda: {"frame_ids": [0, 3, 5]},
    "from the start": lambda: {"t1": 3},
    "to the end": lambda: {"t0": 0, "t1": 2},
    "noise of steps": lambda: {"eta": 0.6},
    "latents": lambda: {"latents": noise(1, 4, 4, 6)},
    "negative": lambda: {"negative_prompt": "night", "guidance_scale": 4.0},
    "usual size": lambda: {"height": None, "width": None},
    "more steps": lambda: {"num_inference_steps": 8, "t0": 4, "t1": 6, "video_length": 2},
}
ONLY: dict[str, dict[str, Case]] = {
    PLAIN: {"latent output": lambda: {"output_type": "latent", "return_dict": False}},
    XL: {
        "two prompts": lambda: {"prompt_2": "a cube", "negative_prompt_2": "day", "negative_prompt": "night"},
        "sizes": lambda: {
            "original_size": (64, 96),
            "target_size": (32, 32),
            "crops_coords_top_left": (4, 8),
        },
        "embeddings": lambda: {
            "prompt": None,
            "prompt_embeds": noise(1, 16, 64),
            "negative_prompt_embeds": noise(1, 16, 64, seed=6),
            "pooled_prompt_embeds": noise(1, 512, seed=7),
            "negative_pooled_prompt_embeds": noise(1, 512, seed=8),
        },
        "end": lambda: {"denoising_end": 0.8},
        "pictures": lambda: {"output_type": "pil"},
        "tensors": lambda: {"output_type": "pt"},
    },
}
CASES = [(PLAIN, case) for case in (*BOTH, *ONLY[PLAIN])]
CASES += [(XL, case) for case in ("plain", "numbered frames", "noise of steps", *ONLY[XL])]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_same_frames(pairs: dict[str, tuple[Any, Any]], name: str, case: str) -> None:
    compare(pairs[name], {**BOTH, **ONLY[name]}[case])


def with_scheduler(two: tuple[Any, Any], name: str) -> Any:
    """Both pipelines with another scheduler, as copies that share their models."""
    pipes = []
    for library, pipe in zip(LIBRARIES, two, strict=True):
        scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        components = {**pipe.components, "scheduler": scheduler}
        more = {"requires_safety_checker": False} if "safety_checker" in components else {}
        pipes.append(quiet(type(pipe)(**components, **more)))
    return pipes[0], pipes[1]


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
def test_other_schedulers(pairs: dict[str, tuple[Any, Any]], name: str) -> None:
    """What a multistep solver remembers of the first frame goes with it; noise is drawn in order."""
    compare(with_scheduler(pairs[PLAIN], name), lambda: {"num_inference_steps": 6, "t1": 3})


def test_callback(pairs: dict[str, tuple[Any, Any]]) -> None:
    """It is told of each part of the way, counted anew."""
    seen: tuple[list[Any], list[Any]] = ([], [])
    for pipe, calls in zip(with_scheduler(pairs[PLAIN], "PNDMScheduler"), seen, strict=True):
        record = lambda step, timestep, latents, calls=calls: calls.append((step, int(timestep), latents))  # noqa: E731
        run(
            pipe,
            lambda record=record: {
                "callback": record,
                "callback_steps": 2,
                "num_inference_steps": 6,
                "t0": 2,
                "t1": 4,
            },
        )
    assert [call[:2] for call in seen[0]] == [call[:2] for call in seen[1]] and len(seen[0]) > 3
    for (*_, expected), (*_, found) in zip(*seen, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [PLAIN, XL])
@pytest.mark.parametrize("method", ["__init__", "__call__"])
def test_signature(name: str, method: str) -> None:
    theirs, ours = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        ]
        for library in LIBRARIES
    )
    assert ours == theirs


def test_results(pairs: dict[str, tuple[Any, Any]]) -> None:
    for name, kind in ((PLAIN, TextToVideoPipelineOutput), (XL, TextToVideoSDXLPipelineOutput)):
        short = {"video_length": 2, "num_inference_steps": 2, "t0": 0, "t1": 1, "height": 32, "width": 32}
        result = pairs[name][1]("a ball", **short, output_type="pil")
        assert type(result) is kind and [image.size for image in result.images] == [(32, 32)] * 2
        assert isinstance(result.images[0], Image.Image)
    assert deviation(f"pipelines/{PLAIN}/output_type=pil")
    assert isinstance(run(pairs[PLAIN][0], lambda: {"output_type": "pil"}), np.ndarray)


def test_nothing_stays_in_the_model(pairs: dict[str, tuple[Any, Any]]) -> None:
    ours = pairs[PLAIN][1]
    before = ours.unet.attn_processors
    plan = run(ours, dict)
    assert ours.unet.attn_processors == before
    np.testing.assert_array_equal(run(ours, dict), plan)


# -- where the reference differs --------------------------------------------------------------------------------------


def test_without_guidance(pairs: dict[str, tuple[Any, Any]]) -> None:
    """The frames still see the first one: its picture is what it is alone."""
    unguided = lambda: {"guidance_scale": 1.0}  # noqa: E731
    for name in (PLAIN, XL):
        assert deviation(f"pipelines/{name}/guidance_scale=1")
        theirs, ours = pairs[name]
        video = run(ours, unguided)
        if name == PLAIN:
            processors = theirs.unet.attn_processors
            with pytest.raises(TypeError):
                run(theirs, unguided)
            theirs.unet.set_attn_processor(processors)
        else:
            assert np.abs(run(theirs, unguided) - video).max() > 1e-3
            continue
        alone = run(ours, lambda: {**unguided(), "video_length": 1})
        np.testing.assert_allclose(video[:1], alone, atol=TOLERANCE)
        assert np.abs(video[1:] - alone).max() > 0.01
        same = run(ours, lambda: {"guidance": calotype.guidance.ClassifierFree(7.5)})
        np.testing.assert_allclose(same, run(ours, dict), atol=1e-6)


def test_guidance_in_a_part_of_the_way(pairs: dict[str, tuple[Any, Any]]) -> None:
    """A part of the way is one of the whole, also where it is gone in pieces."""
    ours = pairs[PLAIN][1]
    seen = []
    value = calotype.guidance.Interval(calotype.guidance.ClassifierFree(7.5), 0.0, 0.5)
    hook = ours.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0])), with_kwargs=True
    )
    try:
        run(ours, lambda: {"guidance": value, "num_inference_steps": 6, "t0": 2, "t1": 4})
    finally:
        hook.remove()
    # one step to t1 = 4 and two to t0 = 2 for one picture; then five for three frames, the first two in the first half
    assert seen == [2, 2, 2, 6, 6, 3, 3, 3]


def test_perturbed_attention_beside(pairs: dict[str, tuple[Any, Any]]) -> None:
    """The branch whose attention is perturbed is split off before frames see the first one."""
    ours = pairs[PLAIN][1]
    both = calotype.guidance.ClassifierFree(7.5) + calotype.guidance.PerturbedAttention(3.0)
    made = [run(ours, lambda n=n: {"guidance": both, "video_length": n}) for n in (3, 1)]
    np.testing.assert_allclose(made[0][:1], made[1], atol=TOLERANCE)
    assert np.abs(made[1] - run(ours, lambda: {"video_length": 1})).max() > 1e-3


def test_rescaled_guidance(pairs: dict[str, tuple[Any, Any]]) -> None:
    assert deviation(f"pipelines/{XL}/guidance_rescale")
    short = {"num_inference_steps": 2, "t0": 0, "t1": 1, "video_length": 1}
    theirs, ours = (
        [run(pipe, lambda r=r: {**short, "guidance_rescale": r}) for r in (0.0, 0.7)] for pipe in pairs[XL]
    )
    np.testing.assert_array_equal(*theirs)
    assert np.abs(ours[0] - ours[1]).max() > 1e-3


def test_latents_that_explode(pairs: dict[str, tuple[Any, Any]]) -> None:
    """With Euler the frames are what they are with DDIM, whose steps are the same in other coordinates."""
    assert deviation(f"pipelines/{XL}/scheduler=Euler")
    two = with_scheduler(pairs[XL], "EulerDiscreteScheduler")
    short = {"num_inference_steps": 10, "t0": 3, "t1": 6, "video_length": 2, "output_type": "latent"}
    theirs, ours = (run(pipe, lambda: short) for pipe in two)
    assert (theirs - ours).abs().max() > 0.1
    near = run(pairs[XL][1], lambda: short)
    # both are of first order, and differ in the levels between which they step
    assert (ours - near).abs().mean() < 0.1 * (theirs - near).abs().mean()


def test_shifted_latents_are_the_papers() -> None:
    """By whole latents, and mirrored at the edges."""
    latents = torch.arange(64.0).view(1, 1, 8, 8)
    drift = Drift(video_length=3, motion_field_strength_x=64, motion_field_strength_y=128)
    one, two = shift(latents, drift)
    torch.testing.assert_close(one[0, :6, :7], latents[0, 0, 2:, 1:])
    torch.testing.assert_close(two[0, :4, :6], latents[0, 0, 4:, 2:])
    torch.testing.assert_close(one[0, 6:, 0], latents[0, 0, 6:, 1].flip(0))


def test_frames_see_the_first() -> None:
    """Attention of each frame to the first, with fused projections too; attention to a context is as it was."""
    layer = randomise(Attention(8, heads=2, dim_head=4))
    tokens, across = noise(6, 5, 8), CrossFrame(3)
    with torch.no_grad():
        firsts = tokens[[0, 0, 0, 3, 3, 3]]
        expected = layer(tokens, encoder_hidden_states=firsts)
        torch.testing.assert_close(layer(tokens, cross_frame=across), expected)
        layer.fuse_projections()
        torch.testing.assert_close(layer(tokens, cross_frame=across), expected)
        context = randomise(Attention(8, cross_attention_dim=6, heads=2, dim_head=4))
        read = noise(6, 4, 6)
        torch.testing.assert_close(context(tokens, read, cross_frame=across), context(tokens, read))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"video_length": 0}, "video_length.*0"),
        ({"frame_ids": [0, 1]}, "2 frame_ids for a video_length of 3"),
        ({"t0": 2}, "t0=2 must be below t1=2"),
        ({"t0": -1}, "t0 must be"),
        ({"t1": 4}, "t1=4 is not below num_inference_steps=4"),
        ({"prompt": ["a", "b"]}, "one video a call, not 2"),
        ({"num_videos_per_prompt": 3}, "one video a call, not 3"),
        ({"video_length": 10_000, "height": 1024, "width": 1024}, "pixels"),
        ({"height": 30}, "height.*30"),
        ({"motion_field_strength_x": float("nan")}, "motion_field_strength_x"),
    ],
)
def test_refused(pairs: dict[str, tuple[Any, Any]], arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        run(pairs[PLAIN][1], lambda: arguments)


def test_refused_ways(pairs: dict[str, tuple[Any, Any]]) -> None:
    with pytest.raises(InputError, match="denoising_end"):
        run(pairs[XL][1], lambda: {"denoising_end": 0.2})
    with pytest.raises(InputError, match="HeunDiscreteScheduler predicts 2 times"):
        run(with_scheduler(pairs[PLAIN], "HeunDiscreteScheduler")[1], dict)
