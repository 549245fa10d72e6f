"""LoRA weights beyond pictures of Stable Diffusion: every model that takes them, videos, Kandinsky, and training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

import calotype
from calotype.adapters.model import adapted_layers
from calotype.core.errors import InputError
from tests import tiny
from tests.parity import kandinsky_parts, lora_files, stable_video_parts, video_runs
from tests.parity.deviations import deviation
from tests.parity.pipeline_runs import arrays, compare, quiet, seeded

pytestmark = pytest.mark.filterwarnings("ignore")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


MODELS: dict[str, tuple[dict[str, Any], Callable[[Any], torch.Tensor]]] = {
    "UNet2DConditionModel": (tiny.UNET, lambda m: m(draw(1, 4, 8, 8), 5, draw(1, 6, 32)).sample),
    "UNetMotionModel": (
        video_runs.UNET_MOTION,
        lambda m: m(draw(1, 4, 3, 8, 8), 5, draw(3, 6, 32)).sample,
    ),
    "UNet3DConditionModel": (
        video_runs.UNET_3D,
        lambda m: m(draw(1, 4, 3, 8, 8), 5, draw(1, 6, 32)).sample,
    ),
    "UNetSpatioTemporalConditionModel": (
        next(iter(stable_video_parts.UNETS.values())),
        lambda m: (
            m(
                draw(1, 3, m.config.in_channels, 8, 8),
                5,
                draw(1, 2, stable_video_parts.WIDTH),
                torch.ones(1, 3),
            ).sample
        ),
    ),
    "PriorTransformer": (
        kandinsky_parts.PRIOR,
        lambda m: m(draw(1, 16), 5, draw(1, 16, seed=1), draw(1, 16, 16)).predicted_image_embedding,
    ),
    "Kandinsky3UNet": (
        kandinsky_parts.UNET_3,
        lambda m: m(draw(1, 4, 16, 16), 5, draw(1, 6, 16), torch.ones(1, 6)).sample,
    ),
    "AutoencoderKL": (tiny.VAE, lambda m: m(draw(1, 3, 16, 16)).sample),
}
"""Class -> configuration, and a call."""

WITHOUT = ("UNet3DConditionModel", "UNetSpatioTemporalConditionModel", "Kandinsky3UNet")
"""Classes that take no LoRA weights in the reference; there they are merged into its weights by hand."""


def both(name: str) -> tuple[Any, Any]:
    config, _ = MODELS[name]
    theirs = tiny.randomise(getattr(diffusers, name)(**config), 3)
    ours = getattr(calotype, name)(**config).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
def merge(model: torch.nn.Module, given: dict[str, lora_files.Pair], strength: float) -> None:
    for name, pair in given.items():
        weight = model.get_submodule(name).weight
        weight += strength * (pair.up.flatten(1) @ pair.down.flatten(1)).view_as(weight)


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path) -> None:
    theirs, ours = both(name)
    run = MODELS[name][1]
    given = lora_files.pairs({"": ours}, seed=4)
    state = {key.removeprefix("."): tensor for key, tensor in lora_files.peft(given).items()}
    with torch.no_grad():
        plain = run(ours)
        ours.load_lora_adapter(dict(state), adapter_name="one")
        ours.set_adapters("one", 0.6)
        if name in WITHOUT:
            merge(theirs, given[""], 0.6)
        else:
            theirs.load_lora_adapter(dict(state), prefix=None, adapter_name="one")
            theirs.set_adapters("one", 0.6)
        expected, found = run(theirs), run(ours)
        assert (expected - plain).abs().max() > 1e-3 * plain.abs().max()
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        ours.save_lora_adapter(tmp_path, "one")
        ours.unload_lora()
        assert torch.equal(run(ours), plain)
        ours.load_lora_adapter(tmp_path)
        ours.set_adapters("default_0", 0.6)
        torch.testing.assert_close(run(ours), found, atol=0, rtol=0)


PEFT_MODELS = [name for name in MODELS if name not in WITHOUT]
METHODS = (
    "load_attn_procs save_attn_procs "
    "add_adapter active_adapters delete_adapters disable_adapters disable_lora enable_adapters enable_lora "
    "enable_lora_hotswap fuse_lora save_lora_adapter set_adapter set_adapters unfuse_lora unload_lora"
)


@pytest.mark.parametrize("method", METHODS.split())
def test_signatures(method: str) -> None:
    ours, theirs = (
        [
            (p.name, p.default)
            for p in inspect.signature(getattr(library.PriorTransformer, method)).parameters.values()
        ]
        for library in (calotype, diffusers)
    )
    assert ours == theirs


# -- new weights, to be trained -------------------------------------------------------------------------------

CONFIGS: dict[str, dict[str, Any]] = {
    "names": {"r": 3, "lora_alpha": 6, "target_modules": ["to_q", "conv1"], "init_lora_weights": False},
    "patterns": {
        "r": 4,
        "lora_alpha": 2,
        "target_modules": r".*attn1\.to_[kv]",
        "use_rslora": True,
        "init_lora_weights": "gaussian",
        "rank_pattern": {"to_k": 2},
        "alpha_pattern": {"attn1.to_v": 3},
    },
    "magnitudes": {"r": 2, "target_modules": ["to_out.0", "conv2"], "use_dora": True},
    "all": {"r": 2, "target_modules": "all-linear", "exclude_modules": ["to_q"], "init_lora_weights": False},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_training(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)  # with some first adapters three steps are not enough
    theirs, ours = both("UNet2DConditionModel")
    keys = ours.state_dict().keys()
    losses: list[list[float]] = []
    for model in (theirs, ours):
        model.requires_grad_(False)
        model.add_adapter(LoraConfig(**CONFIGS[case]), "t")
    layers = {path: layer.update_named("t") for path, layer in adapted_layers(ours).items()}
    count = 0
    for name, parameter in theirs.named_parameters():  # layers are drawn in another order
        if parameter.requires_grad:
            path, _, rest = name.partition(".lora_")
            update = layers[path]
            factors = getattr(update, "direction", update).factors  # type: ignore[union-attr]
            own = {"A": factors.down, "B": factors.up, "m": getattr(update, "magnitude", None)}[rest[0]]
            assert own is not None and own.requires_grad and own.numel() == parameter.numel()
            assert parameter.std() == 0 or rest[0] == "m" or 0.5 < own.std() / parameter.std() < 2
            own.data.copy_(parameter.data.view_as(own))
            count += 1
    assert count == sum(parameter.requires_grad for parameter in ours.parameters())
    for model in (theirs, ours):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses.append([])
        for _ in range(3):
            loss = MODELS["UNet2DConditionModel"][1](model).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(float(loss))
    assert losses[0][2] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert ours.state_dict().keys() == keys
    ours.load_state_dict(ours.state_dict())

    ours.save_lora_adapter(tmp_path, "t")
    again, _ = both("UNet2DConditionModel")
    again.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    run = MODELS["UNet2DConditionModel"][1]
    with torch.no_grad():
        torch.testing.assert_close(run(again), run(ours), atol=1e-5, rtol=0)

    for model in (theirs, ours):
        model.disable_adapters()
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model.enable_adapters()
        assert sum(parameter.requires_grad for parameter in model.parameters()) == count


def test_dropout_is_for_training() -> None:
    _, model = both("UNet2DConditionModel")
    model.add_adapter(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False, lora_dropout=0.5))
    run = MODELS["UNet2DConditionModel"][1]
    with torch.no_grad():
        assert torch.equal(run(model), run(model))
        model.train()
        assert not torch.equal(run(model), run(model))


def test_half_precision_is_trained_in_float32() -> None:
    _, model = both("UNet2DConditionModel")
    model.to(torch.bfloat16).requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32} and model.dtype == torch.bfloat16
    model(draw(1, 4, 8, 8).bfloat16(), 5, draw(1, 6, 32).bfloat16()).sample.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"target_modules": ["no_such"]}, "names no linear layer"),
        ({"target_modules": None}, "must name layers"),
        ({"target_modules": ["to_q"], "init_lora_weights": "pissa"}, "init_lora_weights is"),
        ({"target_modules": ["to_q"], "modules_to_save": ["conv_in"]}, "modules_to_save"),
    ],
)
def test_what_is_not_offered_for_training(config: dict[str, Any], words: str) -> None:
    _, model = both("UNet2DConditionModel")
    with pytest.raises(InputError, match=words):
        model.add_adapter(LoraConfig(**config))
    assert not adapted_layers(model)


def test_adapters_in_training_keep_their_values() -> None:
    _, model = both("UNet2DConditionModel")
    config = LoraConfig(r=2, target_modules=["to_q"])
    model.add_adapter(config, "t")
    with pytest.raises(InputError, match="already in use"):
        model.add_adapter(config, "t")
    state = lora_files.peft({"unet": lora_files.pairs({"unet": model}, r"to_q", rank=2)["unet"]})
    with pytest.raises(InputError, match="made to be trained"):
        model.load_lora_adapter(state, adapter_name="t", hotswap=True)


# -- pipelines ------------------------------------------------------------------------------------------------


def test_motion(tmp_path: Path) -> None:
    """AnimateDiff with LoRA weights of its motion modules, as those for camera movements are."""
    tiny.stable_diffusion_folder(tmp_path / "sd", diffusers)
    tiny.randomise(diffusers.MotionAdapter(**video_runs.ADAPTER), 5).save_pretrained(tmp_path / "motion")
    pipes = []
    for library in (diffusers, calotype):
        motion = library.MotionAdapter.from_pretrained(tmp_path / "motion")
        pipe = library.AnimateDiffPipeline.from_pretrained(tmp_path / "sd", motion_adapter=motion)
        pipes.append(quiet(pipe))
    call = {"num_frames": 2, "num_inference_steps": 1, "height": 32, "width": 32, "output_type": "np"}
    plain = arrays(pipes[1]("a ball", generator=seeded(), **call))
    given = lora_files.pairs({"unet": pipes[1].unet}, rf"motion_modules.*\.{lora_files.ATTENTION}")
    for language in (lora_files.by_processor, lora_files.peft):
        for pipe in pipes:
            pipe.load_lora_weights(language(given), adapter_name="pan")
            pipe.set_adapters("pan", 0.8)
        compare(*pipes, lambda: {**call, "cross_attention_kwargs": {"scale": 0.9}})
        assert np.abs(arrays(pipes[1]("a ball", generator=seeded(), **call)) - plain).max() > 0.01
        for pipe in pipes:
            pipe.unload_lora_weights()
    assert np.array_equal(arrays(pipes[1]("a ball", generator=seeded(), **call)), plain)


def test_text_to_video(tmp_path: Path) -> None:
    pipes = [
        quiet(lib.TextToVideoSDPipeline(**video_runs.parts(lib, tmp_path))) for lib in (diffusers, calotype)
    ]
    given = lora_files.pairs({key: getattr(pipes[1], key) for key in ("unet", "text_encoder")}, seed=2)
    pipes[1].load_lora_weights(lora_files.peft(given), adapter_name="one")
    pipes[1].set_adapters("one", {"unet": 0.5, "text_encoder": 0.3})
    merge(pipes[0].unet, given["unet"], 0.5)
    merge(pipes[0].text_encoder, given["text_encoder"], 0.3)
    compare(*pipes, lambda: {"num_frames": 3, "num_inference_steps": 2})


def test_kandinsky_2_2() -> None:
    parts = kandinsky_parts.decoder_2_2()
    theirs = quiet(diffusers.KandinskyV22Pipeline(**parts))
    ours = quiet(ours_of("KandinskyV22Pipeline", theirs))
    given = lora_files.pairs({"unet": ours.unet}, rf"({lora_files.ATTENTION}|add_[kv]_proj)", seed=3)
    state = lora_files.peft(given)
    theirs.unet.load_lora_adapter(dict(state), prefix="unet")
    ours.load_lora_weights(dict(state), adapter_name="one")
    call = {**kandinsky_parts.two(), "height": 64, "width": 64, "num_inference_steps": 2}
    found, expected = (arrays(pipe(**call, generator=seeded(), output_type="np")) for pipe in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    ours.unload_lora_weights()
    plain = arrays(ours(**call, generator=seeded(), output_type="np"))
    assert np.abs(plain - expected).max() > 0.01


def test_kandinsky_prior(tmp_path: Path) -> None:
    theirs = quiet(diffusers.KandinskyV22PriorPipeline(**kandinsky_parts.prior(tmp_path)))
    ours = quiet(ours_of("KandinskyV22PriorPipeline", theirs))
    given = lora_files.pairs({"prior": ours.prior}, seed=3)
    theirs.prior.load_lora_adapter(lora_files.peft(given), prefix="prior")
    plain = ours("a red ball", num_inference_steps=2, generator=seeded())
    ours.load_lora_weights(lora_files.peft(given))
    assert ours.get_list_adapters() == {"prior": ["default_0"]}
    found, expected = (
        pipe("a red ball", num_inference_steps=2, generator=seeded()) for pipe in (ours, theirs)
    )
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-4, rtol=0)
    assert (found.image_embeds - plain.image_embeds).abs().max() > 0.01


def test_kandinsky_3() -> None:
    theirs = quiet(diffusers.Kandinsky3Pipeline(**kandinsky_parts.kandinsky_3()))
    ours = quiet(ours_of("Kandinsky3Pipeline", theirs))
    models = {"unet": ours.unet, "text_encoder": ours.text_encoder}
    given = lora_files.pairs(models, rf"({lora_files.ATTENTION}|SelfAttention\.[qkvo])", seed=3)
    ours.load_lora_weights(lora_files.peft(given))
    for key, own in given.items():
        assert own
        merge(getattr(theirs, key), own, 1.0)
    compare(theirs, ours, lambda: {"height": 64, "width": 64, "num_inference_steps": 2})


def ours_of(name: str, theirs: Any) -> Any:
    """Our pipeline with the weights of the reference's."""
    parts = dict(theirs.components)
    for key, part in parts.items():
        own = getattr(calotype, type(part).__name__, None)
        if own is not None and type(part).__module__.startswith("diffusers"):
            parts[key] = own.from_config(part.config)
            if isinstance(part, torch.nn.Module):
                parts[key].load_state_dict(part.state_dict())
                parts[key].eval()
        elif isinstance(part, torch.nn.Module):
            import copy

            parts[key] = copy.deepcopy(part)
    return getattr(calotype, name)(**parts)


