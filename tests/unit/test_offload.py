"""Offloading: who is on the accelerator when, what comes back, and what is said where there is none.

The meta device plays the accelerator: weights arrive there without values, so a tensor left behind is an error, and
whoever comes home without having been kept has lost its values.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calotype
from calotype.core.errors import InputError
from calotype.models.vector_quantizer import VectorQuantizer
from calotype.offloading.accelerator import Accelerator, Guest, accelerators_of, release
from calotype.offloading.transfers import Transfer, placed
from calotype.pipelines import efficiency, generation
from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder

META = torch.device("meta")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", calotype)


@pytest.fixture
def pipe(folder: Path) -> Any:
    return load(folder)


@pytest.fixture
def with_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host plays the accelerator, so that pictures can be computed there."""
    monkeypatch.setattr(efficiency, "_accelerator", lambda gpu_id, device: torch.device("cpu"))


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What comes and goes, as ("in" or "out", class of the module)."""
    seen: list[tuple[str, str]] = []
    arrive, depart = Guest.arrive, Guest.depart

    def arriving(guest: Guest) -> None:
        seen.append(("in", type(guest.module).__name__))
        arrive(guest)

    def departing(guest: Guest) -> None:
        seen.append(("out", type(guest.module).__name__))
        depart(guest)

    monkeypatch.setattr(Guest, "arrive", arriving)
    monkeypatch.setattr(Guest, "depart", departing)
    return seen


def load(folder: Path) -> Any:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, seed: int = 0, **arguments: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return pipe("a ball", num_inference_steps=2, output_type="pt", generator=generator, **arguments).images


def devices(module: nn.Module) -> set[str]:
    return {t.device.type for t in (*module.parameters(), *module.buffers())}


def two() -> tuple[nn.Module, nn.Module]:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), nn.Linear(4, 4)


# -- where there is no accelerator -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, "cpu", "xpu"])
@pytest.mark.parametrize("name", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_without_an_accelerator_offloading_says_that_it_does_nothing(
    pipe: Any,
    name: str,
    device: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    expected = picture(pipe)
    with caplog.at_level(logging.WARNING, "calotype"):
        getattr(pipe, name)(device=device)
    assert "no accelerator" in caplog.text
    assert not accelerators_of(pipe._modules_by_name.values())
    assert torch.equal(picture(pipe), expected)


def test_the_accelerator_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
    )
    assert efficiency._accelerator(None, None) == torch.device("cuda")
    assert efficiency._accelerator(1, None) == torch.device("cuda", 1)
    assert efficiency._accelerator(1, "cuda") == torch.device("cuda", 1)
    assert efficiency._accelerator(None, "cuda:3") == torch.device("cuda", 3)
    assert efficiency._accelerator(None, "mps") is None
    with pytest.raises(InputError, match="gpu_id=1 and device='cuda:3' both give a number"):
        efficiency._accelerator(1, "cuda:3")
    with pytest.raises(InputError, match="'gpu' is not a device"):
        efficiency._accelerator(None, "gpu")


# -- one module ------------------------------------------------------------------------------------------------


def test_models_take_turns_and_come_home_whole() -> None:
    first, second = two()
    before = copy.deepcopy(first.state_dict())
    accelerator = Accelerator(META, ("first", "second"))
    accelerator.host("first", first)
    accelerator.host("second", second)
    assert devices(first) == {"cpu"}
    assert first(torch.randn(2, 4)).device == META
    assert devices(first) == {"meta"}
    assert devices(second) == {"cpu"}
    second(torch.randn(2, 4))
    assert devices(first) == {"cpu"}
    assert devices(second) == {"meta"}
    accelerator.clear()
    assert devices(second) == {"cpu"}
    assert all(torch.equal(first.state_dict()[name], value) for name, value in before.items())


def test_a_model_that_takes_no_turns_stays_until_the_call_ends() -> None:
    first, second = two()
    accelerator = Accelerator(META, ("first",))
    accelerator.host("first", first)
    accelerator.host("control", second)
    for _ in range(2):
        second(torch.randn(2, 4))
        first(torch.randn(2, 4))
    assert devices(first) == devices(second) == {"meta"}
    accelerator.clear()
    assert devices(first) == devices(second) == {"cpu"}


def test_an_excluded_model_is_there_at_once_and_stays() -> None:
    first, _ = two()
    accelerator = Accelerator(META, ("first",), exclude=("first",))
    accelerator.host("first", first)
    assert devices(first) == {"meta"}
    accelerator.clear()
    assert devices(first) == {"meta"}
    release([first])
    assert devices(first) == {"cpu"}


class Layers(nn.Module):
    """A layer, a weight of its own and one whose children's weights are read without calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.seen: list[set[str]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(devices(self.layer))
        x = self.layer(x) * self.scale
        return self.attention(x, x, x, need_weights=False)[0]


