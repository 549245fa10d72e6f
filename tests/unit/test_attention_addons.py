"""Merged tokens and shared attention: what the papers say, pixel by pixel, and that nothing stays afterwards."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import calotype
from calotype.core.errors import InputError
from calotype.nn.attention import Attention
from calotype.nn.shared_attention import SharedAttnProcessor, batch_of
from calotype.nn.token_merging import Tiling, alike, places
from tests import tiny


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny.randomise(calotype.UNet2DConditionModel(**tiny.UNET), 3)


INPUTS = draw(2, 4, 8, 10), 5, draw(2, 7, 32, seed=1)


def predicted(model: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(*INPUTS, **kwargs).sample


# -- token merging --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 7)])
def test_merging_by_hand(size: tuple[int, int], seed: int | None) -> None:
    """Every pixel by itself, as the paper describes it."""
    x, ratio = draw(2, size[0] * size[1], 5), 0.4
    sources, destinations = (
        index.tolist() for index in places(*size, Tiling(2, 2, seed), torch.device("cpu"))
    )
    tiles = [(index // size[1] // 2, index % size[1] // 2) for index in destinations]
    assert sorted(tiles) == [(row, column) for row in range(size[0] // 2) for column in range(size[1] // 2)]
    assert sorted(sources + destinations) == list(range(size[0] * size[1]))
    merge = alike(x, size, ratio, Tiling(2, 2, seed))
    assert merge is not None
    merged, again = merge.merge(x), merge.unmerge(merge.merge(x))
    count = int(size[0] * size[1] * ratio)
    assert merged.shape == (2, size[0] * size[1] - count, 5)
    for row in range(2):
        likeness = {
            source: max(
                (float(F.cosine_similarity(x[row, source], x[row, to], dim=0)), to) for to in destinations
            )
            for source in sources
        }
        gone = sorted(sources, key=lambda source: -likeness[source][0])[:count]
        for index in range(size[0] * size[1]):
            to = likeness[index][1] if index in gone else index
            group = [to, *(source for source in gone if likeness[source][1] == to)]
            torch.testing.assert_close(again[row, index], x[row, group].mean(0))


def test_merging_nothing(unet: Any) -> None:
    assert alike(draw(1, 24, 5), (4, 6), 0.01, Tiling()) is None
    assert alike(draw(1, 6, 5), (1, 6), 0.5, Tiling()) is None
    plain = predicted(unet)
    unet.enable_tome(0.0)
    assert torch.equal(predicted(unet), plain)
    unet.disable_tome()


@pytest.mark.parametrize(
    "settings", [{}, {"ratio": 0.7, "max_downsample": 2, "merge_crossattn": True, "merge_mlp": True}]
)
def test_merging_comes_and_goes(unet: Any, settings: dict[str, Any]) -> None:
    keys, plain = unet.state_dict().keys(), predicted(unet)
    widths = []
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    seen = layer.to_q.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    unet.enable_tome(**settings)
    unet.enable_tome(**settings)  # takes the place of the first
    found = predicted(unet)
    assert widths == [80 - int(80 * settings.get("ratio", 0.5))]
    assert 1e-3 < (found - plain).abs().max() < 5
    assert torch.equal(predicted(unet), found)
    assert unet.state_dict().keys() == keys
    unet.disable_tome()
    seen.remove()
    assert torch.equal(predicted(unet), plain)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in unet.modules())


def test_merging_with_other_add_ons(unet: Any) -> None:
    """Low-rank updates, shared attention and merging are independent of each other's order."""
    results = []
    for order in ((0, 1), (1, 0)):
        for step in order:
            (unet.enable_tome, unet.enable_style_aligned)[step]()
        results.append(predicted(unet))
        unet.disable_tome()
        unet.disable_style_aligned()
    assert torch.equal(*results)


def test_a_failed_call_leaves_no_merge(unet: Any) -> None:
    unet.enable_tome()
    found = predicted(unet)
    with pytest.raises(RuntimeError):
        unet(INPUTS[0], 5, draw(2, 7, 31))
    with pytest.raises(InputError, match="attention_mask"):
        unet(*INPUTS, attention_mask=torch.ones(2, 80))
    assert torch.equal(predicted(unet), found)
    unet.disable_tome()