# -- weights in the place of attention's ----------------------------------------------------------------------


def test_custom_diffusion(tmp_path: Path) -> None:
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    theirs, ours = both("UNet2DConditionModel")
    run = MODELS["UNet2DConditionModel"][1]
    processors = {}
    for name in theirs.attn_processors:
        layer, cross = theirs.get_submodule(name.removesuffix(".processor")), "attn2" in name
        processors[name] = CustomDiffusionAttnProcessor(
            train_kv=cross,
            train_q_out=cross and "mid" in name,
            hidden_size=layer.inner_dim,
            cross_attention_dim=32 if cross else None,
        )
        if cross:
            tiny.randomise(processors[name], len(processors))
    theirs.set_attn_processor(processors)
    with torch.no_grad():
        plain, expected = run(ours), run(theirs)
        assert (expected - plain).abs().max() > 0.01
        for form, safe in (("safe", True), ("pickle", False)):
            theirs.save_attn_procs(tmp_path / form, safe_serialization=safe)
            ours.load_attn_procs(tmp_path / form, use_safetensors=None if safe else False)
            torch.testing.assert_close(run(ours), expected, atol=1e-5, rtol=0)
            ours.save_attn_procs(tmp_path / f"{form} again", safe_serialization=safe)
            with pytest.raises(InputError, match="bias of their own"):
                ours.fuse_lora()
            ours.unload_lora()
            assert torch.equal(run(ours), plain)
        # files are alike; the reference does not use what it loads from its own
        name = "pytorch_custom_diffusion_weights.safetensors"
        saved = [load_file(tmp_path / folder / name) for folder in ("safe", "safe again")]
        assert saved[0].keys() == saved[1].keys() and all(
            torch.equal(saved[1][key], saved[0][key]) for key in saved[0]
        )
        again, _ = both("UNet2DConditionModel")
        again.load_attn_procs(tmp_path / "safe", weight_name=name)
        assert deviation("models/*/load_attn_procs") and (run(again) - expected).abs().max() > 0.01
        ours.load_lora_adapter(lora_files.peft(lora_files.pairs({"unet": ours})))
        with pytest.raises(InputError, match="save_lora_adapter"):
            ours.save_attn_procs(tmp_path / "none")
        assert not (tmp_path / "none").exists()


def test_a_folder_of_peft_s_own(tmp_path: Path) -> None:
    """What PEFT saves of a model that it has wrapped."""
    from peft import get_peft_model

    theirs, ours = both("UNet2DConditionModel")
    run = MODELS["UNet2DConditionModel"][1]
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "conv1"], init_lora_weights=False)
    wrapped = get_peft_model(theirs, config).eval()
    wrapped.save_pretrained(tmp_path)
    ours.load_lora_adapter(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(run(ours), run(wrapped), atol=1e-5, rtol=0)
