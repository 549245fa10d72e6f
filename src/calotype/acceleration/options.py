"""Which mechanisms of acceleration are on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """One switch for each mechanism; what is not proven to pay is off by default.

    ``graphs``: calls of a model are captured as CUDA graphs and replayed. ``channels_last``: the weights of
    convolutions lie in memory as the device's convolutions read them. ``kernels``: norms, gates and sums in Triton.
    ``packed``: queries, keys and values of self-attention in one matrix product, keys and values of a prompt too.
    ``prompts``: keys and values of a prompt are computed once and not in each step (needs ``graphs``). ``grouped``:
    those of all layers in one launch (needs ``prompts`` and ``kernels``). ``gates``: GEGLU in one kernel with its
    product where that is quicker (needs ``kernels``). ``tuned``: cuDNN tries its algorithms on the first use of a
    shape. ``attention`` is the order in which PyTorch's backends are tried; empty leaves it to PyTorch. ``short``:
    attention to a prompt of at most 128 tokens in Triton, ``wide``: attention of one wide head, an autoencoder's, by
    matrix products and a softmax in Triton (both need ``kernels``). ``shapes`` is how many captured graphs a model
    keeps.
    """

    graphs: bool = True
    channels_last: bool = True
    kernels: bool = True
    packed: bool = True
    prompts: bool = True
    grouped: bool = True
    gates: bool = True
    tuned: bool = False
    attention: tuple[str, ...] = ()
    short: bool = True
    wide: bool = True
    shapes: int = 8
