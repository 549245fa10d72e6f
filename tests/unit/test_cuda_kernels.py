"""Which kernels in CUDA C++ compute what, how the work is divided, and what computes it elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton")

import calotype
from calotype.acceleration.kernels import (
    convolutions,
    gate_products,
    limits,
    matrix_products,
    narrow_attention,
    short_attention,
)
from calotype.nn.attention import Attention
from calotype.nn.replaceable import replaced
from calotype.nn.resampling import Upsample2D
from calotype.nn.resnet import ResnetBlock2D
from calotype.nn.stage import of_joined
from tests.fake_kernels import Fake
from tests.tiny import UNET, randomise

PROCESSORS, SHARED = 132, 227 * 1024  # of an H200
LAST = torch.channels_last


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A device with these processors, and kernels in CUDA C++ or not."""

    def there(cuda: bool, triton: bool = True, shared: int = SHARED) -> None:
        for module in (gate_products, convolutions, matrix_products, narrow_attention):
            monkeypatch.setattr(module, "in_cuda", lambda device: cuda)
            monkeypatch.setattr(module, "processors", lambda device: PROCESSORS)
            monkeypatch.setattr(module, "shared_memory", lambda device: shared)
        monkeypatch.setattr(gate_products, "_is_in_triton", lambda device: triton)

    there(True)
    convolutions._plan.cache_clear()
    yield there
    convolutions._plan.cache_clear()


