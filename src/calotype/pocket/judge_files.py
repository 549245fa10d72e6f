"""Files of the networks that judge pictures: float16 safetensors, with what is known of them in the header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from calotype.core.errors import ModelFilesError
from calotype.core.files import replacing

Network = TypeVar("Network", bound=nn.Module)


def save_network(network: nn.Module, path: str | Path, header: Mapping[str, str]) -> None:
    """Write the network, atomically."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items()}
    with replacing(Path(path)) as temporary:
        save_file(state, temporary, metadata=dict(header))


def load_network(
    path: str | Path,
    kind: str,
    command: str,
    build: Callable[[Mapping[str, Tensor], Mapping[str, str]], Network],
    device: torch.device | str,
) -> Network:
    """A network in float32, ready to read: what ``build`` makes of the file's tensors and header, filled with them.

    Raises:
        ModelFilesError: there is no such file (``command`` makes one), or it does not hold a ``kind``.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ModelFilesError(f"There is no {kind} at {path}; `{command}` trains one.")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        network = build(state, header)
        network.load_state_dict(state)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ModelFilesError(f"{path} does not hold a {kind}: {error}") from error
    return network.to(device).eval()
