"""AnimateDiff beyond text to video, FreeInit and FreeNoise, against the reference."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.core.errors import InputError
from tests.parity.deviations import deviation
from tests.parity.packs import packed
from tests.parity.pipeline_runs import TOLERANCE, Case, quiet, seeded
from tests.parity.video_runs import ADAPTER, as_array, clip
from tests.tiny import randomise, stable_diffusion_folder, stable_diffusion_xl_folder

LIBRARIES = (diffusers, calotype)
TEXT, XL = "AnimateDiffPipeline", "AnimateDiffSDXLPipeline"
VIDEO, STEERED = "AnimateDiffVideoToVideoPipeline", "AnimateDiffControlNetPipeline"
STEERED_VIDEO, SPARSE = "AnimateDiffVideoToVideoControlNetPipeline", "AnimateDiffSparseControlNetPipeline"
PERTURBED = "AnimateDiffPAGPipeline"
NAMES = (VIDEO, STEERED, STEERED_VIDEO, SPARSE, PERTURBED, XL)
LENGTH = 4

pytestmark = pytest.mark.filterwarnings("ignore")

SPARSE_NET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "motion_num_attention_heads": 2,
    "conditioning_embedding_out_channels": (4, 4, 8, 8),
}
ON_PICTURES = {"use_simplified_condition_embedding": False, "conditioning_channels": 3}
NETS = {"latents": {}, "pictures": {**ON_PICTURES, "concat_conditioning_mask": False}}


def frames(count: int = LENGTH, seed: int = 5) -> list[Image.Image]:
    return [Image.fromarray((frame * 255).astype(np.uint8)) for frame in as_array(clip(count, seed=seed))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of Stable Diffusion and XL, motion for both, and ControlNets."""
    root = tmp_path_factory.mktemp("models")
    stable_diffusion_folder(root / "plain", diffusers)
    stable_diffusion_xl_folder(root / "xl", diffusers)
    randomise(diffusers.MotionAdapter(**ADAPTER), 5).save_pretrained(root / "motion")
    unet = diffusers.UNet2DConditionModel.from_pretrained(root / "plain", subfolder="unet")
    for number in range(2):
        net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
        randomise(net, 20 + number).save_pretrained(root / f"net-{number}")
    for name, changes in NETS.items():
        randomise(diffusers.SparseControlNetModel(**SPARSE_NET | changes), 30).save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def models(root: Path) -> dict[str, Any]:
    """What the two libraries' pipelines share among themselves."""
    found: dict[str, Any] = {}
    for library in LIBRARIES:
        motion = library.MotionAdapter.from_pretrained(root / "motion")
        text = library.AnimateDiffPipeline.from_pretrained(root / "plain", motion_adapter=motion)
        # the reference draws the latents of sparse control pictures without the generator: none are drawn here
        with torch.no_grad():
            text.vae.quant_conv.weight[4:], text.vae.quant_conv.bias[4:] = 0.0, -60.0
        text.scheduler = library.DDIMScheduler.from_config(text.scheduler.config, clip_sample=False)
        nets = [library.ControlNetModel.from_pretrained(root / f"net-{n}") for n in range(2)]
        sparse = {name: library.SparseControlNetModel.from_pretrained(root / name) for name in NETS}
        xl = library.AnimateDiffSDXLPipeline.from_pretrained(root / "xl", motion_adapter=motion)
        xl.scheduler = library.DDIMScheduler.from_config(xl.scheduler.config, clip_sample=False)
        if library is diffusers:  # its from_unet2d leaves these out
            unet = diffusers.UNet2DConditionModel.from_pretrained(root / "xl", subfolder="unet")
            xl.unet.add_embedding.load_state_dict(unet.add_embedding.state_dict())
        found[library.__name__] = {"parts": text.components, "nets": nets, "sparse": sparse, "xl": xl}
    return found


def made(models: dict[str, Any], library: Any, name: str, nets: Any = 1) -> Any:
    """A pipeline of one library; ``nets`` are how many ControlNets, or which sparse one."""
    own = models[library.__name__]
    if name == XL:
        return quiet(own["xl"])
    parts = dict(own["parts"])
    if name == SPARSE:
        parts["controlnet"] = own["sparse"]["latents" if nets == 1 else nets]
    elif "ControlNet" in name:
        parts["controlnet"] = own["nets"][0] if nets == 1 else own["nets"]
    return quiet(getattr(library, name)(**parts))


