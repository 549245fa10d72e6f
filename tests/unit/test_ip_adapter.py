"""IP-Adapters come and go without a trace, act in the call that they are for, and say what does not fit."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import calotype
from calotype.adapters import ip_adapter
from calotype.core.errors import InputError, ModelFilesError, WeightsError
from calotype.guidance import ClassifierFree, Interval
from calotype.image_processor import IPAdapterMaskProcessor
from calotype.nn.attention import Attention
from calotype.nn.image_projections import image_projections
from tests.parity import ip_adapter_parts as parts
from tests.parity.pipeline_runs import quiet, seeded
from tests.tiny import UNET, randomise, stable_diffusion_folder, stable_diffusion_xl_parts


def photo(seed: int = 0) -> Image.Image:
    pixels = torch.randint(0, 256, (5, 6, 3), generator=seeded(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, with adapters and an image encoder beside it."""
    root = tmp_path_factory.mktemp("models")
    stable_diffusion_folder(root / "sd")
    unet = calotype.UNet2DConditionModel.from_pretrained(root / "sd", subfolder="unet")
    parts.image_encoder_folder(root / "adapters" / "models" / "image_encoder")
    for seed, kind in enumerate(("plain", "plus", "face")):
        parts.save(parts.adapter(unet, kind, seed), root / "adapters" / "models" / f"{kind}.safetensors")
    parts.save(parts.adapter(unet, "plain", 7), root / "adapters" / "models" / "pickled.bin")
    torch.save(parts.adapter(unet, "plain", 9), root / "adapters" / "models" / "plain.bin")
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> Any:
    pipe = quiet(calotype.StableDiffusionPipeline.from_pretrained(folder / "sd"))
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture
def pipe(made: Any) -> Iterator[Any]:
    """A pipeline without adapters, before and after."""
    yield made
    made.unload_lora_weights()
    made.unload_ip_adapter()


def load(pipe: Any, folder: Path, *kinds: str, **more: Any) -> None:
    names = [kind if "." in kind else f"{kind}.safetensors" for kind in kinds]
    pipe.load_ip_adapter(folder / "adapters", subfolder="models", weight_name=names, **more)


def run(pipe: Any, **arguments: Any) -> torch.Tensor:
    given = {"prompt": "a ball", "num_inference_steps": 3, "output_type": "pt", "generator": seeded()}
    if arguments.get("ip_adapter_image", True) is True and "ip_adapter_image_embeds" not in arguments:
        arguments["ip_adapter_image"] = photo(3)
    return pipe(**given | arguments).images


def tensors() -> int:
    gc.collect()
    return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())


# -- without a trace -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("plain",), ("plus", "face")])
def test_unloading_leaves_everything_as_it_was(pipe: Any, folder: Path, kinds: tuple[str, ...]) -> None:
    plain = run(pipe, ip_adapter_image=None)
    state = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    places = {key: value.data_ptr() for key, value in pipe.unet.state_dict().items()}
    config, modules = pipe.unet.config, dict(pipe.unet.named_modules())
    index, count = pipe.to_json_string(), tensors()
    load(pipe, folder, *kinds)
    embeds = [torch.randn(2, 1, width, generator=seeded(1)) for width in (parts.FACE,)]
    if "face" in kinds:
        states = torch.randn(2, 1, parts.PATCHES, parts.STATE, generator=seeded(2))
        with_pictures = run(pipe, ip_adapter_image_embeds=[states, *embeds])
    else:
        with_pictures = run(pipe)
    assert not torch.allclose(with_pictures, plain, atol=1e-2)
    assert pipe.unet.state_dict().keys() == state.keys()
    pipe.unload_ip_adapter()
    assert torch.equal(run(pipe, ip_adapter_image=None), plain)
    after = pipe.unet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert {key: value.data_ptr() for key, value in after.items()} == places
    assert pipe.unet.config == config
    assert dict(pipe.unet.named_modules()) == modules
    assert pipe.to_json_string() == index
    assert pipe.image_encoder is None and pipe.feature_extractor is None
    del with_pictures, embeds, after
    assert tensors() <= count + 2 + len(state)  # what this test itself holds


