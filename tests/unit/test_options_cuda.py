"""What is used by name, on CUDA: products in eight bits beside their twins, and cached steps from two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import calotype
from calotype.acceleration import Options, StepCache
from calotype.acceleration.accelerated import Accelerated, runner_of
from calotype.acceleration.quantised import Weight, check, product, twin
from calotype.acceleration.row_scales import TYPES, kernels_for, plain_dequantised, plain_quantised
from calotype.core.errors import InputError
from tests.on_cuda import error
from tests.tiny import UNET, randomise, stable_diffusion_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WIDE = {**UNET, "block_out_channels": (320, 640), "norm_num_groups": 32, "attention_head_dim": 8}
KINDS = ("int8", "fp8")
EXACT = {"int8": 0.015, "fp8": 0.05}
"""How far products of random rows in eight bits may be from exact ones."""


def needs(kind: str) -> None:
    try:
        check(kind, torch.device("cuda"))
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows(kind: str, dtype: torch.dtype) -> None:
    kernels = kernels_for(torch.device("cuda", torch.cuda.current_device()))
    if kernels is None or (kind == "fp8" and torch.cuda.get_device_capability() < (8, 9)):
        pytest.skip("no such kernels here")
    for shape in ((77, 320), (2, 5120), (1000, 2560)):
        x = (torch.randn(shape, device="cuda") * torch.logspace(-3, 2, shape[0], device="cuda")[:, None]).to(
            dtype
        )
        x[0] = 0
        values, scales = kernels.quantised(x, *TYPES[kind])
        right = plain_quantised(x, kind)
        torch.testing.assert_close(scales, right[1], rtol=1e-5, atol=0)
        apart = (values.float() - right[0].float()).abs()
        assert float((apart > 0).float().mean()) < 1e-3  # ties
        assert float((apart / right[0].float().abs().clamp(min=1)).max()) <= (1 if kind == "int8" else 0.13)
    sums = torch.randint(-(2**20), 2**20, (77, 1280), device="cuda", dtype=torch.int32)
    # so small that results are numbers in float16
    rows, columns, bias = (torch.rand(n, 1, device="cuda") / 100 for n in (77, 1280, 1280))
    for given in (bias[:, 0].to(dtype), None):
        found = kernels.dequantised(sums, rows, columns, given, dtype)
        assert error(found, plain_dequantised(sums, rows, columns, given, dtype)) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products(kind: str, dtype: torch.dtype) -> None:
    needs(kind)
    for rows, width, out in ((154, 320, 2560), (4096, 1280, 640)):
        x = torch.randn(2, rows, width, device="cuda", dtype=dtype)
        w = torch.randn(out, width, device="cuda", dtype=dtype)
        weight = Weight.of(w, kind)
        for bias in (None, torch.randn(out, device="cuda", dtype=dtype) * 10):
            found = product(x, weight, bias, kind)
            assert found.dtype == dtype and found.shape == (2, rows, out)
            assert error(found, twin(x, weight, bias, kind)) < 1e-2
            exact = F.linear(x.double(), w.double(), None if bias is None else bias.double())
            assert error(found, exact) < EXACT[kind]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_models_replay_them_and_weights_that_change_are_followed(kind: str) -> None:
    needs(kind)
    model = randomise(calotype.UNet2DConditionModel(**WIDE)).cuda().bfloat16()
    fast = Accelerated(model, Options(linears=kind))
    for scale in (1.0, 0.7):
        for parameter in model.parameters():
            parameter.mul_(scale)
        for _ in range(3):
            call = {
                "sample": torch.randn(2, 4, 32, 32, device="cuda", dtype=torch.bfloat16),
                "timestep": torch.tensor(500.0, device="cuda"),
                "encoder_hidden_states": torch.randn(2, 16, 32, device="cuda", dtype=torch.bfloat16),
                "return_dict": False,
            }
            assert 0 < error(fast(**call)[0], model(**call)[0]) < 0.1
    captures = fast._runner.captures["__call__"]
    assert captures.count == 1 and not captures.failed
    assert f"linear layers in {kind}; graphs" in fast._runner.report()


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = stable_diffusion_folder(tmp_path_factory.mktemp("sd"), calotype)
    made = calotype.StableDiffusionPipeline.from_pretrained(folder).to("cuda")
    made.scheduler = calotype.EulerDiscreteScheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    return made


def picture(pipe: Any, seed: int) -> Tensor:
    return pipe(
        "a cat", generator=torch.Generator().manual_seed(seed), num_inference_steps=9, height=64, width=64,
        output_type="pt",
    ).images  # fmt: skip


def test_cached_steps_are_replayed_from_two_graphs(pipe: Any) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    pipe.acceleration = Options(step_cache=StepCache(3), graphs=False, kernels=False)
    right = [picture(pipe, seed) for seed in range(3)]
    pipe.acceleration = Options(step_cache=StepCache(3))
    for _ in range(2):
        for seed in range(3):
            torch.testing.assert_close(picture(pipe, seed), right[seed], rtol=1e-3, atol=1e-3)
    runner = runner_of(pipe.unet, pipe.acceleration.options)
    assert {name: captures.count for name, captures in runner.captures.items()} == {"whole": 1, "shallow": 1}
    assert dict(runner.steps.of) == {"whole": 18, "shallow": 36}
    pipe.acceleration = Options()
    assert 1e-4 < (picture(pipe, 0) - right[0]).abs().mean() < 0.1
