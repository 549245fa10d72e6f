"""The prior against the reference: signatures, keys, numbers, files, in the configurations of published priors."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import calotype
from calotype.core.errors import InputError
from tests.tiny import randomise

SIZE = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "karlo, kandinsky": {**SIZE, "embedding_dim": 10, "num_embeddings": 7},
    "shap-e text": {
        **SIZE,
        "embedding_dim": 10,
        "num_embeddings": 9,
        "additional_embeddings": 0,
        "time_embed_act_fn": "gelu",
        "norm_in_type": "layer",
        "encoder_hid_proj_type": None,
        "added_emb_type": None,
        "time_embed_dim": 20,
        "embedding_proj_dim": 5,
        "clip_embed_dim": 8,
    },
    "shap-e image": {
        **SIZE,
        "embedding_dim": 10,
        "num_embeddings": 9,
        "additional_embeddings": 0,
        "embedding_proj_norm_type": "layer",
        "encoder_hid_proj_type": None,
        "added_emb_type": None,
        "embedding_proj_dim": 5,
    },
    "short positions": {
        **SIZE,
        "embedding_dim": 10,
        "num_embeddings": 1,
        "additional_embeddings": 0,
        "norm_in_type": "layer",
    },
}


def _pair(case: str) -> tuple[Any, Any]:
    theirs = randomise(diffusers.PriorTransformer(**CONFIGS[case]), 1)
    ours = calotype.PriorTransformer(**CONFIGS[case]).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.fixture(params=CONFIGS, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    return request.param, *_pair(request.param)


def _inputs(case: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if case == "shap-e text":
        return {"hidden_states": noise(2, 9, 10), "proj_embedding": noise(2, 5)}
    if case == "shap-e image":
        return {"hidden_states": noise(2, 9, 10), "proj_embedding": noise(2, 4, 5)}
    return {
        "hidden_states": noise(2, 10),
        "proj_embedding": noise(2, 10),
        "encoder_hidden_states": noise(2, 7, 10),
    }


def _close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("method", ["__init__", "forward", "post_process_latents"])
def test_signatures(method: str) -> None:
    ours, theirs = (
        [
            (p.name, p.default)
            for p in inspect.signature(getattr(library.PriorTransformer, method)).parameters.values()
        ]
        for library in (calotype, diffusers)
    )
    assert ours == theirs


def test_keys_and_configuration(pair: tuple[str, Any, Any]) -> None:
    _, theirs, ours = pair
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    expected = {k: v for k, v in theirs.config.items() if not k.startswith("_")}
    assert {k: v for k, v in ours.config.items() if not k.startswith("_")} == expected


@torch.no_grad()
@pytest.mark.parametrize("timestep", [3, torch.tensor(500), torch.tensor([7, 900])])
def test_prediction(pair: tuple[str, Any, Any], timestep: Any) -> None:
    case, theirs, ours = pair
    inputs = _inputs(case)
    expected = theirs(timestep=timestep, **inputs).predicted_image_embedding
    found = ours(timestep=timestep, **inputs)
    _close(found.predicted_image_embedding, expected)
    assert torch.equal(
        ours(timestep=timestep, return_dict=False, **inputs)[0], found.predicted_image_embedding
    )
    _close(ours.post_process_latents(expected), theirs.post_process_latents(expected))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_masked(dtype: torch.dtype) -> None:
    case = "karlo, kandinsky"  # the published priors of the other kinds take no mask
    theirs, ours = _pair(case)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 6 + [0]]).to(dtype)
    given = {**_inputs(case), "timestep": torch.tensor(40), "attention_mask": mask}
    found = ours(**given).predicted_image_embedding
    _close(found, theirs(**given).predicted_image_embedding)
    del given["attention_mask"]
    assert not torch.allclose(found, ours(**given).predicted_image_embedding, atol=1e-3)


@torch.no_grad()
def test_files_both_ways(tmp_path: Path, pair: tuple[str, Any, Any]) -> None:
    case, theirs, ours = pair
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    expected = theirs(timestep=9, **_inputs(case), return_dict=False)[0]
    for library, folder in ((calotype, "theirs"), (diffusers, "ours")):
        loaded = library.PriorTransformer.from_pretrained(tmp_path / folder)
        _close(loaded(timestep=9, **_inputs(case), return_dict=False)[0], expected)


@torch.no_grad()
def test_attention_processors_by_name(pair: tuple[str, Any, Any]) -> None:
    _, theirs, ours = pair
    assert set(ours.attn_processors) == set(theirs.attn_processors)


def test_refusals() -> None:
    for argument in ("norm_in_type", "embedding_proj_norm_type", "encoder_hid_proj_type", "added_emb_type"):
        with pytest.raises(InputError, match=argument):
            calotype.PriorTransformer(**SIZE, **{argument: "other"})
    prior = calotype.PriorTransformer(**SIZE, embedding_dim=10, num_embeddings=7)
    noise = torch.zeros(1, 10)
    with pytest.raises(InputError, match="give it encoder_hidden_states"):
        prior(noise, 1, noise)
    with pytest.raises(InputError, match="11 positions and was given 9 tokens"):
        prior(noise, 1, noise, torch.zeros(1, 5, 10))
