"""Group offloading: which blocks are on the accelerator together, what is sent ahead, and where weights are kept.

The meta device plays the accelerator, as in test_offload; a transfer that keeps a record plays one with streams.
"""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calotype
from calotype.core.errors import InputError
from calotype.offloading.accelerator import Accelerator, Guest, accelerators_of, release
from calotype.offloading.homes import OnDisk
from calotype.offloading.pieces import by_blocks, layers
from calotype.offloading.transfers import Transfer
from tests.tiny import UNET, randomise, stable_diffusion_folder

META = torch.device("meta")


def devices(module: nn.Module) -> set[str]:
    return {t.device.type for t in (*module.parameters(), *module.buffers())}


class Block(nn.Module):
    """A block that notes which of all blocks are on the accelerator when it computes."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen = seen
        self.all: list[Block] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append("".join("x" if "meta" in devices(block) else "." for block in self.all))
        return self.layer(x)


class Model(nn.Module):
    """Five blocks between two layers; ``stop`` leaves the last ones out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block(self.seen) for _ in range(5))
        self.last = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        for block in self.blocks:
            block.__dict__["all"] = list(self.blocks)

    def forward(self, x: torch.Tensor, stop: int = 5) -> torch.Tensor:
        x = self.first(x) * self.scale
        for block in list(self.blocks)[:stop]:
            x = block(x)
        return self.last(x)


class Ahead(Transfer):
    """A transfer that says it is worth sending ahead, and notes what is waited for."""

    ahead = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.sent = 0
        self.waited = 0
        self.room = 10**6

    def send(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
        if self.sent >= self.room:
            raise torch.OutOfMemoryError("full")
        self.sent += 1
        return super().send(tensors)[0], self.sent

    def wait(self, copies: Sequence[torch.Tensor], ticket: Any) -> None:
        assert ticket is not None
        self.waited += 1


def on_meta(model: nn.Module, size: int = 1, **how: Any) -> Accelerator:
    accelerator = Accelerator(META, None, division=by_blocks(size), **how)
    accelerator.host("model", model)
    return accelerator


X = torch.randn(2, 4)


# -- which blocks are there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        (1, ["x....", ".x...", "..x..", "...x.", "....x"]),
        (2, ["xx...", "xx...", "..xx.", "..xx.", "....x"]),
        (9, ["xxxxx"] * 5),
    ],
)
def test_blocks_are_there_in_groups(size: int, seen: list[str]) -> None:
    model = Model().eval()
    before = copy.deepcopy(model.state_dict())
    on_meta(model, size)
    assert model(X).device == META
    assert model.seen == seen
    assert devices(model) == {"cpu"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_the_rest_is_there_for_the_whole_forward() -> None:
    model = Model().eval()
    on_meta(model)
    there: list[str] = []
    model.blocks[3].register_forward_hook(
        lambda *_: there.extend((model.scale.device.type, *devices(model.last)))
    )
    model(X)
    assert there == ["meta", "meta"]


def test_a_forward_that_stops_inside_of_a_group_leaves_nothing_there() -> None:
    model = Model().eval()
    on_meta(model, 2)
    model(X, stop=3)
    assert devices(model) == {"cpu"}
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
    assert devices(model) == {"cpu"}


def test_ctrl_c_leaves_nothing_there_and_nothing_locked() -> None:
    model = Model().eval()
    accelerator = on_meta(model, 2)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = model.blocks[2].layer.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(X)
    hook.remove()
    accelerator.clear()
    assert devices(model) == {"cpu"}
    with ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: model(X)).result(timeout=30).device == META
    assert devices(model) == {"cpu"}


def test_what_is_sent_ahead_is_what_came_next_the_last_time() -> None:
    model = Model().eval()
    transfer = Ahead(META)
    on_meta(model, transfer=transfer)
    model(X)
    assert model.seen == ["x....", ".x...", "..x..", "...x.", "....x"]
    assert transfer.sent == transfer.waited == 6
    model.seen.clear()
    model(X)
    assert model.seen == ["xx...", ".xx..", "..xx.", "...xx", "....x"]
    assert transfer.sent == transfer.waited == 12
    assert devices(model) == {"cpu"}
    model.seen.clear()
    model(X, stop=2)  # the third was sent and is not needed
    assert model.seen == ["xx...", ".xx.."]
    assert devices(model) == {"cpu"}


