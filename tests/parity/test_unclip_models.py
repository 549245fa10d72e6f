"""The small models of unCLIP and latent diffusion against the reference: keys, numbers, files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel as TheirTextProj
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig as TheirBertConfig
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel as TheirBert
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import (
    StableUnCLIPImageNormalizer as TheirNormalizer,
)

import calotype
from calotype.models.ldm_bert import LDMBertConfig
from tests.tiny import randomise

BERT: dict[str, dict[str, Any]] = {
    "gelu": {"encoder_attention_heads": 2, "head_dim": 4, "d_model": 12},
    "relu": {"encoder_attention_heads": 3, "head_dim": 5, "d_model": 8, "activation_function": "relu"},
}
SMALL = {"vocab_size": 40, "max_position_embeddings": 11, "encoder_layers": 3, "encoder_ffn_dim": 20}
PROJ = {
    "clip_extra_context_tokens": 3,
    "clip_embeddings_dim": 10,
    "time_embed_dim": 14,
    "cross_attention_dim": 6,
}

pytestmark = pytest.mark.filterwarnings("ignore")


def noise(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", BERT)
@torch.no_grad()
def test_bert(tmp_path: Path, case: str) -> None:
    config = {**SMALL, **BERT[case]}
    theirs: Any = randomise(TheirBert(TheirBertConfig(**config)), 1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = calotype.LDMBertModel.from_pretrained(tmp_path / "theirs").eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    ids = torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1] * 7 + [0] * 4, [1] * 11])
    expected = theirs(ids)[0]
    torch.testing.assert_close(ours(ids)[0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(ours(ids).last_hidden_state, ours(ids, return_dict=False)[0])
    masked = ours(ids, mask)[0]
    torch.testing.assert_close(masked[1], expected[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(masked[0, :7], ours(ids[:1, :7]).last_hidden_state[0], atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    again = TheirBert.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(ids)[0], expected)


def test_bert_configuration() -> None:
    shapes = [
        [(p.name, p.kind, p.default) for p in inspect.signature(one.__init__).parameters.values()]
        for one in (LDMBertConfig, TheirBertConfig)
    ]
    assert shapes[0] == shapes[1]
    ours, theirs = (one().to_dict() for one in (LDMBertConfig, TheirBertConfig))
    assert ours == theirs
    assert LDMBertConfig().hidden_size == TheirBertConfig().hidden_size


@pytest.mark.parametrize("guided", [False, True])
@torch.no_grad()
def test_text_proj(tmp_path: Path, guided: bool) -> None:
    theirs: Any = randomise(TheirTextProj(**PROJ), 1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = calotype.UnCLIPTextProjModel.from_pretrained(tmp_path / "theirs")
    inputs = {
        "image_embeddings": noise(2 if guided else 4, 10),
        "prompt_embeds": noise(4, 10, seed=4),
        "text_encoder_hidden_states": noise(4, 5, 10, seed=5),
        "do_classifier_free_guidance": guided,
    }
    for found, expected in zip(ours(**inputs), theirs(**inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    again = TheirTextProj.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(again.state_dict()[k], v) for k, v in theirs.state_dict().items())


@torch.no_grad()
def test_normalizer(tmp_path: Path) -> None:
    theirs: Any = randomise(TheirNormalizer(embedding_dim=8), 1)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = calotype.StableUnCLIPImageNormalizer.from_pretrained(tmp_path / "theirs")
    embeds = noise(3, 8)
    torch.testing.assert_close(ours.scale(embeds), theirs.scale(embeds))
    torch.testing.assert_close(ours.unscale(embeds), theirs.unscale(embeds))
    torch.testing.assert_close(ours.unscale(ours.scale(embeds)), embeds, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(TheirNormalizer.from_pretrained(tmp_path / "ours").mean, theirs.mean)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (calotype.UnCLIPTextProjModel, TheirTextProj),
        (calotype.StableUnCLIPImageNormalizer, TheirNormalizer),
    ],
    ids=["text_proj", "normalizer"],
)
def test_signatures(ours: Any, theirs: Any) -> None:
    found, expected = (
        [(p.name, p.kind, p.default) for p in inspect.signature(one.__init__).parameters.values()]
        for one in (ours, theirs)
    )
    assert found == expected