def test_layer_by_layer_each_is_there_while_it_computes() -> None:
    model = Layers().eval()
    Accelerator(META, None).host("model", model)
    assert model(torch.randn(1, 3, 4)).device == META
    assert model.seen == [{"cpu"}]
    assert devices(model) == {"cpu"}


def test_layers_that_read_the_weights_below_them_come_with_them() -> None:
    model = nn.Sequential(VectorQuantizer(5, 3)).eval()
    Accelerator(META, None).host("model", model)
    assert model(torch.randn(1, 3, 2, 2))[0].device == META
    assert model[0].lookup(torch.zeros(1, 2, 2, dtype=torch.long, device=META)).device == META
    assert devices(model) == {"cpu"}


def test_a_method_other_than_forward_brings_the_model_too(pipe: Any) -> None:
    accelerator = Accelerator(META, ("vae",))
    accelerator.host("vae", pipe.vae)
    assert pipe.vae.encode(torch.randn(1, 3, 16, 16, device=META)).latent_dist.mean.device == META
    assert devices(pipe.vae) == {"meta"}
    accelerator.clear()
    assert pipe.vae.decode(torch.randn(1, 4, 2, 2, device=META)).sample.device == META


def test_a_failure_inside_leaves_nothing_locked_or_away() -> None:
    _, layer = two()
    accelerator = Accelerator(META, None)
    accelerator.host("layer", layer)
    with pytest.raises(RuntimeError):
        layer(torch.randn(2, 5))
    assert devices(layer) == {"cpu"}
    with ThreadPoolExecutor(1) as other:
        assert other.submit(accelerator.lock.acquire, timeout=1).result()


def test_weights_that_find_no_room_are_all_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = two()
    send, room = Transfer.send, [3]

    def full(transfer: Transfer, tensors: Any) -> Any:
        if len(tensors) > room[0]:
            raise torch.OutOfMemoryError("full")
        return send(transfer, tensors)

    monkeypatch.setattr(Transfer, "send", full)
    accelerator = Accelerator(META, ("model",))
    accelerator.host("model", model)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.randn(2, 4))
    assert devices(model) == {"cpu"}
    room[0] = 100
    assert model(torch.randn(2, 4)).device == META


def test_tied_weights_stay_tied() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.Linear(4, 4))
    model[1].weight = layer.weight
    accelerator = Accelerator(META, ("model",))
    accelerator.host("model", model)
    model(torch.randn(1, 4))
    assert model[0].weight is model[1].weight
    accelerator.clear()
    assert model[0].weight is model[1].weight
    assert devices(model) == {"cpu"}


def test_a_copy_of_an_offloaded_model_visits_for_itself() -> None:
    _, model = two()
    accelerator = Accelerator(META, ("model",))
    accelerator.host("model", model)
    twin = copy.deepcopy(model).double()
    assert twin(torch.randn(1, 4, dtype=torch.float64)).device == META
    assert devices(model) == {"cpu"}
    assert devices(twin) == {"meta"}
    model(torch.randn(1, 4))
    assert devices(twin) == {"cpu"}
    assert twin.weight.dtype == torch.float64


def test_arguments_are_brought_and_the_others_stay_the_same_objects() -> None:
    here, there = torch.zeros(1), torch.zeros(1, device=META)
    cache: dict[str, Any] = {"of": "a processor"}
    assert placed([here, {"x": (here, 1)}], META)[1]["x"][0].device == META
    assert placed(cache, META) is cache
    held = [there, (there,)]
    assert placed(held, META) is held


