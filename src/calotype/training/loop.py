"""The training loop: one for every objective.

An objective is a module that holds what is trained and maps a batch to its loss. Batches are a pure function of
their number, so the position in the data is the step, and a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from calotype.core.errors import CalotypeError, InputError
from calotype.training.checkpoint import Position, resume_training, save_training
from calotype.training.ema import EMA
from calotype.training.gradients import Batch, accumulate_gradients, precision
from calotype.training.interrupt import interruptible
from calotype.training.pace import Pace
from calotype.training.processes import Processes, current
from calotype.training.sharding import whole


class Objective(Protocol):
    """Maps a batch to ``loss`` (a scalar to minimise) and any further scalars worth reporting."""

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]: ...


Batches = Callable[[int], Batch]
"""The batch of a number: the same number always gives the same batch."""


class TrainingError(CalotypeError, RuntimeError):
    """A training that cannot go on, such as one whose loss is no longer a number."""


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise. ``accumulate`` batches make one step; times are in seconds, ``None`` switches off.

    Checkpoints and inspections come after so many seconds, at steps divisible by so many, or both, and at the end.
    With ``autocast`` to float16 the loss is scaled so that small gradients are not lost. ``threads`` is for a CPU: so
    many parts of a batch are computed side by side.
    """

    pace: Pace
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    threads: int = 1
    ema_decay: float = 0.9995
    autocast: torch.dtype | None = torch.bfloat16
    compile: bool = False
    report_every: float = 10.0
    checkpoint_every: float | None = 120.0
    inspect_every: float | None = 120.0
    checkpoint_steps: int | None = None
    inspect_steps: int | None = None

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise InputError(f"A step accumulates at least one batch, not {self.accumulate}.")
        if self.threads < 1:
            raise InputError(f"A batch is computed in at least one thread, not {self.threads}.")
        for what in ("checkpoint_steps", "inspect_steps"):
            value = getattr(self, what)
            if value is not None and value < 1:
                raise InputError(f"{what} must be at least 1, not {value}; None switches it off.")


@dataclass
class Outcome:
    """How a training went: where it ended, and the reports along the way."""

    position: Position
    ema: EMA
    reports: list[dict[str, float]] = field(default_factory=list)


Inspection = Callable[[Position], Mapping[str, float]]
"""Looks at the averaged weights now and then (validation loss, sample sheet) and returns numbers to report."""

Watch = Callable[[Position, Mapping[str, float]], None]
"""Sees every entry of the log, with the position that it is of."""