def gates(rows: int, width: int, half: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (rows, width), (2 * half, width), (2 * half,)
    return tuple(torch.empty(shape, dtype=torch.bfloat16) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("size", "cuda", "triton"),
    [
        ((2048, 1280, 5120), True, True),
        ((2048, 640, 2560), True, False),
        ((512, 1280, 5120), False, False),
    ],
)
def test_gates_are_computed_by_what_is_quickest_where_it_is(
    pretended: Any, size: tuple[int, int, int], cuda: bool, triton: bool
) -> None:
    given = gates(*size)
    quickest = gate_products.fused if triton else None
    assert gate_products.fit(*given) is (gate_products.paired if cuda else quickest)
    for there in ({"cuda": False}, {"cuda": True, "shared": 100 * 1024}):
        pretended(**there)
        assert gate_products.fit(*given) is quickest
    pretended(cuda=False, triton=False)
    assert gate_products.fit(*given) is None
    assert not gate_products.available(given[0].device)


def test_gates_of_other_forms_are_left_to_a_product(pretended: Any) -> None:
    x, weight, bias = gates(8192, 128, 1024)
    assert gate_products.fit(x, weight, bias)
    for other in (
        (x.float(), weight.float(), bias.float()),
        (x, weight.half(), bias),
        (x.T.contiguous().T, weight, bias),
        (x[:0], weight, bias),
        (x[:, :96].contiguous(), weight[:, :96].contiguous(), bias),
        (x, weight[:-64], bias[:-64]),
        (x, weight, bias.expand(2, -1).T.contiguous()[:, 0]),
    ):
        assert gate_products.fit(*other) is None


QUICKER = {
    (2, 64, 64, 320, 320): (160, 2, 1), (2, 64, 64, 960, 320): (160, 2, 1), (2, 64, 64, 640, 640): (160, 2, 1),
    (16, 32, 32, 640, 640): (160, 2, 1), (2, 128, 128, 320, 320): (160, 2, 1), (16, 16, 16, 1280, 1280): (160, 2, 1),
    (2, 32, 32, 1280, 640): (160, 1, 2), (2, 16, 16, 1280, 1280): (160, 1, 3), (2, 8, 8, 2560, 1280): (64, 1, 4),
}  # fmt: skip


@pytest.mark.parametrize("size", QUICKER)
def test_convolutions_that_fill_the_device_are_divided(size: tuple[int, ...]) -> None:
    n, h, w, c, o = size
    plan = convolutions.plan(n, h, w, c, o, PROCESSORS)
    assert plan is not None
    columns, pair, split, box = plan
    assert o % columns == 0
    assert (columns, pair, split) == QUICKER[size]
    assert box.maps * box.height * box.width == convolutions.PIXELS
    assert box.maps * -(-n // box.maps) >= n
    assert box.covering(n, h, w) * convolutions.PIXELS >= n * h * w
    assert plan.tiles(n, h, w, o) * pair * convolutions.PIXELS * columns >= n * h * w * o
    assert plan.stages >= 4
    assert plan.memory <= convolutions.MEMORY
    assert columns % (8 * pair) == 0  # each of a pair brings whole groups of eight filters


@pytest.mark.parametrize(
    "size",
    [
        (16, 8, 8, 1280, 1280),  # 64 tiles, which cuDNN divides otherwise
        (2, 64, 64, 1280, 1280),  # four turns, likewise
        (1, 512, 512, 256, 256),  # no tiles of 160
        (2, 64, 64, 4, 320),
        (2, 64, 64, 320, 4),
        (2, 64, 64, 320, 320 + 64),  # 384 = 3 * 128, 96 tiles in two turns
        (3, 64, 64, 320, 160),  # 48 tiles
        (0, 64, 64, 320, 320),
    ],
)
def test_others_are_left_to_cudnn(size: tuple[int, ...]) -> None:
    assert convolutions.plan(*size, PROCESSORS) is None


def test_boxes_lie_as_the_map_does() -> None:
    assert convolutions.plan(2, 64, 64, 320, 320, PROCESSORS).box.covering(2, 64, 64) == 64  # type: ignore[union-attr]
    for n, h, w in ((3, 24, 40), (5, 17, 23), (16, 8, 8), (7, 16, 16)):
        box = min(convolutions.BOXES, key=lambda box: box.covering(n, h, w))
        assert n * h * w / (box.covering(n, h, w) * convolutions.PIXELS) > 0.6


def maps(c: int = 64, o: int = 320) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (2, c, 64, 64), (o, c, 3, 3), (o,), (2, o, 64, 64)
    return tuple(  # type: ignore[return-value]
        torch.empty(shape, dtype=torch.bfloat16, memory_format=LAST if len(shape) == 4 else None)
        for shape in shapes
    )


def test_convolutions_of_other_forms_are_left_to_pytorch(pretended: Any) -> None:
    x, weight, bias, other = maps()
    fit = convolutions.fit
    assert fit(x, weight) and fit(x, weight, bias) and fit(x, weight, None, other)
    assert not fit(x.float(), weight.float())
    assert not fit(x, weight.half())
    assert not fit(x, weight, bias.float())
    assert not fit(x.contiguous(), weight)
    assert not fit(x, weight.contiguous())
    assert not fit(x, weight, bias, other.contiguous())
    assert not fit(x, weight, bias, other[:1])
    assert not fit(x[:1, :, :17], weight)  # too few tiles
    assert not fit(x, weight[:, :, :1, :1].contiguous(memory_format=LAST))
    assert not fit(x, maps(c=128)[1])
    assert not fit(*maps(c=96)[:2])
    for there in ({"cuda": False}, {"cuda": True, "shared": SHARED - 1}):
        pretended(**there)
        assert not fit(x, weight)


@pytest.mark.parametrize("plan", [one for plans in narrow_attention.PLANS.values() for one in plans.values()])
def test_attention_is_divided_as_products_and_processors_allow(plan: narrow_attention.Plan) -> None:
    assert plan.memory <= SHARED
    assert plan.down(1000) * plan.warpgroups * narrow_attention.ROWS >= 1000
    assert plan.keys % 16 == plan.width % 8 == 0


@pytest.mark.parametrize("count", [1, 7, PROCESSORS])
@pytest.mark.parametrize("channels", [16, 40, 64, 80, 160])
@pytest.mark.parametrize("keys", [1, 77, 128])
def test_attention_to_few_keys_is_divided_among_processors(keys: int, channels: int, count: int) -> None:
    for rows in (1, 16, 100, 1024, 4096):
        for heads in (1, 16, 40, 320):
            plan = short_attention.divided(rows, keys, channels, heads, count)
            assert keys <= plan.keys < keys + 16 and plan.keys % 16 == 0
            assert (plan.programs - 1) * plan.tiles * 16 < rows <= plan.programs * plan.tiles * 16
            assert 1 <= plan.warps <= short_attention.most_warps(channels, plan.keys)
            assert plan.memory <= SHARED


def test_attention_to_few_keys_fills_the_processors_once_where_it_can() -> None:
    def divided(batch: int, heads: int, rows: int, channels: int) -> tuple[int, int, int]:
        plan = short_attention.divided(rows, 77, channels, batch * heads, PROCESSORS)
        return batch * heads * plan.programs, plan.tiles, plan.warps

    assert divided(2, 20, 1024, 64) == (120, 22, 22)
    assert divided(2, 10, 4096, 64) == (120, 43, 22)
    assert divided(2, 8, 256, 160) == (128, 2, 8)  # most of whose warps only copy
    assert divided(16, 8, 4096, 40) == (128, 256, 24)
    assert divided(16, 20, 1024, 64) == (640, 32, 8)  # three at a time on a processor


def test_attention_to_few_keys_is_in_cuda_where_rows_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, channels = 3, 40
    inner = heads * channels
    packed = torch.empty(2, 100, 3 * inner, dtype=torch.bfloat16)
    q, k, v = packed.chunk(3, dim=-1)

    def there(q: Tensor, k: Tensor, v: Tensor, heads: int = heads, scale: float = 0.1) -> bool:
        return short_attention._is_in_cuda(q, k, v, heads, scale)

    assert not there(q, k, v)
    monkeypatch.setattr(short_attention, "available", lambda device: True)
    assert there(q, k, v) and there(q.half(), k.half(), v.half()) and there(q, k[:, :1], v[:, :1])
    assert there(q[:, :5].contiguous(), k[:1].expand(2, -1, -1), v[:1].expand(2, -1, -1))
    assert not there(q.float(), k.float(), v.float())
    assert not there(q, k, v, heads=10)  # 12 channels
    assert not there(q, k, v, heads=15)  # 8
    assert not there(q[..., :-heads], k[..., :-heads], v[..., :-heads])
    assert not there(q, k, v, scale=-0.1)
    assert not there(q[:0], k[:0], v[:0]) and not there(q[:, :0], k, v)
    assert not there(q, packed[..., 4 : 4 + inner], packed[..., 4 : 4 + inner])
    odd = torch.empty(2, 100, 3 * inner + 4, dtype=torch.bfloat16)[..., :inner]
    assert not there(odd, k, v) and not there(q, odd, odd)
    assert not there(q, k.mT.contiguous().mT, v)


@pytest.mark.parametrize("channels", [40, 64, 80])
def test_attention_of_other_forms_is_left_to_pytorch(pretended: Any, channels: int) -> None:
    heads, rows = 3, narrow_attention.LEAST
    inner, scale = heads * channels, channels**-0.5
    packed = torch.empty(2, rows + 6, 3 * inner, dtype=torch.bfloat16)
    q, k, v = packed.chunk(3, dim=-1)

    def fit(q: Tensor, k: Tensor, v: Tensor, heads: int = heads, scale: float = scale) -> bool:
        return narrow_attention.fit(q, k, v, heads, scale)

    assert fit(q, k, v) and fit(q[:, 6:], k, v) and fit(q, k[:, :-6], v[:, :-6]) and fit(q.contiguous(), k, v)
    assert fit(*(t.half() for t in (q, k, v))) == (channels != 64)
    assert not fit(*(t.float() for t in (q, k, v)))
    assert not fit(q.half(), k, v)
    assert not fit(q[:, 7:], k, v)
    assert not fit(q, k[:, 7:], v[:, 7:])
    assert not fit(q, k, v[:, 1:])
    assert not fit(q[:1], k, v)
    assert not fit(q[:0], k[:0], v[:0])
    assert not fit(q, k, v, heads=1)
    assert not fit(q[..., :-heads], k[..., :-heads], v[..., :-heads])
    assert not fit(q, k, v, scale=0.0)
    assert not fit(q, k[:1].expand(2, -1, -1), v[:1].expand(2, -1, -1))
    assert not fit(q, packed[..., 4 : 4 + inner], v)  # rows that begin between multiples of 16 bytes
    assert not fit(q, k.mT.contiguous().mT, v)
    for there in ({"cuda": False}, {"cuda": True, "shared": 190 * 1024}):
        pretended(**there)
        assert not fit(q, k, v)


@pytest.mark.parametrize(
    ("capability", "version", "waits"),
    [((9, 0), 12030, True), ((9, 0), 12020, False), ((8, 9), 13000, False)],
)
def test_kernels_wait_for_the_one_before_where_that_can_be_captured(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: int, waits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: version, raising=False)
    assert limits.can_wait.__wrapped__(torch.device("cuda", 0)) == waits
    assert not limits.can_wait.__wrapped__(torch.device("cpu"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_blocks_add_what_they_add_in_the_convolution(fake: Fake, bias: bool) -> None:
    block = ResnetBlock2D(in_channels=64, out_channels=128, temb_channels=8, conv_shortcut_bias=bias).eval()
    block = block.bfloat16().to(memory_format=LAST)
    x = torch.randn(2, 64, 8, 6, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    temb = torch.randn(2, 8, dtype=torch.bfloat16)
    right = block(x, temb)
    for options, seen in (
        ({}, ["convolved", "convolved bias other"]),
        ({"convolutions": False}, ["residual"]),
    ):
        fake.seen.clear()
        found = fake.stand_ins(**options).resnet(block, x, temb)
        assert fake.seen == seen
        assert found.is_contiguous(memory_format=LAST)
        torch.testing.assert_close(found, right, rtol=3e-2, atol=3e-2)


@torch.no_grad()
def test_what_the_kernel_does_not_compute_is_computed_as_ever(fake: Fake) -> None:
    """Another stride, zeros or layer than it knows, a shortcut in float32, and a layer that something is hooked to."""
    block = ResnetBlock2D(in_channels=64, out_channels=128, temb_channels=None).eval().to(memory_format=LAST)
    x = torch.randn(2, 64, 8, 6).contiguous(memory_format=LAST)
    stand_ins = fake.stand_ins()
    for change, seen in (
        (lambda: None, ["convolved", "convolved", "residual"]),  # the shortcut's bias comes last
        (lambda: setattr(block.conv1, "padding_mode", "circular"), ["convolved", "residual"]),
        (lambda: setattr(block, "conv2", nn.Sequential(block.conv2)), ["residual"]),
        (lambda: block.conv1.register_forward_hook(lambda *given: None), ["residual"]),
    ):
        change()
        right = block(x)
        fake.seen.clear()
        torch.testing.assert_close(stand_ins.resnet(block, x), right, rtol=1e-4, atol=1e-4)
        assert fake.seen == seen


@torch.no_grad()
def test_larger_maps_get_their_bias_in_the_convolution(fake: Fake) -> None:
    module = Upsample2D(64, use_conv=True, out_channels=128).to(memory_format=LAST)
    x = torch.randn(2, 64, 4, 3).contiguous(memory_format=LAST)
    right = module(x)
    for options, seen in (({}, ["convolved bias"]), ({"convolutions": False}, ["residual"])):
        fake.seen.clear()
        torch.testing.assert_close(fake.stand_ins(**options).upsample(module, x), right, rtol=1e-4, atol=1e-4)
        assert fake.seen == seen


@torch.no_grad()
def test_attention_without_a_mask_is_handed_to_the_kernel(fake: Fake) -> None:
    layer = Attention(80, heads=2, dim_head=40)
    q, k, v = torch.randn(2, 7, 240).chunk(3, dim=-1)
    mask = torch.randn(2, 1, 7)
    for options, bias, seen in (
        ({}, None, ["attended"]),
        ({"short": False, "wide": False}, None, ["attended"]),
        ({}, mask, []),
        ({"narrow": False}, None, []),
    ):
        fake.seen.clear()
        attend = fake.stand_ins(**options).table[Attention.attend]
        torch.testing.assert_close(attend(layer, q, k, v, bias), layer.attend(q, k, v, bias))
        assert fake.seen == seen


@torch.no_grad()
def test_a_block_reads_two_maps_where_they_lie_or_joined(fake: Fake) -> None:
    """Joined where the maps or a part of the block are not as what reads two needs them, or the block is hooked."""
    torch.manual_seed(0)
    table = fake.stand_ins(convolutions=False).table
    temb = torch.randn(2, 8).bfloat16()

    def block(**options: Any) -> Any:
        made = ResnetBlock2D(**{"in_channels": 96, "out_channels": 64, "temb_channels": 8, **options})
        return randomise(made).bfloat16().to(memory_format=LAST)

    def adapted(one: Any) -> None:
        one.conv_shortcut = nn.Sequential(one.conv_shortcut)

    def hooked(one: Any) -> None:
        one.register_forward_pre_hook(lambda module, given: heard.append(given[0].shape[1]))

    def given(
        last: tuple[bool, bool] = (True, True), dtype: Any = torch.bfloat16, rows: int = 2
    ) -> list[Tensor]:
        maps = torch.randn(2, 64, 8, 6).to(dtype), torch.randn(rows, 32, 8, 6).to(dtype)
        return [x.contiguous(memory_format=LAST) if its else x for x, its in zip(maps, last, strict=True)]

    heard: list[int] = []
    for one, maps, two in (
        (block(), given(), True),
        (block(conv_shortcut_bias=False, output_scale_factor=2.0), given(), True),
        (block(), given((True, False)), False),
        (block(), given((False, True)), False),
        (block().float(), given(dtype=torch.float32), False),
        (block(up=True), given(), False),
        (block(time_embedding_norm="scale_shift"), given(), False),
        (block(non_linearity="gelu"), given(), False),
        (block(use_in_shortcut=False, out_channels=96), given(), False),
        (adapted, given(), False),
        (hooked, given(), False),
    ):
        if not isinstance(one, nn.Module):
            change, one = one, block()
            change(one)
        its_temb = temb.to(maps[0].dtype)
        right = one(torch.cat(maps, dim=1), its_temb)
        fake.seen.clear()
        with replaced(table):
            found = of_joined(one, maps, its_temb)
        assert not maps  # so that nothing holds them
        assert ("two maps" in fake.seen) == two
        torch.testing.assert_close(found, right, rtol=3e-2, atol=3e-2)
    assert heard == [96, 96]
    fake.seen.clear()
    with replaced(table), pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        of_joined(block(), given(rows=1), temb)
    assert not fake.seen  # a kernel would have read what is not there


@torch.no_grad()
@pytest.mark.parametrize("change", ["nothing", "lora", "freeu"])
def test_a_unet_with_stand_ins_gives_the_models_numbers(fake: Fake, change: str) -> None:
    """In 16 bits, as near to float32 as the plain model is; what changes the way up changes them as it does there."""
    torch.manual_seed(0)
    model: Any = randomise(calotype.UNet2DConditionModel(**{**UNET, "layers_per_block": 2}))
    arguments = torch.randn(2, 4, 16, 12), 300, torch.randn(2, 16, 32)
    before = model(*arguments).sample
    if change == "lora":
        name = "up_blocks.0.resnets.1.conv_shortcut"
        layer = model.get_submodule(name)
        shapes = {"A": (2, layer.in_channels, 1, 1), "B": (layer.out_channels, 2, 1, 1)}
        model.load_lora_adapter(
            {f"unet.{name}.lora_{which}.weight": torch.randn(shape) for which, shape in shapes.items()}
        )
    elif change == "freeu":
        model.enable_freeu(0.5, 0.2, 1.5, 1.8)
    right = model(*arguments).sample
    model.bfloat16().to(memory_format=LAST)
    arguments = (
        arguments[0].bfloat16().contiguous(memory_format=LAST), arguments[1], arguments[2].bfloat16()
    )  # fmt: skip
    plain = model(*arguments).sample
    with replaced(fake.stand_ins().table):
        found = model(*arguments).sample
    layers = sum(len(stage.resnets) for stage in model.up_blocks)
    # FreeU's spectra are turned back into maps that lie otherwise
    assert fake.seen.count("two maps") == {"nothing": layers, "lora": layers - 1, "freeu": 0}[change]

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one.float() - other.float()).norm() / other.float().norm())

    assert apart(found, right) < 1.25 * apart(plain, right)
    assert (apart(before, right) > 10 * apart(plain, right)) == (change != "nothing")