def test_what_was_sent_in_vain_leaves_when_another_comes() -> None:
    model = Model().eval()
    on_meta(model, transfer=Ahead(META))
    model(X)
    blocks = list(model.blocks)
    model.blocks = nn.ModuleList([blocks[0], blocks[2], blocks[3]])
    model.seen.clear()
    model(X)
    assert model.seen == ["xx...", "..xx.", "...xx"]  # the second came after the first and left for the third
    assert devices(model) == devices(blocks[1]) == {"cpu"}


def test_where_there_is_no_room_to_send_ahead_it_comes_in_time() -> None:
    model = Model().eval()
    transfer = Ahead(META)
    on_meta(model, transfer=transfer)
    model(X)
    send, calls = transfer.send, []

    def crowded(tensors: Sequence[torch.Tensor]) -> Any:
        calls.append(len(tensors))
        if len(calls) == 3:  # the second block, ahead
            raise torch.OutOfMemoryError("full")
        return send(tensors)

    transfer.send = crowded  # type: ignore[method-assign]
    model.seen.clear()
    assert model(X).device == META
    assert model.seen[0] == "x...."
    assert devices(model) == {"cpu"}


def test_who_came_next_is_not_kept_alive() -> None:
    model = Model().eval()
    accelerator = on_meta(model, transfer=Ahead(META))
    model(X)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert accelerator.device == META


def test_a_copy_visits_for_itself_in_groups() -> None:
    model = Model().eval()
    on_meta(model, 2)
    twin = copy.deepcopy(model)
    twin.seen.clear()
    assert twin(X).device == META
    assert twin.seen == ["xx...", "xx...", "..xx.", "..xx.", "....x"]
    assert model.seen == []
    assert devices(model) == devices(twin) == {"cpu"}
    release([twin])
    assert not accelerators_of(twin.modules())
    assert accelerators_of([model])


# -- where weights are kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("division", [by_blocks(2), layers])
def test_weights_on_disk_are_views_of_its_files(tmp_path: Path, division: Any) -> None:
    model = Model().eval()
    model.last.weight = model.first.weight
    before = copy.deepcopy(model.state_dict())
    expected = model(X)
    accelerator = Accelerator(torch.device("cpu"), None, division=division, home=OnDisk(tmp_path))
    accelerator.host("model", model)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == (4 if division is not layers else 8)
    maps = Path("/proc/self/maps").read_text()
    assert all(str(path) in maps for path in files)
    assert model.last.weight is model.first.weight
    assert torch.equal(model(X), expected)
    accelerator.host("model", model)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    model.double()  # written anew, in another type
    accelerator.host("model", model)
    assert files != {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    release([model])
    model.float()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


# -- the calls -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", calotype)


@pytest.fixture
def pipe(folder: Path) -> Any:
    pipe = calotype.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe("a ball", num_inference_steps=2, output_type="pt", generator=generator).images


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "needs num_blocks_per_group, a whole number from 1 on, not None"),
        ({"num_blocks_per_group": 0}, "from 1 on, not 0"),
        ({"num_blocks_per_group": True}, "from 1 on, not True"),
        ({"offload_type": "blocks"}, "offload_type='blocks' is not one of 'block_level', 'leaf_level'"),
        (
            {"offload_type": "leaf_level", "use_stream": True},
            "needs a device with streams, such as 'cuda', not 'meta'",
        ),
        ({"offload_type": "leaf_level", "record_stream": True}, "pass use_stream=True too"),
        ({"offload_type": "leaf_level", "onload_device": "here"}, "onload_device='here' is not a device"),
        ({"offload_type": "leaf_level", "offload_device": "there"}, "offload_device='there' is not a device"),
        (
            {"offload_type": "leaf_level", "offload_device": "meta", "offload_to_disk_path": "x"},
            "keeps weights in files, not on 'meta'",
        ),
    ],
)
def test_arguments_without_meaning_change_nothing(pipe: Any, arguments: dict[str, Any], words: str) -> None:
    for model in (pipe, pipe.unet):
        with pytest.raises(InputError, match=words):
            model.enable_group_offload(**{"onload_device": META, **arguments})
    assert not accelerators_of(pipe._modules_by_name.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="onload_device='cuda' is not on this machine"):
        pipe.enable_group_offload(torch.device("cuda"), offload_type="leaf_level")


