"""Pipelines: what is refused and in which words, components, callbacks, threads."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import CalotypeError, InputError, ModelFilesError, UnknownClassError
from calotype.diffusion.images import NonFiniteError
from tests.tiny import stable_diffusion_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return quiet(calotype.load(folder, device="cpu"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, **arguments: Any) -> Any:
    arguments = {"prompt": "a red ball", "num_inference_steps": 2, "output_type": "pt", **arguments}
    arguments.setdefault("generator", torch.Generator().manual_seed(0))
    return pipe(**arguments).images


REFUSED = {
    "zero steps": ({"num_inference_steps": 0}, "num_inference_steps .* at least 1, not 0"),
    "negative steps": ({"num_inference_steps": -3}, "at least 1, not -3"),
    "fractional steps": ({"num_inference_steps": 2.5}, "whole number"),
    "endless steps": ({"num_inference_steps": 10**9}, "limit of 10,000.*set_limits"),
    "odd height": ({"height": 61}, "height must be divisible by 8 .* near it: 56 and 64"),
    "tiny width": ({"width": 5}, "near it: 8"),
    "zero width": ({"width": 0}, "at least 1, not 0"),
    "huge side": ({"height": 2**20}, "limit of 16,384"),
    "huge area": ({"height": 16384, "width": 16384, "num_images_per_prompt": 4}, "pixels is over the limit"),
    "many pictures": ({"num_images_per_prompt": 5000}, "5,000 pictures is over the limit of 1,024"),
    "no pictures": ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    "nan guidance": ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, not nan"),
    "infinite guidance": ({"guidance_scale": float("inf")}, "finite"),
    "nan rescale": ({"guidance_rescale": float("nan")}, "guidance_rescale"),
    "nothing to show": ({"prompt": None}, "Neither prompt nor prompt_embeds"),
    "prompt twice": ({"prompt_embeds": torch.zeros(1, 16, 32)}, "Both prompt and prompt_embeds"),
    "no prompts": ({"prompt": []}, "empty list"),
    "a number as prompt": ({"prompt": 5}, "text or a list of texts, not 5"),
    "negative twice": (
        {"negative_prompt": "x", "negative_prompt_embeds": torch.zeros(1, 16, 32)},
        "Both negative_prompt and negative_prompt_embeds",
    ),
    "negatives do not match": (
        {"prompt": ["a", "b"], "negative_prompt": ["x"] * 3},
        "3 negative prompts for 2",
    ),
    "embeds do not match": (
        {
            "prompt": None,
            "prompt_embeds": torch.zeros(1, 16, 32),
            "negative_prompt_embeds": torch.zeros(1, 8, 32),
        },
        "must be equal",
    ),
    "generators do not match": ({"generator": [torch.Generator()] * 3}, "3 generators for 1 pictures"),
    "latents do not match": ({"latents": torch.zeros(2, 4, 8, 8)}, "latents has the shape"),
    "unknown output": ({"output_type": "jpeg"}, "output_type must be one of pil, np, pt, latent"),
    "unknown tensor": ({"callback_on_step_end_tensor_inputs": ["moon"]}, "moon"),
    "deep clip skip": ({"clip_skip": 99}, "only 3 layers"),
    "negative clip skip": ({"clip_skip": -1}, "clip_skip"),
    "two paths": ({"timesteps": [1], "sigmas": [1.0]}, "Both timesteps and sigmas"),
    "sigmas for a scheduler without": ({"sigmas": [1.0, 0.5]}, "PNDMScheduler takes no custom sigmas"),
    "image without an adapter": ({"ip_adapter_image": torch.zeros(1)}, "no IP-Adapter is loaded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_refused_in_words(loaded: Any, case: str) -> None:
    arguments, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        run(loaded, **arguments)


def test_nothing_is_computed_before_a_refusal(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was called before the arguments were checked")

    monkeypatch.setattr(loaded.text_encoder, "forward", explode)
    monkeypatch.setattr(loaded.unet, "forward", explode)
    for arguments, _ in (REFUSED["odd height"], REFUSED["nan guidance"], REFUSED["generators do not match"]):
        with pytest.raises(InputError):
            run(loaded, **arguments)


def test_unknown_arguments_are_refused(loaded: Any) -> None:
    with pytest.raises(TypeError, match="strenght"):
        loaded("a ball", strenght=0.5)


def test_limits_can_be_raised(loaded: Any) -> None:
    former = calotype.set_limits(steps=1)
    try:
        with pytest.raises(InputError, match="limit of 1"):
            run(loaded)
        calotype.set_limits(steps=former.steps)
        assert torch.isfinite(run(loaded)).all()
    finally:
        calotype.set_limits(steps=former.steps)
    with pytest.raises(InputError, match="no limit called 'moons'"):
        calotype.set_limits(moons=1)


# -- files -----------------------------------------------------------------------------------------------------


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"has no model_index\.json"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)


def test_an_index_that_is_not_json(copy: Path) -> None:
    (copy / "model_index.json").write_text("{not json")
    with pytest.raises(ModelFilesError, match="not valid JSON"):
        calotype.load(copy, device="cpu")


def edit_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_an_unknown_pipeline_names_the_nearest(copy: Path) -> None:
    edit_index(copy, _class_name="StableDifusionPipeline")
    with pytest.raises(
        UnknownClassError, match="'StableDifusionPipeline'; the nearest is StableDiffusionPipeline"
    ):
        calotype.DiffusionPipeline.from_pretrained(copy)


def test_an_unknown_component_names_the_nearest(copy: Path) -> None:
    edit_index(copy, unet=["diffusers", "UNet2DConditionModul"])
    with pytest.raises(UnknownClassError, match="'unet'.*nearest is UNet2DConditionModel"):
        calotype.load(copy, device="cpu")


@pytest.mark.parametrize(
    "entry", [["os", "system"], ["transformers", "pipeline"], ["transformers", "Trainer"]]
)
def test_other_code_is_refused(copy: Path, entry: list[str]) -> None:
    edit_index(copy, tokenizer=entry)
    with pytest.raises(UnknownClassError):
        calotype.load(copy, device="cpu")


def test_a_component_without_its_folder(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    with pytest.raises(ModelFilesError, match="no folder .*vae"):
        calotype.load(copy, device="cpu")


WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}

DAMAGE = {
    "empty": (lambda data: b"", "is empty"),
    "cut": (lambda data: data[: len(data) // 2], "cut off"),
    "cut in the header": (lambda data: data[:100], "cut off"),
    "pointer": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "git lfs pull",
    ),
    "web page": (lambda data: b"<!DOCTYPE html><html></html>", "web page"),
}


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights(copy: Path, component: str, damage: str) -> None:
    change, words = DAMAGE[damage]
    path = copy / WEIGHTS[component]
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelFilesError, match=words):
        calotype.load(copy, device="cpu")


@pytest.mark.parametrize("component", WEIGHTS)
def test_pickles_are_refused_unless_asked_for(copy: Path, component: str, loaded: Any) -> None:
    from safetensors.torch import load_file

    path = copy / WEIGHTS[component]
    state = load_file(path)
    path.unlink()
    name = "pytorch_model.bin" if component == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save(state, path.parent / name)
    with pytest.raises(ModelFilesError, match="use_safetensors=False"):
        calotype.load(copy, device="cpu")


def test_a_missing_weight_of_the_text_encoder(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / WEIGHTS["text_encoder"]
    state = load_file(path)
    state.pop(next(key for key in state if "final_layer_norm.weight" in key))
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelFilesError, match=r"lack 1 of CLIPTextModel.*final_layer_norm"):
        calotype.load(copy, device="cpu")


def test_a_variant_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ModelFilesError, match="variant 'fp16'"):
        calotype.load(folder, device="cpu", variant="fp16")


def test_a_variant_round_trip(loaded: Any, tmp_path: Path) -> None:
    loaded.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = quiet(calotype.load(tmp_path, device="cpu", variant="fp16"))
    assert torch.equal(run(again), run(loaded))


@pytest.mark.parametrize("name", ["custom_pipeline", "trust_remote_code", "quantization_config"])
def test_what_would_run_foreign_code_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        calotype.DiffusionPipeline.from_pretrained(folder, **{name: "something"})


# -- components ------------------------------------------------------------------------------------------------


def test_components_may_be_passed_in(folder: Path, loaded: Any) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(
        folder, unet=loaded.unet, scheduler=loaded.scheduler
    )
    assert pipe.unet is loaded.unet
    assert pipe.scheduler is loaded.scheduler
    assert pipe.vae is not loaded.vae


def test_a_needed_component_that_is_missing(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index.pop("unet")
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFilesError, match="needs the component 'unet'"):
        calotype.load(copy, device="cpu")


def test_pipelines_share_components(loaded: Any) -> None:
    other = calotype.AutoPipelineForText2Image.from_pipe(loaded)
    assert type(other) is calotype.StableDiffusionPipeline
    assert other.unet is loaded.unet
    assert other.config.requires_safety_checker is False


def test_from_pipe_shares_what_is_there_and_asks_for_what_is_not(folder: Path) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    pipe.unet.train()
    other = calotype.StableDiffusionInpaintPipeline.from_pipe(pipe)
    assert all(other.components[name] is part for name, part in pipe.components.items())
    assert not other.unet.training
    assert other.dtype == torch.bfloat16
    assert other.name_or_path == str(folder)
    calotype.StableDiffusionInpaintPipeline.from_pipe(pipe, torch_dtype=torch.float32)
    assert pipe.vae.dtype == torch.float32
    for cls, words in (
        (
            calotype.StableDiffusionXLPipeline,
            "needs text_encoder_2, tokenizer_2, which StableDiffusionPipeline",
        ),
        (calotype.StableDiffusionControlNetPipeline, "needs controlnet"),
        (calotype.DiffusionPipeline, "call it on one of them"),
    ):
        with pytest.raises(InputError, match=words):
            cls.from_pipe(pipe)
    with pytest.raises(TypeError, match="moon"):
        calotype.StableDiffusionInpaintPipeline.from_pipe(pipe, moon=3)


def test_options_survive_a_class_that_lacks_them(folder: Path) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.config.requires_safety_checker is False
    depth = calotype.StableDiffusionDepth2ImgPipeline.from_pipe(pipe, depth_estimator=None)
    assert "requires_safety_checker" not in depth.config
    again = calotype.StableDiffusionPipeline.from_pipe(depth, safety_checker=None)
    assert again.config.requires_safety_checker is False
    changed = calotype.StableDiffusionPipeline.from_pipe(
        depth, safety_checker=None, requires_safety_checker=True
    )
    assert changed.config.requires_safety_checker is True


def test_auto_pipeline_reads_the_index(folder: Path) -> None:
    assert (
        type(calotype.AutoPipelineForText2Image.from_pretrained(folder)) is calotype.StableDiffusionPipeline
    )
    with pytest.raises(OSError, match="from_pretrained"):
        calotype.AutoPipelineForText2Image()


def test_replacing_a_component_is_recorded(folder: Path) -> None:
    pipe = calotype.load(folder, device="cpu")
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.config.scheduler == ("diffusers", "DDIMScheduler")


def test_types(folder: Path) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype, pipe.dtype} == {torch.bfloat16}
    mixed = calotype.StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype={"vae": torch.float32, "default": torch.bfloat16}
    )
    assert (mixed.unet.dtype, mixed.vae.dtype) == (torch.bfloat16, torch.float32)
    assert pipe.to(torch.float32).unet.dtype == torch.float32
    with pytest.raises(InputError, match="'moon' is not a device"):
        pipe.to("moon")
    with pytest.raises(InputError, match="floating-point"):
        pipe.to(torch.int8)


def test_configuration_is_frozen(loaded: Any) -> None:
    for write in (
        lambda: loaded.unet.config.__setitem__("sample_size", 1),
        lambda: setattr(loaded.unet.config, "sample_size", 1),
        lambda: loaded.unet.config.update(sample_size=1),
        lambda: loaded.config.pop("unet"),
    ):
        with pytest.raises(TypeError, match="frozen"):
            write()


class Halves(calotype.DiffusionPipeline):
    """A user's own pipeline."""

    def __init__(self, unet: Any, scheduler: Any, factor: float = 0.5) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(factor=factor)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.config.factor


