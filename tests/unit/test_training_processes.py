"""Two processes take the steps of one that accumulates twice as many batches; one of them speaks and writes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.core.errors import InputError
from calotype.training import processes
from calotype.training.loop import fit
from calotype.training.processes import Processes
from tests.tiny import stable_diffusion_folder

ROOT = Path(__file__).parents[2]

LOOP = """
import os, sys, torch
from pathlib import Path
from calotype.training.loop import LoopSettings, fit
from calotype.training.pace import Pace
from calotype.training.processes import current, join

class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.spare, self.dropout = torch.nn.Linear(4, 3), torch.nn.Linear(2, 2), torch.nn.Dropout(DROP)
    def forward(self, batch):
        return {"loss": (self.layer(self.dropout(batch["x"])) - batch["y"]).square().mean()}

def batches(number):
    if number >= LIMIT:
        raise SystemExit
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": x[:, :3] * 2 + 1}

def run(folder, resume=False, accumulate=1):
    torch.manual_seed(3 + 5 * current().rank)  # the first process's weights count
    module = Regression()
    settings = LoopSettings(pace=Pace(0.05, steps=6, warmup=2), autocast=None, ema_decay=0.9, report_every=0.0,
        checkpoint_every=0.0, inspect_every=None, accumulate=accumulate)
    outcome = fit(module, batches, settings, folder=Path(folder), samples_per_batch=8, resume=resume)
    with outcome.ema.applied():
        torch.save(module.state_dict(), Path(folder) / f"weights-{current().rank}.pt")

LIMIT, DROP = 10**9, 0.0
join(torch.device("cpu"))
run(sys.argv[1] + "/whole")
DROP = 0.5
run(sys.argv[1] + "/dropped")
LIMIT = 6
try:
    run(sys.argv[1] + "/broken")
except SystemExit:
    pass
LIMIT = 10**9
run(sys.argv[1] + "/broken", resume=True)
"""


def launched(*words: str, count: int = 2) -> str:
    """What processes print that a launcher would start with these words of Python."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(count):
        place = {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        }  # fmt: skip
        environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
        running.append(
            subprocess.Popen(
                [sys.executable, *words],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=120) for process in running]
    assert all(process.returncode == 0 for process in running), said
    assert not any(out for out, _ in said[1:])
    return said[0][0]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What trainings of a tiny checkpoint are told."""
    folder = tmp_path_factory.mktemp("told")
    pictures = folder / "pictures"
    pictures.mkdir()
    for name in ("red", "green", "blue", "black"):
        PIL.Image.new("RGB", (64, 64), name).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {name} ball")
    return {
        "pretrained_model_name_or_path": stable_diffusion_folder(folder / "model"), "train_data_dir": pictures,
        "resolution": 64, "device": "cpu", "train_batch_size": 2, "report_every": 0.0, "use_ema": True,
    }  # fmt: skip


LORA: dict[str, Any] = {"learning_rate": 0.01, "max_train_steps": 2}
ALL: dict[str, Any] = {
    "learning_rate": 1e-3, "max_train_steps": 3, "validation_prompts": ("a red ball",), "validation_steps": 1,
    "validation_inference_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def room(told: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave; what they say is in ``said.txt``."""
    room = tmp_path_factory.mktemp("processes")
    spread = {**told, **ALL, "output_dir": room / "spread", "fsdp": True}
    calls = [
        _call("train_lora", output_dir=room / "lora", **told, **LORA),
        # interrupted after two steps, each with a sheet
        _call("train_text_to_image", **{**spread, "max_train_steps": 2}),
        _call("train_text_to_image", **spread, resume=True),
    ]
    (room / "said.txt").write_text(launched("-c", "\n".join([LOOP, *calls]), str(room)))
    return room


def test_two_processes_are_one_with_twice_the_batches(room: Path) -> None:
    names: dict[str, object] = {}
    code = LOOP.partition("LIMIT, DROP =")[0]
    exec(code, names)
    names.update(LIMIT=10**9, DROP=0.0)
    alone = room / "alone"
    names["run"](alone, accumulate=2)  # type: ignore[operator]
    assert len(losses(room / "whole")) == 6
    assert losses(room / "whole") == pytest.approx(losses(alone), rel=1e-5)
    expected = torch.load(alone / "weights-0.pt")
    for rank in range(2):
        found = torch.load(room / "whole" / f"weights-{rank}.pt")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    samples = json.loads((room / "whole" / "log.jsonl").read_text().splitlines()[0])
    assert samples["step"] == 1


def test_they_go_on_where_they_were_with_random_numbers_of_their_own(room: Path) -> None:
    assert losses(room / "broken") == losses(room / "dropped")
    assert losses(room / "dropped") != losses(room / "whole")
    state = torch.load(room / "whole" / "training.pt")
    assert len(state["random_of_others"]) == 1
    assert not torch.equal(state["random"]["cpu"], state["random_of_others"][0]["cpu"])


def test_a_run_of_other_processes_is_not_resumed(room: Path) -> None:
    module = torch.nn.Linear(4, 3)
    from calotype.training.loop import LoopSettings
    from calotype.training.pace import Pace

    with pytest.raises(InputError, match="processes: 2 then, None now"):
        fit(
            module, lambda number: {}, LoopSettings(pace=Pace(0.1, steps=1)), folder=room / "whole",
            samples_per_batch=1, resume=True,
        )  # fmt: skip


def test_one_process_alone_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = processes.current()
    assert alone == Processes() and alone.main and alone.gathered(3) == [3] and not alone.any(False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.join(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(processes, "current", lambda: Processes(1, 2))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="has 1 GPUs, and process 2 has none"):
        processes.join(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert processes.join(torch.device("cuda")) == torch.device("cuda", 1) and chosen == [1]


def test_a_lora_of_two_processes_is_that_of_one(room: Path, told: dict[str, Any]) -> None:
    one, two = room / "one", room / "lora"
    calotype.train_lora(output_dir=one, gradient_accumulation_steps=2, say=lambda text: None, **told, **LORA)
    assert losses(two / "training") == pytest.approx(losses(one / "training"), rel=1e-4)
    expected, found = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (one, two))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    assert "| pictures a step | 4 |" in (two / "README.md").read_text()
    said = (room / "said.txt").read_text()
    assert said.count(f"written to {two}") == 1 and said.count("samples at step 1 ") == 1


def test_spread_weights_learn_the_same_and_are_saved_whole(room: Path, told: dict[str, Any]) -> None:
    spread, one = room / "spread", room / "unspread"
    told = {**told, **ALL, "validation_prompts": ()}
    calotype.train_text_to_image(output_dir=one, gradient_accumulation_steps=2, say=lambda text: None, **told)
    assert losses(spread / "training") == pytest.approx(losses(one / "training"), rel=1e-4)
    expected, found = (
        calotype.StableDiffusionPipeline.from_pretrained(folder).unet.state_dict() for folder in (one, spread)
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)
    assert json.loads((spread / "unet" / "config.json").read_text())["_class_name"] == "UNet2DConditionModel"
    assert len(list((spread / "samples").iterdir())) == 3


def test_what_cannot_be_spread_is_refused(room: Path, told: dict[str, Any]) -> None:
    for options, words in (({}, "this is one alone"), ({"mixed_precision": "fp16"}, "bf16 or no")):
        with pytest.raises(InputError, match=words):
            calotype.train_text_to_image(output_dir=room / "no", fsdp=True, **{**told, **options})
    assert not (room / "no").exists()


def _call(function: str, **options: object) -> str:
    """A line of Python."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return f"import calotype; calotype.{function}(**{plain!r})"
