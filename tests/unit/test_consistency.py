"""The consistency loss against the reference's schedulers, its target, and that it compiles as one graph."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import calotype
from calotype.adapters import model as adapters
from calotype.core.errors import InputError
from calotype.training.consistency import ConsistencyObjective, Distillation, boundary_scalings, frozen_twin
from calotype.training.low_rank import add_trainable
from tests.tiny import SCHEDULER, UNET, randomise

INDEX = torch.tensor([0, 7, 23, 49])
"""Steps of the teacher: the first, two within, the last."""


class Mixing(torch.nn.Module):
    """A denoiser of one number: what it is told and the step move its output."""

    config: ClassVar[dict[str, Any]] = {"time_cond_proj_dim": None}

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(
        self, z: torch.Tensor, t: torch.Tensor, states: torch.Tensor, **more: Any
    ) -> tuple[torch.Tensor]:
        moved = states.mean((1, 2))[:, None, None, None] + t.float()[:, None, None, None] / 1000
        return (self.factor * z + moved,)


def batch(states: torch.Tensor, size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(len(INDEX), 4, size, size, generator=generator),
        "noise": torch.randn(len(INDEX), 4, size, size, generator=generator),
        "timesteps": INDEX * 20 + 5,
        "states": states,
    }


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("loss", ["huber", "l2"])
def test_the_loss_is_made_of_the_reference_s_steps(prediction: str, loss: str) -> None:
    """DDIM's step with the teacher's guided output, and what LCM's step jumps to."""
    diffusers = pytest.importorskip("diffusers")
    options = {**SCHEDULER, "prediction_type": prediction}
    ddim = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **options)
    ddim.set_timesteps(50)
    lcm = diffusers.LCMScheduler(**options)
    student, teacher = Mixing(0.5), Mixing(0.3)
    states, empty = torch.randn(4, 3, 5), torch.randn(1, 3, 5)
    objective = ConsistencyObjective(
        student,
        teacher,
        ddim.alphas_cumprod,
        prediction,
        {"states": empty},
        Distillation(loss=loss),  # type: ignore[arg-type]
    )
    given = batch(states)
    scales = torch.tensor([3.0, 5.0, 8.0, 1.0])
    found = objective({**given, "guidance": scales})["loss"]
    squares = []
    for row, index in enumerate(INDEX.tolist()):
        t = torch.tensor([20 * index + 19])
        one = slice(row, row + 1)
        z = ddim.add_noise(given["latents"][one], given["noise"][one], t)
        full, none = teacher(z, t, states[one])[0], teacher(z, t, empty)[0]
        earlier = ddim.step(none + scales[row] * (full - none), t.item(), z).prev_sample

        def jump(x: torch.Tensor, step: int, row: int = row) -> torch.Tensor:
            output = student(x, torch.tensor([step]), states[row : row + 1])[0]
            lcm.set_timesteps(timesteps=[step])
            return lcm.step(output, step, x).denoised

        squares.append((jump(z, t.item()) - jump(earlier, max(t.item() - 20, 0))).square())
    wanted = torch.cat(squares)
    wanted = wanted if loss == "l2" else (wanted + 1e-6).sqrt() - 1e-3
    torch.testing.assert_close(found, wanted.mean(), rtol=1e-4, atol=0)


def test_the_scalings_are_the_scheduler_s() -> None:
    steps = torch.tensor([0, 19, 259, 999])
    scheduler = calotype.LCMScheduler(timestep_scaling=4.0)
    expected = [scheduler.get_scalings_for_boundary_condition_discrete(t) for t in steps.tolist()]
    found = torch.stack(boundary_scalings(steps, 4.0), dim=1)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_the_target_follows_the_student() -> None:
    student, teacher = Mixing(0.5), Mixing(0.3)
    table = calotype.DDPMScheduler(
        **{k: v for k, v in SCHEDULER.items() if k.startswith("beta")}
    ).alphas_cumprod
    told = {"states": torch.zeros(1, 3, 5)}
    own = ConsistencyObjective(student, teacher, table, "epsilon", told)
    other = ConsistencyObjective(student, teacher, table, "epsilon", told, target_decay=0.9)
    given = batch(torch.randn(4, 3, 5))
    assert torch.equal(own(given)["loss"], other(given)["loss"])
    with torch.no_grad():
        student.factor.add_(1.0)
    assert "target_0" in other.state_dict()
    other.follow()
    torch.testing.assert_close(other.target_0, torch.tensor(0.6))
    assert own(given)["loss"] != other(given)["loss"]
    own.follow()
    assert "target_0" not in own.state_dict()


def test_what_cannot_be_distilled_is_refused() -> None:
    made = SimpleNamespace(config={})
    with pytest.raises(InputError, match="20 steps of the teacher are more than its 10"):
        ConsistencyObjective(made, made, torch.ones(10), "epsilon", {}, Distillation(steps=20))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="can be huber or l2, not 'l1'"):
        Distillation(loss="l1")


def test_it_compiles_as_one_graph_and_trains_the_adapter_alone() -> None:
    """The teacher is the student without its low-rank weights, with the same parameters."""
    config = {
        **UNET, "block_out_channels": (8,), "down_block_types": ("CrossAttnDownBlock2D",), "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",), "attention_head_dim": 2, "norm_num_groups": 4,
    }  # fmt: skip
    unet = randomise(calotype.UNet2DConditionModel(**config)).requires_grad_(False)
    student: Any = frozen_twin(unet)
    add_trainable(student, "few", [name for name in adapters.layers_of(student) if "to_q" in name], 2)
    table = calotype.DDPMScheduler().alphas_cumprod
    objective = ConsistencyObjective(
        student, unet, table, "v_prediction", {"states": torch.zeros(1, 3, 32)}
    ).train()
    given = batch(torch.randn(4, 3, 32, generator=torch.Generator().manual_seed(1)))
    plain = objective(given)["loss"]
    plain.backward()
    compiled = torch.compile(objective, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(given)["loss"], plain)
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(adapters.adapted_layers(student))
    assert max(p.grad.abs().max() for p in trained if p.grad is not None) > 0
    assert student.conv_in.weight is unet.conv_in.weight
    assert not adapters.adapted_layers(unet)
    assert not any(p.requires_grad for p in unet.parameters())
