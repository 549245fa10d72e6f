"""Offloading on CUDA: the same pictures as with all models there, in less memory, which is given back."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import calotype
from tests.tiny import stable_diffusion_folder, stable_diffusion_xl_folder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WIDE = {"block_out_channels": (256, 512), "norm_num_groups": 32}
"""A UNet of some 100 MB, against which the other models and the activations count little."""
MODES = ("enable_model_cpu_offload", "enable_sequential_cpu_offload")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("models") / "tiny", calotype, unet=WIDE)


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_xl_folder(tmp_path_factory.mktemp("models") / "xl", calotype)


def load(folder: Path, **options: Any) -> Any:
    pipe = calotype.DiffusionPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, seed: int = 0, **arguments: Any) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return pipe("a ball", num_inference_steps=3, output_type="pt", generator=generator, **arguments).images


def on_cuda(pipe: Any) -> Any:
    """The pipeline on CUDA as it is written: so offloaded models are computed, acceleration rounds otherwise."""
    pipe.acceleration = None
    return pipe.to("cuda")


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most memory held during ``function`` beyond what was held before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@torch.no_grad()
def prediction(unet: torch.nn.Module) -> torch.Tensor:
    return unet(torch.randn(1, 4, 8, 8, device="cuda"), 1, torch.randn(1, 16, 32, device="cuda")).sample


def weights(model: torch.nn.Module) -> int:
    return sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("mode", MODES)
def test_the_picture_is_that_of_a_pipeline_on_cuda(folder: Path, mode: str) -> None:
    expected = picture(on_cuda(load(folder)))
    pipe = load(folder)
    getattr(pipe, mode)()
    assert pipe._execution_device.type == "cuda"
    assert pipe.device.type == "cpu"
    for _ in range(2):
        found = picture(pipe)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_saved_and_given_back(folder: Path, mode: str) -> None:
    pipe = load(folder)
    picture(pipe.to("cuda"))  # the libraries' own workspaces
    pipe.to("cpu")
    unet = weights(pipe.unet)
    getattr(pipe, mode)()
    before = torch.cuda.memory_allocated()
    most = peak_bytes(lambda: prediction(pipe.unet))
    if mode == "enable_sequential_cpu_offload":
        assert most < 0.5 * unet
    else:
        assert unet <= most < 1.5 * unet
    picture(pipe)
    assert torch.cuda.memory_allocated() - before < 0.01 * unet


def test_the_models_take_turns(folder: Path) -> None:
    pipe = load(folder)
    pipe.enable_model_cpu_offload()
    there: list[dict[str, str]] = []

    def note(running: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        there.append({k: next(m.parameters()).device.type for k, m in pipe._modules_by_name.items()})
        return tensors

    picture(pipe, callback_on_step_end=note)
    assert there[-1] == {"unet": "cuda", "vae": "cpu", "text_encoder": "cpu"}
    assert {m.device.type for m in pipe._modules_by_name.values()} == {"cpu"}


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_with_an_autoencoder_in_float32(xl_folder: Path, mode: str) -> None:
    half = {"torch_dtype": torch.float16}
    expected = picture(on_cuda(load(xl_folder, **half)))
    pipe = load(xl_folder, **half)
    getattr(pipe, mode)()
    torch.testing.assert_close(picture(pipe), expected, atol=5e-3, rtol=0)
    start = torch.rand(1, 3, 64, 64)
    again = calotype.StableDiffusionXLImg2ImgPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert picture(again, image=start, strength=0.9).isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_a_controlnet_comes_too(folder: Path, mode: str) -> None:
    base = load(folder)
    pipe = calotype.StableDiffusionControlNetPipeline(
        **base.components, controlnet=calotype.ControlNetModel.from_unet(base.unet)
    )
    pipe.set_progress_bar_config(disable=True)
    start = torch.rand(1, 3, 64, 64)
    expected = picture(on_cuda(pipe), image=start)
    getattr(pipe.to("cpu"), mode)()
    torch.testing.assert_close(picture(pipe, image=start), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_threads_share_an_offloaded_pipeline(folder: Path, mode: str) -> None:
    pipe = load(folder)
    getattr(pipe, mode)()
    expected = [picture(pipe, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda seed: picture(pipe, seed), range(4)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_hooks_removed_the_pipeline_is_an_ordinary_one(folder: Path) -> None:
    pipe = load(folder)
    expected = picture(load(folder).to("cuda"))
    for mode in MODES:
        getattr(pipe, mode)(gpu_id=0)
        assert pipe._execution_device == torch.device("cuda", 0)
    pipe.remove_all_hooks()
    torch.testing.assert_close(picture(pipe.to("cuda")), expected, atol=1e-4, rtol=0)


# -- in groups -------------------------------------------------------------------------------------------------

GROUPS: dict[str, dict[str, Any]] = {
    "blocks": {"num_blocks_per_group": 1},
    "pairs": {"num_blocks_per_group": 2, "non_blocking": True},
    "leaves": {"offload_type": "leaf_level"},
    "blocks, stream": {"num_blocks_per_group": 1, "use_stream": True},
    "pairs, stream": {"num_blocks_per_group": 2, "use_stream": True},
    "leaves, stream": {"offload_type": "leaf_level", "use_stream": True},
    "leaves, recorded": {"offload_type": "leaf_level", "use_stream": True, "record_stream": True},
    "leaves, pinned late": {"offload_type": "leaf_level", "use_stream": True, "low_cpu_mem_usage": True},
}
CUDA = torch.device("cuda")


@pytest.mark.parametrize("name", GROUPS)
def test_groups_make_the_same_picture(folder: Path, name: str) -> None:
    expected = picture(on_cuda(load(folder)))
    pipe = load(folder)
    pipe.enable_group_offload(CUDA, **GROUPS[name])
    for _ in range(3):  # the first learns the order, the others send ahead
        torch.testing.assert_close(picture(pipe), expected, atol=1e-4, rtol=0)
    assert {m.device.type for m in pipe._modules_by_name.values()} == {"cpu"}
    stream = GROUPS[name].get("use_stream", False) and not GROUPS[name].get("low_cpu_mem_usage", False)
    assert all(tensor.is_pinned() == stream for tensor in pipe.unet.parameters())


@pytest.mark.parametrize("name", GROUPS)
def test_groups_save_memory_and_give_it_back(folder: Path, name: str) -> None:
    pipe = load(folder)
    picture(pipe.to("cuda"))  # the libraries' own workspaces
    pipe.to("cpu")
    pipe.enable_group_offload(CUDA, **GROUPS[name])
    before, unet = torch.cuda.memory_allocated(), weights(pipe.unet)
    prediction(pipe.unet)
    most = peak_bytes(lambda: prediction(pipe.unet))
    if "leaves" in name:
        assert most < 0.5 * unet
    elif "pairs" not in name:
        assert most < 0.95 * unet
    picture(pipe)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 0.01 * unet


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("stream", [False, True])
def test_groups_on_disk(folder: Path, tmp_path: Path, kind: str, stream: bool) -> None:
    expected = picture(on_cuda(load(folder)))
    pipe = load(folder)
    pipe.enable_group_offload(
        CUDA, offload_type=kind, num_blocks_per_group=1, use_stream=stream, offload_to_disk_path=str(tmp_path)
    )
    for _ in range(2):
        torch.testing.assert_close(picture(pipe), expected, atol=1e-4, rtol=0)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > weights(pipe.unet)


@pytest.mark.parametrize("record", [False, True])
def test_copies_overlap_with_computation_and_are_never_read_early(record: bool) -> None:
    """Blocks that take long to copy and long to compute, with weights that tell one from another."""

    class Block(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((4096, 4096), value))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = x @ self.weight
            return x / x.norm() + self.weight[0, 0]

    from calotype.offloading.groups import Grouping

    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(Block(i / 4096) for i in range(1, 9))
    model.forward = lambda x: [x := block(x) for block in model.blocks][-1]  # type: ignore[method-assign]
    x = torch.randn(4096, 4096, device="cuda")
    with torch.no_grad():
        expected = model.to("cuda")(x)
        model.to("cpu")
        seconds: dict[bool, float] = {}
        for stream in (False, True):
            from calotype.offloading.accelerator import release

            release([model])
            how = {"use_stream": stream, "record_stream": stream and record, "num_blocks_per_group": 1}
            Grouping("cuda", **how).accelerator(shared=False).host("model", model)
            for _ in range(3):
                torch.testing.assert_close(model(x), expected)
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(5):
                model(x)
            torch.cuda.synchronize()
            seconds[stream] = time.perf_counter() - start
    assert seconds[True] < 0.8 * seconds[False]


def test_one_model_in_groups_beside_others_on_cuda(folder: Path) -> None:
    expected = picture(on_cuda(load(folder)))
    pipe = load(folder)
    pipe.unet.enable_group_offload(CUDA, num_blocks_per_group=1, use_stream=True)
    on_cuda(pipe)
    assert pipe.unet.device.type == "cpu"
    assert pipe.vae.device.type == "cuda"
    torch.testing.assert_close(picture(pipe), expected, atol=1e-4, rtol=0)


def test_threads_share_a_pipeline_in_groups(folder: Path) -> None:
    pipe = load(folder)
    pipe.enable_group_offload(CUDA, offload_type="leaf_level", use_stream=True)
    expected = [picture(pipe, seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda seed: picture(pipe, seed), range(4)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


if __name__ == "__main__":
    import tempfile

    # time and memory with a UNet and an autoencoder of the sizes of Stable Diffusion 1.5, random weights, float16
    with tempfile.TemporaryDirectory() as place:
        pipe = load(stable_diffusion_folder(Path(place) / "tiny", calotype), torch_dtype=torch.float16)
    pipe.unet = calotype.UNet2DConditionModel(cross_attention_dim=32).half().eval()
    channels = (128, 256, 512, 512)
    pipe.vae = calotype.AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipe.vae.half().eval()
    groups = {f"groups: {name}": options for name, options in GROUPS.items()}
    for mode in (None, *MODES, *groups):
        pipe.remove_all_hooks()
        pipe.to("cuda" if mode is None else "cpu")
        if mode in groups:
            pipe.enable_group_offload(CUDA, **groups[mode])
        elif mode is not None:
            getattr(pipe, mode)()
        arguments = {"height": 512, "width": 512, "num_inference_steps": 20, "output_type": "latent"}
        try:
            for _ in range(2):
                torch.cuda.reset_peak_memory_stats()
                start = time.perf_counter()
                pipe("a ball", **arguments)
                torch.cuda.synchronize()
            seconds, most = time.perf_counter() - start, torch.cuda.max_memory_allocated() / 2**20
            print(f"{mode or 'all on cuda':32s} {seconds:6.2f} s  {most:6.0f} MiB at most")
        except Exception as error:
            print(f"{mode or 'all on cuda':32s} {type(error).__name__}: {error!s:.200}")
