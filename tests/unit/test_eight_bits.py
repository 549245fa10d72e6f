"""Linear layers in eight bits: how far rounding goes, which layers, and that the model is left as it was."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import calotype
from calotype.acceleration import Options
from calotype.acceleration.accelerated import runner_of
from calotype.acceleration.pipeline import Acceleration
from calotype.acceleration.quantised import Products, Weight, check, product, twin
from calotype.acceleration.row_scales import plain_dequantised, plain_quantised
from calotype.core.errors import InputError
from tests.tiny import UNET, randomise, stable_diffusion_folder

WIDE = {**UNET, "block_out_channels": (32, 64), "attention_head_dim": 4}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right.double()).norm() / right.double().norm())


@pytest.mark.parametrize(("kind", "top"), [("int8", 127), ("fp8", 448)])
def test_rows_are_rounded_by_half_a_step_at_most(kind: str, top: int) -> None:
    x = random(5, 64) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 1e4])[:, None]
    values, scales = plain_quantised(x, kind)
    assert values.element_size() == 1
    assert (values.float().abs().amax(1)[[0, 1, 2, 4]] == top).all()
    assert not values[3].float().any()
    apart = (values.float() * scales - x).abs()
    steps = scales if kind == "int8" else (x.abs() / 8).clamp(min=scales * 2**-9)  # 3 bits behind the point
    assert (apart <= steps * 0.5001).all()
    assert apart[1].max() > 0


def test_int8_products_are_those_of_the_rounded_values_and_near_the_exact_ones() -> None:
    x, w, b = random(2, 40, 96), random(48, 96, seed=1), random(48, seed=2)
    for bias in (None, b):
        found = product(x, Weight.of(w, "int8"), bias, "int8")
        assert found.shape == (2, 40, 48)
        torch.testing.assert_close(found, twin(x, Weight.of(w, "int8"), bias, "int8"), rtol=1e-5, atol=1e-5)
        assert 1e-4 < error(found, F.linear(x, w, bias)) < 0.012
    sums = torch.tensor([[3, -4]], dtype=torch.int32)
    rows, columns = torch.tensor([[0.5]]), torch.tensor([[2.0], [1.0]])
    right = torch.tensor([[13.0, 18.0]])
    assert torch.equal(
        plain_dequantised(sums, rows, columns, torch.tensor([10.0, 20.0]), torch.float32), right
    )


def test_fp8_is_near_the_exact_products_too() -> None:
    x, w, b = random(2, 40, 96), random(48, 96, seed=1), random(48, seed=2)
    assert 1e-3 < error(twin(x, Weight.of(w, "fp8"), b, "fp8"), F.linear(x, w, b)) < 0.045


@torch.no_grad()
def test_the_layers_of_blocks_are_in_eight_bits_and_those_that_read_the_prompt_are_not() -> None:
    model = randomise(calotype.UNet2DConditionModel(**WIDE))
    products = Products("int8")
    with products.within(model, looks=True):
        kinds = {id(weight.source) for weight in products.table.values()}
    named = {
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and id(part.weight) in kinds
    }
    assert any(name.endswith("attn1.to_q") for name in named)
    assert any(name.endswith("ff.net.0.proj") for name in named)
    assert not any(name.endswith(("attn2.to_k", "attn2.to_v")) for name in named)
    assert products.report() == f"{len(named)} of {products.linears} linear layers in int8"


@torch.no_grad()
def test_weights_that_change_are_followed_and_a_compiled_model_is_left_alone() -> None:
    layer = nn.Sequential(nn.Linear(32, 32))
    x, products = random(64, 32), Products("int8")

    def found(looks: bool = False) -> Tensor:
        with products.within(layer, looks):
            return layer(x)

    for change in (lambda: None, lambda: layer[0].weight.mul_(2), lambda: layer.double().float()):
        change()
        exact = layer(x)
        assert 1e-4 < error(found(), exact) < 0.02
    memory = next(iter(products.table.values())).values.data_ptr()
    layer[0].weight.add_(0.1)
    assert error(found(), layer(x)) < 0.02
    assert next(iter(products.table.values())).values.data_ptr() == memory
    layer[0] = nn.Linear(32, 32)
    assert 1e-4 < error(found(looks=True), layer(x)) < 0.02
    few = random(8, 32, seed=4)
    with products.within(layer, looks=False):
        assert torch.equal(layer(few), F.linear(few, layer[0].weight, layer[0].bias))
    hook = layer.register_forward_pre_hook(lambda *_: None)
    assert torch.equal(found(looks=True), F.linear(x, layer[0].weight, layer[0].bias))
    assert "as offloading puts them there" in products.report()
    hook.remove()
    layer[0].compile(backend="eager")
    with products.within(layer, looks=True):
        assert products.report() == "no linear layers in int8: it is compiled"
        assert torch.equal(F.linear(x, layer[0].weight), x @ layer[0].weight.t())


@torch.no_grad()
def test_other_threads_multiply_as_ever() -> None:
    layer, x = nn.Linear(32, 32), random(64, 32)
    exact = layer(x)
    found: list[Tensor] = []
    with Products("int8").within(layer, looks=True):
        thread = threading.Thread(target=lambda: found.append(layer.forward(x).detach()))
        thread.start()
        thread.join()
        assert not torch.equal(layer(x), exact)
    assert torch.equal(found[0], exact)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("sd"), calotype)


def picture(pipe: Any, **more: Any) -> Tensor:
    arguments = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "pt", **more}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **arguments).images


def test_pipelines_use_them_by_name_and_are_as_they_were_afterwards(folder: Path) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    right, before = picture(pipe), {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    pipe.acceleration = Options(linears="int8")
    found = picture(pipe)
    assert 0 < (found - right).abs().mean() < 0.02
    assert "linear layers in int8; plain: its weights are on cpu" in pipe.acceleration.report()
    assert "vae (AutoencoderKL): plain" in pipe.acceleration.report()
    weight = next(iter(runner_of(pipe.unet, Options(linears="int8")).products.table.values()))
    assert weight.values.dtype == torch.int8
    pipe.acceleration = Options()
    assert torch.equal(picture(pipe), right)
    after = pipe.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_adapters_are_heard_beside_them(folder: Path) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.acceleration = Options(linears="int8")
    without = picture(pipe)
    tensors = {}
    for key, layer in pipe.unet.named_modules():
        if key.endswith("attn1.to_q"):
            tensors[f"unet.{key}.lora_A.weight"] = random(2, layer.in_features) * 0.5
            tensors[f"unet.{key}.lora_B.weight"] = random(layer.out_features, 2, seed=1) * 0.5
    pipe.load_lora_weights(tensors)
    found = picture(pipe)
    count = pipe.acceleration.report()
    pipe.acceleration = Options()
    right = picture(pipe)
    assert (right - without).abs().mean() > 4 * (found - right).abs().mean()
    assert "linear layers in int8" in count


def test_what_a_device_cannot_multiply_is_refused_in_words(folder: Path) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.acceleration = Options(linears="fp8")
    with pytest.raises(
        InputError, match="compute capability 9.0 .Hopper. or newer, and this model is on cpu; take"
    ):
        picture(pipe)
    check("int8", torch.device("cpu"))
    with pytest.raises(InputError, match="linears is None, 'int8' or 'fp8', not 'int4'"):
        Options(linears="int4")
    with pytest.raises(InputError, match="called in each step, so linears has nothing to do"):
        Acceleration(lambda: {"vae": pipe.vae}, Options(linears="int8")).check()