def test_an_adapter_is_no_part_of_what_is_saved(pipe: Any, folder: Path, tmp_path: Path) -> None:
    load(pipe, folder, "plain")
    assert pipe.unet.config.encoder_hid_dim_type == "ip_image_proj"
    pipe.unet.register_to_config(sample_size=16)
    assert pipe.unet.config.encoder_hid_dim_type == "ip_image_proj"
    pipe.unet.register_to_config(sample_size=UNET["sample_size"])
    pipe.unet.save_pretrained(tmp_path)
    again, info = calotype.UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert again.config.encoder_hid_dim_type is None and not any(info.values())
    assert calotype.UNet2DConditionModel.from_config(pipe.unet.config).encoder_hid_proj is None


def test_a_projection_of_text_keeps_its_place(folder: Path, tmp_path: Path) -> None:
    """UNets that project their text (Kolors) keep its keys and its use."""
    unet = randomise(calotype.UNet2DConditionModel(**UNET, encoder_hid_dim=12))
    told = {"sample": torch.randn(1, 4, 8, 8), "timestep": 5, "encoder_hidden_states": torch.randn(1, 7, 12)}
    plain, state = unet(**told).sample, unet.state_dict()
    contents = ip_adapter_contents(unet)
    ip_adapter.install(unet, [contents])
    assert unet.state_dict().keys() == state.keys()
    embeds = {"image_embeds": [torch.randn(1, 1, parts.EMBED)]}
    assert not torch.allclose(unet(**told, added_cond_kwargs=embeds).sample, plain, atol=1e-3)
    unet.encoder_hid_proj.scales = ip_adapter.scales(unet, 0.0)
    torch.testing.assert_close(unet(**told, added_cond_kwargs=embeds).sample, plain)
    ip_adapter.eject(copy.deepcopy(unet))
    assert unet.config.encoder_hid_dim_type == "ip_image_proj"
    ip_adapter.eject(unet)
    assert unet.config.encoder_hid_dim_type == "text_proj"
    assert torch.equal(unet(**told).sample, plain)


def ip_adapter_contents(unet: Any, kind: str = "plain") -> Any:
    from calotype.adapters import ip_adapter_files

    return ip_adapter_files.read(parts.adapter(unet, kind, 1))


