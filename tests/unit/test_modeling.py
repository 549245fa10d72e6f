"""ModelMixin: loading, saving and what a network says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from calotype.core.errors import InputError, ModelFilesError, UnknownClassError, WeightsError
from calotype.models.modeling import ModelMixin


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])


class Small(ModelMixin):
    _supports_gradient_checkpointing = True
    _keys_to_ignore_on_load_unexpected = (r"^legacy\.",)

    def __init__(self, width: int = 4, tied: bool = False, depth: int = 1) -> None:
        super().__init__()
        self.table = nn.Embedding(3, width)
        self.head = nn.Linear(width, 3, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.attention = _Attention(width)
        self.gradient_checkpointing = False
        if tied:
            self.head.weight = self.table.weight


def _filled(**config) -> Small:
    torch.manual_seed(0)
    model = Small(**config)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model


def _same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_round_trip(tmp_path: Path) -> None:
    model = _filled(width=6)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = Small.from_pretrained(tmp_path)
    assert _same(model, loaded)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config.width == 6
    assert loaded.config._name_or_path == str(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_that_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _filled()
    model.save_pretrained(tmp_path)
    loaded = Small.from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded.dtype == dtype
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    torch.testing.assert_close(loaded.head.weight, model.head.weight.to(dtype))
    assert Small.from_pretrained(tmp_path, dtype=dtype).dtype == dtype


def test_half_precision_files_load_as_float32_by_default(tmp_path: Path) -> None:
    _filled().half().save_pretrained(tmp_path)
    assert Small.from_pretrained(tmp_path).dtype == torch.float32


def test_shards_index_and_leftovers(tmp_path: Path) -> None:
    model = _filled(width=16)
    model.save_pretrained(tmp_path, max_shard_size="1.2KB")
    shards = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(shards) == 3
    assert shards[0] == "diffusion_pytorch_model-00001-of-00003.safetensors"
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in model.state_dict().values())
    assert set(index["weight_map"]) == set(model.state_dict())
    assert _same(model, Small.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_variants_live_side_by_side(tmp_path: Path) -> None:
    full, half = _filled(), _filled().half()
    full.save_pretrained(tmp_path)
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size=100)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
    assert (tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json").exists()
    assert _same(full, Small.from_pretrained(tmp_path))
    assert _same(half, Small.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16))
    with pytest.raises(ModelFilesError, match=r"bf16\.safetensors; it has config\.json"):
        Small.from_pretrained(tmp_path, variant="bf16")


def test_pickles_only_on_request(tmp_path: Path) -> None:
    model = _filled()
    model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ModelFilesError, match="use_safetensors=False"):
        Small.from_pretrained(tmp_path)
    with pytest.raises(ModelFilesError):
        Small.from_pretrained(tmp_path, use_safetensors=True)
    assert _same(model, Small.from_pretrained(tmp_path, use_safetensors=False))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    _filled().save_config(tmp_path)
    torch.save({"x": Trap()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelFilesError, match="safely"):
        Small.from_pretrained(tmp_path, use_safetensors=False)
    assert not (tmp_path / "sprung").exists()


def _rewrite(folder: Path, change) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    state = {key: value.clone() for key, value in load_file(path).items()}
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head.weight"), "head.weight is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra is not part of the model"),
        (
            lambda s: s.update({"head.weight": torch.zeros(3, 5)}),
            r"head.weight \(file: \[3, 5\], model: \[3, 4\]\) has another shape",
        ),
        (lambda s: s.pop("norm.running_mean"), "norm.running_mean is missing"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, change, words: str) -> None:
    _filled().save_pretrained(tmp_path)
    _rewrite(tmp_path, change)
    with pytest.raises(WeightsError, match=f"do not fit Small: {words}"):
        Small.from_pretrained(tmp_path)


def test_many_keys_are_counted(tmp_path: Path) -> None:
    _filled().save_pretrained(tmp_path)
    _rewrite(tmp_path, lambda s: s.update({f"x.{i}": torch.zeros(1) for i in range(9)}))
    with pytest.raises(WeightsError, match=r"and 5 more \(9 in all\) are not part"):
        Small.from_pretrained(tmp_path)


def test_ignorable_keys_are_ignored(tmp_path: Path) -> None:
    model = _filled()
    model.save_pretrained(tmp_path)
    _rewrite(tmp_path, lambda s: s.update({"legacy.x": torch.zeros(1)}))
    loaded, info = Small.from_pretrained(tmp_path, output_loading_info=True)
    assert _same(model, loaded)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


def test_mismatched_sizes_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = _filled()
    model.save_pretrained(tmp_path)
    _rewrite(tmp_path, lambda s: s.update({"head.weight": torch.zeros(3, 5)}))
    loaded, info = Small.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True, torch_dtype=torch.bfloat16
    )
    assert info["mismatched_keys"] == [("head.weight", (3, 5), (3, 4))]
    assert loaded.head.weight.shape == (3, 4)
    assert {t.dtype for t in loaded.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(loaded.table.weight, model.table.weight.bfloat16())
    assert "newly initialised" in caplog.text


def test_old_attention_names(tmp_path: Path) -> None:
    model = _filled()
    model.save_pretrained(tmp_path)

    def older(state):
        for kind in ("weight", "bias"):
            state[f"attention.query.{kind}"] = state.pop(f"attention.to_q.{kind}")
            state[f"attention.proj_attn.{kind}"] = state.pop(f"attention.to_out.0.{kind}")

    _rewrite(tmp_path, older)
    assert _same(model, Small.from_pretrained(tmp_path))


def test_a_tensor_under_its_old_and_its_new_name(tmp_path: Path) -> None:
    _filled().save_pretrained(tmp_path)
    _rewrite(tmp_path, lambda s: s.update({"attention.query.weight": torch.zeros(4, 4)}))
    with pytest.raises(WeightsError, match=r"attention\.query\.weight is not part of the model"):
        Small.from_pretrained(tmp_path)


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    model = _filled(tied=True)
    model.save_pretrained(tmp_path)
    loaded = Small.from_pretrained(tmp_path)
    assert loaded.head.weight is loaded.table.weight
    assert _same(model, loaded)
    _rewrite(tmp_path, lambda s: s.pop("head.weight"))
    loaded = Small.from_pretrained(tmp_path)
    assert loaded.head.weight is loaded.table.weight


def test_a_buffer_that_no_file_holds_is_an_error(tmp_path: Path) -> None:
    class Careless(ModelMixin):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.register_buffer("table", torch.arange(3.0), persistent=False)

    Careless().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="table"):
        Careless.from_pretrained(tmp_path)


def test_config_overrides_and_unknown_arguments(tmp_path: Path) -> None:
    _filled().save_pretrained(tmp_path)
    assert Small.from_pretrained(tmp_path, depth=7).config.depth == 7
    with pytest.raises(InputError, match="torch_dtpye"):
        Small.from_pretrained(tmp_path, torch_dtpye=torch.float16)
    with pytest.raises(InputError, match=r"not a torch\.dtype"):
        Small.from_pretrained(tmp_path, torch_dtype="half-ish")


def test_folders_of_other_kinds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip_text_model"}')
    with pytest.raises(UnknownClassError, match=r"Transformers model \(clip_text_model\), not a Small"):
        Small.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"width": 4, "quantization_config": {"quant_method": "gguf"}}')
    with pytest.raises(ModelFilesError, match="quantised"):
        Small.from_pretrained(tmp_path)


@pytest.mark.parametrize("place", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_device_map_of_one_device(tmp_path: Path, place) -> None:
    _filled().save_pretrained(tmp_path)
    assert Small.from_pretrained(tmp_path, device_map=place, low_cpu_mem_usage=True).device.type == "cpu"


@pytest.mark.parametrize("place", ["auto", {"head": "cpu", "table": "cpu"}])
def test_other_device_maps_are_refused(tmp_path: Path, place) -> None:
    _filled().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not supported"):
        Small.from_pretrained(tmp_path, device_map=place)


def test_saving_over_the_files_one_was_loaded_from(tmp_path: Path) -> None:
    model = _filled()
    model.save_pretrained(tmp_path)
    loaded = Small.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert _same(model, loaded)
    assert _same(model, Small.from_pretrained(tmp_path))


def test_a_failed_save_leaves_the_old_files(tmp_path: Path) -> None:
    model = _filled()
    model.save_pretrained(tmp_path, max_shard_size=200)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def failing(state, path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        torch.save(state, path)

    with pytest.raises(OSError, match="disk full"):
        Small().save_pretrained(tmp_path, max_shard_size=200, save_function=failing)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert after == before


def test_save_refuses(tmp_path: Path) -> None:
    model = _filled()
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFilesError, match="is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(InputError, match="big"):
        model.save_pretrained(tmp_path / "new", max_shard_size="big")
    with pytest.raises(InputError, match="repo_id"):
        model.save_pretrained(tmp_path / "new", repo_id="a/b")
    with torch.device("meta"):
        empty = Small()
    with pytest.raises(InputError, match="without values"):
        empty.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_only_the_main_process_writes_the_config(tmp_path: Path) -> None:
    _filled().save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / "config.json").exists()


def test_what_a_model_says_of_itself() -> None:
    model = Small()
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert model.num_parameters() - model.num_parameters(exclude_embeddings=True) == 12
    model.head.requires_grad_(False)
    assert model.num_parameters() - model.num_parameters(only_trainable=True) == 12
    assert model.get_memory_footprint(return_buffers=False) == 4 * model.num_parameters()
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")
    with pytest.warns(FutureWarning, match=r"\.config\.width"):
        assert model.width == 4
    with pytest.raises(AttributeError):
        _ = model.nothing


def test_gradient_checkpointing_is_switched() -> None:
    model = Small()
    assert not model.is_gradient_checkpointing
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing

    class Plain(ModelMixin):
        def __init__(self) -> None:
            super().__init__()

    with pytest.raises(InputError, match="Plain does not support"):
        Plain().enable_gradient_checkpointing()
