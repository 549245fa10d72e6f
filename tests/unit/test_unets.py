"""U-Nets: what they refuse and why, and that calls leave nothing behind."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn

from calotype import UNet2DConditionModel, UNet2DModel
from calotype.core.errors import InputError
from calotype.models.unet_conditioning import add_conditioning, as_times
from calotype.models.unet_layout import down_stages, mid_stage_of
from calotype.nn.stage import DownStage

TINY: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
PLAIN: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def conditional(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY | changes).eval()


def plain(**changes: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**PLAIN | changes).eval()


def call(**changes: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": 3,
        "encoder_hidden_states": torch.randn(2, 5, 6, generator=generator),
    } | changes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"down_block_types": ("CrossAttnDownBlock", "DownBlock2D")},
            "'CrossAttnDownBlock'.*CrossAttnDownBlock2D",
        ),
        ({"up_block_types": ("UpBlock2D", "CrossAtnUpBlock2D")}, "up_block_types.*CrossAttnUpBlock2D"),
        ({"mid_block_type": "UNetMidBlockCrossAttn"}, "mid_block_type.*UNetMidBlock2DCrossAttn"),
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D")}, "SkipDownBlock2D.*UNet2DModel"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types has 1 entries.*down_block_types has 2"),
        ({"block_out_channels": (8, 8, 8)}, "block_out_channels has 3 entries"),
        ({"attention_head_dim": (2, 2, 2)}, "attention_head_dim has 3 entries"),
        ({"layers_per_block": (1,)}, "layers_per_block has 1 entries"),
        ({"only_cross_attention": (True,)}, "only_cross_attention has 1 entries"),
        ({"cross_attention_dim": (6, 6, 6)}, "cross_attention_dim has 3 entries"),
        ({"transformer_layers_per_block": (1, 1, 1)}, "transformer_layers_per_block has 3 entries"),
        ({"transformer_layers_per_block": ((1,), 1)}, "nested.*reverse_transformer_layers_per_block"),
        (
            {
                "transformer_layers_per_block": ((), (1,)),
                "reverse_transformer_layers_per_block": ((1, 1), (1, 1)),
            },
            "transformer_layers_per_block has 0 entries",
        ),
        ({"reverse_transformer_layers_per_block": (1,)}, "reverse_transformer_layers_per_block has 1"),
        ({"num_attention_heads": 2}, "attention_head_dim"),
        ({"attention_head_dim": 3}, "8 channels.*3 attention heads"),
        ({"attention_head_dim": 0}, "0 attention heads"),
        ({"time_embedding_type": "learned"}, "'positional' or 'fourier', not 'learned'"),
        ({"time_embedding_type": "fourier", "time_embedding_dim": 9}, "even.*9"),
        ({"class_embed_type": "label"}, "class_embed_type.*'label'"),
        ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
        ({"addition_embed_type": "time_text"}, "addition_embed_type.*'time_text'"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"addition_embed_type": "image"}, "encoder_hid_dim"),
        ({"encoder_hid_dim_type": "text_proj"}, "needs an encoder_hid_dim"),
        ({"encoder_hid_dim_type": "ip", "encoder_hid_dim": 3}, "encoder_hid_dim_type.*'ip'"),
        ({"encoder_hid_dim": 3, "cross_attention_dim": (6, 6)}, "one cross_attention_dim"),
        ({"resnet_time_scale_shift": "shift"}, "'shift'"),
        ({"act_fn": "softplus"}, "'softplus'"),
        ({"attention_type": "gate"}, "attention_type"),
        ({"down_block_types": (), "up_block_types": (), "block_out_channels": ()}, "at least one block"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=f"(?s){says}"):
        UNet2DConditionModel(**TINY | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"down_block_types": ("DownBlok2D", "DownBlock2D")}, "did you mean DownBlock2D"),
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "UNet2DConditionModel"),
        ({"mid_block_type": "UNetMidBlock"}, "mid_block_type.*'UNetMidBlock'"),
        ({"up_block_types": ("UpBlock2D",)}, "up_block_types has 1 entries"),
        ({"class_embed_type": "projection"}, "'projection'"),
        ({"time_embedding_type": "learned"}, "num_train_timesteps"),
        ({"time_embedding_type": "sine"}, "'sine'"),
        ({"downsample_type": "pool"}, "downsample_type.*'pool'"),
    ],
)
def test_unconditional_configurations_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        UNet2DModel(**PLAIN | changes)


@pytest.mark.parametrize(
    ("settings", "changes", "says"),
    [
        ({"num_class_embeds": 3}, {}, "class_labels"),
        (
            {"addition_embed_type": "text_time", "addition_time_embed_dim": 2}
            | {"projection_class_embeddings_input_dim": 9},
            {"added_cond_kwargs": {"text_embeds": torch.zeros(2, 3)}},
            "'time_ids'.*text_embeds",
        ),
        ({"encoder_hid_dim": 3, "encoder_hid_dim_type": "image_proj"}, {}, "'image_embeds'.*nothing"),
        ({}, {"timestep_cond": torch.zeros(2, 3)}, "time_cond_proj_dim"),
        ({}, {"timestep": torch.tensor([1, 2, 3])}, "3 timesteps for a batch of 2"),
        ({}, {"cross_attention_kwargs": {"gligen": {"boxes": 0}}}, "attention_type is 'default'"),
        (
            {},
            {"down_block_additional_residuals": (torch.zeros(2, 8, 8, 8),)}
            | {"mid_block_additional_residual": torch.zeros(2, 16, 4, 4)},
            "1 tensors.*keeps 4",
        ),
    ],
)
def test_conditions_that_are_missing_or_useless_are_refused(
    settings: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    model = conditional(**settings)
    with pytest.raises(InputError, match=says):
        model(**call(**changes))


def test_classes_of_an_unconditional_model() -> None:
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(InputError, match="class_labels must be given"):
        plain(num_class_embeds=3)(x, 1)
    with pytest.raises(InputError, match="not trained with classes"):
        plain()(x, 1, class_labels=torch.tensor([0, 1]))


def test_residual_upsamplers_say_which_sizes_they_can() -> None:
    model = conditional(
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D"),
    )
    with pytest.raises(InputError, match=r"halved"):
        model(**call(sample=torch.randn(2, 4, 9, 9)))


def test_odd_sizes_of_an_unconditional_model() -> None:
    assert plain()(torch.randn(1, 3, 9, 13), 1).sample.shape == (1, 3, 9, 13)


def test_a_noise_level_given_as_a_number_is_not_rounded() -> None:
    score = plain(time_embedding_type="fourier")
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(score(x, 1.75).sample, score(x, torch.tensor([1.75])).sample)
    assert not torch.allclose(score(x, 1.75).sample, score(x, 1.0).sample)
    assert score.half()(x.half(), 1.75).sample.dtype == torch.float16


@pytest.mark.parametrize("timestep", [7, 7.0, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 7])])
def test_forms_of_a_timestep(timestep: Any) -> None:
    sample = torch.zeros(2, 1)
    assert as_times(timestep, sample).tolist() == [7, 7]
    model = conditional()
    with torch.no_grad():
        assert torch.equal(model(**call(timestep=timestep)).sample, model(**call(timestep=7)).sample)


@pytest.mark.parametrize("cls", [UNet2DConditionModel, UNet2DModel])
def test_construction_on_meta_makes_no_values(cls: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = cls(**(TINY if cls is UNet2DConditionModel else PLAIN))
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_output_forms() -> None:
    model = conditional()
    with torch.no_grad():
        output, pair = model(**call()), model(**call(), return_dict=False)
    assert isinstance(pair, tuple) and len(pair) == 1
    assert torch.equal(output.sample, pair[0]) and torch.equal(output[0], output["sample"])


def test_a_call_changes_none_of_its_arguments() -> None:
    model = conditional(attention_type="gated")
    residuals = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
    boxes = {
        "boxes": torch.rand(2, 1, 4),
        "masks": torch.ones(2, 1),
        "positive_embeddings": torch.randn(2, 1, 6),
    }
    kwargs = {"scale": 0.5, "gligen": boxes}
    arguments = call(down_intrablock_additional_residuals=residuals, cross_attention_kwargs=kwargs)
    before = copy.deepcopy(arguments)
    with torch.no_grad():
        model(**arguments)
    assert (
        len(residuals) == 2
        and set(kwargs) == {"scale", "gligen"}
        and set(boxes) == set(before["cross_attention_kwargs"]["gligen"])
    )
    assert torch.equal(arguments["sample"], before["sample"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(residuals, before["down_intrablock_additional_residuals"], strict=True)
    )


def test_two_threads_may_call_one_model() -> None:
    model = conditional()
    calls = [call(timestep=t, encoder_hidden_states=torch.randn(2, 5, 6)) for t in range(4)]
    with torch.no_grad():
        expected = [model(**c).sample for c in calls]
    results: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        with torch.no_grad():
            for _ in range(3):
                results[index] = model(**calls[index]).sample

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], expected[i]) for i in range(4))


@pytest.mark.parametrize("kind", ["conditional", "plain"])
def test_gradient_checkpointing_changes_memory_not_gradients(kind: str) -> None:
    model: Any = conditional() if kind == "conditional" else plain()
    arguments = call() if kind == "conditional" else {"sample": torch.randn(2, 3, 8, 8), "timestep": 3}

    def gradients() -> tuple[int, list[torch.Tensor]]:
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**arguments).sample.square().mean()
        loss.backward()
        return kept, [p.grad.clone() for p in model.parameters()]

    much, expected = gradients()
    model.enable_gradient_checkpointing()
    little, actual = gradients()
    assert little < 0.6 * much
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    model.disable_gradient_checkpointing()
    assert gradients()[0] == much


def test_copies_and_pickles_are_the_same_model() -> None:
    model = conditional(encoder_hid_dim=6)
    assert model.config.encoder_hid_dim_type == "text_proj"
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert dict(twin.config) == dict(model.config)
        with torch.no_grad():
            assert torch.equal(twin(**call()).sample, model(**call()).sample)


def test_from_config_makes_the_same_architecture() -> None:
    model = conditional(attention_head_dim=(2, 4), class_embed_type="timestep")
    twin = UNet2DConditionModel.from_config(model.config)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_processors_are_set_for_all_layers_or_by_name() -> None:
    model = conditional()
    seen: list[int] = []

    class Spy:
        def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
            seen.append(attn.heads)
            return torch.zeros_like(hidden_states)

    names = list(model.attn_processors)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor" in names
    model.set_attn_processor(Spy())
    with torch.no_grad():
        model(**call())
    assert len(seen) == len(names)
    model.set_default_attn_processor()
    one = names[0]
    model.set_attn_processor(model.attn_processors | {one: Spy()})
    assert isinstance(model.attn_processors[one], Spy)
    with pytest.raises(InputError, match=f"{len(names)} attention layers"):
        model.set_attn_processor({one: Spy()})


def test_attention_slices() -> None:
    model = conditional()
    for good in ("auto", "max", 1, [1, 2], None):
        model.set_attention_slice(good)
    for bad in ("most", 0, [1, -1]):
        with pytest.raises(InputError, match="slice_size"):
            model.set_attention_slice(bad)  # type: ignore[arg-type]


class EncoderHalf(nn.Module):
    """What a ControlNet has of a U-Net, made from the same parts."""

    def __init__(self, model: UNet2DConditionModel) -> None:
        super().__init__()
        self.config = model.config
        width = add_conditioning(self, self.config)
        self.down_blocks = down_stages(self.config, width)
        self.mid_block = mid_stage_of(self.config, width)


def test_the_encoder_half_has_the_same_keys() -> None:
    model = conditional()
    half = EncoderHalf(model)
    own = set(half.state_dict())
    rest = {key for key in model.state_dict() if not key.startswith(("conv_", "up_blocks."))}
    assert own == rest
    half.load_state_dict({key: value for key, value in model.state_dict().items() if key in own})
    assert all(isinstance(stage, DownStage) for stage in half.down_blocks)
