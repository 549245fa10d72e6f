"""Prompts in chunks and with weights, against the same computed by hand from the text encoder's own output."""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.diffusion.inputs import Prompt, TwoPrompts
from tests.tiny import stable_diffusion_parts, stable_diffusion_xl_parts

CPU = torch.device("cpu")
SHORT = "a red ball"
LONG = "a red ball and a blue cube on the green grass at night left of the small cone on sand"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe = calotype.StableDiffusionPipeline(
        **stable_diffusion_parts(calotype, tmp_path_factory.mktemp("sd")), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pipe = calotype.StableDiffusionXLPipeline(
        **stable_diffusion_xl_parts(calotype, tmp_path_factory.mktemp("xl"))
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embed(pipe: Any, guided: bool = False, **prompt: Any) -> Any:
    group = TwoPrompts if hasattr(pipe, "tokenizer_2") else Prompt
    with torch.no_grad():
        return pipe.bound_family().embed(group(**prompt), guided, CPU)


def pieces(tokenizer: Any, text: str) -> list[list[int]]:
    """The ids of a text in whole chunks."""
    ids, room = tokenizer(text, add_special_tokens=False).input_ids, tokenizer.model_max_length - 2
    cut = [ids[start : start + room] for start in range(0, max(len(ids), 1), room)]
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return [[bos, *piece, eos, *[pad] * (room - len(piece))] for piece in cut]


@torch.no_grad()
def states(pipe: Any, chunk: list[int], mask: list[int] | None = None) -> torch.Tensor:
    given = None if mask is None else torch.tensor([mask])
    return pipe.text_encoder(torch.tensor([chunk]), attention_mask=given)[0]


def test_the_long_prompt_is_long(sd: Any) -> None:
    assert len(pieces(sd.tokenizer, LONG)) >= 2
    assert len(pieces(sd.tokenizer, SHORT)) == 1


@pytest.mark.parametrize(
    "asked", [{"prompt_chunks": True}, {"prompt_weighting": "a1111"}, {"prompt_weighting": "compel"}]
)
def test_weight_one_is_the_plain_encoding(sd: Any, xl: Any, asked: dict[str, Any]) -> None:
    for pipe in (sd, xl):
        for prompt in (SHORT, "", ["a ball", "a big blue cube"]):
            expected = embed(pipe, True, prompt=prompt, negative_prompt="sand")
            found = embed(pipe, True, prompt=prompt, negative_prompt="sand", **asked)
            assert all(torch.equal(e, f) for e, f in zip(expected, found, strict=True))


def test_explicit_weight_one(sd: Any) -> None:
    expected, _ = embed(sd, prompt="a red ball")
    for text, syntax in (
        ("a (red:1.0) ball", "a1111"),
        ("[(a red ball)]", "a1111"),
        ("a (red)1 ball", "compel"),
    ):
        torch.testing.assert_close(
            embed(sd, prompt=text, prompt_weighting=syntax)[0], expected, atol=1e-6, rtol=1e-5
        )


def test_chunks_are_encoded_one_by_one(sd: Any) -> None:
    found, _ = embed(sd, prompt=LONG, prompt_chunks=True)
    expected = torch.cat([states(sd, chunk) for chunk in pieces(sd.tokenizer, LONG)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_chunks_of_two_encoders(xl: Any) -> None:
    found = embed(xl, prompt=LONG, prompt_2=SHORT, prompt_chunks=True)
    chunks, [second] = pieces(xl.tokenizer, LONG), pieces(xl.tokenizer_2, SHORT)
    (empty,) = pieces(xl.tokenizer_2, "")
    with torch.no_grad():
        first = xl.text_encoder(torch.tensor(chunks), output_hidden_states=True).hidden_states[-2]
        rest = [second, *[empty] * (len(chunks) - 1)]
        output = xl.text_encoder_2(torch.tensor(rest), output_hidden_states=True)
    expected = torch.cat([first.flatten(0, 1), output.hidden_states[-2].flatten(0, 1)], dim=-1)[None]
    torch.testing.assert_close(found.prompt_embeds, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.pooled_prompt_embeds, output[0][:1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "negative"), [(LONG, "sand"), (SHORT, LONG), ([SHORT, LONG], ["sand", ""])]
)
def test_all_texts_of_a_call_get_the_same_chunks(sd: Any, xl: Any, prompt: Any, negative: Any) -> None:
    count = len(pieces(sd.tokenizer, LONG))
    for pipe in (sd, xl):
        cond, uncond, *_ = embed(pipe, True, prompt=prompt, negative_prompt=negative, prompt_chunks=True)
        assert cond.shape == uncond.shape
        assert cond.shape[1] == 16 * count
    (empty,) = pieces(sd.tokenizer, "")
    if negative == "sand":
        _, uncond = embed(sd, True, prompt=prompt, negative_prompt=negative, prompt_chunks=True)
        torch.testing.assert_close(uncond[:, 16:32], states(sd, empty), atol=1e-6, rtol=1e-5)


def test_a_break_begins_a_chunk(sd: Any) -> None:
    found, _ = embed(sd, prompt="a red ball BREAK a cube", prompt_weighting="a1111")
    expected = [states(sd, pieces(sd.tokenizer, text)[0]) for text in ("a red ball", "a cube")]
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("skip", [1, 2])
def test_clip_skip(sd: Any, skip: int) -> None:
    found, _ = embed(sd, prompt=LONG, prompt_chunks=True, clip_skip=skip)
    with torch.no_grad():
        output = sd.text_encoder(torch.tensor(pieces(sd.tokenizer, LONG)), output_hidden_states=True)
        model = getattr(sd.text_encoder, "text_model", sd.text_encoder)
        expected = model.final_layer_norm(output.hidden_states[-1 - skip]).flatten(0, 1)[None]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def position(pipe: Any, text: str, word: str) -> int:
    """Where the one token of ``word`` stands."""
    (chunk,), (token,) = (
        pieces(pipe.tokenizer, text),
        pipe.tokenizer(word, add_special_tokens=False).input_ids,
    )
    return chunk.index(token)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.3, 2.0])
def test_a1111_restores_the_mean(sd: Any, weight: float) -> None:
    found, _ = embed(sd, prompt=f"a (red:{weight}) ball", prompt_weighting="a1111")
    plain = states(sd, pieces(sd.tokenizer, SHORT)[0])
    expected = plain.clone()
    expected[:, position(sd, SHORT, "red")] *= weight
    expected *= plain.mean() / expected.mean()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.mean(), plain.mean(), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_a1111_of_a_batch_is_that_of_each(sd: Any) -> None:
    texts = ["a (red:1.4) ball", "a [blue] cube"]
    together, _ = embed(sd, prompt=texts, prompt_weighting="a1111")
    for text, row in zip(texts, together, strict=True):
        alone, _ = embed(sd, prompt=text, prompt_weighting="a1111")
        torch.testing.assert_close(row[None], alone, atol=1e-6, rtol=1e-5)


def test_compel_goes_away_from_the_empty_text(sd: Any) -> None:
    found, _ = embed(sd, prompt="a (red)1.5 ball", prompt_weighting="compel")
    plain, empty = (states(sd, pieces(sd.tokenizer, text)[0]) for text in (SHORT, ""))
    where = position(sd, SHORT, "red")
    expected = plain.clone()
    expected[:, where] = empty[:, where] + 1.5 * (plain - empty)[:, where]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.9])
