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
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calotype.core.config import ConfigMixin
from calotype.core.errors import InputError
from calotype.core.transfer import sent
from calotype.schedulers.stepping import Plan, Run

SIGNAL_NOISE_FAMILY = tuple(
    f"{name}Scheduler"
    for name in (
        "DDIM DDPM PNDM LMSDiscrete EulerDiscrete HeunDiscrete EulerAncestralDiscrete DPMSolverMultistep "
        "DPMSolverSinglestep KDPM2Discrete KDPM2AncestralDiscrete DEISMultistep UniPCMultistep DPMSolverSDE EDMEuler"
    ).split()
)
"""The classes whose configurations describe the same models."""


def of_run(path: str, doc: str) -> Any:
    """A public attribute that is one of the current run's, or of its plan's."""
    get = attrgetter(path)
    return property(lambda self: get(self._run), doc=doc)


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
        kwargs |= {"subfolder": subfolder, "return_unused_kwargs": True, "return_commit_hash": True}
        config, unused, _ = cls.load_config(pretrained_model_name_or_path, **kwargs)
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

    @abstractmethod
    def _begin_initial(self) -> None:
        """Begin what stands there before ``set_timesteps`` is called; made when it is first asked for."""

    def _begin_nothing(self) -> None:
        self._start(Plan(None))

    def _begin_trained(self) -> None:
        """Begin a run over as many steps as the model was trained with."""
        self.set_timesteps(self.config.num_train_timesteps)  # type: ignore[attr-defined]

    def _begin(
        self,
        timesteps: np.ndarray | Tensor,
        device: Any = None,
        count: int | None = None,
        sigmas: Tensor | None = None,
        **levels: Any,
    ) -> None:
        """Begin a run over ``timesteps``, which are on the host, and ``sigmas``; ``levels`` are fields of its plan."""
        host = torch.from_numpy(np.array(timesteps)) if isinstance(timesteps, np.ndarray) else timesteps
        self._start(Plan(sent(host, device), sigmas, count, tuple(host.tolist()), **levels))

    def _start(self, plan: Plan) -> None:
        """Make ``plan`` the schedule and begin a run of it in this thread."""
        self._plan = plan
        self._resume(Run(plan))

    def _resume(self, run: Run) -> None:
        self.__dict__.setdefault("_local", threading.local()).run = run

    @property
    def _run(self) -> Run:
        try:
            return self._local.run
        except AttributeError:
            if "_plan" in self.__dict__:
                self._start(self._plan)
            else:
                self._begin_initial()
            return self._local.run

    def _running(self) -> Run:
        """The current run; raises ``InputError`` if no number of steps has been chosen."""
        run = self._run
        if run.plan.count is None:
            raise InputError(f"{type(self).__name__} has no schedule yet: call `set_timesteps` first.")
        return run

    def _replan(self, **changes: Any) -> None:
        """Change the plan under the current run, and for those to come."""
        self._plan = self._run.plan = replace(self._run.plan, memo={}, **changes)

    @property
    def timesteps(self) -> Tensor:
        """The training steps of the run, descending, on the device that ``set_timesteps`` was given."""
        return self._run.plan.timesteps  # type: ignore[return-value]

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._replan(timesteps=value, t=tuple(value.tolist()))

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps asked for; None before ``set_timesteps``."""
        return self._run.plan.count

    @num_inference_steps.setter
    def num_inference_steps(self, value: int | None) -> None:
        self._replan(count=value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_local": getattr(self.__dict__.get("_local"), "run", None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        run = self.__dict__.pop("_local")
        if run is not None:
            self._resume(run)


class Unscaled(SchedulerMixin):
    """Base of the schedulers whose networks take the sample as it is."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The network's input: the sample itself."""
        return sample