def test_threads_merge_their_own(unet: Any) -> None:
    unet.enable_tome()
    sizes = [(8, 10), (6, 6), (10, 4)]
    inputs = [(draw(1, 4, *size), 5, draw(1, 7, 32)) for size in sizes]
    with torch.no_grad():
        expected = [unet(*one).sample for one in inputs]
    found: dict[int, list[torch.Tensor]] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            found[number] = [unet(*inputs[number]).sample for _ in range(3)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, want in enumerate(expected):
        for got in found[number]:
            torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    unet.disable_tome()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": 1.0}, "ratio must be"),
        ({"ratio": "half"}, "ratio must be"),
        ({"sx": 0}, "sx must be"),
        ({"sx": 1, "sy": 1}, "no pixel that could be merged"),
    ],
)
def test_merging_that_cannot_be(unet: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        unet.enable_tome(**settings)


def test_merging_where_no_map_is_large_enough() -> None:
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    model = calotype.UNet2DConditionModel(**{**tiny.UNET, "down_block_types": down, "up_block_types": up})
    with pytest.raises(InputError, match="max_downsample=2 or more"):
        model.enable_tome()
    model.enable_tome(max_downsample=2)


# -- shared attention -----------------------------------------------------------------------------------------


def by_hand(layer: Attention, x: torch.Tensor, pictures: int, settings: SharedAttnProcessor) -> torch.Tensor:
    """The paper's equations, a row and a head at a time."""
    q, k, v = layer.to_q(x), layer.to_k(x), layer.to_v(x)  # type: ignore[misc]

    def adain(t: torch.Tensor, row: int) -> torch.Tensor:
        mine, first = t[row], t[row - row % pictures]
        spread = [((part - part.mean(0)) ** 2).sum(0) / (len(part) - 1) + 1e-5 for part in (mine, first)]
        return (mine - mine.mean(0)) / spread[0].sqrt() * spread[1].sqrt() + first.mean(0)

    wanted = (settings.adain_queries, settings.adain_keys, settings.adain_values)
    rows = range(len(x))
    q, k, v = (
        torch.stack([adain(t, row) if asked else t[row] for row in rows])
        for t, asked in zip((q, k, v), wanted, strict=True)
    )
    out = torch.zeros_like(q)
    for row in rows:
        start = row - row % pictures
        if not settings.share_attention:
            others = []
        elif settings.full_attention_share:
            others = [other for other in range(start, start + pictures) if other != row]
        else:
            others = [start]
        keys, values = torch.cat([k[row], *k[others]]), torch.cat([v[row], *v[others]])
        shared = torch.arange(len(keys)) >= x.shape[1]
        width = layer.inner_dim // layer.heads
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[row, :, part] @ keys[:, part].T * width**-0.5
            if row != start or settings.full_attention_share:
                scores[:, shared] *= settings.shared_score_scale
            scores[:, shared] += settings.shared_score_shift
            out[row, :, part] = scores.softmax(-1) @ values[:, part]
    return layer.to_out[0](out)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adain_queries": False, "adain_keys": False, "adain_values": True},
        {"shared_score_scale": 1.3, "shared_score_shift": 0.7},
        {"share_attention": False},
        {"full_attention_share": True, "shared_score_scale": 0.8},
    ],
)
def test_sharing_by_hand(settings: dict[str, Any]) -> None:
    layer = tiny.randomise(Attention(12, heads=3, dim_head=4))
    assert isinstance(layer, Attention)
    processor, x = SharedAttnProcessor(**settings), draw(6, 5, 12)
    layer.set_processor(processor)
    with torch.no_grad(), batch_of(3):
        torch.testing.assert_close(layer(x), by_hand(layer, x, 3, processor))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tiny.stable_diffusion_folder(tmp_path_factory.mktemp("addons") / "sd")
    made = calotype.StableDiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def images(pipe: Any, prompts: list[str], guidance: Any = 5.0) -> torch.Tensor:
    sources = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    told = {"guidance_scale": guidance} if isinstance(guidance, float) else {"guidance": guidance}
    return pipe(prompts, num_inference_steps=2, output_type="pt", generator=sources, **told).images


@pytest.mark.parametrize("guided", [1.0, 5.0, "perturbed"])
def test_all_follow_the_first(pipe: Any, guided: Any) -> None:
    from calotype.guidance import ClassifierFree, PerturbedAttention

    how = ClassifierFree(5.0) + PerturbedAttention(2.0) if guided == "perturbed" else guided
    prompts = ["a red ball", "a blue cube", "a green cone"]
    apart, alone = images(pipe, prompts, how), images(pipe, prompts[:1], how)
    pipe.enable_style_aligned()
    together, other = images(pipe, prompts, how), images(pipe, ["sand at night", *prompts[1:]], how)
    pipe.disable_style_aligned()
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=0)
    assert (together[1:] - apart[1:]).abs().amax((1, 2, 3)).min() > 0.01
    assert (together[1:] - other[1:]).abs().amax((1, 2, 3)).min() > 0.01
    assert torch.equal(images(pipe, prompts, how), apart)


def test_a_pipeline_merges(pipe: Any) -> None:
    plain = images(pipe, ["a red ball"])
    pipe.enable_tome(ratio=0.5)
    merged = images(pipe, ["a red ball"])
    pipe.disable_tome()
    assert (merged - plain).abs().max() > 1e-3
    assert torch.equal(images(pipe, ["a red ball"]), plain)


def test_models_without_self_attention_share_nothing() -> None:
    plain = ("DownBlock2D",), ("UpBlock2D",)
    options = {"down_block_types": plain[0], "up_block_types": plain[1], "block_out_channels": (32,)}
    model = calotype.UNet2DConditionModel(**{**tiny.UNET, **options, "mid_block_type": None})
    with pytest.raises(InputError, match="no self-attention"):
        model.enable_style_aligned()
    with pytest.raises(InputError, match="no tokens to merge"):
        model.enable_tome()