def test_an_image_encoder_that_was_there_stays(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    given = {"image_encoder": pipe.image_encoder, "feature_extractor": pipe.feature_extractor}
    other = calotype.StableDiffusionImg2ImgPipeline.from_pipe(pipe, **given)
    assert other.unet is pipe.unet
    load(other, folder, "plus")
    other.unload_ip_adapter()
    assert other.image_encoder is given["image_encoder"]
    assert image_projections(pipe.unet) is None  # the UNet is one


def test_adapters_move_with_the_model(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    pipe.to(torch.float64)
    layer = next(iter(ip_adapter.readers(pipe.unet).values()))
    assert layer.image_sources is not None
    assert {tensor.dtype for tensor in layer.image_sources.buffers()} == {torch.float64}
    latents = torch.randn(1, 4, 8, 8, generator=seeded())
    image = run(pipe, latents=latents.double())
    pipe.to(torch.float32)
    torch.testing.assert_close(run(pipe, latents=latents).double(), image.double(), atol=1e-3, rtol=0)
    assert not any("image" in name for name, _ in pipe.unet.named_parameters())


# -- of the call -----------------------------------------------------------------------------------------------------


def test_a_scale_of_the_call(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    pipe.set_ip_adapter_scale(0.3)
    weak = run(pipe)
    pipe.set_ip_adapter_scale(1.0)
    assert torch.equal(run(pipe, ip_adapter_scale=0.3), weak)
    assert not torch.allclose(run(pipe), weak, atol=1e-3)


def test_no_scale_is_no_adapter(pipe: Any, folder: Path) -> None:
    plain = run(pipe, ip_adapter_image=None)
    load(pipe, folder, "plain")
    assert torch.equal(run(pipe, ip_adapter_scale=0.0), plain)
    assert torch.equal(run(pipe, ip_adapter_scale={"down": 0.0}), plain)


def test_threads_have_pictures_and_scales_of_their_own(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    asked = [{"ip_adapter_image": photo(n), "ip_adapter_scale": 0.2 + 0.3 * n} for n in range(3)]
    alone = [run(pipe, **one) for one in asked]
    found: dict[int, torch.Tensor] = {}
    workers = [
        threading.Thread(target=lambda n=n: found.__setitem__(n, run(pipe, **asked[n]))) for n in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(found[n], alone[n]) for n in range(3))


def test_a_callback_scales_its_own_call(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    seen = []

    def off(view: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 0:
            view.set_ip_adapter_scale(0.0)
        seen.append(view.unet.encoder_hid_proj.scales)
        return {}

    full = run(pipe)
    cut = run(pipe, callback_on_step_end=off)
    assert not torch.allclose(cut, full, atol=1e-3)
    assert set(seen[-1][0].values()) == {1.0}
    assert torch.equal(run(pipe), full)


def test_steps_without_guidance_see_the_positives(pipe: Any, folder: Path) -> None:
    """Guidance that ends leaves the tokens of the branch that goes on."""
    load(pipe, folder, "plain")
    whole = run(pipe, guidance=Interval(ClassifierFree(5.0), 0.0, 1.0))
    torch.testing.assert_close(whole, run(pipe, guidance_scale=5.0), atol=1e-5, rtol=0)
    half = run(pipe, guidance=Interval(ClassifierFree(5.0), 0.0, 0.5))
    assert not torch.allclose(half, whole, atol=1e-3)
    none = run(pipe, guidance=Interval(ClassifierFree(5.0), 0.9, 0.95))
    torch.testing.assert_close(none, run(pipe, guidance_scale=1.0), atol=1e-5, rtol=0)


def test_an_embedding_for_each_picture(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    pictures = [torch.randn(1, 1, parts.EMBED, generator=seeded(n)) for n in range(2)]
    negatives = torch.zeros(1, 1, parts.EMBED)
    alone = [
        run(pipe, ip_adapter_image_embeds=[torch.cat([negatives, one])], generator=[seeded()])
        for one in pictures
    ]
    both = run(
        pipe,
        prompt=["a ball"] * 2,
        ip_adapter_image_embeds=[torch.cat([negatives, negatives, *pictures])],
        generator=[seeded(), seeded()],
    )
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=0)


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_safetensors_file_is_read_in_place_of_the_pickle(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    expected = run(pipe)
    load(pipe, folder, "plain.bin")
    assert torch.equal(run(pipe), expected)
    load(pipe, folder, "plain.bin", use_safetensors=False)
    assert not torch.allclose(run(pipe), expected, atol=1e-3)


def test_a_pickle_is_read_when_asked_for(pipe: Any, folder: Path) -> None:
    with pytest.raises(ModelFilesError, match="use_safetensors=False"):
        load(pipe, folder, "pickled.bin")
    assert image_projections(pipe.unet) is None and pipe.image_encoder is None
    load(pipe, folder, "pickled.bin", use_safetensors=False, image_encoder_folder="models/image_encoder")
    assert run(pipe).isfinite().all()


def test_a_file_by_its_path(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain")
    expected = run(pipe)
    pipe.unload_ip_adapter()
    pipe.load_ip_adapter(folder / "adapters" / "models" / "plain.safetensors")
    assert torch.equal(run(pipe), expected)


def broken(folder: Path, change: str) -> Any:
    unet = calotype.UNet2DConditionModel.from_pretrained(folder / "sd", subfolder="unet")
    found = parts.adapter(unet, "plus" if "layer" in change else "plain", 1)
    match change:
        case "a LoRA":
            return {"unet.down_blocks.0.lora_A.weight": torch.zeros(2, 2)}
        case "no projection":
            return {"ip_adapter": found["ip_adapter"]}
        case "of SDXL":
            xl = stable_diffusion_xl_parts(calotype, folder / "xl")["unet"]
            return parts.adapter(xl, "plain", 1)
        case "another width":
            found["ip_adapter"]["1.to_v_ip.weight"] = torch.zeros(32, 24)
        case "a matrix too many":
            found["ip_adapter"]["1.to_q_ip.weight"] = torch.zeros(32, 32)
        case "an unknown projection":
            found["image_proj"] = {"mlp.weight": torch.zeros(3, 3)}
        case "half a projection":
            del found["image_proj"]["proj.bias"]
        case "a layer without its queries":
            del found["image_proj"]["layers.0.0.to_q.weight"]
        case "a layer without its norm":
            del found["image_proj"]["layers.2.0.norm1.weight"]
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    {
        "a LoRA": "is no IP-Adapter: it has 'unet.down_blocks.0.lora_A.weight'",
        "no projection": "no 'image_proj', a projection of pictures",
        "of SDXL": "keys and values for 8 layers and the UNet has 4",
        "another width": r"'1.to_v_ip.weight' is \(32, 24\).*another architecture",
        "a matrix too many": "without a place, such as '1.to_q_ip.weight'",
        "an unknown projection": "of an unknown kind, with mlp.weight",
        "half a projection": "'proj.bias' of its projection of pictures is missing",
        "a layer without its queries": "incomplete projection of pictures: 'layers.0.0.to_q.weight'",
        "a layer without its norm": "'layers.2.0.norm1.weight' of its projection of pictures is missing",
    }.items(),
)
def test_files_that_do_not_fit(pipe: Any, folder: Path, change: str, words: str) -> None:
    load(pipe, folder, "plus")
    before = run(pipe)
    with pytest.raises(WeightsError, match=words):
        pipe.load_ip_adapter(broken(folder, change), image_encoder_folder=None)
    assert torch.equal(run(pipe), before)  # the adapter that was there is there


# -- refused -----------------------------------------------------------------------------------------------------------

MASK = torch.ones(1, 1, 64, 64)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"ip_adapter_image": None}, "give ip_adapter_image or ip_adapter_image_embeds"),
    "both": ({"ip_adapter_image": photo(), "ip_adapter_image_embeds": [MASK]}, "Both ip_adapter_image and"),
    "two pictures": ({"ip_adapter_image": [photo(), photo()]}, "has 2 entries for 1 IP-Adapters"),
    "a name": ({"ip_adapter_image": "photo.png"}, "not str"),
    "a tensor of embeds": ({"ip_adapter_image_embeds": torch.zeros(2, 1, 24)}, "a list of a tensor"),
    "flat embeds": ({"ip_adapter_image_embeds": [torch.zeros(2, 24)]}, r"not \(2, 24\)"),
    "no negatives": ({"ip_adapter_image_embeds": [torch.zeros(1, 1, 24)]}, "has 1 rows; guidance takes"),
    "negatives without guidance": (
        {"ip_adapter_image_embeds": [torch.zeros(2, 1, 24)], "guidance_scale": 1.0},
        "has 2 rows; without guidance",
    ),
    "two scales": ({"ip_adapter_scale": [0.1, 0.2]}, "2 scales for 1 IP-Adapters"),
    "a scale of nothing": ({"ip_adapter_scale": "much"}, "not 'much'"),
    "a scale of infinity": ({"ip_adapter_scale": float("inf")}, "not inf"),
    "an unknown block": ({"ip_adapter_scale": {"up": {"block_7": 1.0}}}, "up.block_7"),
    "a scale for each picture": ({"ip_adapter_scale": [[0.1, 0.2]]}, "needs a mask for each"),
    "masks of another count": (
        {"cross_attention_kwargs": {"ip_adapter_masks": [MASK, MASK]}},
        "a list of 1 masks",
    ),
    "a mask for two pictures": (
        {"cross_attention_kwargs": {"ip_adapter_masks": [MASK.expand(1, 2, 64, 64)]}},
        r"\(1, 1, height, width\), not \(1, 2, 64, 64\)",
    ),
    "scales for more pictures": (
        {"ip_adapter_scale": [[0.1, 0.2]], "cross_attention_kwargs": {"ip_adapter_masks": [MASK]}},
        "2 scales for the 1 pictures",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_calls_that_do_not_fit(pipe: Any, folder: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, words = REFUSED[case]
    load(pipe, folder, "plain")
    monkeypatch.setattr(type(pipe.unet), "forward", lambda *args, **kwargs: pytest.fail("computed"))
    with pytest.raises(InputError, match=words):
        run(pipe, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"ip_adapter_image": photo()},
        {"ip_adapter_image_embeds": [torch.zeros(2, 1, 24)]},
        {"ip_adapter_image": None, "ip_adapter_scale": 0.5},
        {"ip_adapter_image": None, "cross_attention_kwargs": {"ip_adapter_masks": [MASK]}},
    ],
)
def test_pictures_without_an_adapter(pipe: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no IP-Adapter is loaded"):
        run(pipe, **arguments)
    with pytest.raises(InputError, match="load_ip_adapter first"):
        pipe.set_ip_adapter_scale(0.5)


def test_pictures_where_nothing_reads_them(pipe: Any, folder: Path) -> None:
    load(pipe, folder, "plain", image_encoder_folder=None)
    with pytest.raises(InputError, match="needs an image_encoder"):
        run(pipe)
    load(pipe, folder, "face")
    with pytest.raises(InputError, match="embedding of a face"):
        run(pipe)


def test_pipelines_without_pictures_refuse_adapters(folder: Path) -> None:
    pipe = calotype.StableDiffusionXLInstructPix2PixPipeline(
        **stable_diffusion_xl_parts(calotype, folder / "edit")
    )
    with pytest.raises(InputError, match="takes no ip_adapter_image"):
        pipe.load_ip_adapter(folder / "adapters", subfolder="models", weight_name="plain.safetensors")


def test_counts_of_files_that_do_not_fit(pipe: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="2 weight names for 3 IP-Adapters"):
        pipe.load_ip_adapter([folder] * 3, subfolder="models", weight_name=["a", "b"])
    with pytest.raises(ModelFilesError, match="pass weight_name"):
        pipe.load_ip_adapter(folder / "adapters", subfolder="models")
    with pytest.raises(ModelFilesError, match="has no models/nothing.safetensors"):
        load(pipe, folder, "nothing")
    with pytest.raises(ModelFilesError, match="has no models/elsewhere/config.json"):
        load(pipe, folder, "plain", image_encoder_folder="elsewhere")
    with pytest.raises(InputError, match="no argument colour"):
        load(pipe, folder, "plain", colour="red")


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_layer_adds_what_the_pictures_answer() -> None:
    """out + λ·softmax(Q Kᵀ/√d) V, written out for one head."""
    from calotype.nn.image_prompt import ImagePrompts, ImageSources

    layer = randomise(Attention(8, 6, heads=1, dim_head=4))
    key, value = torch.nn.Linear(6, 4, bias=False), torch.nn.Linear(6, 4, bias=False)
    x, text, picture = torch.randn(2, 5, 8), torch.randn(2, 3, 6), torch.randn(2, 1, 4, 6)
    plain = layer(x, text)
    layer.image_sources = ImageSources("here", [key], [value])
    assert torch.equal(layer(x, text), plain)
    found = layer(x, text, image_prompts=ImagePrompts((picture,), ({"here": 0.5},), (None,)))
    tokens = picture[:, 0]
    weights = (layer.to_q(x) @ key(tokens).mT / 2).softmax(-1)
    added = 0.5 * weights @ value(tokens) @ layer.to_out[0].weight.mT
    torch.testing.assert_close(found, plain + added)
    elsewhere = layer(x, text, image_prompts=ImagePrompts((picture,), ({"there": 0.5},), (None,)))
    assert torch.equal(elsewhere, plain)


def test_masks_are_for_any_proportions() -> None:
    processor = IPAdapterMaskProcessor()
    mask = torch.zeros(1, 32, 64)
    mask[:, :, 32:] = 1
    small = processor.downsample(mask, 2, 8, 3)
    assert small.shape == (2, 8, 3)
    assert torch.equal(small[0, :, 0].round(), torch.tensor([0.0, 0, 1, 1] * 2))