def test_modules_that_there_are_none_of_are_refused(pipe: Any) -> None:
    with pytest.raises(InputError, match="exclude_modules names 'denoiser'; the models are vae"):
        pipe.enable_group_offload(META, offload_type="leaf_level", exclude_modules="denoiser")
    with pytest.raises(InputError, match="block_modules names 'stages'; the children are conv_in"):
        pipe.unet.enable_group_offload(META, num_blocks_per_group=1, block_modules="stages")


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_a_pipeline_in_groups_makes_the_same_picture(pipe: Any, kind: str, tmp_path: Path) -> None:
    expected = picture(pipe)
    pipe.enable_group_offload(torch.device("cpu"), offload_type=kind, num_blocks_per_group=1)
    assert torch.equal(picture(pipe), expected)
    pipe.enable_group_offload(
        torch.device("cpu"), offload_type=kind, num_blocks_per_group=1, offload_to_disk_path=str(tmp_path)
    )
    assert torch.equal(picture(pipe), expected)
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"vae", "text_encoder", "unet"}
    pipe.remove_all_hooks()
    assert not accelerators_of(pipe._modules_by_name.values())
    assert torch.equal(picture(pipe), expected)


def test_excluded_models_are_there_at_once(pipe: Any) -> None:
    pipe.enable_group_offload(META, num_blocks_per_group=1, exclude_modules=["vae"])
    assert devices(pipe.vae) == {"meta"}
    assert devices(pipe.unet) == {"cpu"}
    pipe.remove_all_hooks()
    assert devices(pipe.vae) == {"cpu"}


def test_one_model_alone_leaves_the_others_where_they_are(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = picture(pipe)
    arrived: set[str] = set()
    arrive = Guest.arrive
    monkeypatch.setattr(
        Guest, "arrive", lambda guest: (arrived.add(type(guest.module).__name__), arrive(guest))[1]
    )
    pipe.unet.enable_group_offload(torch.device("cpu"), num_blocks_per_group=1)
    assert torch.equal(picture(pipe), expected)
    assert "UNet2DConditionModel" in arrived
    assert not {"AutoencoderKL", "CLIPTextModel"} & arrived
    assert not accelerators_of([pipe.vae, pipe.text_encoder])
    with caplog.at_level(logging.WARNING, "calotype"):
        pipe.to(META)
    assert "The pipeline brings unet to cpu by itself; to() leaves it." in caplog.text
    assert devices(pipe.vae) == {"meta"}
    assert devices(pipe.unet) == {"cpu"}
    assert not accelerators_of([pipe.vae])
    assert accelerators_of([pipe.unet])


def test_named_children_are_blocks_and_named_arguments_stay() -> None:
    unet = randomise(calotype.UNet2DConditionModel(**UNET))
    unet.enable_group_offload(
        META, num_blocks_per_group=1, block_modules=["mid_block"], exclude_kwargs=["cross_attention_kwargs"]
    )
    there: list[set[str]] = []
    unet.down_blocks[0].register_forward_hook(
        lambda *_: there.extend((devices(unet.mid_block), devices(unet.up_blocks)))
    )
    mark = {"x": torch.zeros(1)}
    seen: list[Any] = []
    unet.register_forward_pre_hook(lambda m, a, k: seen.append(k["cross_attention_kwargs"]), with_kwargs=True)
    unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 32), cross_attention_kwargs=mark)
    assert there == [{"cpu"}, {"meta"}]
    assert seen[0] is mark or seen[0]["x"] is mark["x"]
    assert devices(unet) == {"cpu"}