def test_compel_blends_with_what_lacks_the_word(sd: Any, weight: float) -> None:
    found, _ = embed(sd, prompt=f"a (red){weight} ball", prompt_weighting="compel")
    (chunk,), (nothing,) = pieces(sd.tokenizer, SHORT), pieces(sd.tokenizer, "")
    where = position(sd, SHORT, "red")
    mask = [int(place != where) for place in range(len(chunk))]
    whole, without = states(sd, chunk), states(sd, chunk, mask)
    for one in (whole, without):
        empty = states(sd, nothing)[:, where]
        one[:, where] = empty + weight * (one[:, where] - empty)
    share = math.tan((1 - max(weight, 1e-5)) * math.pi / 2)
    torch.testing.assert_close(found, (whole + share * without) / (1 + share), atol=1e-5, rtol=1e-4)


def test_weights_reach_both_encoders(xl: Any) -> None:
    plain, weighted = (
        embed(xl, prompt=text, prompt_weighting="a1111") for text in (SHORT, "a (red:1.5) ball")
    )
    where = position(xl, SHORT, "red")
    change = (weighted.prompt_embeds - plain.prompt_embeds)[0, where].abs()
    assert change[:32].max() > 0.05
    assert change[32:].max() > 0.05
    assert torch.equal(weighted.pooled_prompt_embeds, plain.pooled_prompt_embeds)