def test_a_users_own_pipeline(loaded: Any, tmp_path: Path) -> None:
    pipe = Halves(loaded.unet, loaded.scheduler, factor=0.25)
    pipe.save_pretrained(tmp_path)
    again = Halves.from_pretrained(tmp_path)
    assert again(torch.ones(1)) == 0.25
    assert torch.equal(again.unet.conv_in.weight, loaded.unet.conv_in.weight)


# -- calls -----------------------------------------------------------------------------------------------------


def test_eight_threads_give_the_bits_of_one(loaded: Any) -> None:
    prompts = ["a red ball", "a blue cube", "a green cone", "a big cube", "sand", "grass", "night", "day"]

    def make(number: int) -> torch.Tensor:
        return run(
            loaded,
            prompt=prompts[number],
            generator=torch.Generator().manual_seed(number),
            num_inference_steps=2 + number % 3,
        )

    alone = [make(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(make, range(8)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_a_picture_of_a_batch_can_be_made_alone(loaded: Any) -> None:
    prompts = ["a red ball", "a blue cube"]
    batch = run(loaded, prompt=prompts, generator=[torch.Generator().manual_seed(n) for n in (7, 8)])
    for number, prompt in enumerate(prompts):
        alone = run(loaded, prompt=prompt, generator=torch.Generator().manual_seed(7 + number))
        torch.testing.assert_close(batch[number], alone[0], atol=1e-5, rtol=1e-5)


def test_one_negative_prompt_serves_all(loaded: Any) -> None:
    both = ["a red ball", "a cube"]
    one = run(loaded, prompt=both, negative_prompt="night", generator=torch.Generator().manual_seed(1))
    two = run(loaded, prompt=both, negative_prompt=["night"] * 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one, two)
    assert not torch.equal(one, run(loaded, prompt=both, generator=torch.Generator().manual_seed(1)))


def test_interruption_from_outside(loaded: Any) -> None:
    seen = []

    def stop(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        if index == 1:
            loaded._interrupt = True
        return tensors

    run(loaded, num_inference_steps=6, callback_on_step_end=stop)
    assert seen == [0, 1]
    assert loaded.interrupt is False
    run(loaded, num_inference_steps=3, callback_on_step_end=lambda *args: seen.append(args[1]))
    assert seen == [0, 1, 0, 1, 2, 3]  # the solver's warm-up visits one timestep more


def test_a_callback_changes_its_own_call_only(loaded: Any) -> None:
    scales = []

    def change(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        scales.append((pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps))
        pipe._guidance_scale = 2.0
        return tensors

    run(loaded, callback_on_step_end=change)
    run(loaded, callback_on_step_end=change)
    assert scales[0] == scales[3] == (7.5, True, 3)
    assert scales[1][0] == 2.0


def test_the_earlier_callback_still_works(loaded: Any) -> None:
    seen = []
    run(loaded, num_inference_steps=4, callback=lambda step, t, latents: seen.append(step), callback_steps=2)
    assert seen == [2, 4]


def test_prompts_that_are_cut_are_named(loaded: Any, caplog: pytest.LogCaptureFixture) -> None:
    run(loaded, prompt="a red ball on the green grass and a zebra in the dark far away")
    assert any("is cut" in message and "away" in message for message in caplog.messages)


def test_a_picture_of_nan_is_an_error(folder: Path) -> None:
    pipe = quiet(calotype.load(folder, device="cpu"))
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="decoded pictures hold NaN"):
        run(pipe)
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] = float("inf")
    with pytest.raises(NonFiniteError, match="denoised latents hold NaN"):
        run(pipe)


def test_every_error_is_of_the_library(copy: Path) -> None:
    assert issubclass(ModelFilesError, CalotypeError)
    assert issubclass(ModelFilesError, OSError)
    assert issubclass(InputError, ValueError)
