"""Reading captions: the answers that scenes give, and where the text encoder's own are looked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.pocket.motion import MOTIONS, SPEEDS, sample_moving_scenes
from calotype.pocket.scene import ObjectSpec, make_scene
from calotype.pocket.vocabulary import COLORS, FLOORS, MATERIALS, SHAPES, SIZES, SKIES
from calotype.training.recipes.pocket.reading import (
    QUESTIONS,
    CaptionBatches,
    CaptionSet,
    ReadingObjective,
    answers_of,
)

END = 9


def named(answers: torch.Tensor) -> list[dict[str, int]]:
    """The answers of one scene, role by role."""
    values, found = iter(answers.tolist()), []
    for role in QUESTIONS:
        found.append({name: next(values) for name in role})
    assert next(values, None) is None
    return found


def test_objects_are_told_from_left_to_right_and_what_is_missing_has_the_last_answer() -> None:
    scene = make_scene(
        [
            ObjectSpec("cube", "blue", size="big", position=(1.5, -1.0)),
            ObjectSpec("star", "red", size="small", material="metal", position=(-1.5, 0.5)),
            ObjectSpec("cone", "green", on=0),
        ],
        "sand",
        "night",
    )
    whole, first, second, third = named(answers_of(scene)[0])
    assert whole == {
        "count": 3, "floor": FLOORS.index("sand"), "sky": SKIES.index("night"), "motion": len(MOTIONS),
        "speed": len(SPEEDS),
    }  # fmt: skip
    assert first == {
        "shape": SHAPES.index("star"), "color": COLORS.index("red"), "size": SIZES.index("small"),
        "material": MATERIALS.index("metal"), "depth": 0, "standing": 0,
    }  # fmt: skip
    assert (second["shape"], second["standing"], second["depth"]) == (SHAPES.index("cube"), 0, 1)
    assert (third["shape"], third["standing"]) == (SHAPES.index("cone"), 1)
    alone = named(answers_of(make_scene([ObjectSpec("star", "white")]))[0])
    assert alone[0]["count"] == 1
    assert alone[2] == alone[3] == {name: count - 1 for name, count in QUESTIONS[2].items()}


def test_moments_of_moving_scenes_tell_what_happens() -> None:
    moving = sample_moving_scenes(6, torch.Generator().manual_seed(0))
    answers = answers_of(moving.at(torch.full((6,), 0.5)), moving)
    assert [named(row)[0]["motion"] for row in answers] == moving.motion.tolist()
    assert [named(row)[0]["speed"] for row in answers] == moving.speed.tolist()


class _Table(nn.Module):
    """Stands in for a text encoder: the states of each position are its parameters."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.zeros(length, width))

    def forward(self, input_ids: torch.Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=self.states.expand(len(input_ids), -1, -1))


def test_only_tokens_from_the_end_of_the_text_on_answer_each_for_its_role() -> None:
    torch.manual_seed(0)
    table = _Table(16, 32)
    objective = ReadingObjective(table, 32, END)
    objective.role.weight.data.zero_()
    ids = torch.full((2, 16), END)
    ids[:, :6] = 3  # the text
    answers = answers_of(make_scene([ObjectSpec("star", "white")])).expand(2, -1)
    objective({"input_ids": ids, "answers": answers})["loss"].backward()
    used = table.states.grad.abs().sum(1) > 0
    assert used.tolist() == [False] * 6 + [True] * 10

    optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        values = objective({"input_ids": ids, "answers": answers})
        values["loss"].backward()
        optimizer.step()
    assert values["loss"] < 0.1
    assert all(values[name] == 1 for role in QUESTIONS for name in role)


def test_batches_are_a_function_of_their_number_and_drop_captions() -> None:
    data = CaptionSet(torch.ones(10, 2, 7).short(), torch.arange(10)[:, None].to(torch.int8))
    batches = CaptionBatches(data, torch.zeros(7).short(), batch=400, seed=1, dropout=0.25)
    first, again, other = batches(3), batches(3), batches(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["answers"], other["answers"])
    dropped = (first["input_ids"] == 0).all(1).float().mean().item()
    assert 0.15 < dropped < 0.35
