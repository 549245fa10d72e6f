"""LoRA weights: what pipelines of the reference make with them, and ours; every language, one adapter and several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

import calotype
from tests import tiny
from tests.parity import lora_files
from tests.parity.deviations import deviation
from tests.parity.lora_files import ATTENTION, EVERYTHING
from tests.parity.pipeline_runs import arrays, quiet, seeded
from tests.parity.pipeline_runs import compare as compared

torch.set_num_threads(1)


class Both:
    """The reference's pipeline and ours, with the same weights."""

    def __init__(self, folder: Path, name: str, **options: Any) -> None:
        self.theirs = quiet(getattr(diffusers, name).from_pretrained(folder, **options))
        self.ours = quiet(getattr(calotype, name).from_pretrained(folder, **options))
        self.models = {
            k: m for k, m in self.ours.components.items() if k in ("unet", "text_encoder", "text_encoder_2")
        }

    def do(self, method: str, *args: Any, **kwargs: Any) -> None:
        # the reference loads for text encoders at the scale of the call before (see deviations.py)
        self.theirs._lora_scale = 1.0
        for pipe in (self.theirs, self.ours):
            made = [dict(value) if isinstance(value, dict) else value for value in args]
            getattr(pipe, method)(*made, **kwargs)

    def compare(self, **arguments: Any) -> None:
        compared(self.theirs, self.ours, lambda: {"num_inference_steps": 2, **arguments})

    def picture(self) -> np.ndarray:
        return arrays(self.ours("a red ball", num_inference_steps=2, output_type="np", generator=seeded()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("lora")
    return {
        "sd": tiny.stable_diffusion_folder(place / "sd", diffusers),
        "xl": tiny.stable_diffusion_xl_folder(place / "xl", diffusers),
    }


@pytest.fixture(scope="module")
def sd_pair(folders: dict[str, Path]) -> Both:
    return Both(folders["sd"], "StableDiffusionPipeline")


@pytest.fixture(scope="module")
def xl_pair(folders: dict[str, Path]) -> Both:
    return Both(folders["xl"], "StableDiffusionXLPipeline")


@pytest.fixture
def sd(sd_pair: Both) -> Iterator[Both]:
    yield sd_pair
    sd_pair.do("unload_lora_weights")


@pytest.fixture
def xl(xl_pair: Both) -> Iterator[Both]:
    yield xl_pair
    xl_pair.do("unload_lora_weights")


def unet_of(both: Both) -> dict[str, torch.nn.Module]:
    return {"unet": both.models["unet"]}


LANGUAGES = {
    "peft": lambda both: lora_files.peft(lora_files.pairs(both.models, EVERYTHING)),
    "peft, DoRA": lambda both: lora_files.peft_dora(lora_files.pairs(unet_of(both), EVERYTHING)),
    "by layer": lambda both: lora_files.by_layer(lora_files.pairs(both.models)),
    "by processor": lambda both: lora_files.by_processor(lora_files.pairs(both.models)),
    "kohya": lambda both: lora_files.kohya(lora_files.pairs(both.models)),
    "kohya, LoCon": lambda both: lora_files.kohya(lora_files.pairs(unet_of(both), EVERYTHING)),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages(sd: Both, language: str) -> None:
    plain = sd.picture()
    sd.do("load_lora_weights", LANGUAGES[language](sd))
    sd.compare()
    assert np.abs(sd.picture() - plain).max() > 0.01


@pytest.mark.parametrize("language", ["peft", "kohya"])
def test_two_text_encoders(xl: Both, language: str) -> None:
    given = lora_files.pairs(xl.models, EVERYTHING if language == "peft" else ATTENTION, seed=2)
    state = lora_files.peft(given) if language == "peft" else lora_files.kohya(given, several=True)
    xl.do("load_lora_weights", state)
    xl.compare()
    xl.compare(cross_attention_kwargs={"scale": 0.4}, prompt="a cube", negative_prompt="night")


def test_the_first_code_s_names(xl: Both) -> None:
    starts = {
        "down_blocks.1.attentions.0": "input_blocks.3.1",
        "mid_block.attentions.0": "middle_block.1",
        "up_blocks.0.attentions.0": "output_blocks.0.1",
        "up_blocks.0.attentions.1": "output_blocks.1.1",
    }
    given = lora_files.pairs(unet_of(xl), ATTENTION, seed=3)
    xl.do("load_lora_weights", lora_files.kohya(given, rename=lora_files.with_starts(starts)))
    xl.compare()


def test_several_with_weights(sd: Both) -> None:
    sd.do(
        "load_lora_weights",
        lora_files.peft(lora_files.pairs(sd.models, EVERYTHING, seed=1)),
        adapter_name="one",
    )
    second = lora_files.peft_dora(lora_files.pairs(unet_of(sd), r"(to_v|conv2)", rank=3, seed=2))
    second |= lora_files.peft(lora_files.pairs({"text_encoder": sd.models["text_encoder"]}, seed=2))
    sd.do("load_lora_weights", second, adapter_name="two")
    assert sd.ours.get_active_adapters() == sd.theirs.get_active_adapters() == ["two"]
    assert sd.ours.get_list_adapters() == sd.theirs.get_list_adapters()
    sd.do("set_adapters", ["two", "one"], [0.4, 1.3])
    assert sd.ours.get_active_adapters() == sd.theirs.get_active_adapters()
    sd.compare()
    sd.compare(cross_attention_kwargs={"scale": 0.5})
    sd.do("set_adapters", ["two", "one"], [0.7, {"unet": 0.2, "text_encoder": 0.9}])
    sd.compare()
    sd.do("set_adapters", "one")
    sd.compare()
    sd.do("disable_lora")
    sd.compare()
    sd.do("enable_lora")
    sd.do("delete_adapters", "one")
    assert sd.ours.get_list_adapters() == sd.theirs.get_list_adapters()
    sd.do("set_adapters", "two", 0.5)
    sd.compare()


@pytest.mark.parametrize(
    "weights",
    [
        {"unet": {"down": 0.2}},
        {"unet": {"mid": 0.3, "up": {"block_1": [0.1, 0.8]}}},
        {"unet": {"up": {"block_1": 0.4}, "down": {"block_0": [0.3]}}, "text_encoder": 0.5},
        {"text_encoder": 0.0},
    ],
)
def test_weights_by_block(sd: Both, weights: dict[str, Any]) -> None:
    sd.do("load_lora_weights", lora_files.peft(lora_files.pairs(sd.models)), adapter_name="one")
    sd.do("set_adapters", ["one"], [weights])
    sd.compare()


@pytest.mark.parametrize("language", ["peft", "peft_dora"])
def test_fused(sd: Both, language: str) -> None:
    plain = sd.picture()
    state = getattr(lora_files, language)(lora_files.pairs(unet_of(sd), EVERYTHING))
    sd.do("load_lora_weights", state, adapter_name="one")
    apart = sd.picture()
    sd.do("fuse_lora", lora_scale=0.7)
    assert sd.ours.num_fused_loras == sd.theirs.num_fused_loras == 1
    assert sd.ours.fused_loras == sd.theirs.fused_loras
    if language == "peft":  # the reference's magnitudes do not know of the scale
        sd.compare()
    sd.do("unfuse_lora")
    assert sd.ours.num_fused_loras == 0
    np.testing.assert_array_equal(sd.picture(), apart)
    sd.ours.unload_lora_weights()
    np.testing.assert_array_equal(sd.picture(), plain)


def test_fused_components_and_names(sd: Both) -> None:
    for seed, name in enumerate(("one", "two")):
        sd.do("load_lora_weights", lora_files.peft(lora_files.pairs(sd.models, seed=seed)), adapter_name=name)
    sd.do("set_adapters", ["one", "two"], [0.5, 0.8])
    sd.do("fuse_lora", components=["unet"])
    sd.compare()
    sd.do("unfuse_lora", components=["unet"])
    sd.do("set_adapters", ["one", "two"], [0.5, 0.8])
    sd.do("fuse_lora", components=["unet", "text_encoder"], adapter_names=["one", "two"])
    sd.compare()
    sd.do("unfuse_lora")


def test_fused_for_good(folders: dict[str, Path], tmp_path: Path) -> None:
    both = Both(folders["sd"], "StableDiffusionPipeline")
    both.do("load_lora_weights", lora_files.peft(lora_files.pairs(both.models, EVERYTHING)))
    both.do("fuse_lora")
    both.do("unload_lora_weights")
    both.compare()
    both.ours.save_pretrained(tmp_path / "saved")
    again = quiet(calotype.StableDiffusionPipeline.from_pretrained(tmp_path / "saved"))
    compared(both.theirs, again, lambda: {"num_inference_steps": 2})


PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
MASK = PIL.Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StableDiffusionImg2ImgPipeline", {"image": PICTURE, "strength": 0.7}),
        ("StableDiffusionInpaintPipeline", {"image": PICTURE, "mask_image": MASK}),
        ("StableDiffusionXLImg2ImgPipeline", {"image": PICTURE, "strength": 0.7}),
        ("StableDiffusionXLInpaintPipeline", {"image": PICTURE, "mask_image": MASK, "strength": 0.9}),
    ],
)
def test_tasks(sd: Both, xl: Both, name: str, arguments: dict[str, Any]) -> None:
    base = xl if "XL" in name else sd
    base.do("load_lora_weights", lora_files.peft(lora_files.pairs(base.models, EVERYTHING)))
    theirs = quiet(getattr(diffusers, name).from_pipe(base.theirs))
    ours = quiet(getattr(calotype, name).from_pipe(base.ours))
    steps = {"num_inference_steps": 3, "cross_attention_kwargs": {"scale": 0.8}}
    compared(theirs, ours, lambda: {**steps, **arguments})


@pytest.mark.parametrize("name", ["StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"])
def test_with_a_controlnet(sd: Both, xl: Both, name: str, tmp_path: Path) -> None:
    base = xl if "XL" in name else sd
    net = diffusers.ControlNetModel.from_unet(
        base.theirs.unet, conditioning_embedding_out_channels=(8, 16, 16, 16)
    )
    tiny.randomise(net, 5).save_pretrained(tmp_path)
    base.do("load_lora_weights", lora_files.peft(lora_files.pairs(base.models)))
    theirs = getattr(diffusers, name).from_pipe(base.theirs, controlnet=net)
    ours = getattr(calotype, name).from_pipe(
        base.ours, controlnet=calotype.ControlNetModel.from_pretrained(tmp_path)
    )
    arguments = {"image": PICTURE, "controlnet_conditioning_scale": 0.3, "num_inference_steps": 2}
    compared(quiet(theirs), quiet(ours), lambda: arguments)


def test_a_controlnet_s_own(sd: Both, tmp_path: Path) -> None:
    theirs = tiny.randomise(
        diffusers.ControlNetModel.from_unet(
            sd.theirs.unet, conditioning_embedding_out_channels=(8, 16, 16, 16)
        ),
        5,
    )
    theirs.save_pretrained(tmp_path)
    ours = calotype.ControlNetModel.from_pretrained(tmp_path)
    state = lora_files.peft(lora_files.pairs({"controlnet": ours}))
    draw = torch.Generator().manual_seed(1)
    x, c, p = (torch.randn(shape, generator=draw) for shape in ((1, 4, 8, 8), (1, 16, 32), (1, 3, 64, 64)))
    with torch.no_grad():
        before = ours(x, 5, c, p).mid_block_res_sample
    for model in (theirs, ours):
        model.load_lora_adapter(dict(state), prefix="controlnet", adapter_name="one")
        model.set_adapters("one", 0.5)
    with torch.no_grad():
        a, b = (model(x, 5, c, p).mid_block_res_sample for model in (theirs, ours))
    assert (a - before).abs().max() > 0.01
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


# -- files, both ways -----------------------------------------------------------------------------------------


def settings(*layers: str) -> dict[str, Any]:
    return {"r": 4, "lora_alpha": 2, "peft_type": "LORA", "target_modules": list(layers)}


@pytest.mark.parametrize("writer", [diffusers, calotype])
@pytest.mark.parametrize("with_settings", [False, True])
def test_files_of_pipelines(sd: Both, writer: Any, with_settings: bool, tmp_path: Path) -> None:
    given = lora_files.pairs(sd.models)
    layers = {
        model: {key.removeprefix(f"{model}."): t for key, t in lora_files.peft({model: own}).items()}
        for model, own in given.items()
    }
    metadata = {
        "unet_lora_adapter_metadata": settings("to_q", "to_k", "to_v", "to_out.0"),
        "text_encoder_lora_adapter_metadata": settings("q_proj", "k_proj", "v_proj", "out_proj"),
    }
    writer.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        **(metadata if with_settings else {}),
    )
    sd.do("load_lora_weights", tmp_path)
    sd.compare()


