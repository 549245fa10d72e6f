"""Kandinsky 2.0, which the reference never had: its network, files and sampling, stated once more and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import calotype
from calotype.core.errors import InputError, ModelFilesError, WeightsError
from calotype.core.safetensors_header import TensorInfo
from calotype.families.kandinsky_2_0 import ANCESTRAL, SAMPLING
from calotype.single_file.guided import guided_unet_config
from calotype.single_file.keys import unet_names
from tests.kandinsky_2_0 import (
    PUBLISHED,
    STATES,
    Sizes,
    denoised,
    published,
    random_state,
    read,
    state_of,
    told,
)
from tests.parity.kandinsky_parts import mask, photo
from tests.parity.pipeline_runs import quiet, seeded

TEXT, INPAINTING = STATES
SCALE = 7.0


@pytest.fixture(scope="module", autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both denoisers and all else, without a pickle."""
    return published(tmp_path_factory.mktemp("published"), TEXT, INPAINTING, safe=True)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    return quiet(calotype.load(folder, device="cpu"))


def closely(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


# -- the network -----------------------------------------------------------------------------------------------

OTHERS = {
    "one that reads a mask": STATES[INPAINTING],
    "a level that enlarges without attention": Sizes(factors=(1, 1, 2), attends=(2,), blocks=2),
    "attention everywhere": Sizes(factors=(1, 2), attends=(0, 1), context=40, text=24, pooled=8, text_2=32),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_network_is_the_published_one(pipe: Any, case: str, tmp_path: Path) -> None:
    """What a file's keys and shapes say is built, and computes what is stated of it."""
    sizes = OTHERS[case]
    state = random_state(sizes, seed=1)
    save_file(state, tmp_path / f"{TEXT}.safetensors")
    shared = {
        name: part for name, part in pipe.components.items() if "unet" not in name and "proj" not in name
    }
    made = calotype.KandinskyV20Pipeline.from_pretrained(tmp_path, **shared)
    generator = seeded(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    texts = draw(2, 77, sizes.text), draw(2, sizes.pooled), draw(2, 77, sizes.text_2)
    context, addition = made.text_proj(*texts)
    expected = told(state, *texts)
    closely(context, expected[0], 1e-5)
    closely(addition, expected[1], 1e-5)
    x = draw(2, sizes.channels, 8, 12)
    found = made.unet(x, 421, context, class_labels=addition).sample
    closely(found, denoised(state, sizes, x, 421, *expected), 1e-5)


def test_the_published_sizes_are_found_in_the_shapes() -> None:
    """1.2 billion parameters, as the model's card says, and the defaults of what tells the texts."""
    state = random_state(PUBLISHED, device="meta")
    infos = {name: TensorInfo(tuple(each.shape), "F32", each.nbytes) for name, each in state.items()}
    with torch.device("meta"):
        unet = calotype.UNet2DConditionModel(**guided_unet_config(infos))
        telling = calotype.KandinskyV20TextProjModel()
    assert {*unet_names(unet.state_dict()).values(), *telling.state_dict()} == state.keys()
    whole = sum(each.numel() for each in state.values())
    assert unet.num_parameters() + telling.num_parameters() == whole
    assert round(whole / 1e9, 2) == 1.22
    kinds = [kind.startswith("SimpleCrossAttn") for kind in unet.config.down_block_types]
    assert kinds == [False, True, True, True]


# -- whole pictures --------------------------------------------------------------------------------------------

BETAS = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)
ALPHAS = torch.cumprod(1 - BETAS, dim=0)


def predictions(pipe: Any, stem: str, prompt: str, negative: str) -> Callable[..., torch.Tensor]:
    """(latents, timestep, what stands beside them) -> the guided noise and the prompt's variance."""
    state, sizes = state_of(stem), STATES[stem]
    both = told(state, *read(pipe, [prompt, negative]))

    def predict(x: torch.Tensor, timestep: int, *beside: torch.Tensor) -> torch.Tensor:
        full = torch.cat([x, *beside], dim=1).repeat(2, 1, 1, 1)
        cond, uncond = denoised(state, sizes, full, timestep, *both).chunk(2)
        noise = uncond[:, :4] + SCALE * (cond[:, :4] - uncond[:, :4])
        return torch.cat([noise, cond[:, 4:]], dim=1)

    return predict


def ddim(predict: Any, x: torch.Tensor, steps: list[int], *beside: torch.Tensor) -> torch.Tensor:
    """The published sampler: η = 0, and after the last step the noise of the first level."""
    for step, following in zip(steps, [*steps[1:], 0], strict=True):
        now, then = float(ALPHAS[step]), float(ALPHAS[following])
        noise = predict(x, step, *beside)[:, :4]
        x0 = (x - (1 - now) ** 0.5 * noise) / now**0.5
        x = then**0.5 * x0 + (1 - then) ** 0.5 * noise
    return x


def ddpm(predict: Any, x: torch.Tensor, steps: list[int], generator: torch.Generator) -> torch.Tensor:
    """The published ancestral sampler: a respaced chain with learned variances and x̂0 thresholded."""
    for step, following in zip(steps, [*steps[1:], -1], strict=True):
        now, then = float(ALPHAS[step]), float(ALPHAS[following]) if following >= 0 else 1.0
        beta = 1 - now / then
        noise, between = predict(x, step).chunk(2, dim=1)
        x0 = (x - (1 - now) ** 0.5 * noise) / now**0.5
        largest = max(float(np.percentile(x0.abs().numpy(), 99.5)), 1.0)
        x0 = x0.clamp(-largest, largest) / largest
        x = (beta * then**0.5 * x0 + (1 - then) * (1 - beta) ** 0.5 * x) / (1 - now)
        if following >= 0:
            share = (between + 1) / 2
            low, high = np.log(beta * (1 - then) / (1 - now)), np.log(beta)
            spread = torch.exp((share * high + (1 - share) * low) / 2)
            x = x + spread * torch.randn(x.shape, generator=generator)
    return x


def shown(pipe: Any, latents: torch.Tensor) -> torch.Tensor:
    return (pipe.vae.decode(latents / 0.0512).sample / 2 + 0.5).clamp(0, 1)


def drawn(pipe: Any, picture: Image.Image, generator: torch.Generator) -> torch.Tensor:
    """A picture's latents, drawn from their distribution."""
    pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    return 0.0512 * pipe.vae.encode(pixels).latent_dist.sample(generator)


def test_a_text_becomes_the_picture_of_the_stated_loop(pipe: Any) -> None:
    made = pipe("a red ball", negative_prompt="cube", num_inference_steps=5, height=64, width=96,
                generator=seeded(), output_type="pt").images  # fmt: skip
    noise = torch.randn(1, 4, 8, 12, generator=seeded())
    steps = [801, 601, 401, 201, 1]
    expected = shown(pipe, ddim(predictions(pipe, TEXT, "a red ball", "cube"), noise, steps))
    closely(made, expected, 1e-4)


def test_with_learned_variances(pipe: Any) -> None:
    ancestral = calotype.KandinskyV20Pipeline.from_pipe(pipe, scheduler=calotype.DDPMScheduler(**ANCESTRAL))
    generator = seeded(1)
    made = quiet(ancestral)("a red ball", num_inference_steps=4, height=64, width=64, generator=generator,
                            output_type="pt").images  # fmt: skip
    generator = seeded(1)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    expected = ddpm(predictions(pipe, TEXT, "a red ball", ""), noise, [999, 666, 333, 0], generator)
    closely(made, shown(pipe, expected), 1e-4)


def test_a_picture_is_forgotten_in_part(pipe: Any) -> None:
    """The last ``strength`` of the steps, from the picture noised to the level of the first of them."""
    picture = photo(64, 64)
    options: dict[str, Any] = {"image": picture, "num_inference_steps": 5, "output_type": "pt"}
    made = pipe("a red ball", strength=0.6, generator=seeded(3), **options).images
    generator = seeded(3)
    latents = drawn(pipe, picture, generator)
    level = float(ALPHAS[401])
    start = level**0.5 * latents + (1 - level) ** 0.5 * torch.randn(latents.shape, generator=generator)
    expected = ddim(predictions(pipe, TEXT, "a red ball", ""), start, [401, 201, 1])
    closely(made, shown(pipe, expected), 1e-4)
    still = pipe("a red ball", image=picture, num_inference_steps=5, strength=0.2, output_type="latent",
                 generator=seeded(3)).images  # fmt: skip
    changed = pipe(
        "a red ball", **{**options, "output_type": "latent"}, strength=1.0, generator=seeded(3)
    ).images
    assert (still - latents).abs().mean() < (changed - latents).abs().mean()
    with pytest.raises(InputError, match=r"strength=0\.1 of 5 steps leaves none"):
        pipe("a red ball", strength=0.1, **options)


def narrowed(kept: torch.Tensor) -> torch.Tensor:
    """The published mask: each 0 makes six of its neighbours 0."""
    result = kept.clone()
    high, wide = kept.shape
    for row in range(high):
        for column in range(wide):
            if kept[row, column] == 0:
                for down, right in ((-1, 0), (0, -1), (-1, -1), (1, 0), (0, 1), (1, 1)):
                    if 0 <= row + down < high and 0 <= column + right < wide:
                        result[row + down, column + right] = 0
    return result


def test_new_content_where_the_mask_is_white(pipe: Any) -> None:
    """The denoiser reads the known latents times their mask, and the mask; nothing is put back."""
    picture, white = photo(64, 64), mask(64, 64)
    made = pipe("a red ball", image=picture, mask_image=white, num_inference_steps=5, height=64, width=64,
                generator=seeded(4), output_type="pt").images  # fmt: skip
    generator = seeded(4)
    latents = drawn(pipe, picture, generator)
    noise = torch.randn(latents.shape, generator=generator)
    marked = torch.from_numpy(np.asarray(white) > 127).float()
    kept = narrowed(1 - F.interpolate(marked[None, None], size=(8, 8))[0, 0])[None, None]
    assert 0 < kept.mean() < 1
    predict = predictions(pipe, INPAINTING, "a red ball", "")
    expected = ddim(predict, noise, [801, 601, 401, 201, 1], latents * kept, kept)
    closely(made, shown(pipe, expected), 1e-4)


def test_composite_keeps_every_pixel_where_the_mask_is_black(pipe: Any) -> None:
    pictures, masks = [photo(80, 72), photo(80, 72, seed=1)], [mask(80, 72), mask(80, 72, left=40)]
    made = pipe(["a red ball"] * 2, image=pictures, mask_image=masks, composite=True, num_inference_steps=1,
                num_images_per_prompt=2, height=64, width=64, generator=seeded()).images  # fmt: skip
    for number, image in enumerate(made):
        found, given, white = (
            np.asarray(each) for each in (image, pictures[number // 2], masks[number // 2])
        )
        assert (found[white == 0] == given[white == 0]).all()
        assert (found[white > 0] != given[white > 0]).any()


TASKS: dict[str, dict[str, Any]] = {
    "text-to-image": {},
    "image-to-image": {"image": photo(64, 64), "strength": 0.6},
    "inpainting": {"image": photo(64, 64), "mask_image": mask(64, 64)},
}


@pytest.mark.parametrize("task", TASKS)
def test_seeds(pipe: Any, task: str) -> None:
    """A picture of several can be made again alone; another seed makes another picture."""
    size = {} if task == "image-to-image" else {"height": 64, "width": 64}
    given: dict[str, Any] = {**TASKS[task], **size, "num_inference_steps": 3, "output_type": "pt"}
    two = pipe("a red ball", num_images_per_prompt=2, seed=6, **given).images
    alone = pipe("a red ball", seed=7, **given).images
    torch.testing.assert_close(two[1:], alone, atol=1e-4, rtol=0)
    assert (two[0] - two[1]).abs().max() > 0.01
    assert torch.equal(alone, pipe("a red ball", seed=7, **given).images)


def test_what_does_not_fit_is_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="height must be divisible by 16"):
        pipe("a red ball", height=72, width=64)
    with pytest.raises(InputError, match="prompt is not given"):
        pipe(height=64, width=64)
    alone = calotype.KandinskyV20InpaintPipeline.from_pipe(pipe, inpaint_unet=None, inpaint_text_proj=None)
    with pytest.raises(InputError, match="reads 4 channels; this task needs one that reads 9"):
        alone("a red ball", image=photo(), mask_image=mask())
    net = calotype.ControlNetModel(
        down_block_types=("DownBlock2D",),
        block_out_channels=(32,),
        conditioning_embedding_out_channels=(4,),
    )
    with pytest.raises(InputError, match="denoiser takes none"):
        pipe("a red ball", control=calotype.control(net, photo()))


# -- files -----------------------------------------------------------------------------------------------------


def test_one_object_does_all_tasks_and_is_saved_with_both_denoisers(pipe: Any, tmp_path: Path) -> None:
    assert pipe.tasks == tuple(TASKS)
    assert dict(pipe.scheduler.config).items() >= SAMPLING.items()
    pipe.save_pretrained(tmp_path)
    again = quiet(calotype.load(tmp_path, device="cpu"))
    whole = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(whole) is calotype.KandinskyV20Pipeline
    for task, given in TASKS.items():
        call: dict[str, Any] = {
            "prompt": "a red ball",
            **given,
            "num_inference_steps": 2,
            "output_type": "pt",
        }
        if task != "image-to-image":
            call |= {"height": 64, "width": 64}
        public: Any = {
            "text-to-image": calotype.AutoPipelineForText2Image,
            "image-to-image": calotype.AutoPipelineForImage2Image,
            "inpainting": calotype.AutoPipelineForInpainting,
        }[task]
        pipes = pipe, again, quiet(public.from_pipe(whole))
        first, *others = (each(**call, generator=seeded()).images for each in pipes)
        assert all(torch.equal(first, other) for other in others), task


PUBLIC = {
    "AutoPipelineForText2Image": ("KandinskyV20Pipeline", 4),
    "AutoPipelineForImage2Image": ("KandinskyV20Img2ImgPipeline", 4),
    "AutoPipelineForInpainting": ("KandinskyV20InpaintPipeline", 9),
}


@pytest.mark.parametrize("auto", PUBLIC)
def test_a_class_for_one_task_reads_its_denoiser_alone(folder: Path, pipe: Any, auto: str) -> None:
    name, channels = PUBLIC[auto]
    shared = {key: part for key, part in pipe.components.items() if "unet" not in key and "proj" not in key}
    made = getattr(calotype, auto).from_pretrained(folder, torch_dtype=torch.float16, **shared)
    assert type(made).__name__ == name
    assert made.unet.config.in_channels == channels
    assert made.unet.dtype == made.text_proj.dtype == torch.float16
    assert made.inpaint_unet is None


def test_pickles_are_read_when_asked_only(pipe: Any, tmp_path: Path) -> None:
    published(tmp_path, INPAINTING, safe=False)
    with pytest.raises(
        ModelFilesError, match=r"Kandinsky-2-0-inpainting\.pt, a pickle.*use_safetensors=False"
    ):
        calotype.load(
            tmp_path,
            device="cpu",
            vae=pipe.vae,
            text_encoder=pipe.text_encoder,
            text_encoder_2=pipe.text_encoder_2,
        )
    with pytest.raises(ModelFilesError, match="use_safetensors=False"):
        calotype.load(tmp_path, device="cpu")
    made = calotype.load(tmp_path, device="cpu", use_safetensors=False)
    assert made.tasks == ("inpainting",)
    counterparts = {"unet": "inpaint_unet", "text_proj": "inpaint_text_proj"}
    for name in ("unet", "text_proj", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = made.components[name], pipe.components[counterparts.get(name, name)]
        assert not ours.training
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())


def broken(change: Callable[[dict[str, torch.Tensor]], Any], place: Path) -> Path:
    state = state_of(TEXT)
    change(state)
    save_file(state, place / f"{TEXT}.safetensors")
    return place


QKV, ADDED = "middle_block.1.qkv.bias", "ln_model4.weight"
BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], type[Exception], str]] = {
    "missing": (lambda s: s.pop(QKV), WeightsError, rf"{QKV} is missing"),
    "superfluous": (lambda s: s.update({ADDED: torch.ones(2)}), WeightsError, rf"{ADDED} is not part"),
    "misshapen": (
        lambda s: s.update({QKV: torch.ones(100)}),
        WeightsError,
        rf"{QKV} \(file: \[100\], model: \[384\]\)",
    ),
    "no telling": (
        lambda s: s.pop("middle_block.1.encoder_kv.weight"),
        ModelFilesError,
        "cannot be told without 'middle_block.1.encoder_kv.weight'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_must_be_whole(pipe: Any, case: str, tmp_path: Path) -> None:
    change, error, words = BROKEN[case]
    shared = {key: part for key, part in pipe.components.items() if "unet" not in key and "proj" not in key}
    with pytest.raises(error, match=words):
        calotype.KandinskyV20Pipeline.from_pretrained(broken(change, tmp_path), **shared)


def test_what_a_folder_is_not_for(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds Kandinsky 2.0, not a StableDiffusionPipeline"):
        calotype.StableDiffusionPipeline.from_pretrained(folder)
    with pytest.raises(InputError, match="no variants"):
        calotype.DiffusionPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(InputError, match="no component movq"):
        calotype.DiffusionPipeline.from_pretrained(folder, movq=None)
    save_file(state_of(TEXT), tmp_path / f"{TEXT}.safetensors")
    with pytest.raises(ModelFilesError, match="no folder 'text_encoder1'"):
        calotype.DiffusionPipeline.from_pretrained(tmp_path)