def optimizer_for(module: nn.Module, settings: LoopSettings) -> torch.optim.AdamW:
    """AdamW (fused on a GPU) that decays matrices and kernels, and leaves norms and biases alone."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            f"Nothing in {type(module).__name__} requires a gradient, so there is nothing to train."
        )
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = trained[0].is_cuda
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=settings.pace.learning_rate, betas=settings.betas, fused=fused
    )


def fit(
    objective: nn.Module,
    batches: Batches,
    settings: LoopSettings,
    *,
    folder: Path,
    samples_per_batch: int,
    identity: Mapping[str, object] | None = None,
    resume: bool = False,
    inspect: Inspection | None = None,
    watch: Watch | None = None,
    after_step: Callable[[], None] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train until the pace's end and return the outcome, with the averaged weights in ``outcome.ema``.

    ``folder`` receives ``training.pt`` (the checkpoint) and ``log.jsonl``; with ``resume`` a checkpoint there is
    continued, if it is of the same ``identity`` (``InputError`` otherwise). An inspection that fails is reported
    and skipped. ``watch`` sees every entry of the log. ``after_step`` is called when the weights have changed. Ctrl-C
    ends the step that is being made, writes a checkpoint and raises ``KeyboardInterrupt``. Raises ``TrainingError``
    when the loss is not finite; the last checkpoint is from before that.

    Of several processes (``processes.py``) each takes batches of its own, and the main one alone speaks and writes.
    """
    processes = current()
    say = processes.voice(say)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = optimizer_for(objective, settings)
    processes.share(objective)
    processes.diverge()
    ema = EMA(objective, settings.ema_decay)
    identity = {**(identity or {}), **({"processes": processes.count} if processes.count > 1 else {})}
    checkpoint = folder / "training.pt"
    folder.mkdir(parents=True, exist_ok=True)
    position = Position()
    device = parameters[0].device
    # without float16 it hands everything through as it is
    scaler = torch.amp.GradScaler(device.type, enabled=settings.autocast is torch.float16)
    if resume and checkpoint.exists():
        position = resume_training(checkpoint, objective, optimizer, ema, identity, scaler)
        say(f"resumed at step {position.step:,} after {position.seconds:.0f} s")
    scaler.scale(torch.zeros((), device=device))  # it knows its scale only after it was used once

    compute = _compiled(objective, say) if settings.compile else objective
    outcome = Outcome(position, ema)
    samples = samples_per_batch * settings.accumulate * processes.count
    log = _Log(folder / "log.jsonl", say, samples, settings, outcome, watch, processes)
    started = time.monotonic() - position.seconds

    def elapsed() -> float:
        return processes.latest(time.monotonic() - started)

    log.start(position)
    checkpointed = inspected = position.seconds
    objective.train()

    with interruptible() as interrupted:
        while settings.pace.progress(position.step, position.seconds) < 1:
            rate = settings.pace.rate(position.step, position.seconds)
            for group in optimizer.param_groups:
                group["lr"] = rate
            for part in range(settings.accumulate):
                turn = position.step * settings.accumulate + part
                batch = batches(turn * processes.count + processes.rank)
                values = accumulate_gradients(
                    compute,
                    batch,
                    share=scaler.get_scale() / settings.accumulate,
                    device=device,
                    dtype=settings.autocast,
                    threads=settings.threads,
                )
                log.add(values)
            processes.average_gradients(parameters)
            scaler.unscale_(optimizer)
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, settings.clip))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            ema.update()
            if after_step is not None:
                after_step()
            position.step += 1
            position.seconds = elapsed()

            done = settings.pace.progress(position.step, position.seconds) >= 1
            if done or log.due(position):
                log.report(position, rate, norm)
                position.seconds = elapsed()
            stopping = processes.any(interrupted())
            if stopping or _due(
                position, done, checkpointed, settings.checkpoint_every, settings.checkpoint_steps
            ):
                save_training(checkpoint, objective, optimizer, ema, position, identity, scaler)
                checkpointed = position.seconds
            if stopping:
                say(f"stopped at step {position.step:,}; {checkpoint} is where it can go on from")
                raise KeyboardInterrupt
            if inspect is not None and _due(
                position, done, inspected, settings.inspect_every, settings.inspect_steps
            ):
                log.note(position, _inspected(inspect, objective, ema, position, say))
                inspected = position.seconds = elapsed()
                log.start(position)
        if interrupted():
            raise KeyboardInterrupt
    return outcome


def _due(position: Position, done: bool, last: float, seconds: float | None, steps: int | None) -> bool:
    """Whether something that comes every so many seconds or steps comes now, the last time having been at ``last``."""
    if seconds is None and steps is None:
        return False
    by_time = seconds is not None and position.seconds - last > seconds
    return done or by_time or (steps is not None and position.step % steps == 0)


def _compiled(objective: nn.Module, say: Callable[[str], None]) -> Objective:
    """The objective compiled; if a trial forward and backward pass fails, that is said and it runs as it is."""
    compiled: Objective | None = torch.compile(objective, dynamic=False)
    proven = False

    def compute(batch: Batch) -> Mapping[str, torch.Tensor]:
        nonlocal compiled, proven
        if compiled is None:
            return objective(batch)
        if proven:
            return compiled(batch)
        proven = _works(compiled, objective, batch, say)
        if not proven:
            compiled = None
        return (objective if compiled is None else compiled)(batch)

    return compute


