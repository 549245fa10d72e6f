"""Acceleration on CUDA: kernels and replayed graphs compute what the models compute, for any prompt, time and seed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import calotype
from calotype.acceleration.accelerated import Accelerated
from calotype.acceleration.options import Options
from tests.tiny import UNET, VAE, randomise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOUND = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
WIDE = {**UNET, "block_out_channels": (320, 640), "norm_num_groups": 32, "attention_head_dim": 8}


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """Without the matrix units' short float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def error(found: Tensor, right: Tensor) -> float:
    return float((found.double() - right.double()).norm() / right.double().norm())


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 320, 64, 64), (1, 960, 17, 33), (3, 2560, 8, 8), (1, 128, 512, 512)])
@pytest.mark.parametrize("last", [True, False])
def test_group_norm(dtype: torch.dtype, shape: tuple[int, ...], last: bool) -> None:
    from calotype.acceleration.kernels import group_norm

    x = (random(*shape) + 5).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    w, b, o, s = (random(n, dtype=dtype) for n in (shape[1], shape[1], shape[1], shape[0] * shape[1]))
    s = s.view(shape[:2])
    for silu, shift, offset in ((True, s, o), (False, None, None), (True, s, None)):
        found = group_norm.fused(x, 32, w, b, 1e-5, silu=silu, shift=shift, offset=offset)
        double = [None if t is None else t.double() for t in (x, w, b, shift, offset)]
        right = group_norm.plain(
            double[0], 32, double[1], double[2], 1e-5, silu=silu, shift=double[3], offset=double[4]
        )
        assert error(found, right) < BOUND[dtype]
        assert found.stride() == x.stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [320, 640, 1280])
def test_layer_norm_and_gate(dtype: torch.dtype, width: int) -> None:
    from calotype.acceleration.kernels import layer_norm, pointwise

    x, more = random(2, 77, width, dtype=dtype), random(2, 77, width, dtype=dtype)
    w, b = random(width, dtype=dtype), random(width, dtype=dtype)
    for one in (None, more):
        found = layer_norm.fused(x, w, b, 1e-5, one)
        right = layer_norm.plain(
            x.double(), w.double(), b.double(), 1e-5, None if one is None else one.double()
        )
        assert all(error(f, r) < BOUND[dtype] for f, r in zip(found, right, strict=True))
    assert error(pointwise.geglu(x), pointwise.plain_geglu(x.double())) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [True, False])
def test_biases_and_sum(dtype: torch.dtype, last: bool) -> None:
    from calotype.acceleration.kernels import pointwise

    x, more = random(2, 320, 17, 33, dtype=dtype), random(2, 320, 17, 33, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    a, b = random(320, dtype=dtype), random(320, dtype=dtype)
    for biases in ((None, None), (a, None), (a, b)):
        found = pointwise.residual(x, more, *biases)
        right = pointwise.plain_residual(
            x.double(), more.double(), *(None if t is None else t.double() for t in biases)
        )
        assert error(found, right) < BOUND[dtype]
        assert found.stride() == x.stride()


def unet(linear: bool = False) -> Any:
    return randomise(calotype.UNet2DConditionModel(**WIDE, use_linear_projection=linear)).cuda()


def given(rows: int = 2, side: int = 16) -> dict[str, Any]:
    return {
        "sample": random(rows, 4, side, side),
        "timestep": torch.tensor(float(torch.randint(1000, ()).item()), device="cuda"),
        "encoder_hidden_states": random(rows, 16, 32),
        "return_dict": False,
    }


ONE_BY_ONE = [
    Options(graphs=True, channels_last=False, kernels=False, packed=False, prompts=False),
    Options(graphs=False, channels_last=False, kernels=True, packed=False, prompts=False),
    Options(graphs=True, channels_last=True, kernels=False, packed=False, prompts=False),
    Options(graphs=True, channels_last=False, kernels=False, packed=True, prompts=False),
    Options(graphs=True, channels_last=False, kernels=False, packed=False, prompts=True),
    Options(attention=("cudnn", "flash", "efficient", "math"), tuned=True),
    Options(),
]


@torch.no_grad()
@pytest.mark.parametrize("options", ONE_BY_ONE)
def test_every_call_is_that_of_the_model(options: Options) -> None:
    plain, model = unet(), unet()
    fast = Accelerated(model, options)
    context = None
    for index in range(6):
        arguments = given()
        if index % 3 == 2:
            arguments["encoder_hidden_states"] = context  # the prompt of the call before
        context = arguments["encoder_hidden_states"]
        found, right = fast(**arguments)[0], plain(**arguments)[0]
        assert error(found, right) < 1e-4, index
    context.mul_(0.5)  # the same tensor with other values
    assert error(fast(**arguments)[0], plain(**arguments)[0]) < 1e-4
    if options.graphs:
        captures = fast._runner.captures["__call__"]
        assert captures.count == 1
        assert not captures.failed


@torch.no_grad()
def test_results_are_not_overwritten_by_the_next_call() -> None:
    fast = Accelerated(unet(), Options())
    calls = [given() for _ in range(4)]
    found = [fast(**arguments)[0] for arguments in calls]
    kept = [one.clone() for one in found]
    for arguments in calls:
        fast(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@torch.no_grad()
def test_shapes_are_kept_up_to_a_limit_and_moved_weights_are_noticed() -> None:
    plain, model = unet(), unet()
    fast = Accelerated(model, Options(shapes=2))
    for _ in range(2):
        for side in (8, 16, 24):
            arguments = given(side=side)
            assert error(fast(**arguments)[0], plain(**arguments)[0]) < 1e-3
    captures = fast._runner.captures["__call__"]
    assert len(captures.kept) == 2
    model.cpu()
    model.cuda()
    arguments = given(side=24)
    for _ in range(3):
        assert error(fast(**arguments)[0], plain(**arguments)[0]) < 1e-3
    count = captures.count  # the weights may have come back to where they were
    assert count in (3, 4)
    for parameter in model.parameters():  # in place: neither noticed nor needed, except for the prompt
        parameter.mul_(0.9)
    for parameter in plain.parameters():
        parameter.mul_(0.9)
    assert error(fast(**arguments)[0], plain(**arguments)[0]) < 1e-3
    assert captures.count == count


@torch.no_grad()
def test_an_autoencoder_decodes_from_a_graph() -> None:
    config = {**VAE, "block_out_channels": (32, 64, 64, 64), "norm_num_groups": 32}
    plain, model = (randomise(calotype.AutoencoderKL(**config)).cuda() for _ in range(2))
    fast = Accelerated(model, Options(), ("decode",))
    for _ in range(3):
        z = random(1, 4, 16, 16)
        assert error(fast.decode(z, return_dict=False)[0], plain.decode(z).sample) < 1e-3
    assert fast._runner.captures["decode"].count == 1


@torch.no_grad()
def test_threads_on_streams_of_their_own_do_not_disturb_each_other() -> None:
    plain, model = unet(), unet()
    fast = Accelerated(model, Options())
    problems: list[Any] = []

    def work() -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(10):
                    arguments = given()
                    found = fast(**arguments)[0]
                    if error(found, plain(**arguments)[0]) > 1e-3:
                        problems.append("a wrong result")
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


@torch.no_grad()
def test_memory_stays_flat() -> None:
    fast = Accelerated(unet(), Options())
    for _ in range(5):
        fast(**given())
    torch.cuda.synchronize()
    before = torch.cuda.memory_reserved()
    for _ in range(200):
        fast(**given())
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == before