def test_files_of_models(sd: Both, tmp_path: Path) -> None:
    state = lora_files.peft_dora(lora_files.pairs(unet_of(sd), EVERYTHING))
    sd.ours.load_lora_weights(dict(state), adapter_name="one")
    expected = sd.picture()
    sd.ours.unet.save_lora_adapter(tmp_path / "ours", "one")
    sd.ours.unload_lora_weights()
    name = "pytorch_lora_weights.safetensors"
    sd.theirs.unet.load_lora_adapter(tmp_path / "ours", prefix=None, adapter_name="one", weight_name=name)
    sd.theirs.unet.save_lora_adapter(tmp_path / "theirs", "one")
    sd.ours.unet.load_lora_adapter(tmp_path / "theirs", adapter_name="one")
    np.testing.assert_allclose(sd.picture(), expected, atol=1e-5)
    sd.compare()


# -- where the reference differs --------------------------------------------------------------------------------


def deviates(sd: Both, case: str) -> None:
    """The two differ, and there is a reason on record."""
    assert deviation(case), case
    theirs, ours = (
        arrays(pipe("a red ball", num_inference_steps=2, output_type="np", generator=seeded()))
        for pipe in (sd.theirs, sd.ours)
    )
    assert np.abs(theirs - ours).max() > 1e-3


