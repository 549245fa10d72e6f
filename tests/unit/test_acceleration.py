"""Acceleration on a CPU that pretends: what stands in for CUDA graphs does the work again on the same memory.

What is checked is the bookkeeping: which captures serve which calls, what makes them invalid, what is left to the plain
model. Speed and the graphs themselves are checked on CUDA (test_acceleration_cuda.py).
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import calotype
from calotype import acceleration
from calotype.acceleration import accelerated, pipeline, stand_ins, switch, usable
from calotype.acceleration.accelerated import Accelerated, runner_of
from calotype.acceleration.layers import packed
from calotype.acceleration.options import Options
from calotype.acceleration.state import channels_last, pack, siblings
from calotype.acceleration.times import TimeReaders, Times
from calotype.adapters.model import add
from calotype.adapters.updates import Decomposed, Hadamard, Kronecker, LowRank, Replaced, Scaled
from calotype.core.errors import InputError
from calotype.nn.resnet import ResnetBlock2D
from tests.tiny import UNET, randomise, stable_diffusion_folder


class Repeats:
    """In the place of CUDA graphs: the function again, its results into the memory of the first ones."""

    def __init__(self, place: torch.device) -> None:
        self.lock = threading.RLock()

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        result = function()
        return Again(function, result), result

    def in_order(self) -> Any:
        return self.lock

    def current(self) -> Any:
        return nullcontext()

    def settle(self) -> None:
        pass


class Pool(Repeats):
    """As graphs in one pool of memory: a replay writes wherever another graph's capture has allocated something."""

    def __init__(self, place: torch.device) -> None:
        super().__init__(place)
        self.made: list[list[Tensor]] = []

    def capture(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        with Allocations() as noted:
            result = function()
        self.made.append(noted.made)
        return Overwriting(self, noted.made, Again(function, result)), result


class Allocations(TorchDispatchMode):
    """Notes the tensors that operations allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in tensors_in((args, kwargs))}
        found = operation(*args, **(kwargs or {}))
        self.made += [one for one in tensors_in(found) if one.untyped_storage().data_ptr() not in given]
        return found


class Overwriting:
    def __init__(self, pool: Pool, own: list[Tensor], work: Again) -> None:
        self.pool, self.own, self.work = pool, own, work

    def replay(self) -> None:
        for made in self.pool.made:
            for one in made if made is not self.own else ():
                one.fill_(7)
        self.work.replay()


def tensors_in(value: Any) -> list[Tensor]:
    return [one for one in tree_leaves(value) if isinstance(one, Tensor)]


class Again:
    def __init__(self, function: Callable[[], Any], result: Any) -> None:
        self.function, self.result = function, result

    def replay(self) -> None:
        fill(self.result, self.function())


def fill(old: Any, new: Any) -> None:
    if isinstance(old, Tensor):
        old.copy_(new)
    elif isinstance(old, dict):
        fill(list(old.values()), list(new.values()))
    elif isinstance(old, list | tuple):
        for one, other in zip(old, new, strict=True):
            fill(one, other)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(accelerated._DEVICES, "cpu", Repeats)
    monkeypatch.setattr(pipeline, "KINDS", {"cpu"})
    acceleration.on()
    yield
    acceleration.on()
    gc.collect()


def unet(seed: int = 0) -> Any:
    return randomise(calotype.UNet2DConditionModel(**UNET), seed)


@pytest.fixture
def kernels() -> usable.Kernels:
    """Triton's kernels, none of which is launched on a CPU."""
    found = usable.kernels_for(torch.device("cpu"))
    if found is None:
        pytest.skip("Triton is not installed")
    return found


@pytest.fixture(autouse=True)
def _numbers_of_a_test_are_always_the_same() -> None:
    torch.manual_seed(0)


def given(rows: int = 2, side: int = 8) -> dict[str, Any]:
    return {
        "sample": torch.randn(rows, 4, side, side),
        "timestep": torch.tensor(float(torch.randint(1000, ()).item())),
        "encoder_hidden_states": torch.randn(rows, 16, 32),
        "return_dict": False,
    }


def same(fast: Any, plain: Any, arguments: dict[str, Any]) -> None:
    torch.testing.assert_close(fast(**arguments)[0], plain(**arguments)[0], rtol=1e-4, atol=1e-5)


def another_call(fast: Any) -> None:
    """What a pipeline's next call begins with."""
    fast.__dict__["_begun"] = False


def captures(fast: Any) -> Any:
    return fast._runner.captures["__call__"]


@torch.no_grad()
def test_calls_are_captured_by_shape_and_prompts_are_read_once(pretend: None) -> None:
    model, plain = unet(), unet()
    fast = Accelerated(model, Options(shapes=2))
    first = given()
    for index in range(5):
        arguments = given()
        if index in (3, 4):  # the same prompt, then the same tensor with other values
            arguments["encoder_hidden_states"] = first["encoder_hidden_states"]
        if index == 4:
            first["encoder_hidden_states"].mul_(0.5)
        same(fast, plain, arguments)
    assert captures(fast).count == 1
    kept = next(iter(captures(fast).kept.values()))
    before = [0]
    replay = kept.before.replay
    kept.before.replay = lambda: (before.__setitem__(0, before[0] + 1), replay())
    for _ in range(3):
        same(fast, plain, {**given(), "encoder_hidden_states": first["encoder_hidden_states"]})
    assert before[0] == 0
    another_call(fast)
    same(fast, plain, {**given(), "encoder_hidden_states": first["encoder_hidden_states"]})
    assert before[0] == 1
    for parameter in (*model.parameters(), *plain.parameters()):
        parameter.mul_(0.9)
    same(fast, plain, {**given(), "encoder_hidden_states": first["encoder_hidden_states"]})
    assert before[0] == 2
    for side in (16, 24, 16, 24, 16):
        same(fast, plain, given(side=side))
    assert len(captures(fast).kept) == 2
    found = fast(**given(side=16))[0]
    kept_value = found.clone()
    fast(**given(side=16))
    assert torch.equal(found, kept_value)  # results are not overwritten by the next call


@torch.no_grad()
def test_what_changes_a_model_makes_its_captures_invalid(pretend: None) -> None:
    model, plain = unet(), unet()
    fast = Accelerated(model, Options())

    def add_freeu(one: Any) -> None:
        one.enable_freeu(0.9, 0.2, 1.2, 1.4)

    def replace_weight(one: Any) -> None:
        one.conv_in.weight = torch.nn.Parameter(one.conv_in.weight * 2)

    def move(one: Any) -> None:
        one.conv_in.weight.data = one.conv_in.weight.data * 0.5

    def pad_in_a_circle(one: Any) -> None:
        one.conv_in.padding_mode = "circular"
        one.conv_in._reversed_padding_repeated_twice = (1, 1, 1, 1)

    def exchange(one: Any) -> None:
        one.conv_out = randomise(torch.nn.Conv2d(32, 4, 3, padding=1), 5).eval()

    steps = [replace_weight, move, pad_in_a_circle, exchange, add_freeu, lambda one: one.disable_freeu()]
    for change in steps:
        for _ in range(3):
            another_call(fast)
            same(fast, plain, given())
        assert change is steps[-1] or captures(fast).kept
        change(model), change(plain)
        another_call(fast)
        same(fast, plain, given())
        assert (fast._runner.why is not None) == (change is add_freeu)


@torch.no_grad()
def test_what_was_replayed_of_a_model_that_has_changed_is_given_up(
    pretend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sevens:
        def __init__(self, result: Any) -> None:
            self.result = result

        def replay(self) -> None:
            fill(self.result, tuple(torch.full_like(one, 7.0) for one in self.result))

    def capture(self: Any, function: Any) -> Any:
        result = function()
        return Sevens(result if isinstance(result, tuple) else ()), result

    computed = []
    forward = calotype.UNet2DConditionModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        computed.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(calotype.UNet2DConditionModel, "forward", counted)
    monkeypatch.setattr(Repeats, "capture", capture)
    model, plain = unet(), unet()
    fast = Accelerated(model, Options())
    for turn in range(2):
        same(fast, plain, given())
        for _ in range(2):
            another_call(fast)
            assert fast(**given())[0].eq(7.0).all()
        assert computed.count(model) == 2 * (turn + 1)  # the first time, and to be captured
        assert len(next(iter(captures(fast).kept.values())).prompts) == 1
        for one in (model, plain):
            one.conv_in.padding_mode, one.conv_in._reversed_padding_repeated_twice = "reflect", (1, 1, 1, 1)
            one.conv_out.dilation = (1 + turn, 1)
            one.conv_out.padding = (1 + turn, 1)
        another_call(fast)
    for _ in range(3):
        another_call(fast)
        fast(**given())
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    another_call(fast)
    same(fast, plain, given())
    assert "hooks are on all" in fast._runner.why
    everywhere.remove()
    another_call(fast)
    fast(**given())
    assert fast._runner.why is None
    heard = []
    model.mid_block.register_forward_hook(lambda *_: heard.append(1))
    another_call(fast)
    same(fast, plain, given(side=16))  # what is not replayed is looked at before it is computed
    assert heard == [1]
    assert fast._runner.why is not None


@torch.no_grad()
def test_in_doubt_the_plain_model_computes_and_one_line_says_so(
    pretend: None, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(calotype.UNet2DConditionModel):
        pass

    def trained(model: Any) -> None:
        model.train()

    def hooked(model: Any) -> None:
        model.mid_block.register_forward_hook(lambda *_: None)

    def patched(model: Any) -> None:
        model.mid_block.forward = model.mid_block.forward

    def compiled(model: Any) -> None:
        model.mid_block._compiled_call_impl = model.mid_block._call_impl

    def eighths(model: Any) -> None:
        model.register_buffer("more", torch.zeros(2, dtype=torch.float8_e4m3fn))

    with caplog.at_level(logging.INFO, "calotype.acceleration"):
        for change in (trained, hooked, patched, compiled, eighths):
            model = unet()
            change(model)
            caplog.clear()
            fast = Accelerated(model, Options())
            for _ in range(3):
                fast(**given())
            assert fast._runner.why, change
            assert len(caplog.records) == 1, change
            assert not fast._runner.captures
        own = Accelerated(randomise(Own(**UNET)).eval(), Options())
        own(**given())
        assert "not of this library" in own._runner.report()
        fast = Accelerated(unet(), Options())
        caplog.clear()
        for _ in range(3):
            with torch.enable_grad():
                fast(**given())
            with torch.autocast("cpu", torch.bfloat16):
                fast(**given())
            fast(**given(), cross_attention_kwargs={"gligen": None})
        assert len(caplog.records) == 3
        assert not fast._runner.captures


@torch.no_grad()
def test_a_capture_that_fails_leaves_the_call_to_the_model(
    pretend: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Any, function: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Repeats, "capture", refuses)
    fast, plain = Accelerated(unet(), Options()), unet()
    for _ in range(4):
        same(fast, plain, given())
    assert len([record for record in caplog.records if "not permitted" in record.message]) == 1
    assert "not permitted" in fast._runner.report()


@torch.no_grad()
def test_shapes_that_never_come_again_are_not_captured_for_ever(pretend: None) -> None:
    fast, plain = Accelerated(unet(), Options(shapes=2)), unet()
    for rows in range(1, 9):
        for _ in range(2):
            same(fast, plain, given(rows=rows))
    assert captures(fast).count <= 4
    assert len(captures(fast).seen) <= 16


@torch.no_grad()
def test_threads_get_what_they_would_get_alone(pretend: None) -> None:
    fast = Accelerated(unet(), Options())
    cases = [given() for _ in range(8)]
    fast(**cases[0]), fast(**cases[0])
    alone = [fast(**arguments)[0] for arguments in cases]
    found: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def work(index: int) -> None:
        found[index] = [fast(**cases[index])[0] for _ in range(4)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, alone[index]) for index, several in found.items() for one in several)
    assert len(found) == 8


@torch.no_grad()
def test_a_runner_does_not_keep_its_model(pretend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgotten:
        def replay(self) -> None:
            pass

    monkeypatch.setattr(Repeats, "capture", lambda self, function: (Forgotten(), function()))
    model = unet()
    fast = Accelerated(model, Options())
    for _ in range(3):
        another_call(fast)
        fast(**given())
    assert captures(fast).count == 1
    gone = weakref.ref(model), weakref.ref(fast._runner)
    del model, fast
    gc.collect()
    assert [one() for one in gone] == [None, None]


@torch.no_grad()
def test_keys_and_values_outlive_what_other_graphs_write(
    pretend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerated._DEVICES, "cpu", Pool)
    monkeypatch.setattr(accelerated, "_OF_DEVICES", weakref.WeakValueDictionary())
    pairs = [(Accelerated(unet(seed), Options()), unet(seed)) for seed in range(2)]
    prompts = [given()["encoder_hidden_states"] for _ in pairs]
    for _ in range(4):
        for (fast, plain), prompt in zip(pairs, prompts, strict=True):
            for side in (8, 16):
                same(fast, plain, {**given(side=side), "encoder_hidden_states": prompt})
    assert [captures(fast).count for fast, _ in pairs] == [2, 2]
    pool = pairs[0][0]._runner.device
    assert len(pool.made) == 8
    assert all(pool.made)


@torch.no_grad()
def test_keys_and_values_of_all_layers_come_from_one_launch_wherever_weights_are(
    pretend: None, kernels: usable.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = products_at_addresses(kernels, monkeypatch)
    takes = lambda *given: len(given) == 1 and given[0].shape[1:] == (16, 64)  # noqa: E731
    monkeypatch.setattr(usable.Kernels, "take", staticmethod(takes))
    model, plain = (
        randomise(calotype.UNet2DConditionModel(**{**UNET, "cross_attention_dim": 64})) for _ in "ab"
    )
    fast = Accelerated(model, Options())
    layers = [layer for key, layer in model.named_modules() if key.endswith("attn2")]
    context = torch.randn(2, 16, 64)

    def change(weight: Callable[[Tensor], None]) -> None:
        for one in (model, plain):
            weight(one.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight)

    for turn in range(4):
        for _ in range(3):
            same(fast, plain, {**given(), "encoder_hidden_states": torch.randn(2, 16, 64)})
            same(fast, plain, {**given(), "encoder_hidden_states": context})
        another_call(fast)
        if turn == 0:
            change(lambda weight: weight.mul_(1.5))
        elif turn == 1:
            change(lambda weight: setattr(weight, "data", weight.data * -1.0))
        elif turn == 2:
            add_lora(model), add_lora(plain)
    assert set(launches) == {len(layers), len(layers) - 1}
    assert "grouped" in fast._runner.report()


def products_at_addresses(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let products of one matrix with many be computed in PyTorch, with weights where they were noted to be.

    Each launch adds to the list how many groups of products it was for.
    """

    class Table:
        """What was at addresses when they were noted, and the memory of its products.

        It is not made in a capture: a replay would not make it again, and other graphs write to what was made there.
        """

        def __init__(self, x: Tensor, groups: Any, biases: Any = None) -> None:
            assert not torch._C._len_torch_dispatch_stack()
            self.groups = [[weight.data for weight in group] for group in groups]
            self.biases = biases and [[bias.data for bias in group] for group in biases]
            self.results = kernels.products.plain(x, self.groups, self.biases)

    launches: list[int] = []

    def fused(x: Tensor, table: Any) -> Any:
        launches.append(len(table.groups))
        fill(table.results, kernels.products.plain(x, table.groups, table.biases))
        return table.results

    monkeypatch.setattr(kernels.products, "Table", Table)
    monkeypatch.setattr(kernels.products, "fused", fused)
    return launches


def takes_times(*given: Any) -> bool:
    """As ``Kernels.take``, for embeddings of times on a CPU."""
    return len(given) == 1 and given[0].ndim == 2


@torch.no_grad()
def test_what_blocks_add_for_the_time_comes_from_one_launch_wherever_weights_are(
    pretend: None, kernels: usable.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = products_at_addresses(kernels, monkeypatch)
    monkeypatch.setattr(usable.Kernels, "take", staticmethod(takes_times))
    monkeypatch.setitem(accelerated._DEVICES, "cpu", Pool)
    monkeypatch.setattr(accelerated, "_OF_DEVICES", weakref.WeakValueDictionary())
    model, plain = unet(), unet()
    fast, other = Accelerated(model, Options()), Accelerated(unet(1), Options())
    count = sum(name.endswith("time_emb_proj") for name, _ in model.named_modules())
    assert count > 4

    def change(weight: Callable[[nn.Linear], Any]) -> None:
        for one in (model, plain):
            weight(one.mid_block.resnets[0].time_emb_proj)

    changes: list[Callable[[nn.Linear], Any]] = [
        lambda part: part.weight.mul_(1.5),
        lambda part: part.bias.add_(0.5),
        lambda part: setattr(part.weight, "data", part.weight.data * -1.0),
        lambda part: setattr(part.bias, "data", part.bias.data * -1.0),
    ]
    for turn in range(6):
        launches.clear()
        for _ in range(3):
            same(fast, plain, given())
            if turn < 5:
                other(**given(side=16))
        assert launches[-1] == count - (turn == 5)
        assert not captures(fast).failed
        (kept,) = captures(fast).kept.values()
        assert len(kept.memory[0].groups) == count - (turn == 5)
        another_call(fast)
        if turn < len(changes):
            change(changes[turn])
        elif turn == 4:
            add_lora(model, "time_emb_proj"), add_lora(plain, "time_emb_proj")
    launches.clear()
    for options in (Options(grouped=False), Options(linears="int8")):
        fast = Accelerated(unet(), options)
        for _ in range(3):
            fast(**given())
        assert captures(fast).count == 1
    assert not launches


@torch.no_grad()
def test_embeddings_of_times_are_told_apart_in_a_call(
    pretend: None, kernels: usable.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = products_at_addresses(kernels, monkeypatch)
    monkeypatch.setattr(usable.Kernels, "take", staticmethod(takes_times))
    blocks = [
        randomise(ResnetBlock2D(in_channels=32, temb_channels=64, skip_time_act=skip), seed)
        for seed, skip in enumerate((False, False, False, False, True))
    ]
    a, b = torch.randn(2, 64), torch.randn(2, 64)
    # the first two are read by two blocks or more each; then the first block again, with another that it leads; then
    # a block that has not read this one before
    calls = [(0, a), (1, b), (2, a), (3, b), (4, a), (0, b), (0, a)]

    def run(stand_in: stand_ins.StandIns, calls: list[tuple[int, Tensor]]) -> list[Tensor]:
        return [
            stand_in.shift(blocks[index], blocks[index].time_emb_proj, embedding)
            for index, embedding in calls
        ]

    def right(calls: list[tuple[int, Tensor]]) -> list[Tensor]:
        return [
            blocks[index].time_emb_proj(one if blocks[index].skip_time_act else F.silu(one))
            for index, one in calls
        ]

    noted = TimeReaders()
    torch.testing.assert_close(
        run(stand_ins.StandIns(Options(), kernels, time_readers=noted), calls), right(calls)
    )
    assert not launches
    times = Times(noted.done(), kernels)
    assert [list(group.blocks) for group, _ in times.tables.values()] == [
        [blocks[0], blocks[2]],
        [blocks[1], blocks[3], blocks[0]],
    ]
    a, b, c = (torch.randn(2, 64) for _ in range(3))
    calls = [(0, a), (1, b), (2, a), (3, b), (4, a), (0, b), (3, a), (0, c), (2, c), (2, a), (1, b)]
    torch.testing.assert_close(run(stand_ins.StandIns(Options(), kernels, times=times), calls), right(calls))
    assert launches == [2, 3]
    for other in (torch.randn(3, 64), torch.randn(64, 2).t()):
        calls = [(0, other), (2, other)]
        torch.testing.assert_close(
            run(stand_ins.StandIns(Options(), kernels, times=times), calls), right(calls)
        )
    assert launches == [2, 3]


@torch.no_grad()
def test_gates_and_convolutions_are_told_of_where_they_are_in_use(
    pretend: None, kernels: usable.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {"gates": kernels.gate_products, "convolutions": kernels.convolutions}
    for there in (set(), {"convolutions"}, {"gates", "convolutions"}):
        for name, module in modules.items():
            monkeypatch.setattr(module, "available", lambda place, found=name in there: found)
        for off in modules:
            fast = Accelerated(unet(), Options(**{off: False}))
            fast(**given())
            said = set(fast._runner.report().partition(";")[0].split(", "))
            assert said & set(modules) == there - {off}


def add_lora(model: Any, of: str = "attn2.to_k") -> None:
    """An adapter on one layer that reads what others read too, which is then computed by itself."""
    generator = torch.Generator().manual_seed(3)
    name = next(key for key, _ in model.named_modules() if key.endswith(of))
    layer = model.get_submodule(name)
    tensors = {
        f"unet.{name}.lora_A.weight": torch.randn(2, layer.in_features, generator=generator),
        f"unet.{name}.lora_B.weight": torch.randn(layer.out_features, 2, generator=generator),
    }
    model.load_lora_adapter(tensors)


def clip(name: str = "CLIPTextModel", **options: Any) -> Any:
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.CLIPTextConfig(
        vocab_size=50, max_position_embeddings=16, eos_token_id=49, bos_token_id=48, pad_token_id=49,
        projection_dim=24, **sizes, **options,
    )  # fmt: skip
    return randomise(getattr(transformers, name)(config))


def ids(rows: int = 1) -> Tensor:
    found = torch.randint(48, (rows, 16))
    found[:, 9:] = 49
    return found


def read_alike(fast: Any, plain: Any, hidden: bool = True) -> None:
    tokens = ids()
    found = fast(tokens, attention_mask=None, output_hidden_states=hidden)
    right = plain(tokens, attention_mask=None, output_hidden_states=hidden)
    assert type(found) is type(right)
    assert list(found) == list(right)
    assert len(found.hidden_states or ()) == (4 if hidden else 0)
    torch.testing.assert_close(found.to_tuple(), right.to_tuple(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_text_encoders_are_captured_and_give_what_they_gave(pretend: None, name: str) -> None:
    model, plain = clip(name), clip(name)
    for hidden in (True, False):
        for _ in range(4):  # another call of a pipeline each, with another prompt
            read_alike(Accelerated(model, Options()), plain, hidden)
    runner = runner_of(model, Options())
    assert runner.why is None
    assert runner.captures["__call__"].count == 2


@torch.no_grad()
def test_what_changes_a_text_encoder_makes_its_captures_invalid(pretend: None) -> None:
    model, plain = clip(), clip()

    def learn_a_word(one: Any) -> None:
        torch.manual_seed(5)
        one.resize_token_embeddings(60, mean_resizing=False)

    def attend_otherwise(one: Any) -> None:
        one.set_attn_implementation("eager")

    def weigh(one: Any) -> None:
        one.embeddings.position_embedding.weight = torch.nn.Parameter(
            one.embeddings.position_embedding.weight * 2
        )

    for change in (learn_a_word, attend_otherwise, weigh):
        for _ in range(3):
            read_alike(Accelerated(model, Options()), plain)
        assert captures(Accelerated(model, Options())).kept, change
        change(model), change(plain)
        fast = Accelerated(model, Options())
        read_alike(fast, plain)
        assert not captures(fast).kept, change
        assert fast._runner.why is None, change
    model.encoder.layers[0].mlp.forward = lambda x: x
    fast = Accelerated(model, Options())
    fast(ids())
    assert "code that is not" in fast._runner.why


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("sd"), calotype)


def picture(pipe: Any, seed: int = 0, prompt: str = "a cat", **more: Any) -> Tensor:
    arguments = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "pt", **more}
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **arguments).images


def test_pipelines_on_the_device_are_accelerated_unless_switched_off(
    pretend: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.acceleration = None
    right = [picture(pipe, seed) for seed in range(3)]
    assert pipe.acceleration is None
    assert pipe.unet not in accelerated._RUNNERS
    pipe.acceleration = Options()
    for _ in range(2):
        for seed in range(3):
            torch.testing.assert_close(picture(pipe, seed), right[seed], rtol=1e-4, atol=1e-4)
    lines = pipe.acceleration.report().splitlines()
    assert [line.split()[0] for line in lines] == ["vae", "text_encoder", "unet"]
    assert all("graphs" in line and "1 of at most" in line for line in lines)
    runner = runner_of(pipe.unet, Options())
    assert runner.captures["__call__"].count == 1
    assert runner_of(pipe.vae, Options()).captures["decode"].count == 1
    shared = calotype.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert runner_of(shared.unet, Options()) is runner

    acceleration.off()
    try:
        assert pipe.acceleration is None
        torch.testing.assert_close(picture(pipe, 1), right[1], rtol=1e-4, atol=1e-4)
    finally:
        acceleration.on()
    monkeypatch.setattr(pipeline, "KINDS", {"cuda"})
    pipe.to("cpu")
    assert pipe.unet not in accelerated._RUNNERS
    assert not runner.captures
    assert "its weights are on cpu" in pipe.acceleration.report()
    with pytest.raises(InputError, match="not 3"):
        pipe.acceleration = 3


def test_callbacks_and_strengths_are_heard(pretend: None, folder: Path) -> None:
    fast = calotype.StableDiffusionPipeline.from_pretrained(folder)
    plain = calotype.StableDiffusionPipeline.from_pretrained(folder)
    plain.acceleration = None
    for pipe in (fast, plain):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        for name in ("one", "two"):
            tensors = {}
            for key, layer in pipe.unet.named_modules():
                if key.endswith(("attn2.to_k", "attn1.to_q", "conv1")):
                    weight = layer.weight
                    up = torch.randn(weight.shape[0], 2, *(1,) * (weight.ndim - 2), generator=generator)
                    down = torch.randn(2, *weight.shape[1:], generator=generator)
                    tensors[f"unet.{key}.lora_A.weight"] = down * 0.2
                    tensors[f"unet.{key}.lora_B.weight"] = up * 0.2
            pipe.load_lora_weights(tensors, adapter_name=name)

    def both(times: int = 3, **more: Any) -> None:
        for _ in range(times):
            found, right = (picture(pipe, **more) for pipe in (fast, plain))
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)

    for times, scales in ((3, (1.0, 0.5)), (1, (0.0, 1.0))):  # computed, captured, repeated; then repeated
        for pipe in (fast, plain):
            pipe.set_adapters(["one", "two"], list(scales))
        both(times, cross_attention_kwargs={"scale": 1.0})
        both(1, cross_attention_kwargs={"scale": 0.3})
    runner = runner_of(fast.unet, Options())
    assert runner.why is None
    assert runner.captures["__call__"].count == 1  # strengths are no reason to capture again

    def meddle(running: Any, index: int, timestep: Any, tensors: Any) -> dict[str, Any]:
        layers = [layer for key, layer in running.unet.named_modules() if key.endswith("attn2.to_v")]
        for layer in layers:
            layer.weight.data.mul_(1.1)
        return {"latents": tensors["latents"] * 1.01, "prompt_embeds": tensors["prompt_embeds"] * 0.9}

    both(2, callback_on_step_end=meddle, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    for pipe in (fast, plain):
        pipe.fuse_lora()
    both()
    for pipe in (fast, plain):
        pipe.unload_lora_weights()
        pipe.unet = unet(7)
    both()


@torch.no_grad()
def test_controlnets_of_any_strength_are_captured_once(pretend: None) -> None:
    nets = [randomise(calotype.ControlNetModel.from_unet(unet()), seed) for seed in range(3)]
    fast = Accelerated(nets[0], Options())
    several = calotype.MultiControlNetModel(nets[1:])
    both = Accelerated(several, Options())
    arguments = given() | {"controlnet_cond": torch.rand(2, 3, 64, 64)}
    for index, scale in enumerate((1.0, 0.7, 0.0, 1, 0.25)):
        found, right = (net(**arguments, conditioning_scale=scale) for net in (fast, nets[0]))
        for one, other in zip((*found[0], found[1]), (*right[0], right[1]), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=str(index))
    assert captures(fast).count == 1
    arguments["controlnet_cond"] = [arguments["controlnet_cond"]] * 2
    for scales in ([1.0, 0.5], [0.2, 0.4], [0.3, 1.1], [0.4, 0.0], [0.4, 0.0]):
        found, right = (net(**arguments, conditioning_scale=scales) for net in (both, several))
        torch.testing.assert_close(found[1], right[1], rtol=1e-4, atol=1e-5)
    assert captures(both).count == 2  # one that is left out is another matter


@torch.no_grad()
def test_keys_and_values_of_a_prompt_follow_the_strength_within_a_call(pretend: None) -> None:
    model, plain = unet(), unet()
    generator = torch.Generator().manual_seed(0)
    for one in (model, plain):
        generator.manual_seed(0)
        layers = {
            name: layer for name, layer in one.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))
        }
        add(one, "one", {
            name: LowRank(*(torch.randn(*size, generator=generator) for size in ((2, 32), (len(layer.weight), 2))))
            for name, layer in layers.items()
        })  # fmt: skip
    fast, arguments = Accelerated(model, Options()), given()
    outputs = []
    for strength in (1.0, 0.5, 0.1, 0.1, 1.0):  # the prompt stays the same tensor
        told = arguments | {"cross_attention_kwargs": {"scale": strength}}
        same(fast, plain, told)
        outputs.append(fast(**told)[0])
    assert captures(fast).count == 1
    torch.testing.assert_close(outputs[0], outputs[-1], rtol=1e-4, atol=1e-5)
    assert float((outputs[0] - outputs[2]).abs().max()) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16])
def test_updates_act_as_strongly_as_a_tensor_says(form: torch.dtype) -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(form)

    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 8, dtype=form)
    low = LowRank(random(2, 6), random(8, 2))
    pairs = {
        f"hada_w{i}_{side}": random(*shape) for i in (1, 2) for side, shape in (("a", (8, 2)), ("b", (2, 6)))
    }
    for update in (
        low, Replaced(random(8, 6), random(8)), Hadamard(**pairs), Scaled(low, 1.5).eval(),
        Kronecker(lokr_w1=random(2, 3), lokr_w2=random(4, 2)), Decomposed(low, random(8, 1)),
        Decomposed(low, random(1, 6)),
    ):  # fmt: skip
        x, y = random(3, 6), random(3, 8)
        found = update.gain(linear, x, y, torch.tensor([0.3]))
        assert found.dtype == form
        near = 1e-6 if form == torch.float32 else 3e-2
        torch.testing.assert_close(found, update.gain(linear, x, y, 0.3), rtol=near, atol=near)
        assert float((found - update.gain(linear, x, y, 0.6)).abs().max()) > 0.1


def test_models_whose_memory_was_arranged_are_saved_as_any_other(tmp_path: Path) -> None:
    model, plain = unet(), unet()
    channels_last(model)
    pack(model)
    layers = [layer for key, layer in model.named_modules() if key.endswith(("attn1", "attn2"))]
    assert all(packed(layer) is not None for layer in layers)
    assert {len(siblings(layer)) for layer in layers} == {2, 3}
    model.save_pretrained(tmp_path / "a")
    plain.save_pretrained(tmp_path / "b")
    names = [path.name for path in (tmp_path / "a").iterdir() if path.suffix == ".safetensors"]
    assert names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(("value", "wanted"), [("0", False), ("1", True), ("off", False), (None, True)])
def test_the_environment_says_where_the_switch_starts(
    value: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("CALOTYPE_ACCELERATION", raising=False)
    else:
        monkeypatch.setenv("CALOTYPE_ACCELERATION", value)
    importlib.reload(switch)
    try:
        assert switch.is_on() == wanted
    finally:
        acceleration.on()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_compute_what_their_twins_compute() -> None:
    """In a process of its own: Triton decides at import whether it interprets."""
    script = Path(__file__).parents[1] / "kernels_interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [
        "group", "layer", "gate", "sum", "twice", "softmax", "products", "gates", "short", "rows",
    ]  # fmt: skip