@pytest.fixture
def pair(models: dict[str, Any]) -> Iterator[Any]:
    """Makes the pipeline of a name of both; what is enabled in them ends with the test."""
    pipes: list[Any] = []

    def make(name: str, nets: Any = 1) -> tuple[Any, Any]:
        two = [made(models, library, name, nets) for library in LIBRARIES]
        pipes.extend(two)
        return two[0], two[1]

    yield make
    for pipe in pipes:
        pipe.disable_free_init()
        if hasattr(pipe, "disable_free_noise"):
            pipe.disable_free_noise()


def arguments(name: str, nets: Any, make: Case) -> dict[str, Any]:
    """What the task takes, and the case's own arguments."""
    found: dict[str, Any] = {"prompt": "a red ball", "num_inference_steps": 3, "output_type": "np"}
    found |= {"video": frames()} if "Video" in name else {"num_frames": LENGTH}
    if name == SPARSE:
        found |= {"conditioning_frames": frames(2, 7), "controlnet_frame_indices": [0, 2]}
    elif "ControlNet" in name:
        found["conditioning_frames"] = frames(seed=7) if nets == 1 else [frames(seed=7), frames(seed=8)]
    return {"generator": seeded(), **found, **make()}


def videos(pipe: Any, name: str, make: Case, nets: Any = 1) -> np.ndarray:
    found = pipe(**arguments(name, nets, make))[0]
    return found.numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


def compare(two: tuple[Any, Any], name: str, make: Case = dict, nets: Any = 1) -> np.ndarray:
    expected, found = (videos(pipe, name, make, nets) for pipe in two)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, float(expected.std())), rtol=0)
    return found


COMMON: dict[str, Case] = {
    "plain": dict,
    "no guidance, latents out": lambda: {"guidance_scale": 1.0, "output_type": "latent"},
    "other size": lambda: {"height": 48, "width": 80, "negative_prompt": "night", "eta": 0.6},
}
PARTLY = {"control_guidance_start": 0.3, "control_guidance_end": 0.8, "controlnet_conditioning_scale": 0.6}
OWN: dict[str, dict[str, Case]] = {
    VIDEO: {
        "parts": lambda: {"decode_chunk_size": 3, "strength": 0.5},
        "enforced": lambda: {"enforce_inference_steps": True, "strength": 0.6},
        "latents": lambda: {"video": None, "latents": torch.randn(1, 4, 3, 8, 8, generator=seeded(6))},
        "batch": lambda: {
            "prompt": ["a ball", "a cube"],
            "video": [frames(3), frames(3, 9)],
            "generator": [seeded(1), seeded(2)],
        },
        "batch by one": lambda: {"prompt": ["a ball", "a cube"], "video": [frames(3), frames(3, 9)]},
    },
    STEERED: {
        "a part of the way": lambda: dict(PARTLY),
        "guess": lambda: {"guess_mode": True, "guidance_scale": 1.0},
        "arrays": lambda: {"conditioning_frames": list(as_array(clip(LENGTH)))},
    },
    STEERED_VIDEO: {
        "enforced, a part of the way": lambda: {**PARTLY, "enforce_inference_steps": True, "strength": 0.5},
    },
    SPARSE: {
        "guess": lambda: {"guess_mode": True, "guidance_scale": 1.0},
        "strength": lambda: {"controlnet_conditioning_scale": 0.4, "controlnet_frame_indices": [3, 1]},
        "batch": lambda: {"prompt": ["a ball", "a cube"]},
        "one picture": lambda: {"conditioning_frames": frames()[0], "controlnet_frame_indices": [0]},
    },
    PERTURBED: {"adaptive": lambda: {"pag_scale": 2.0, "pag_adaptive_scale": 0.002}},
    XL: {
        "two prompts": lambda: {"prompt_2": "a cube", "negative_prompt": "night", "guidance_rescale": 0.4},
        "sizes": lambda: {"original_size": (30, 40), "crops_coords_top_left": (3, 4), "denoising_end": 0.7},
    },
}
PACKED = {name: packed({**COMMON, **OWN[name]}) for name in NAMES}
CASES = [(name, case) for name in NAMES for case in PACKED[name]]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_calls(pair: Any, name: str, case: str) -> None:
    compare(pair(name), name, PACKED[name][case])


