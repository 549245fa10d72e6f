"""Models of transformers that are read by us: what its own loader makes of the same files, bit by bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from calotype.core.errors import ModelFilesError
from calotype.core.weights import find_weights
from calotype.models.multilingual_clip import MCLIPConfig, MultilingualCLIP
from calotype.pipelines.components import Loading, load_transformers_model
from calotype.pipelines.safety_checker import StableDiffusionSafetyChecker
from calotype.pipelines.transformers_models import read_model

_SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_SMALL, "vocab_size": 50, "max_position_embeddings": 9, "projection_dim": 8}
_VISION = {**_SMALL, "image_size": 8, "patch_size": 4, "projection_dim": 8}
_T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}
_ROBERTA = {**_TEXT, "pad_token_id": 1, "max_position_embeddings": 12}
_DPT = {
    **_VISION,
    "image_size": 32,
    "backbone_out_indices": [0, 1, 0, 1],
    "neck_hidden_sizes": [4, 4, 8, 8],
    "fusion_hidden_size": 8,
}

_CASES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "CLIPTextModel": (transformers.CLIPTextModel, lambda: transformers.CLIPTextConfig(**_TEXT)),
    "CLIPTextModelWithProjection": (
        transformers.CLIPTextModelWithProjection, lambda: transformers.CLIPTextConfig(**_TEXT)
    ),
    "CLIPVisionModel": (transformers.CLIPVisionModel, lambda: transformers.CLIPVisionConfig(**_VISION)),
    "CLIPVisionModelWithProjection": (
        transformers.CLIPVisionModelWithProjection, lambda: transformers.CLIPVisionConfig(**_VISION)
    ),
    "CLIPModel": (
        transformers.CLIPModel,
        lambda: transformers.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=8),
    ),
    "T5EncoderModel": (
        transformers.T5EncoderModel, lambda: transformers.T5Config(feed_forward_proj="gated-gelu", **_T5)
    ),
    "MT5EncoderModel": (transformers.MT5EncoderModel, lambda: transformers.MT5Config(**_T5)),
    "BertModel": (transformers.BertModel, lambda: transformers.BertConfig(**_TEXT)),
    "XLMRobertaModel": (transformers.XLMRobertaModel, lambda: transformers.XLMRobertaConfig(**_ROBERTA)),
    "RobertaModel": (transformers.RobertaModel, lambda: transformers.RobertaConfig(**_ROBERTA)),
    "DPTForDepthEstimation": (transformers.DPTForDepthEstimation, lambda: transformers.DPTConfig(**_DPT)),
    "ClapTextModelWithProjection": (
        transformers.ClapTextModelWithProjection, lambda: transformers.ClapTextConfig(**_ROBERTA)
    ),
    "MultilingualCLIP": (
        MultilingualCLIP, lambda: MCLIPConfig(transformerDimSize=16, imageDimSize=8, **_ROBERTA)
    ),
    "StableDiffusionSafetyChecker": (
        StableDiffusionSafetyChecker,
        lambda: transformers.CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=8),
    ),
    "SiglipVisionModel": (transformers.SiglipVisionModel, lambda: transformers.SiglipVisionConfig(**_VISION)),
}  # fmt: skip


def small(name: str, folder: Path) -> Any:
    """The class of a case, with random weights of it in the folder."""
    cls, config = _CASES[name]
    torch.manual_seed(0)
    model = cls(config())
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_()
    model.save_pretrained(folder)
    return cls


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change what is in the file."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """All that a model holds, what is not saved too."""
    return {**model.state_dict(), **dict(model.named_buffers())}


def assert_same(ours: Any, theirs: Any) -> None:
    """The same weights, configuration and shared parameters."""
    found, expected = tensors(ours), tensors(theirs)
    assert list(found) == list(expected)
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype and torch.equal(tensor, expected[key]), key
    assert vars(ours.config).keys() == vars(theirs.config).keys()
    assert repr(ours.config) == repr(theirs.config)
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.name_or_path == theirs.name_or_path and ours.training == theirs.training
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))


@pytest.mark.parametrize("name", _CASES)
def test_the_same_as_by_its_own_loader(name: str, tmp_path: Path) -> None:
    cls = small(name, tmp_path)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        ours = read_model(cls, tmp_path, find_weights(tmp_path, stem="model"), dtype)
        assert ours is not None, "left to transformers"
        assert_same(ours, cls.from_pretrained(tmp_path, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("CLIPTextModel", "text_model"),
        ("CLIPTextModelWithProjection", "text_model"),
        ("CLIPVisionModel", "vision_model"),
        ("CLIPVisionModelWithProjection", "vision_model"),
        ("SiglipVisionModel", "vision_model"),
        ("XLMRobertaModel", "roberta"),
    ],
)
def test_names_of_older_files(name: str, part: str, tmp_path: Path) -> None:
    """With the part's name before theirs, and the positions that were saved until 2023; saved again as they were."""
    cls = small(name, tmp_path)

    def older(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        begins = (f"{part}.", "text_projection.", "visual_projection.")
        renamed = {key if key.startswith(begins) else f"{part}.{key}": value for key, value in state.items()}
        return {**renamed, f"{part}.embeddings.position_ids": torch.arange(9)[None]}

    rewrite(tmp_path, older)
    ours = read_model(cls, tmp_path, find_weights(tmp_path, stem="model"), torch.float16)
    assert ours is not None, "left to transformers"
    theirs = cls.from_pretrained(tmp_path, dtype=torch.float16)
    assert_same(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    kept = [load_file(tmp_path / which / "model.safetensors") for which in ("ours", "theirs")]
    assert kept[0].keys() == kept[1].keys()


def test_names_that_transformers_changes_are_left_to_it(tmp_path: Path) -> None:
    cls = small("BertModel", tmp_path)
    expected = tensors(cls.from_pretrained(tmp_path))
    rewrite(
        tmp_path,
        lambda state: {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in state.items()},
    )
    assert read_model(cls, tmp_path, find_weights(tmp_path, stem="model"), torch.float32) is None
    found = tensors(load_transformers_model(cls, tmp_path, "text_encoder", Loading()))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"])
def test_what_does_not_fit_is_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cls = small(name, tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    key = next(key for key in whole if key.endswith(("mlp.fc1.weight", "wo.weight")))

    def load() -> Any:
        return load_transformers_model(cls, tmp_path, "text_encoder", Loading())

    rewrite(tmp_path, lambda state: {k: v for k, v in state.items() if k != key})
    with pytest.raises(ModelFilesError, match=f"lack 1 of .* such as '{key}'"):
        load()
    rewrite(tmp_path, lambda state: {**whole, key: whole[key][:, 1:].contiguous()})
    with pytest.raises(ModelFilesError, match=f"1 of the weights in .* other shapes .* such as '{key}'"):
        load()
    rewrite(tmp_path, lambda state: {**whole, "of.something.else": torch.zeros(3)})
    with caplog.at_level(logging.WARNING, "calotype"):
        model = load()
    assert "'of.something.else'" in caplog.text and torch.equal(model.state_dict()[key], whole[key])


def test_a_configuration_of_another_size_makes_nothing(tmp_path: Path) -> None:
    cls = small("CLIPTextModel", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 2**20}))
    with pytest.raises(ModelFilesError, match="it is not theirs"):
        load_transformers_model(cls, tmp_path, "text_encoder", Loading())


def test_models_that_write_are_left_to_transformers(tmp_path: Path) -> None:
    """They have settings of generation beside their weights."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    )
    model.save_pretrained(tmp_path)
    files = find_weights(tmp_path, stem="model")
    assert read_model(transformers.GPT2LMHeadModel, tmp_path, files, torch.float32) is None
