"""Shared set-up: one thread a process, no network, quiet reference."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)
if not torch.accelerator.is_available():
    # For each kind of device that is not there, torch.manual_seed keeps the seed and the call stack, as text, until
    # one appears: a quarter of the time of a short run of a scheduler.
    torch.manual_seed = torch.default_generator.manual_seed


def pytest_collection_finish() -> None:
    """What is imported by now lives to the end: looking through it for garbage again and again takes a twentieth of the
    time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