@pytest.mark.parametrize("name", [STEERED, STEERED_VIDEO])
def test_two_networks(pair: Any, name: str) -> None:
    make = lambda: {"controlnet_conditioning_scale": [0.5, 1.2], "control_guidance_end": [0.7, 1.0]}  # noqa: E731
    compare(pair(name, 2), name, make, 2)


def test_sparse_pictures(pair: Any) -> None:
    """A network that reads pictures, and is not told where they are."""
    compare(pair(SPARSE, "pictures"), SPARSE, nets="pictures")


def test_perturbed_layers(pair: Any) -> None:
    """Also those along time."""
    two = pair(PERTURBED)
    for pipe in two:
        pipe.set_pag_applied_layers("down_blocks.*motion.*attn1")
    compare(two, PERTURBED)


# -- FreeInit ------------------------------------------------------------------------------------------------------

FREE_INIT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "butterworth": (TEXT, {"num_iters": 2}, {}),
    "gaussian": (TEXT, {"num_iters": 2, "method": "gaussian", "spatial_stop_frequency": 0.4}, {}),
    "ideal": (TEXT, {"num_iters": 2, "method": "ideal", "temporal_stop_frequency": 0.6}, {}),
    "nothing stays": (TEXT, {"num_iters": 2, "spatial_stop_frequency": 0.0}, {}),
    "fast": (TEXT, {"use_fast_sampling": True, "order": 2}, {"num_inference_steps": 4}),
    "video": (VIDEO, {"num_iters": 2}, {"strength": 1.0}),
    "steered": (STEERED, {"use_fast_sampling": True}, {"control_guidance_start": 0.4}),
    "sparse": (SPARSE, {"num_iters": 2}, {}),
    "xl": (XL, {"num_iters": 2}, {}),
}


@pytest.mark.parametrize("case", FREE_INIT)
def test_free_init(pair: Any, case: str) -> None:
    name, options, given = FREE_INIT[case]
    two = pair(name)
    for pipe in two:
        assert not pipe.free_init_enabled
        pipe.enable_free_init(**options)
        assert pipe.free_init_enabled
    compare(two, name, lambda: dict(given))


@pytest.mark.parametrize("name", [TEXT, STEERED_VIDEO])
def test_free_init_changes_the_video_until_it_is_disabled(pair: Any, name: str) -> None:
    pipe = pair(name)[1]
    make = lambda: {"num_inference_steps": 2, "output_type": "latent"}  # noqa: E731
    once = videos(pipe, name, make)
    pipe.enable_free_init(num_iters=2)
    assert np.abs(videos(pipe, name, make) - once).max() > 0.01
    pipe.disable_free_init()
    np.testing.assert_array_equal(videos(pipe, name, make), once)


def test_free_init_part_of_the_way(pair: Any) -> None:
    """Each sampling goes the same part of the way; in the reference the next goes a part of that."""
    assert deviation(f"pipelines/{VIDEO}/free_init;strength=0.7")
    two = pair(VIDEO)
    counts: list[list[int]] = []
    for pipe in two:
        pipe.enable_free_init(num_iters=2, method="gaussian")
        counts.append([])

        def count(running: Any, index: int, *_: Any, seen: list[int] = counts[-1]) -> dict[str, Any]:
            seen.append(index)
            return {}

        videos(
            pipe,
            VIDEO,
            lambda f=count: {"strength": 0.7, "num_inference_steps": 4, "callback_on_step_end": f},
        )
    assert counts == [[0], [0, 1] * 2]


def test_free_init_ends_where_it_is_told_to(pair: Any) -> None:
    pipe = pair(TEXT)[1]
    pipe.enable_free_init(num_iters=3)
    seen = []

    def stop(running: Any, index: int, *_: Any) -> dict[str, Any]:
        seen.append(index)
        running._interrupt = len(seen) == 4
        return {}

    videos(pipe, TEXT, lambda: {"callback_on_step_end": stop})
    assert seen == [0, 1, 2, 0]


