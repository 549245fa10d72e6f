"""Loading onto CUDA: the same weights as by way of the host, which has little to hold meanwhile."""

from __future__ import annotations

import gc
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import ModelFilesError
from calotype.core.sending import PIECE, InFile, Sender, move, send_module
from tests.tiny import stable_diffusion_xl_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", calotype)


def states(pipe: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": tensor
        for name, model in pipe._modules_by_name.items()
        for key, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_way_brings_the_same_weights(folder: Path, dtype: torch.dtype) -> None:
    cls = calotype.StableDiffusionXLPipeline
    expected = states(cls.from_pretrained(folder, torch_dtype=dtype))
    with torch.cuda.stream(torch.cuda.Stream()):
        mapped = states(cls.from_pretrained(folder, torch_dtype=dtype, device_map="cuda"))
        moved = states(cls.from_pretrained(folder, torch_dtype=dtype).to("cuda"))
        both = states(cls.from_pretrained(folder).to("cuda", dtype))
    loaded = states(calotype.load(folder, torch_dtype=dtype, device="cuda"))
    for found in (mapped, moved, both, loaded):
        assert found.keys() == expected.keys()
        for key, tensor in found.items():
            assert tensor.is_cuda and tensor.dtype == expected[key].dtype, key
            assert torch.equal(tensor.cpu(), expected[key]), key


def test_the_device_holds_the_weights_and_a_few_pieces() -> None:
    model = torch.nn.Linear(8192, 8192, bias=False)
    expected = model.weight.detach().half()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    move(model, torch.device("cuda"), torch.float16)
    assert torch.cuda.max_memory_allocated() - before <= expected.nbytes + 2 * PIECE
    assert torch.equal(model.weight.cpu(), expected) and model.weight.requires_grad


def test_in_inference_mode() -> None:
    model = torch.nn.Linear(64, 64)
    expected = model.weight.detach().clone()
    with torch.inference_mode():
        with Sender(torch.device("cuda")) as sender:
            send_module(model, sender)
        assert torch.equal(model.weight.cpu(), expected)


def test_what_fails_on_the_way_is_raised_and_gives_the_memory_back(folder: Path, tmp_path: Path) -> None:
    """A file that becomes shorter once its header was read, while other models are on their way."""
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    cut = damaged / "vae" / "diffusion_pytorch_model.safetensors"
    read = InFile.read

    def cutting(self: InFile, into: torch.Tensor, start: int) -> None:
        if self.path == cut:
            os.truncate(cut, 1000)
        read(self, into, start)

    before = torch.cuda.memory_allocated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InFile, "read", cutting)
        with pytest.raises(ModelFilesError, match="was cut off while it was read"):
            calotype.StableDiffusionXLPipeline.from_pretrained(damaged, device_map="cuda")
    gc.collect()
    assert torch.cuda.memory_allocated() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("calotype-sending")]


def test_each_weight_has_memory_of_its_own(folder: Path) -> None:
    """So that what is replaced or unloaded alone gives it back."""
    pipe = calotype.StableDiffusionXLPipeline.from_pretrained(folder, device_map="cuda")
    for key, tensor in states(pipe).items():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, key