def test_pictures(sd: Any, xl: Any) -> None:
    """The arguments are those of the call; brackets are text unless it says otherwise."""

    def made(pipe: Any, prompt: str, **asked: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt, num_inference_steps=2, generator=generator, output_type="pt", **asked).images

    for pipe in (sd, xl):
        plain = made(pipe, SHORT)
        assert torch.equal(made(pipe, SHORT, prompt_chunks=True), plain)
        assert torch.equal(made(pipe, "a (red:1) ball", prompt_weighting="a1111"), plain)
        assert not torch.equal(made(pipe, "a (red:1.5) ball", prompt_weighting="a1111"), plain)
        assert not torch.equal(
            made(pipe, "a (red:1.5) ball"), made(pipe, "a (red:1.5) ball", prompt_weighting="a1111")
        )
        assert not torch.equal(made(pipe, LONG), made(pipe, LONG, prompt_chunks=True))


def test_other_tasks_take_them(sd: Any) -> None:
    pipe = calotype.StableDiffusionImg2ImgPipeline.from_pipe(sd)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    images = [
        pipe(
            LONG, picture, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt", **asked
        ).images
        for asked in ({}, {"prompt_chunks": True})
    ]  # fmt: skip
    assert not torch.equal(*images)


def test_the_warning_says_what_to_do(sd: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        embed(sd, prompt=LONG)
    assert "left of the small cone on sand" in caplog.text
    assert "prompt_chunks=True" in caplog.text
    caplog.clear()
    embed(sd, prompt=LONG, prompt_chunks=True)
    assert not caplog.records


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"prompt": SHORT, "prompt_weighting": "webui"},
            "prompt_weighting must be 'a1111' or 'compel', not 'webui'",
        ),
        ({"prompt": "a (ball", "prompt_weighting": "compel"}, "never closed"),
        ({"prompt": "a " * 10_000, "prompt_chunks": True}, "set_limits\\(tokens="),
        (
            {"prompt_embeds": torch.zeros(1, 16, 32), "negative_prompt": LONG, "prompt_chunks": True},
            "needs 2 chunks of 16 tokens and the embeddings beside it have 1",
        ),
    ],
)
def test_refused(sd: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        sd(**arguments, num_inference_steps=1)


def test_a_negative_text_beside_long_embeddings(sd: Any) -> None:
    embeds, _ = embed(sd, prompt=LONG, prompt_chunks=True)
    cond, uncond = embed(sd, True, prompt_embeds=embeds, negative_prompt="sand", prompt_chunks=True)
    assert uncond.shape == cond.shape == embeds.shape


def test_a_pipeline_without_prompts_has_no_such_argument() -> None:
    with pytest.raises(TypeError, match="prompt_chunks"):
        calotype.DDPMPipeline.__call__(object.__new__(calotype.DDPMPipeline), prompt_chunks=True)


def test_weights_are_refused_where_a_prior_reads_the_prompt_as_plain_text() -> None:
    parts = dict.fromkeys(inspect.signature(calotype.StableUnCLIPPipeline).parameters)
    with pytest.raises(TypeError, match="prompt_weighting"):
        calotype.StableUnCLIPPipeline(**parts)("a (red:1.5) ball", prompt_weighting="a1111")