def test_free_init_with_levels_of_its_own(pair: Any, models: dict[str, Any]) -> None:
    """The first level is in the noise once; the reference multiplies by it twice, or finds no level."""
    assert deviation(f"pipelines/{TEXT}/free_init;scheduler=Euler")
    theirs, ours = pair(TEXT)
    made = []
    for spacing in ("linspace", "leading"):
        ours.scheduler = calotype.EulerDiscreteScheduler.from_config(
            ours.scheduler.config, timestep_spacing=spacing
        )
        once = videos(ours, TEXT, lambda: {"output_type": "latent"})
        ours.enable_free_init(num_iters=2)
        made.append(videos(ours, TEXT, lambda: {"output_type": "latent"}))
        ours.disable_free_init()
        assert 0.5 < made[-1].std() / once.std() < 2
    theirs.scheduler = diffusers.EulerDiscreteScheduler.from_config(
        theirs.scheduler.config, timestep_spacing="linspace"
    )
    theirs.enable_free_init(num_iters=2)
    assert np.abs(videos(theirs, TEXT, lambda: {"output_type": "latent"}) - made[0]).max() > 1


# -- FreeNoise -----------------------------------------------------------------------------------------------------

FREE_NOISE: dict[str, tuple[str, dict[str, Any], Case]] = {
    "shuffled": (TEXT, {}, lambda: {"num_frames": 9}),
    "shuffled, cut": (TEXT, {"context_length": 5, "context_stride": 3}, lambda: {"num_frames": 9}),
    "repeated, given": (
        TEXT,
        {"noise_type": "repeat_context", "weighting_scheme": "flat"},
        lambda: {"num_frames": 6, "latents": torch.randn(1, 4, LENGTH, 8, 8, generator=seeded(3))},
    ),
    "random, flat": (TEXT, {"noise_type": "random", "weighting_scheme": "flat"}, lambda: {"num_frames": 7}),
    "delayed": (TEXT, {"weighting_scheme": "delayed_reverse_sawtooth"}, lambda: {"num_frames": 7}),
    "one window": (TEXT, {}, dict),
    "all given": (
        TEXT, {}, lambda: {"num_frames": 6, "latents": torch.randn(1, 4, 6, 8, 8, generator=seeded(3))}
    ),
    "prompts": (
        TEXT,
        {},
        lambda: {"num_frames": 6, "prompt": {3: "a cube", 0: "a ball"}, "negative_prompt": {0: "day", 5: "night"}},
    ),
    "prompts alone": (
        TEXT, {}, lambda: {"num_frames": 6, "prompt": {0: "a ball", 5: "a cube"}, "guidance_scale": 1.0}
    ),
    "video": (VIDEO, {}, lambda: {"video": frames(6), "prompt": {0: "a ball", 2: "a cube"}}),
    "steered": (
        STEERED,
        {},
        lambda: {"num_frames": 6, "conditioning_frames": frames(6), "prompt": {0: "a ball", 2: "a cube"}},
    ),
    "steered video": (
        STEERED_VIDEO, {}, lambda: {"video": frames(6), "conditioning_frames": frames(6, 8), "strength": 0.7}
    ),
    "perturbed": (PERTURBED, {}, lambda: {"num_frames": 6}),
}  # fmt: skip
WINDOWS = {"context_length": LENGTH, "context_stride": 2}


@pytest.mark.parametrize("case", FREE_NOISE)
def test_free_noise(pair: Any, case: str) -> None:
    name, options, make = FREE_NOISE[case]
    two = pair(name)
    for pipe in two:
        assert not pipe.free_noise_enabled
        pipe.enable_free_noise(**WINDOWS | options)
        assert pipe.free_noise_enabled
    compare(two, name, make)


def test_noise_that_is_repeated(pair: Any) -> None:
    """As if the first window's were given; the reference then draws noise of its own for all frames."""
    assert deviation(f"pipelines/{TEXT}/free_noise;noise_type=repeat_context")
    theirs, ours = pair(TEXT)
    for pipe in (theirs, ours):
        pipe.enable_free_noise(**WINDOWS, noise_type="repeat_context")
    noise = torch.randn(1, 4, LENGTH, 8, 8, generator=seeded())
    expected = videos(theirs, TEXT, lambda: {"num_frames": 9, "latents": noise})
    np.testing.assert_allclose(videos(ours, TEXT, lambda: {"num_frames": 9}), expected, atol=TOLERANCE)
    assert np.abs(videos(theirs, TEXT, lambda: {"num_frames": 9}) - expected).max() > 0.01


