"""The judge of segments learns from views, at a size of seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from calotype.pocket.segmenter import FILE, load_segmenter, segment_pictures
from calotype.training.recipes.base import load_base
from calotype.training.recipes.pocket_family import train_pocket_family
from calotype.training.recipes.pocket_family.member import member_of
from calotype.training.recipes.pocket_family.views import ViewSet
from tests.tiny_pocket import tiny_pocket


def test_the_segmenter_learns_and_is_read_again(tmp_path: Path) -> None:
    name, base, out = "pocket-segmenter", tiny_pocket(tmp_path / "base"), tmp_path / "out"
    few = ["views.count=4", "views.chunk=4", "views.validation=2"]
    train_pocket_family(
        out, preset="tiny", base=base, device="cpu", work=tmp_path, stages=["views"], changes=few
    )
    train_pocket_family(
        out, preset="tiny", base=base, device="cpu", work=tmp_path, member=name, stages=["train", "export"]
    )
    assert {path.name for path in (out / name).iterdir()} == {"README.md", FILE}
    assert (out / f"{name}.png").is_file()

    member, parts = member_of(name), load_base(base, torch.device("cpu"))
    settings = member.settings("tiny")
    settings = replace(settings, train=replace(settings.train, batch=4))
    objective = member.objective(settings, parts)
    member.restore(objective, out / name)
    views = ViewSet(tmp_path / "views", torch.device("cpu"), member.fields)
    views.look()
    read = segment_pictures(load_segmenter(out / name / FILE), views.pictures / 255)
    assert read.shape == views.labels.shape

    batches = member.batches(views, parts, settings)
    assert torch.equal(batches(3)["pictures"], batches(3)["pictures"])
    optimizer = torch.optim.Adam(objective.parameters(), 5e-3)
    losses = []
    for number in range(40):
        loss = objective(batches(number))["loss"]
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