# -- a pipeline ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_accelerator")
def test_a_call_brings_each_model_once_in_turn(pipe: Any, visits: list[tuple[str, str]]) -> None:
    expected = picture(pipe)
    pipe.enable_model_cpu_offload()
    assert torch.equal(picture(pipe), expected)
    assert visits == [
        ("in", "CLIPTextModel"),
        ("out", "CLIPTextModel"),
        ("in", "UNet2DConditionModel"),
        ("out", "UNet2DConditionModel"),
        ("in", "AutoencoderKL"),
        ("out", "AutoencoderKL"),
    ]


@pytest.mark.usefixtures("with_accelerator")
def test_a_control_stays_while_the_unet_does(pipe: Any, visits: list[tuple[str, str]]) -> None:
    control = calotype.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=calotype.ControlNetModel.from_unet(pipe.unet)
    )
    control.set_progress_bar_config(disable=True)
    arguments = {"image": torch.rand(1, 3, 64, 64)}
    expected = picture(control, **arguments)
    control.enable_model_cpu_offload()
    assert torch.equal(picture(control, **arguments), expected)
    assert visits.count(("in", "ControlNetModel")) == visits.count(("in", "UNet2DConditionModel")) == 1
    assert visits[-1][0] == "out"


@pytest.mark.usefixtures("with_accelerator")
def test_layer_by_layer_makes_the_same_picture(pipe: Any, visits: list[tuple[str, str]]) -> None:
    expected = picture(pipe)
    pipe.enable_sequential_cpu_offload()
    assert torch.equal(picture(pipe), expected)
    assert visits.count(("in", "Conv2d")) == visits.count(("out", "Conv2d")) > 50
    assert not [kind for way, kind in visits if way == "in" and kind == "Transformer2DModel"]


@pytest.mark.usefixtures("with_accelerator")
def test_hooks_are_removed_without_a_trace(pipe: Any, visits: list[tuple[str, str]]) -> None:
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        enable()
        assert accelerators_of(pipe._modules_by_name.values())
    pipe.remove_all_hooks()
    assert not accelerators_of(pipe._modules_by_name.values())
    assert not [
        m for model in pipe._modules_by_name.values() for m in model.modules() if m._forward_pre_hooks
    ]
    picture(pipe)
    assert not visits


@pytest.mark.usefixtures("with_accelerator")
def test_a_component_exchanged_later_is_offloaded_too(pipe: Any, visits: list[tuple[str, str]]) -> None:
    pipe.enable_model_cpu_offload()
    pipe.vae = copy.deepcopy(pipe.vae)
    release([pipe.vae])
    pipe.unet = calotype.UNet2DConditionModel.from_config(pipe.unet.config).eval()
    picture(pipe)
    assert visits.count(("in", "UNet2DConditionModel")) == 1
    assert visits[-1] == ("out", "AutoencoderKL")
    pipe.enable_sequential_cpu_offload()
    pipe.fuse_qkv_projections()
    picture(pipe)
    assert visits.count(("in", "Attention")) > len(pipe.unet._attention_layers())


@pytest.mark.usefixtures("with_accelerator")
def test_pipelines_that_share_models_share_their_offloading(pipe: Any) -> None:
    pipe.enable_model_cpu_offload()
    other = calotype.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert accelerators_of(other._modules_by_name.values()) == accelerators_of(pipe._modules_by_name.values())
    other.enable_sequential_cpu_offload()
    assert all(place.by_piece for place in accelerators_of(pipe._modules_by_name.values()))