def test_both_at_once(pair: Any) -> None:
    two = pair(TEXT)
    for pipe in two:
        pipe.enable_free_noise(**WINDOWS)
        pipe.enable_free_init(num_iters=2)
    compare(two, TEXT, lambda: {"num_frames": 6})


def test_own_interpolation(pair: Any) -> None:
    """It is asked for what lies between two prompts; and for a text alone, too."""
    two = pair(TEXT)
    seen: list[list[tuple[int, int]]] = []
    for pipe in two:
        calls: list[tuple[int, int]] = []

        def step(
            first: int, last: int, start: torch.Tensor, end: torch.Tensor, calls: Any = calls
        ) -> torch.Tensor:
            calls.append((first, last))
            return torch.cat([start] * (last - first) + [end])

        pipe.enable_free_noise(**WINDOWS, prompt_interpolation_callback=step)
        seen.append(calls)
    compare(two, TEXT, lambda: {"num_frames": 6, "prompt": {0: "a ball", 2: "a cube"}})
    assert seen[0] == seen[1] == [(0, 2), (2, 5), (0, 5)]


@pytest.mark.parametrize("name", [TEXT, PERTURBED])
def test_split_inference(pair: Any, name: str) -> None:
    """Parts of frames and of pixels change nothing, also where guidance divides the batch."""
    theirs, ours = pair(name)
    theirs.unet = copy.deepcopy(theirs.unet)  # which it changes for good
    for pipe in (theirs, ours):
        pipe.enable_free_noise(**WINDOWS)
    whole = compare((theirs, ours), name, lambda: {"num_frames": 6})
    rows: list[int] = []
    resnet = ours.unet.down_blocks[0].resnets[0]
    watching = resnet.conv1.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    for pipe in (theirs, ours) if name == TEXT else (ours,):  # theirs loses what is perturbed
        pipe.enable_free_noise_split_inference(spatial_split_size=7, temporal_split_size=5)
    parts = compare((theirs, ours), name, lambda: {"num_frames": 6})
    watching.remove()
    assert max(rows) <= 5 and len(rows) > 3
    np.testing.assert_allclose(parts, whole, atol=TOLERANCE)
    ours.disable_free_noise()
    assert not any("forward" in module.__dict__ for module in ours.unet.modules())


def test_seeds_are_of_videos(pair: Any) -> None:
    """The second of two videos can be had again alone, its noise's order included."""
    pipe = pair(TEXT)[1]
    pipe.enable_free_noise(**WINDOWS)
    pipe.enable_free_init(num_iters=2)
    given = {"num_frames": 7, "prompt": {0: "a ball", 3: "a cube"}}
    both = videos(pipe, TEXT, lambda: {**given, "num_videos_per_prompt": 2, "generator": calotype.seeds(3)})
    alone = videos(pipe, TEXT, lambda: {**given, "generator": calotype.seeds(4)})
    np.testing.assert_allclose(both[1:], alone, atol=TOLERANCE)


# -- what differs, and what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [STEERED, STEERED_VIDEO, SPARSE])
def test_guess_mode_with_guidance(pair: Any, name: str) -> None:
    assert deviation(f"pipelines/{name}/guess_mode=True with guidance")
    theirs, ours = pair(name)
    with pytest.raises(RuntimeError):
        videos(theirs, name, lambda: {"guess_mode": True})
    plain = videos(ours, name, dict)
    assert np.abs(videos(ours, name, lambda: {"guess_mode": True}) - plain).max() > 0.01


def test_several_videos(pair: Any) -> None:
    """Of prompts with control pictures, where the reference fails; each is that of its prompt alone."""
    assert deviation(f"pipelines/{STEERED}/several prompts")
    theirs, ours = pair(STEERED)
    make = lambda: {"prompt": ["a ball", "a cube"], "generator": [seeded(1), seeded(2)]}  # noqa: E731
    with pytest.raises(RuntimeError):
        videos(theirs, STEERED, make)
    both = videos(ours, STEERED, make)
    alone = videos(ours, STEERED, lambda: {"prompt": "a cube", "generator": seeded(2)})
    np.testing.assert_allclose(both[1:], alone, atol=TOLERANCE)


