"""Weights on their way to a device, with the CPU in its place: nothing is lost between the pieces."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from calotype.core import sending
from calotype.core.errors import ModelFilesError
from calotype.core.interpreter import keeping_all, switching_often
from calotype.core.sending import Job, Sender, send_module
from calotype.core.tensor_files import can_be_sent, read_tensors, send_tensors, tensor_infos

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_module_arrives_whole_through_pieces_smaller_than_its_weights(dtype: torch.dtype | None) -> None:
    module = nn.Sequential(nn.Linear(100, 70), nn.BatchNorm1d(70), nn.Embedding(3, 5))
    module[2].weight = module[0].bias
    expected = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with Sender(CPU, piece=1024) as sender:
        sender.expect(2000)
        assert (
            len([thread for thread in threading.enumerate() if thread.name.startswith("calotype-sending")])
            == 2
        )
        send_module(module, sender, dtype)
    for key, tensor in module.state_dict().items():
        wanted = expected[key].to(dtype) if dtype and expected[key].is_floating_point() else expected[key]
        assert tensor.dtype == wanted.dtype and torch.equal(tensor, wanted), key
    assert module[2].weight is module[0].bias and module[0].weight.requires_grad


def test_what_two_modules_share_arrives_whole_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = nn.Linear(30, 30), nn.Linear(30, 30)
    second.weight = first.weight
    expected = first.weight.detach().bfloat16()
    taken, usual = [], sending.InMemory

    def noted(tensor: torch.Tensor) -> Any:
        taken.append(tensor)
        return usual(tensor)

    monkeypatch.setattr(sending, "InMemory", noted)
    with Sender(CPU, piece=1024) as sender:
        for module in (first, second):
            send_module(module, sender, torch.bfloat16)
    assert second.weight is first.weight and torch.equal(first.weight, expected)
    # a second look at it might come while a reader exchanges what it holds
    assert len(taken) == 3 and sum(tensor is first.weight for tensor in taken) == 1


def test_settings_of_the_interpreter_are_restored_by_the_last_who_asked() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), keeping_all(), switching_often():
        with keeping_all(), switching_often():
            assert not gc.isenabled() and sys.getswitchinterval() < usual
        assert not gc.isenabled() and sys.getswitchinterval() < usual
        raise ZeroDivisionError
    assert gc.isenabled() and sys.getswitchinterval() == usual
    gc.disable()
    try:
        with keeping_all():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("piece", [100, 2**20])
def test_a_file_arrives_whole_whatever_lies_before_a_tensor(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "some.safetensors"
    stored = {
        "byte": torch.arange(3, dtype=torch.uint8), "half": torch.randn(9, 7).half(), "none": torch.empty(0, 4),
        "one": torch.tensor(2.5), "large": torch.randn(300_000), "whole": torch.arange(5),
    }  # fmt: skip
    save_file(stored, path)
    infos = tensor_infos(path)
    assert can_be_sent(infos)
    with Sender(CPU, piece) as sender:
        sent = send_tensors(
            path, infos, lambda _, kind: torch.bfloat16 if kind.is_floating_point else kind, sender
        )
    for key, tensor in stored.items():
        wanted = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert sent[key].dtype == wanted.dtype and torch.equal(sent[key], wanted), key


def test_what_fails_on_the_way_leaves_every_weight_whole_and_no_thread(tmp_path: Path) -> None:
    module = nn.Linear(64, 64)
    expected = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    path = tmp_path / "short"
    path.write_bytes(b"1234")
    with pytest.raises(ModelFilesError, match="was cut off while it was read"), Sender(CPU, 1024) as sender:
        send_module(module, sender)
        sender.send([Job(torch.empty(8), sender.open(path), 0, torch.float32)])
    assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("calotype-sending")]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux alone lists its mappings")
def test_a_mapping_goes_with_the_last_of_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({name: torch.zeros(2**24) for name in "abcdef"}, path)  # 64 MiB each, so three to a mapping

    def mappings() -> int:
        return sum(
            line.rstrip().endswith(str(path)) for line in Path("/proc/self/maps").read_text().splitlines()
        )

    held = dict(read_tensors(path, "abcdef", lambda _, stored: stored))
    counts = [mappings()]
    for names in ("ab", "c", "def"):
        for name in names:
            del held[name]
        counts.append(mappings())
    assert counts == [2, 2, 1, 0]
