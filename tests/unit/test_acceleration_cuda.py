"""Acceleration on CUDA: kernels and replayed graphs compute what the models compute, for any prompt, time and seed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import calotype
from calotype import acceleration
from calotype.acceleration.accelerated import Accelerated, runner_of
from calotype.acceleration.options import Options
from calotype.diffusion.images import NonFiniteError
from tests.on_cuda import error, random, whole_float32  # noqa: F401
from tests.tiny import UNET, VAE, randomise, stable_diffusion_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOUND = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
WIDE = {**UNET, "block_out_channels": (320, 640), "norm_num_groups": 32, "attention_head_dim": 8}


@pytest.fixture(autouse=True)
def switched_on() -> Iterator[None]:
    acceleration.on()
    yield
    acceleration.on()


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


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(
    "shape", [(2, 320, 64, 64), (16, 1280, 16, 16), (1, 960, 17, 33), (2, 1280, 1, 1), (1, 128, 9, 9)]
)
@pytest.mark.parametrize("mean", [0, 60])
def test_group_norm_in_one_launch(dtype: torch.dtype, shape: tuple[int, ...], mean: float) -> None:
    from calotype.acceleration.kernels import group_norm, group_norm_cluster

    x = (random(*shape) + mean).to(dtype).contiguous(memory_format=torch.channels_last)
    if not group_norm_cluster.available(x.device):
        pytest.skip("needs clusters and cuda.bindings")
    w, b, o, s = (random(n, dtype=dtype) for n in (shape[1], shape[1], shape[1], shape[0] * shape[1]))
    s, row = s.view(shape[:2]), shape[1]
    assert group_norm_cluster.fit(x, 32, s, o, w, b, shift_row=row)
    assert not group_norm_cluster.fit(x, 32, s, o, w, b, shift_row=row + 4)
    assert not group_norm_cluster.fit(x, 32, s, o, w.float(), b)
    assert not group_norm_cluster.fit(x, 32, s, random(row + 1, dtype=dtype)[1:], w, b)
    for silu in (True, False):
        found = group_norm_cluster.fused(x, 32, w, b, 1e-5, silu, s, o, row)
        three = group_norm._channels_last(x, 32, w, b, 1e-5, silu, s, o, row)
        right = group_norm.plain(
            x.double(), 32, w.double(), b.double(), 1e-5, silu=silu, shift=s.double(), offset=o.double()
        )
        assert error(found, right) < 1.02 * error(three, right) + 2e-6
        assert found.stride() == x.stride()
        assert torch.equal(found, group_norm_cluster.fused(x, 32, w, b, 1e-5, silu, s, o, row))


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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 320, 17, 33), (1, 512, 64, 64)])
def test_a_map_made_larger(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    from calotype.acceleration.kernels import pointwise

    x = random(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert torch.equal(pointwise.twice(x), pointwise.plain_twice(x))
    bias = random(shape[1], dtype=dtype)
    found = pointwise.residual(x, None, bias)
    assert error(found, pointwise.plain_residual(x.double(), None, bias.double())) < BOUND[dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("size", [(1, 4096), (2, 1000), (1, 16384)])
def test_one_wide_head(dtype: torch.dtype, size: tuple[int, int]) -> None:
    from calotype.acceleration.stand_ins import StandIns
    from calotype.acceleration.usable import kernels_for
    from calotype.nn.attention import Attention

    layer = Attention(512, heads=1, dim_head=512, bias=True).cuda().to(dtype).eval()
    q, k, v = random(*size, 3 * 512, dtype=dtype).chunk(3, dim=-1)
    q = q * 4  # so that some keys matter more than others
    kernels = kernels_for(torch.device("cuda"))
    assert kernels is not None
    stand_ins = StandIns(Options(), kernels)
    assert stand_ins._is_wide(layer, q, k, None)
    found = stand_ins.attend(layer, q, k, v)
    right = torch.nn.functional.scaled_dot_product_attention(*(t[:1, None].float() for t in (q, k, v)))[:, 0]
    usual = torch.nn.functional.scaled_dot_product_attention(*(t[:1, None] for t in (q, k, v)))[:, 0]
    assert error(found[:1], right) < max(1.5 * error(usual, right), BOUND[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 16, 77, 154, 300])
def test_products_with_many_matrices(dtype: torch.dtype, rows: int) -> None:
    from calotype.acceleration.kernels import products

    x = random(1, rows, 768, dtype=dtype)
    groups = [[random(n, 768, dtype=dtype) for n in sizes] for sizes in ((320, 320), (640,), (40, 1280, 8))]
    some: list[list[Tensor | None]] = [[random(len(w), dtype=dtype) * 9 for w in group] for group in groups]
    some[2][1] = None
    doubles = [[weight.double() for weight in group] for group in groups]
    for biases in (None, some):
        found = products.fused(x, products.Table(x, groups, biases))
        added = biases and [[None if bias is None else bias.double() for bias in group] for group in biases]
        right = products.plain(x.double(), doubles, added)
        for one, other in zip(found, right, strict=True):
            assert all(error(a, b) < BOUND[dtype] for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("size", [(1, 2048, 1280, 5120), (3, 700, 320, 1280)])
def test_gates_with_their_product_in_triton(
    dtype: torch.dtype, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.acceleration.kernels import gate_products

    batch, rows, width, half = size
    x, weight, bias = (
        random(*shape, dtype=dtype) for shape in ((batch, rows, width), (2 * half, width), (2 * half,))
    )
    weight *= width**-0.5
    if not gate_products._is_in_triton(x.device):
        pytest.skip("needs tensor descriptors")
    monkeypatch.setattr(gate_products, "in_cuda", lambda device: False)
    enough = gate_products.TURNS * gate_products.processors(x.device)
    used = gate_products.fused if -(-batch * rows // 128) * half // 128 >= enough else None
    assert gate_products.fit(x, weight, bias) is used
    assert not gate_products.fit(x[:, :1], weight, bias)
    assert not gate_products.fit(x, weight[:, :-1], bias)
    right = gate_products.plain(x.float(), weight.float(), bias.float())
    assert error(gate_products.fused(x, weight, bias), right) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(
    "size",
    [
        (2, 20, 1024, 64, 77),
        (2, 8, 1000, 40, 128),
        (3, 8, 256, 80, 77),
        (2, 8, 64, 160, 77),
        (1, 5, 70, 64, 113),
    ],
)
def test_attention_to_a_prompt(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    from calotype.acceleration.stand_ins import StandIns
    from calotype.acceleration.usable import kernels_for
    from calotype.nn.attention import Attention

    batch, heads, rows, channels, keys = size
    layer = Attention(heads * channels, 768, heads=heads, dim_head=channels).cuda().to(dtype).eval()
    q = random(batch, rows, heads * channels, dtype=dtype) * 4  # so that some keys matter more than others
    k, v = random(batch, keys, 2 * heads * channels, dtype=dtype).chunk(2, dim=-1)
    stand_ins = StandIns(Options(), kernels_for(q.device))
    assert stand_ins._is_short(layer, q, k, v, None)
    assert not stand_ins._is_short(layer, q, k, v, torch.zeros(1, 1, keys, device="cuda", dtype=dtype))
    found = stand_ins.attend(layer, q, k, v)
    alone = [t.float() for t in (q, k, v)]
    right = stand_ins.kernels.short_attention.plain(*alone, heads, layer.scale)
    usual = stand_ins.kernels.short_attention.plain(q, k, v, heads, layer.scale)
    assert error(found, right) < max(1.5 * error(usual, right), BOUND[dtype])


@torch.no_grad()
@pytest.mark.parametrize("prompts", [True, False])
def test_a_model_in_half_precision_is_nearly_what_it_is_in_float32(
    prompts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.acceleration.kernels import gate_products, short_attention

    used = set()
    for run in (gate_products.fused, gate_products.paired, short_attention.fused):

        def noted(*given: Any, run: Any = run) -> Tensor:
            used.add(run.__module__)
            found: Tensor = run(*given)
            return found

        monkeypatch.setattr(f"{run.__module__}.{run.__name__}", noted)
    config = {**WIDE, "cross_attention_dim": 64}
    right, model = (randomise(calotype.UNet2DConditionModel(**config)).cuda() for _ in range(2))
    usual = randomise(calotype.UNet2DConditionModel(**config)).cuda().bfloat16()
    fast = Accelerated(model.bfloat16(), Options(prompts=prompts))
    for _ in range(4):
        arguments = {**given(side=64), "encoder_hidden_states": random(2, 77, 64)}
        halves = {
            name: value.bfloat16() if isinstance(value, Tensor) and value.ndim else value
            for name, value in arguments.items()
        }
        exact = right(**arguments)[0]
        apart = error(usual(**halves)[0], exact)
        assert apart < 0.2
        assert error(fast(**halves)[0], exact) < 1.5 * apart
    assert short_attention.__name__ in used
    assert gate_products.__name__ in used or not gate_products.available(torch.device("cuda", 0))


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
def test_keys_and_values_of_all_layers_are_read_from_weights_where_they_are_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from calotype.acceleration.kernels import products

    seen, right = [], products.fused
    monkeypatch.setattr(products, "fused", lambda x, table: (seen.append(table), right(x, table))[1])
    config = {**WIDE, "cross_attention_dim": 64}
    plain, model = (randomise(calotype.UNet2DConditionModel(**config)).cuda() for _ in range(2))
    fast = Accelerated(model, Options())
    context = random(2, 16, 64)
    for turn in range(3):
        for index in range(4):
            arguments = {**given(), "encoder_hidden_states": context if index % 2 else random(2, 16, 64)}
            assert error(fast(**arguments)[0], plain(**arguments)[0]) < 1e-4
        assert next(iter(fast._runner.captures["__call__"].kept.values())).before is not None
        assert seen[-1].count > 4  # pieces of matrices in one launch
        fast.__dict__["_begun"] = False
        for one in (model, plain):
            weight = one.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight
            if turn:
                weight.mul_(1.5)
            else:
                weight.data = weight.data * -1.0


@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 16])
def test_what_blocks_add_for_the_time_comes_from_one_launch_in_each_step(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.profiler import ProfilerActivity, profile

    from calotype.acceleration.kernels import products

    seen, right = [], products.fused
    monkeypatch.setattr(products, "fused", lambda x, table: (seen.append(table), right(x, table))[1])
    plain, model = unet(), unet()  # whose prompts are too narrow to be read in one launch
    blocks = [name for name, _ in model.named_modules() if name.endswith("time_emb_proj")]
    fast, beside = Accelerated(model, Options()), Accelerated(unet(), Options(grouped=False))
    layer = model.mid_block.resnets[0].time_emb_proj
    generator = torch.Generator().manual_seed(3)
    key = "unet.mid_block.resnets.0.time_emb_proj"
    adapter = {
        f"{key}.lora_A.weight": torch.randn(2, layer.in_features, generator=generator),
        f"{key}.lora_B.weight": torch.randn(layer.out_features, 2, generator=generator),
    }
    for turn in range(5):
        for _ in range(4):
            arguments = given(rows)
            exact = plain(**arguments)[0]
            assert error(fast(**arguments)[0], exact) < 1e-4
            if turn == 0:
                assert error(beside(**arguments)[0], exact) < 1e-4
        assert len(seen[-1].widths) == len(blocks) - (turn == 4)
        fast.__dict__["_begun"] = False
        for one in (model, plain):
            part = one.mid_block.resnets[0].time_emb_proj
            if turn == 0:
                part.weight.mul_(1.5)
            elif turn == 1:
                part.bias.add_(0.5)
            elif turn == 2:
                part.weight.data, part.bias.data = part.weight.data * -1.0, part.bias.data * -1.0
            elif turn == 3:
                one.load_lora_adapter(adapter)
    counted = []
    for one in (Accelerated(unet(), Options()), beside):
        for _ in range(3):
            one(**arguments)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as watched:
            one(**arguments)
            torch.cuda.synchronize()
        names = [event.name for event in watched.events()]
        counted.append((sum("columns_of" in name for name in names), len(names)))
    assert counted[0][0] == 1
    assert counted[1][0] == 0
    assert counted[1][1] - counted[0][1] >= len(blocks) - 1


@torch.no_grad()
def test_models_that_take_turns_leave_each_other_keys_and_values() -> None:
    pairs = [(unet(), Accelerated(unet(), Options())) for _ in range(2)]
    arguments = [given(), given(side=24)]
    for _ in range(3):
        for (plain, fast), one in zip(pairs, arguments, strict=True):
            for _ in range(3):
                assert error(fast(**one)[0], plain(**one)[0]) < 1e-4
    for (plain, fast), one in zip(pairs * 3, arguments * 3, strict=True):
        assert error(fast(**one)[0], plain(**one)[0]) < 1e-4


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
    captures = fast._runner.captures["__call__"]
    count = captures.count  # of captures since, unless the weights have come back to where they were
    assert count in (1, 3, 4)
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
    fast = Accelerated(unet(), Options())
    cases = [given() for _ in range(4)]
    for arguments in cases[:2] * 2:
        fast(**arguments)
    alone = [fast(**arguments)[0] for arguments in cases]
    torch.cuda.synchronize()
    problems: list[Any] = []

    def work(index: int) -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                for _ in range(10):
                    if not torch.equal(fast(**cases[index])[0], alone[index]):
                        problems.append("other bits than alone")
        except Exception as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(index % 4,)) for index in range(8)]
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


def text_encoder(name: str, dtype: torch.dtype) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=600, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=128, eos_token_id=599, bos_token_id=598, pad_token_id=599,
    )  # fmt: skip
    return randomise(getattr(transformers, name)(config)).to("cuda", dtype)


def prompt_ids() -> Tensor:
    found = torch.randint(598, (1, 77), device="cuda")
    found[:, int(torch.randint(5, 70, ())) :] = 599
    return found


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_text_encoders_read_new_prompts_from_one_graph(name: str, dtype: torch.dtype) -> None:
    plain, model = text_encoder(name, dtype), text_encoder(name, dtype)

    def alike() -> None:
        tokens = prompt_ids()
        found = Accelerated(model, Options())(tokens, output_hidden_states=True)
        right = plain(tokens, output_hidden_states=True)
        assert type(found) is type(right)
        pairs = zip((*found.hidden_states, found[0]), (*right.hidden_states, right[0]), strict=True)
        assert all(error(one, other) < BOUND[dtype] for one, other in pairs)

    for _ in range(6):
        alike()
    runner = runner_of(model, Options())
    assert runner.why is None
    assert runner.captures["__call__"].count == 1
    assert not runner.captures["__call__"].failed
    for one in (model, plain):
        torch.manual_seed(3)
        one.resize_token_embeddings(640, mean_resizing=False)  # as learned words do
    for _ in range(3):
        alike()
    assert runner.captures["__call__"].count == 1  # of captures since


def test_a_lora_of_the_text_encoder_is_heard(tmp_path: Path) -> None:
    folder = stable_diffusion_folder(tmp_path / "sd", calotype)
    fast, plain = (calotype.StableDiffusionPipeline.from_pretrained(folder).to("cuda") for _ in range(2))
    plain.acceleration = None
    before = [pictures(fast, "a cat", 1, (16, 16), 1, 1.0) for _ in range(3)][-1]
    for pipe in (fast, plain):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        tensors = {}
        for key, layer in pipe.text_encoder.named_modules():
            if key.endswith(("q_proj", "v_proj")):
                key = key if key.startswith("text_model.") else f"text_model.{key}"
                down = torch.randn(2, layer.in_features, generator=generator) * 0.3
                up = torch.randn(layer.out_features, 2, generator=generator) * 0.3
                tensors[f"text_encoder.{key}.lora_A.weight"] = down
                tensors[f"text_encoder.{key}.lora_B.weight"] = up
        pipe.load_lora_weights(tensors)
    for strength in (1.0, 0.5, 1.0, 0.5, 1.0):
        call = "a cat", 1, (16, 16), 1, strength
        found = pictures(fast, *call)
        assert float((found - pictures(plain, *call)).abs().mean()) < 2e-3
    assert float((found - before).abs().mean()) > 1e-3
    assert runner_of(fast.text_encoder, Options()).why is None


def pictures(pipe: Any, prompt: str, seed: int, size: tuple[int, int], count: int, strength: float) -> Tensor:
    found: Tensor = pipe(
        prompt, height=size[0], width=size[1], num_images_per_prompt=count, num_inference_steps=4,
        generator=torch.Generator("cuda").manual_seed(seed), output_type="pt",
        cross_attention_kwargs={"scale": strength},
    ).images  # fmt: skip
    return found


def test_sixty_generations(tmp_path: Path) -> None:
    """Prompts, seeds, three shapes, two LoRAs at changing scales: as without acceleration, in bounded memory."""
    folder = stable_diffusion_folder(tmp_path / "sd", calotype)
    fast, plain = (calotype.StableDiffusionPipeline.from_pretrained(folder).to("cuda") for _ in range(2))
    plain.acceleration = None
    for pipe in (fast, plain):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        for name in ("one", "two"):
            tensors = {}
            for key, layer in pipe.unet.named_modules():
                if key.endswith(("attn2.to_k", "attn1.to_q")):
                    down = torch.randn(2, layer.in_features, generator=generator) * 0.1
                    up = torch.randn(layer.out_features, 2, generator=generator) * 0.1
                    tensors[f"unet.{key}.lora_A.weight"], tensors[f"unet.{key}.lora_B.weight"] = down, up
            pipe.load_lora_weights(tensors, adapter_name=name)
    sizes = [((16, 16), 1), ((16, 32), 1), ((32, 32), 3)]
    reserved = 0
    for index in range(60):
        size, count = sizes[index % 3]
        if index % 12 == 0:
            for pipe in (fast, plain):
                pipe.set_adapters(["one", "two"], [1.0 - index / 60, index / 60])
        call = f"a {'cat dog car'.split()[index % 3]}", index // 2, size, count, (1.0, 0.5)[index // 6 % 2]
        assert float((pictures(fast, *call) - pictures(plain, *call)).abs().mean()) < 2e-3, index
        torch.cuda.synchronize()
        if index == 24:
            reserved = torch.cuda.memory_reserved()
    assert torch.cuda.memory_reserved() <= reserved + 40 * 2**20  # two segments of PyTorch's
    report = fast.acceleration.report()
    runner = runner_of(fast.unet, Options())
    assert runner.why is None, report
    kept = runner.captures["__call__"]
    assert len(kept.kept) <= 6, report
    assert not kept.failed, report


@torch.no_grad()
def test_a_replay_of_a_model_that_has_changed_since_is_given_up() -> None:
    plain, model = unet(), unet()
    fast = Accelerated(model, Options())
    for _ in range(3):
        fast(**given())
    for one in (model, plain):
        one.conv_in.padding_mode, one.conv_in._reversed_padding_repeated_twice = "circular", (1, 1, 1, 1)
        one.conv_out = randomise(torch.nn.Conv2d(320, 4, 3, padding=1), 5).cuda().eval()
    for _ in range(4):
        fast.__dict__["_begun"] = False  # another call of a pipeline
        arguments = given()
        assert error(fast(**arguments)[0], plain(**arguments)[0]) < 1e-4
    assert fast._runner.captures["__call__"].count == 1  # of captures since


@torch.no_grad()
def test_kernels_are_compiled_by_threads_before_a_call_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from calotype.acceleration.ahead import compiled_first
    from calotype.acceleration.kernels import group_norm, layer_norm, pointwise

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    names: list[str] = []
    x = random(2, 48, 24, 40).contiguous(memory_format=torch.channels_last)  # shapes of no other test
    w, b = random(48), random(48)
    tokens = random(3, 7, 48 * 2)
    kernels = (
        layer_norm.rows_normalised,
        pointwise.gated,
        group_norm.channel_sums,
        group_norm.factors,
        group_norm.scaled,
    )
    for kernel in kernels:
        warmup = kernel.function.warmup
        monkeypatch.setattr(kernel, "known", set())
        kernel.function.device_caches.clear()

        def noted(*args: Any, warmup: Any = warmup, **options: Any) -> Any:
            names.append(threading.current_thread().name)
            return warmup(*args, **options)

        monkeypatch.setattr(kernel.function, "warmup", noted)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        return (
            group_norm.fused(x, 8, w, b, 1e-5, silu=True),
            pointwise.geglu(tokens),
            layer_norm.fused(tokens[..., :48], w, b, 1e-5)[1],
        )

    found = compiled_first(call)
    right = (
        group_norm.plain(x, 8, w, b, 1e-5, silu=True),
        pointwise.plain_geglu(tokens),
        layer_norm.plain(tokens[..., :48], w, b, 1e-5)[1],
    )
    assert all(error(one, other) < BOUND[torch.float32] for one, other in zip(found, right, strict=True))
    assert len(names) == 5
    assert all(name.startswith("calotype-kernels") for name in names)
    compiled_first(call)
    assert len(names) == 5


@pytest.mark.parametrize("step", [None, 1])
def test_latents_that_are_not_finite_are_named_though_the_decoder_was_launched(
    tmp_path: Path, step: int | None
) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(
        stable_diffusion_folder(tmp_path / "sd", calotype)
    )
    pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)

    def poison(running: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * (float("nan") if index == step else 1.0)}

    def run(form: str) -> Any:
        return pipe(
            "a cat", num_inference_steps=4, height=16, width=16, output_type=form, callback_on_step_end=poison
        ).images

    for form in ("pt", "pil", "latent"):
        if step is None:
            run(form)
        else:
            with pytest.raises(NonFiniteError, match="since step 3 of 4"):
                run(form)