def test_embeddings_of_sizes_are_kept(models: dict[str, Any], root: Path) -> None:
    assert deviation("unets/UNetMotionModel/from_unet2d;addition_embed_type=text_time")
    for library, kept in zip(LIBRARIES, (False, True), strict=True):
        unet = library.UNet2DConditionModel.from_pretrained(root / "xl", subfolder="unet")
        moving = library.UNetMotionModel.from_unet2d(unet)
        same = torch.equal(moving.add_embedding.linear_1.weight, unet.add_embedding.linear_1.weight)
        assert same is kept


@pytest.mark.parametrize(
    "method", ["__init__", "__call__", "encode_prompt", "enable_free_init", "enable_free_noise"]
)
@pytest.mark.parametrize("name", [*NAMES, TEXT])
def test_signature(name: str, method: str) -> None:
    if not hasattr(getattr(diffusers, name), method):
        assert not hasattr(getattr(calotype, name), method)
        return

    def shape(library: Any) -> list[tuple[Any, ...]]:
        parameters = inspect.signature(getattr(getattr(library, name), method)).parameters.values()
        return [
            (p.name, p.kind, tuple(p.default) if isinstance(p.default, list) else p.default)
            for p in parameters
        ]

    assert shape(calotype) == shape(diffusers)
    mine, other = (getattr(library, name) for library in LIBRARIES)
    assert mine.model_cpu_offload_seq == other.model_cpu_offload_seq
    assert sorted(mine._optional_components) == sorted(other._optional_components)


@pytest.mark.parametrize("name", [VIDEO, STEERED_VIDEO, SPARSE])
def test_files(models: dict[str, Any], name: str, tmp_path: Path) -> None:
    """What one saves the other loads."""
    two = [made(models, library, name) for library in LIBRARIES]
    for pipe, library in zip(two, reversed(LIBRARIES), strict=True):
        pipe.save_pretrained(tmp_path / library.__name__)
        loaded = quiet(library.DiffusionPipeline.from_pretrained(tmp_path / library.__name__))
        assert type(loaded) is getattr(library, name)
    compare((two[0], loaded), name)