def test_alphas_that_differ(sd: Both) -> None:
    state = lora_files.kohya(lora_files.pairs(unet_of(sd), EVERYTHING))
    for number, key in enumerate(key for key in state if key.endswith(".alpha")):
        state[key] = torch.tensor(1.0 + number % 3)
    sd.do("load_lora_weights", state)
    deviates(sd, "lora/kohya/alphas that differ")


def test_magnitudes_of_kohya(sd: Both) -> None:
    sd.do("load_lora_weights", lora_files.kohya(lora_files.pairs(unet_of(sd)), magnitudes=True))
    deviates(sd, "lora/kohya/dora_scale")


def test_magnitudes_of_text_encoders(sd: Both) -> None:
    sd.do("load_lora_weights", lora_files.peft_dora(lora_files.pairs(sd.models)))
    deviates(sd, "lora/text_encoder/lora_magnitude_vector")


def test_other_layers_of_text_encoders(sd: Both) -> None:
    only_text = {"text_encoder": sd.models["text_encoder"]}
    sd.do("load_lora_weights", lora_files.kohya(lora_files.pairs(only_text, EVERYTHING)))
    deviates(sd, "lora/kohya/text_encoder fc1")


def test_magnitudes_after_another_adapter(sd: Both) -> None:
    sd.do("load_lora_weights", lora_files.peft(lora_files.pairs(unet_of(sd))), adapter_name="one")
    sd.do(
        "load_lora_weights", lora_files.peft_dora(lora_files.pairs(unet_of(sd), seed=1)), adapter_name="two"
    )
    sd.do("set_adapters", ["two", "one"])
    sd.compare()
    sd.do("set_adapters", ["one", "two"])
    deviates(sd, "lora/lora_magnitude_vector after another adapter")


def test_blocks_without_transformers(sd: Both) -> None:
    sd.do("load_lora_weights", lora_files.peft(lora_files.pairs(unet_of(sd), "conv1")), adapter_name="one")
    sd.do("set_adapters", ["one"], [{"unet": {"mid": 0.1, "down": 0.2}}])
    deviates(sd, "lora/set_adapters/blocks without transformers")


def test_loading_after_a_call_with_a_scale(sd: Both) -> None:
    state = lora_files.peft(lora_files.pairs({"text_encoder": sd.models["text_encoder"]}))
    sd.do("load_lora_weights", state, adapter_name="one")
    sd.compare(cross_attention_kwargs={"scale": 0.1})
    for pipe in (sd.theirs, sd.ours):
        pipe.load_lora_weights(dict(state), adapter_name="two")
    deviates(sd, "lora/load after a call with a scale")