def _works(compiled: Objective, objective: nn.Module, batch: Batch, say: Callable[[str], None]) -> bool:
    """Whether the compiled objective goes forward and backward; what it leaves in the gradients is taken away."""
    began = time.monotonic()
    try:
        compiled(batch)["loss"].backward()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        say(f"WARNING: compiling failed, training goes on uncompiled, more slowly: {error}"[:1500])
        return False
    finally:
        objective.zero_grad(set_to_none=True)
    say(f"compiled in {time.monotonic() - began:.0f} s")
    return True


def compile_ahead(
    objective: nn.Module,
    batch: Batch,
    autocast: torch.dtype | None,
    device: torch.device,
    say: Callable[[str], None] = print,
) -> bool:
    """Compile before there is anything to train on: :func:`fit` finds it done for batches of the same shapes.

    Returns whether it can be compiled, for ``LoopSettings.compile``.
    """
    objective.train()
    with precision(device, autocast):
        return _works(torch.compile(objective, dynamic=False), objective, batch, say)


def _inspected(
    inspect: Inspection, objective: nn.Module, ema: EMA, position: Position, say: Callable[[str], None]
) -> Mapping[str, float]:
    """The inspection's numbers at the averaged weights; a failing inspection must not cost the training."""
    objective.eval()
    try:
        with ema.applied(), torch.no_grad():
            return inspect(position)
    except Exception as error:
        say(f"WARNING: the inspection at step {position.step} failed: {type(error).__name__}: {error}"[:1500])
        return {}
    finally:
        objective.train()


class _Log:
    """Averages what the steps report and says it every few seconds; the only place that waits for the device."""

    def __init__(
        self,
        path: Path,
        say: Callable[[str], None],
        samples_per_step: int,
        settings: LoopSettings,
        outcome: Outcome,
        watch: Watch | None,
        processes: Processes,
    ) -> None:
        self._processes = processes
        self._watch = watch
        self._path, self._say, self._settings, self._outcome = path, say, settings, outcome
        self._samples_per_step = samples_per_step
        self._sums: dict[str, torch.Tensor] = {}
        self._count = 0
        self._step, self._seconds = 0, 0.0

    def start(self, position: Position) -> None:
        self._step, self._seconds = position.step, position.seconds

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def due(self, position: Position) -> bool:
        return position.seconds - self._seconds >= self._settings.report_every

    def report(self, position: Position, rate: float, norm: torch.Tensor) -> None:
        means = self._processes.averaged(
            {name: (total / self._count).item() for name, total in self._sums.items()}
        )
        speed = (
            (position.step - self._step)
            * self._samples_per_step
            / max(1e-9, position.seconds - self._seconds)
        )
        progress = self._settings.pace.progress(position.step, position.seconds)
        left = position.seconds * (1 - progress) / max(progress, 1e-9)
        numbers = {**means, "gradient_norm": norm.item(), "learning_rate": rate, "samples_per_second": speed}
        self._write(position, numbers)
        values = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        self._say(
            f"step {position.step:>7,}  {values}  grad {norm.item():.2f}  lr {rate:.1e}  {speed:,.0f} samples/s  "
            f"{position.seconds:.0f} s, {left:.0f} s left"
        )
        if not all(math.isfinite(value) for value in means.values()):
            raise TrainingError(
                f"The loss at step {position.step} is not finite ({values}); lower the learning rate."
            )
        self._sums, self._count = {}, 0
        self.start(position)

    def note(self, position: Position, numbers: Mapping[str, float]) -> None:
        if numbers:
            self._write(position, numbers)
            self._say(f"step {position.step:>7,}  " + "  ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
        self.start(position)

    def _write(self, position: Position, numbers: Mapping[str, float]) -> None:
        entry = {"step": position.step, "seconds": round(position.seconds, 2), **numbers}
        self._outcome.reports.append(entry)
        if not self._processes.main:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._watch is not None:
            self._watch(position, numbers)
