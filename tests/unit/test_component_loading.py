"""Components are loaded several at a time: what must not depend on that."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

import calotype
from calotype.core import meta
from calotype.core.errors import ModelFilesError
from calotype.pipelines import components
from tests.tiny import stable_diffusion_xl_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", calotype)


def test_models_are_loaded_at_the_same_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(
        3
    )  # the UNet, the autoencoder and the first of the text encoders wait for each other
    load, seen = components._load_component, []

    def waiting(folder: Path, name: str, *rest: Any) -> Any:
        seen.append((name, threading.current_thread() is threading.main_thread()))
        if name in ("unet", "vae", "text_encoder"):
            both.wait(timeout=30)
        return load(folder, name, *rest)

    monkeypatch.setattr(components, "_load_component", waiting)
    pipe = calotype.StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert torch.get_default_dtype() == torch.float32
    assert {m.dtype for m in pipe._modules_by_name.values()} == {torch.float16}
    assert pipe.scheduler.final_alpha_cumprod.dtype == torch.float32
    first = [name for name, _ in seen].index("unet")
    assert {name for name, _ in seen[:first]} >= {"scheduler", "tokenizer", "tokenizer_2"}
    assert {name for name, main in seen if not main} == {"unet", "vae"}
    assert list(pipe.components) == list(calotype.StableDiffusionXLPipeline(**pipe.components).components)


def test_of_several_faults_the_first_is_named_and_nothing_is_left_running(
    folder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    for part in ("unet", "vae"):
        (damaged / part / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    for _ in range(3):
        with pytest.raises(ModelFilesError, match="/unet/diffusion_pytorch_model.safetensors is empty"):
            calotype.StableDiffusionXLPipeline.from_pretrained(damaged)
    assert not [t for t in threading.enumerate() if t.name.startswith("calotype-loading")]


def test_values_are_set_on_meta_for_nobody_and_elsewhere_as_ever() -> None:
    with meta.on_meta():
        layer = torch.nn.Linear(3, 3)
        assert layer.weight.is_meta
        assert torch.nn.init.zeros_(layer.bias) is layer.bias
        here = torch.nn.init.constant_(torch.empty(2, device="cpu"), 3.0)
    assert here.tolist() == [3.0, 3.0]
    inside = threading.Event()
    done = threading.Event()
    made: list[torch.nn.Module] = []

    def elsewhere() -> None:
        inside.wait(10)
        made.append(torch.nn.Linear(3, 3))
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with meta.on_meta():
        inside.set()
        assert done.wait(10)
    thread.join()
    assert not made[0].weight.is_meta
    assert made[0].weight.abs().sum() > 0


def test_modules_are_made_while_a_model_is_loaded_in_another_thread(tmp_path: Path) -> None:
    """Loading does not touch what torch walks through for every parameter of any module."""
    model = calotype.AutoencoderTiny(
        encoder_block_out_channels=(4,),
        decoder_block_out_channels=(4,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    )
    model.save_pretrained(tmp_path)
    loaded: list[object] = []

    def meanwhile(module: torch.nn.Module, name: str, parameter: object) -> None:
        if not loaded:
            loaded.append(None)
            other = threading.Thread(target=lambda: loaded.append(model.from_pretrained(tmp_path)))
            other.start()
            other.join()

    # two, so that the walk goes on after the first
    handles = [register_module_parameter_registration_hook(hook) for hook in (meanwhile, lambda *_: None)]
    try:
        torch.nn.Linear(2, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert isinstance(loaded[-1], calotype.AutoencoderTiny)