REFUSED: dict[str, tuple[str, Case, str]] = {
    "texts by frame": (TEXT, lambda: {"prompt": {0: "a ball"}}, "needs FreeNoise"),
    "no start": (VIDEO, lambda: {"video": None}, "video is not given"),
    "two starts": (VIDEO, lambda: {"latents": torch.zeros(1, 4, 3, 8, 8)}, "Both video and latents"),
    "nothing to enforce": (VIDEO, lambda: {"strength": 0.0, "enforce_inference_steps": True}, "strength=0"),
    "a picture too few": (STEERED, lambda: {"conditioning_frames": frames(3)}, "3 pictures for 4 frames"),
    "no pictures": (STEERED_VIDEO, lambda: {"conditioning_frames": None}, "conditioning_frames is not given"),
    "a frame too far": (SPARSE, lambda: {"controlnet_frame_indices": [0, 4]}, "has 4; the frames"),
    "a frame too few": (SPARSE, lambda: {"controlnet_frame_indices": [0]}, "2 pictures in conditioning"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(pair: Any, case: str) -> None:
    name, make, says = REFUSED[case]
    with pytest.raises(InputError, match=says):
        videos(pair(name)[1], name, make)


def test_settings_without_meaning_are_refused(pair: Any) -> None:
    pipe = pair(TEXT)[1]
    cases: tuple[tuple[Any, str], ...] = (
        (lambda: pipe.enable_free_noise(context_length=40), "at most 24 frames"),
        (lambda: pipe.enable_free_noise(context_length=4, context_stride=5), "every 5 frames"),
        (lambda: pipe.enable_free_noise(weighting_scheme="steep"), "weighting.*'steep'|count as.*'steep'"),
        (lambda: pipe.enable_free_noise(noise_type="white"), "noise_type.*'white'"),
        (lambda: pipe.enable_free_noise_split_inference(temporal_split_size=0), "at least 1, not 0"),
        (lambda: pipe.enable_free_init(num_iters=0), "num_iters.*0"),
        (lambda: pipe.enable_free_init(method="box"), "method.*'box'"),
    )
    for call, says in cases:
        with pytest.raises(InputError, match=says):
            call()
    pipe.enable_free_noise(**WINDOWS)
    for prompt, says in (({1: "a"}, "no text for frame 0"), ({0: "a", 9: "b"}, "frame 9"), ({0: 3}, "text")):
        with pytest.raises(InputError, match=says):
            videos(pipe, TEXT, lambda prompt=prompt: {"prompt": prompt})


# -- SparseControlNetModel -----------------------------------------------------------------------------------------

SPARSE_MODELS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "not told where": {"concat_conditioning_mask": False},
    "on pictures": ON_PICTURES,
    "pooled, bgr": {
        "global_pool_conditions": True,
        "controlnet_conditioning_channel_order": "bgr",
        "conditioning_channels": 3,
    },
    "deep": {
        "transformer_layers_per_block": (1, 2),
        "temporal_transformer_layers_per_block": (2, 1),
        "transformer_layers_per_mid_block": 2,
        "num_attention_heads": (2, 8),
        "motion_num_attention_heads": (4, 2),
    },
    "other": {
        "use_linear_projection": True,
        "upcast_attention": True,
        "act_fn": "gelu",
        "norm_eps": 1e-4,
        "mid_block_scale_factor": 1.5,
        "downsample_padding": 0,
        "only_cross_attention": (True, False),
        "resnet_time_scale_shift": "scale_shift",
    },
}


@pytest.mark.parametrize("options", [{}, {"guess_mode": True, "conditioning_scale": 0.6}], ids=["", "guess"])
@pytest.mark.parametrize("name", SPARSE_MODELS)
def test_sparse_model(name: str, options: dict[str, Any]) -> None:
    config = SPARSE_NET | SPARSE_MODELS[name]
    theirs = randomise(diffusers.SparseControlNetModel(**config))
    ours = calotype.SparseControlNetModel(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    size = (8, 8) if config.get("use_simplified_condition_embedding", True) else (64, 64)
    shown = torch.randn(2, config.get("conditioning_channels", 4), 3, *size, generator=seeded(3))
    given = {
        "sample": torch.randn(2, 4, 3, 8, 8, generator=seeded(1)),
        "timestep": torch.tensor([5, 700]),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=seeded(2)).repeat_interleave(3, dim=0),
        "controlnet_cond": shown,
        "conditioning_mask": (shown[:, :1] > 0).float(),
        **options,
    }
    with torch.no_grad():
        expected, found = theirs(**given), ours(**given)
        given["encoder_hidden_states"] = given["encoder_hidden_states"][::3]
        by_video = ours(**given)
    assert len(expected.down_block_res_samples) == 4
    for one in (found, by_video):
        torch.testing.assert_close(
            [*one.down_block_res_samples, one.mid_block_res_sample],
            [*expected.down_block_res_samples, expected.mid_block_res_sample],
            atol=1e-5,
            rtol=1e-5,
        )


def test_sparse_model_of_a_unet(root: Path) -> None:
    made = []
    for library in LIBRARIES:
        unet = library.UNet2DConditionModel.from_pretrained(root / "plain", subfolder="unet")
        net = library.SparseControlNetModel.from_unet(unet)
        for key, value in unet.state_dict().items():
            if key in net.state_dict() and not key.startswith("conv_out"):
                torch.testing.assert_close(net.state_dict()[key], value)
        made.append({k: tuple(v) if isinstance(v, list) else v for k, v in net.config.items() if k[0] != "_"})
    assert made[0] == {name: made[1][name] for name in made[0]}


@pytest.mark.parametrize("method", ["__init__", "forward", "from_unet"])
def test_sparse_model_signature(method: str) -> None:
    theirs, ours = (
        [
            (p.name, p.kind, p.default)
            for p in inspect.signature(getattr(library.SparseControlNetModel, method)).parameters.values()
        ]
        for library in LIBRARIES
    )
    assert ours == theirs
