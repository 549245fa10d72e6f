"""The face that all schedulers share: configuration, files, and the current run of each thread.

A scheduler holds its configuration, its noise table and the plan that was made last. Where a run stands is kept per
thread, so that one object may serve several runs at once; a thread without a run of its own starts one of the last
plan.
"""

from __future__ import annotations

import importlib
import os
import threading
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from calotype.core.config import ConfigMixin
from calotype.core.errors import InputError
from calotype.schedulers.outputs import SchedulerOutput
from calotype.schedulers.run import Plan, Run

__all__ = ["SIGNAL_NOISE_FAMILY", "SchedulerMixin", "SchedulerOutput"]

SIGNAL_NOISE_FAMILY = tuple(
    f"{name}Scheduler"
    for name in (
        "DDIM DDPM PNDM LMSDiscrete EulerDiscrete HeunDiscrete EulerAncestralDiscrete DPMSolverMultistep "
        "DPMSolverSinglestep KDPM2Discrete KDPM2AncestralDiscrete DEISMultistep UniPCMultistep DPMSolverSDE EDMEuler"
    ).split()
)
"""The classes whose configurations describe the same models."""


class SchedulerMixin(ConfigMixin):
    """Base of all schedulers: loading and saving, the schedule (``timesteps``) and where the current run stands."""

    config_name = "scheduler_config.json"
    has_compatibles: ClassVar[bool] = True
    order: ClassVar[int] = 1

    _plan: Plan
    _local: threading.local

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        subfolder: str | None = None,
        return_unused_kwargs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A scheduler from ``scheduler_config.json`` in a folder or a Hub repository; ``kwargs`` override entries."""
        if pretrained_model_name_or_path is None:
            raise InputError(f"{cls.__name__}.from_pretrained needs the name of a folder or repository.")
        config, unused, _ = cls.load_config(
            pretrained_model_name_or_path,
            subfolder=subfolder,
            return_unused_kwargs=True,
            return_commit_hash=True,
            **kwargs,
        )
        return cls.from_config(config, return_unused_kwargs=return_unused_kwargs, **unused)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write ``scheduler_config.json`` into a folder."""
        self.save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def compatibles(self) -> list[type[SchedulerMixin]]:
        """The scheduler classes that can be made from this one's configuration."""
        public = importlib.import_module("calotype")
        names = dict.fromkeys((type(self).__name__, *self._compatibles))
        return [getattr(public, name) for name in names if hasattr(public, name)]

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    # The current run.

    @abstractmethod
    def _begin_initial(self) -> None:
        """Begin what stands there before ``set_timesteps`` is called; made when it is first asked for."""

    def _start(self, plan: Plan) -> None:
        """Make ``plan`` the schedule and begin a run of it in this thread."""
        self._plan = plan
        self.__dict__.setdefault("_local", threading.local()).run = Run(plan)

    @property
    def _run(self) -> Run:
        try:
            return self._local.run
        except AttributeError:
            if "_plan" not in self.__dict__:
                self._begin_initial()
            else:
                self._start(self._plan)
            return self._local.run

    def _running(self) -> Run:
        """The current run; raises ``InputError`` if no number of steps has been chosen."""
        run = self._run
        if run.plan.count is None:
            raise InputError(f"{type(self).__name__} has no schedule yet: call `set_timesteps` first.")
        return run

    @property
    def timesteps(self) -> Tensor:
        """The training steps of the run, descending, on the device that ``set_timesteps`` was given."""
        return self._run.plan.timesteps  # type: ignore[return-value]

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        run = self._run
        run.plan = self._plan = replace(run.plan, timesteps=value, t=tuple(value.tolist()), memo={})

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps asked for; None before ``set_timesteps``."""
        return self._run.plan.count

    @num_inference_steps.setter
    def num_inference_steps(self, value: int | None) -> None:
        run = self._run
        run.plan = self._plan = replace(run.plan, count=value, memo={})

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_local"}
        return {**state, "_current": getattr(self.__dict__.get("_local"), "run", None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        run = state.pop("_current")
        self.__dict__.update(state)
        if run is not None:
            self._local = threading.local()
            self._local.run = run