def test_the_call_computes_on_the_accelerator(pipe: Any) -> None:
    accelerator = Accelerator(META, ("text_encoder", "unet", "vae"))
    for name, model in pipe._modules_by_name.items():
        accelerator.host(name, model)
    assert pipe._execution_device == META
    assert pipe.device == torch.device("cpu")
    embeds, _ = pipe.encode_prompt("a ball", None, 1, False)
    assert embeds.device == META


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls compute on the meta device, which they otherwise refuse, and nobody asks for values."""
    checked = generation.checked

    def elsewhere(*args: Any) -> Any:
        return dataclasses.replace(checked(*args), device=META)

    monkeypatch.setattr(efficiency, "_accelerator", lambda gpu_id, device: META)
    monkeypatch.setattr(
        efficiency.Efficiency, "_execution_device", property(lambda self: torch.device("cpu"))
    )
    monkeypatch.setattr(generation, "checked", elsewhere)
    monkeypatch.setattr(generation, "check_finite", lambda tensor, what: tensor)
    monkeypatch.setattr(generation.Watch, "check", lambda self: None)
    monkeypatch.setattr(generation, "present", lambda images, output_type: images)


PICTURE = {"image": torch.rand(1, 3, 64, 64)}
MASKED = {**PICTURE, "mask_image": torch.ones(1, 1, 64, 64)}
CASES: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"clip_skip": 1},
    "StableDiffusionControlNetInpaintPipeline": {**MASKED, "control_image": PICTURE["image"]},
    "StableDiffusionAdapterPipeline": PICTURE,
    "StableDiffusionXLImg2ImgPipeline": {**PICTURE, "strength": 0.9},
}


MODES: dict[str, Callable[[Any], None]] = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "layers": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "blocks": lambda pipe: pipe.enable_group_offload(META, num_blocks_per_group=1),
    "pairs of blocks": lambda pipe: pipe.enable_group_offload("meta", num_blocks_per_group=2),
}


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_call_is_left_on_the_wrong_device(
    folder: Path, xl_folder: Path, name: str, mode: str
) -> None:
    half = (
        {"torch_dtype": torch.float16} if "XL" in name else {}
    )  # its autoencoder computes in a float32 copy
    extra: dict[str, Any] = {}
    if "ControlNet" in name:
        unet = calotype.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        extra["controlnet"] = calotype.ControlNetModel.from_unet(unet)
    if "Adapter" in name:
        extra["adapter"] = calotype.T2IAdapter(channels=(32, 64), num_res_blocks=1, downscale_factor=8)
    pipe = getattr(calotype, name).from_pretrained(xl_folder if "XL" in name else folder, **half, **extra)
    pipe.set_progress_bar_config(disable=True)
    MODES[mode](pipe)
    assert picture(pipe, **CASES[name]).device == META
    for model in pipe._modules_by_name.values():
        assert devices(model) == {"cpu"}


@pytest.mark.usefixtures("with_accelerator")
def test_an_offloaded_pipeline_is_converted_and_not_moved(
    pipe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pipe.enable_model_cpu_offload()
    pipe.to(META, torch.float64)
    assert "to() leaves them" in caplog.text
    assert devices(pipe.unet) == {"cpu"}
    assert pipe.unet.dtype == torch.float64
    assert accelerators_of([pipe.unet])
    pipe.enable_sequential_cpu_offload()
    with pytest.raises(InputError, match="layer by layer.*remove_all_hooks"):
        pipe.to(META)
    assert pipe.to("cpu").unet.dtype == torch.float64


@pytest.mark.usefixtures("with_accelerator")
def test_threads_wait_for_each_other(pipe: Any) -> None:
    expected = [picture(pipe, seed) for seed in range(4)]
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        enable()
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda seed: picture(pipe, seed), range(4)))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("with_accelerator")
def test_a_class_that_states_no_order_is_refused(pipe: Any) -> None:
    class Own(calotype.DiffusionPipeline):
        def __init__(self, unet: Any) -> None:
            self.register_modules(unet=unet)

    with pytest.raises(InputError, match="Own does not say in which order.*model_cpu_offload_seq"):
        Own(pipe.unet).enable_model_cpu_offload()
    Own(pipe.unet).enable_sequential_cpu_offload()


PIPELINES = [name for name in calotype.__all__ if name.endswith("Pipeline") and name != "DiffusionPipeline"]


@pytest.mark.parametrize("name", PIPELINES)
def test_every_large_model_takes_turns(name: str) -> None:
    cls = getattr(calotype, name)
    order = (cls.model_cpu_offload_seq or "").split("->")
    taken = {*order, *cls._exclude_from_cpu_offload}
    for model in {"unet", "vae", "text_encoder", "text_encoder_2", "movq", "decoder"} & set(
        inspect.signature(cls.__init__).parameters
    ):
        assert model in taken or cls.model_cpu_offload_seq is None
