"""The safety checker against the reference, on a small random CLIP tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker as Theirs
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from calotype import StableDiffusionSafetyChecker
from calotype.pipelines.components import Loading, load_transformers_model
from tests.parity.deviations import deviation

CONFIG = {
    "projection_dim": 8,
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
}


def _theirs(threshold: float, special: float) -> Theirs:
    torch.manual_seed(0)
    model = Theirs(CLIPConfig(**CONFIG)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    model.concept_embeds_weights.data.fill_(threshold)
    model.special_care_embeds_weights.data.fill_(special)
    return model


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(24, 3, 16, 16), torch.rand(24, 4, 4, 3)


@pytest.mark.parametrize(
    ("threshold", "special"), [(0.255, 0.24), (0.255, 2.0), (0.26, 0.0), (2.0, 2.0), (-2.0, 2.0)]
)
@pytest.mark.parametrize("form", ["tensor", "array", "list"])
def test_same_pictures_are_blackened(inputs, threshold: float, special: float, form: str) -> None:
    theirs = _theirs(threshold, special)
    ours = StableDiffusionSafetyChecker(CLIPConfig(**CONFIG)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    clip_input, images = inputs

    def given():
        return {
            "tensor": images.clone,
            "array": lambda: images.numpy().copy(),
            "list": lambda: list(images.clone()),
        }[form]()

    expected, flagged = theirs(clip_input=clip_input, images=given())
    mine = given()
    found, ours_flagged = ours(clip_input=clip_input, images=mine)
    assert ours_flagged == flagged
    assert type(found) is type(expected)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    for a, b in zip(mine, images, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b)), "the caller's images were changed"


def test_the_reference_overwrites_its_input(inputs) -> None:
    assert deviation("safety-checker/input")
    images = inputs[1].clone()
    _theirs(-2.0, 2.0)(inputs[0], images)
    assert not torch.equal(images, inputs[1])


def test_the_cases_differ(inputs) -> None:
    """The thresholds above flag some pictures and not others, and vigilance decides some."""
    counts = [
        sum(_theirs(*pair)(inputs[0], inputs[1].clone())[1])
        for pair in ((0.255, 0.24), (0.255, 2.0), (2.0, 2.0))
    ]
    assert 0 < counts[1] < counts[0] < 24
    assert counts[2] == 0


def test_files_go_both_ways(tmp_path: Path, inputs) -> None:
    theirs = _theirs(0.255, 0.24)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = StableDiffusionSafetyChecker.from_pretrained(tmp_path / "theirs")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.save_pretrained(tmp_path / "ours")
    again = Theirs.from_pretrained(tmp_path / "ours")
    expected = theirs(inputs[0], inputs[1].clone())[1]
    assert ours(inputs[0], inputs[1])[1] == expected == again(inputs[0], inputs[1].clone())[1]


def test_released_files_name_the_vision_tower_twice(tmp_path: Path) -> None:
    theirs = _theirs(0.255, 0.24)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = {
        k.replace("vision_model.", "vision_model.vision_model.", 1): v for k, v in load_file(path).items()
    }
    state["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file({k: v.clone() for k, v in state.items()}, path, metadata={"format": "pt"})
    ours = load_transformers_model(StableDiffusionSafetyChecker, tmp_path, "safety_checker", Loading())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
