"""Cached steps in pipelines: what is computed when, that threads do not mix, and what is said where it cannot be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import calotype
from calotype.acceleration import Options, StepCache, host
from calotype.acceleration.accelerated import runner_of
from calotype.acceleration.pipeline import Acceleration
from calotype.core.errors import InputError
from calotype.guidance import ClassifierFree, Interval
from tests.tiny import UNET, stable_diffusion_parts
from tests.unit.test_acceleration import pretend  # noqa: F401 (a fixture)

STEPS = 7


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    parts = stable_diffusion_parts(calotype, tmp_path_factory.mktemp("sd"), {"layers_per_block": 2})
    parts["scheduler"] = calotype.EulerDiscreteScheduler.from_config(parts["scheduler"].config)
    made = calotype.StableDiffusionPipeline(**parts)
    made.set_progress_bar_config(disable=True)
    return made


def picture(pipe: Any, seed: int = 0, prompt: str = "a cat", **more: Any) -> Tensor:
    arguments = {"num_inference_steps": STEPS, "height": 64, "width": 64, "output_type": "pt", **more}
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **arguments).images


def cached(pipe: Any, interval: int, branch: int = 0, **more: Any) -> Any:
    """Another pipeline of the same models, whose steps are cached."""
    other = calotype.StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    other.acceleration = Options(step_cache=StepCache(interval, branch), **more)
    return other


@contextmanager
def deepest(pipe: Any, branch: int) -> Iterator[list[Tensor | None]]:
    """In each call of the UNet the features that the layer at the branch reads from below; and whether all ran."""
    seen: list[Tensor | None] = []
    layers = [resnet for stage in pipe.unet.up_blocks for resnet in stage.resnets]
    layer, skip = layers[-1 - branch], pipe.unet.conv_in.out_channels

    def note(module: Any, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0][:, :-skip].clone())

    hook = layer.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of each call of a module."""
    rows: list[int] = []
    hook = module.register_forward_hook(lambda module, arguments, out: rows.append(len(arguments[0])))
    try:
        yield rows
    finally:
        hook.remove()


def test_an_interval_of_one_is_the_exact_result(pipe: Any) -> None:
    assert torch.equal(picture(cached(pipe, 1)), picture(pipe))


@pytest.mark.parametrize("branch", [0, 2])
def test_between_whole_steps_the_depth_is_that_of_the_last_of_them(pipe: Any, branch: int) -> None:
    other = cached(pipe, 3, branch)
    before = runner_of(pipe.unet, other.acceleration.options).steps.of.copy()
    with deepest(pipe, branch) as seen, counted(pipe.unet.mid_block) as middles:
        found = picture(other)
    assert len(seen) == STEPS
    assert middles == [2, 2, 2]
    for step in range(STEPS):
        assert torch.equal(seen[step], seen[step - step % 3])
    assert not torch.equal(seen[0], seen[3])
    after = runner_of(pipe.unet, other.acceleration.options).steps.of
    assert dict(after - before) == {"whole": 3, "shallow": 4}
    right = picture(pipe)
    assert 0 < (found - right).abs().mean() < 0.1
    line = other.acceleration.report().splitlines()[-1]
    assert f"StepCache(interval=3, branch={branch}): " in line and "4 shallow" in line


def test_steps_of_another_batch_have_features_of_their_own(pipe: Any) -> None:
    """Guidance in an interval computes half the batch outside of it, with features of that."""
    other = cached(pipe, 3)
    guidance = Interval(ClassifierFree(6.0), start=1 / 7, end=5 / 7)
    with counted(pipe.unet.conv_out) as rows, counted(pipe.unet.mid_block) as middles:
        picture(other, guidance=guidance)
    assert rows == [1, 2, 2, 2, 2, 1, 1]
    assert middles == [1, 2, 2, 1]  # whole in the steps 0, 1, 4, 5
    assert torch.equal(picture(cached(pipe, 1), guidance=guidance), picture(pipe, guidance=guidance))


def test_threads_have_features_of_their_own(pipe: Any) -> None:
    other = cached(pipe, 3)
    calls = [
        {"seed": s, "prompt": p, "num_inference_steps": n} for s, p, n in ((1, "a ball", 7), (2, "sand", 6))
    ]
    alone = [picture(other, **call) for call in calls]
    found: list[Any] = [None] * 4
    start = threading.Barrier(4)

    def make(index: int) -> None:
        start.wait()
        found[index] = picture(other, **calls[index % 2])

    threads = [threading.Thread(target=make, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(4):
        assert torch.equal(found[index], alone[index % 2])


def test_both_ways_are_captured_and_give_the_same(pipe: Any, pretend: None) -> None:  # noqa: F811
    other = cached(pipe, 3)
    for seed in range(3):
        found = picture(other, seed)
    runner = runner_of(pipe.unet, other.acceleration.options)
    assert {name: captures.count for name, captures in runner.captures.items()} == {"whole": 1, "shallow": 1}
    assert "2 of at most 8 graphs kept" in other.acceleration.report()
    plain = cached(pipe, 3)
    plain.acceleration = Options(step_cache=StepCache(3), graphs=False, kernels=False, packed=False)
    torch.testing.assert_close(found, picture(plain, 2), rtol=1e-4, atol=1e-4)


def test_where_it_cannot_be_all_steps_are_whole_and_that_is_said(pipe: Any) -> None:
    other = cached(pipe, 4)
    hook = pipe.unet.up_blocks[-1].register_forward_hook(lambda *_: None)
    try:
        assert torch.equal(picture(other), picture(pipe))
        assert "always whole: hooks are on up_blocks.1, as offloading" in other.acceleration.report()
    finally:
        hook.remove()
    assert not torch.equal(picture(other), picture(pipe))
    assert "always whole" not in other.acceleration.report()


BAD: dict[str, tuple[Any, str]] = {
    "no interval": (lambda: StepCache(0), "StepCache's interval is a whole number from 1, not 0"),
    "no branch": (lambda: StepCache(3, -1), "StepCache's branch is a whole number from 0, not -1"),
    "no setting": (
        lambda: Options(step_cache=3),
        "step_cache is a calotype.acceleration.StepCache or None, not 3",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_settings_without_meaning_are_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(InputError, match=message):
        make()


def test_pipelines_that_have_no_such_branch_or_u_net_refuse_it(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="branch is 6; this UNet2DConditionModel has the branches 0 to 5"):
        cached(pipe, 3, 6)
    setting = Options(step_cache=StepCache())
    with pytest.raises(InputError, match="None of the pipeline's models is a U-Net of stages"):
        Acceleration(lambda: {"vae": pipe.vae}, setting).check()


@pytest.mark.parametrize(
    ("has", "words"), [("_is_amx_tile_supported", "by AMX."), (None, "float32 is quicker.")]
)
def test_a_report_says_how_bfloat16_is_multiplied_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, has: str | None, words: str
) -> None:
    for question, _ in host.INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, question, lambda question=question: question == has, raising=False)
    model = calotype.UNet2DConditionModel(**UNET)
    acceleration = Acceleration(lambda: {"unet": model}, Options())
    assert "bfloat16" not in acceleration.report()
    model.bfloat16()
    assert acceleration.report().startswith(
        "unet (UNet2DConditionModel): plain: its weights are on cpu, in bfloat16"
    )
    assert acceleration.report().endswith(words)
