"""Checkpoints go both ways: what one library writes the other reads, tensor for tensor."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import calotype
from calotype.core.errors import CalotypeError, ModelFilesError
from tests.parity.deviations import deviation
from tests.tiny import randomise

CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    },
    "AutoencoderTiny": {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
    "UNet2DModel": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    },
}
SAVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "20KB"},
    "shards of a variant": {"max_shard_size": 15_000, "variant": "fp16"},
    "pickle": {"safe_serialization": False},
    "pickled shards": {"safe_serialization": False, "max_shard_size": "20KB"},
    "pickled variant": {"safe_serialization": False, "variant": "ema"},
}


def _same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


def _how_to_load(save: dict[str, Any]) -> dict[str, Any]:
    how = {"variant": save.get("variant")}
    return how if save.get("safe_serialization", True) else {**how, "use_safetensors": False}


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    ("writer", "reader"), [(diffusers, calotype), (calotype, diffusers)], ids=["read", "written"]
)
def test_both_ways(tmp_path: Path, writer: Any, reader: Any, name: str, save: str) -> None:
    model = randomise(getattr(writer, name)(**CONFIGS[name]))
    model.save_pretrained(tmp_path, **SAVES[save])
    if "shards" in save:
        assert len(list(tmp_path.glob("*-of-*"))) > 1
    loaded = getattr(reader, name).from_pretrained(tmp_path, **_how_to_load(SAVES[save]))
    assert _same(model, loaded)
    assert not loaded.training
    again = getattr(writer, name).from_pretrained(tmp_path, **_how_to_load(SAVES[save]))
    assert _same(model, again)


@pytest.mark.parametrize("save", SAVES)
def test_the_same_files_are_written(tmp_path: Path, save: str) -> None:
    name = "AutoencoderKL"
    theirs = randomise(diffusers.AutoencoderKL(**CONFIGS[name]))
    ours = calotype.AutoencoderKL(**CONFIGS[name])
    ours.load_state_dict(theirs.state_dict())
    theirs.save_pretrained(tmp_path / "theirs", **SAVES[save])
    ours.save_pretrained(tmp_path / "ours", **SAVES[save])

    def names(folder: str) -> set[str]:
        """Shards may be cut elsewhere, so their numbers are left out."""
        return {
            path.name if "-of-" not in path.name else path.name.split("-")[0]
            for path in (tmp_path / folder).iterdir()
        }

    assert names("ours") == names("theirs")
    mine, reference = (json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs"))
    assert mine == reference
    indices = [next((tmp_path / who).glob("*.index.*"), None) for who in ("ours", "theirs")]
    if all(indices):
        mine, reference = (json.loads(index.read_text()) for index in indices)
        assert mine["metadata"]["total_size"] == reference["metadata"]["total_size"]
        assert mine["weight_map"].keys() == reference["weight_map"].keys()
    for path in (tmp_path / "ours").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [None, torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtype_on_loading(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype | None) -> None:
    model = randomise(diffusers.AutoencoderKL(**CONFIGS["AutoencoderKL"])).to(stored)
    model.save_pretrained(tmp_path)
    theirs, ours = (
        library.AutoencoderKL.from_pretrained(tmp_path, torch_dtype=wanted)
        for library in (diffusers, calotype)
    )
    assert _same(ours, theirs)
    assert ours.dtype == theirs.dtype


def test_loading_info_and_config(tmp_path: Path) -> None:
    randomise(diffusers.AutoencoderKL(**CONFIGS["AutoencoderKL"])).save_pretrained(tmp_path / "vae")
    (theirs, their_info), (ours, our_info) = (
        library.AutoencoderKL.from_pretrained(
            tmp_path, subfolder="vae", output_loading_info=True, scaling_factor=0.5
        )
        for library in (diffusers, calotype)
    )
    assert our_info == their_info
    assert ours.config.scaling_factor == theirs.config.scaling_factor == 0.5
    assert ours.config._name_or_path == str(theirs.config._name_or_path)
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.get_memory_footprint() == theirs.get_memory_footprint()


@pytest.mark.parametrize("name", ["AutoencoderKL", "UNet2DModel"])
def test_attention_keys_of_2022(tmp_path: Path, name: str) -> None:
    model = randomise(getattr(diffusers, name)(**CONFIGS[name]))
    model.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {key.replace(f".{new}.", f".{old}."): value.clone() for key, value in state.items()}
    assert any(".query." in key for key in state)
    save_file(state, path)
    theirs, ours = (getattr(library, name).from_pretrained(tmp_path) for library in (diffusers, calotype))
    assert _same(theirs, model)
    assert _same(ours, model)


def test_saving_over_another_librarys_shards(tmp_path: Path) -> None:
    model = randomise(diffusers.AutoencoderKL(**CONFIGS["AutoencoderKL"]))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    ours = calotype.AutoencoderKL.from_pretrained(tmp_path)
    ours.save_pretrained(tmp_path, max_shard_size="40KB")
    assert _same(diffusers.AutoencoderKL.from_pretrained(tmp_path), model)
    ours.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert _same(diffusers.AutoencoderKL.from_pretrained(tmp_path), model)


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    state = {key: value.clone() for key, value in load_file(path).items()}
    change(state)
    save_file(state, path)


def _as_pickle(folder: Path) -> None:
    calotype.AutoencoderKL.from_pretrained(folder).save_pretrained(folder, safe_serialization=False)
    (folder / "diffusion_pytorch_model.safetensors").unlink()


DEVIATING: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "files/missing-key": (lambda d: _change(d, lambda s: s.pop("encoder.conv_in.bias")), {}, "is missing"),
    "files/superfluous-key": (
        lambda d: _change(d, lambda s: s.update(x=torch.ones(1))),
        {},
        "not part of the model",
    ),
    "files/pickle": (_as_pickle, {}, "use_safetensors=False"),
    "files/unknown-argument": (lambda d: None, {"torch_dtpye": torch.float16}, "no argument torch_dtpye"),
}


@pytest.mark.parametrize("case", DEVIATING)
def test_what_the_reference_lets_pass(tmp_path: Path, case: str) -> None:
    assert deviation(case)
    spoil, arguments, words = DEVIATING[case]
    calotype.AutoencoderKL(**CONFIGS["AutoencoderKL"]).save_pretrained(tmp_path)
    spoil(tmp_path)
    diffusers.AutoencoderKL.from_pretrained(tmp_path, **arguments)
    with pytest.raises(CalotypeError, match=words):
        calotype.AutoencoderKL.from_pretrained(tmp_path, **arguments)


def test_an_index_is_not_left_behind(tmp_path: Path) -> None:
    assert deviation("files/stale-index")
    for library in (diffusers, calotype):
        folder = tmp_path / library.__name__
        model = library.AutoencoderKL(**CONFIGS["AutoencoderKL"])
        model.save_pretrained(folder, max_shard_size="20KB")
        model.save_pretrained(folder)
    with pytest.raises(OSError):
        diffusers.AutoencoderKL.from_pretrained(tmp_path / "diffusers")
    calotype.AutoencoderKL.from_pretrained(tmp_path / "calotype")


def test_a_missing_variant_is_an_error_in_both(tmp_path: Path) -> None:
    calotype.AutoencoderKL(**CONFIGS["AutoencoderKL"]).save_pretrained(tmp_path)
    with pytest.raises(OSError):
        diffusers.AutoencoderKL.from_pretrained(tmp_path, variant="fp16", use_safetensors=True)
    with pytest.raises(ModelFilesError, match=r"no diffusion_pytorch_model\.fp16\.safetensors"):
        calotype.AutoencoderKL.from_pretrained(tmp_path, variant="fp16")


def test_signatures() -> None:
    def arguments(function: Callable[..., Any]) -> list[tuple[str, Any]]:
        return [(p.name, p.default) for p in inspect.signature(function).parameters.values()]

    for method in (
        "from_pretrained",
        "save_pretrained",
        "push_to_hub",
        "num_parameters",
        "get_memory_footprint",
        "enable_gradient_checkpointing",
        "disable_gradient_checkpointing",
        "enable_xformers_memory_efficient_attention",
        "disable_xformers_memory_efficient_attention",
    ):
        ours, theirs = (getattr(library.ModelMixin, method) for library in (calotype, diffusers))
        assert arguments(ours) == arguments(theirs), method


def test_config_entries_read_from_the_model_warn_alike() -> None:
    for library in (diffusers, calotype):
        model = library.AutoencoderKL(**CONFIGS["AutoencoderKL"])
        with pytest.warns(FutureWarning, match="latent_channels"):
            assert model.latent_channels == 4
