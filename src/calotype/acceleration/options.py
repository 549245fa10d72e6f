"""Which mechanisms of acceleration are on."""

from __future__ import annotations

from dataclasses import dataclass

from calotype.core.errors import InputError

PRODUCTS = ("int8", "fp8")
"""The types that linear layers can be computed in by name."""


@dataclass(frozen=True)
class StepCache:
    """One step in ``interval`` computes the whole U-Net, the others what lies above ``branch`` and nothing below.

    Branches count the connections from the way down to the way up, beginning at the outermost, 0: the more of them
    are computed in each step, the closer the result and the less time is saved. Raises ``InputError`` for an interval
    below 1 or a branch below 0.
    """

    interval: int = 3
    branch: int = 0

    def __post_init__(self) -> None:
        for name, least in (("interval", 1), ("branch", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"StepCache's {name} is a whole number from {least}, not {value!r}.")


@dataclass(frozen=True)
class Options:
    """One switch for each mechanism; what is not proven to pay is off by default.

    ``graphs``: calls of a model are captured as CUDA graphs and replayed. ``channels_last``: the weights of
    convolutions lie in memory as the device's convolutions read them. ``kernels``: norms, gates and sums in Triton.
    ``packed``: queries, keys and values of self-attention in one matrix product, keys and values of a prompt too.
    ``prompts``: keys and values of a prompt are computed once and not in each step (needs ``graphs``). ``grouped``:
    those of all layers in one launch (needs ``prompts``), and what the time's embedding is in all residual blocks in
    another (needs ``graphs``; both need ``kernels``). ``products``: those with matrices in transformer blocks and
    shortcuts in CUDA C++ with what is added to them and the layer norm of the sum, ``gates``: GEGLU in one kernel with
    its product, and ``convolutions``: those of 3 x 3 pixels in CUDA C++ with what is added to them, each where that is
    quicker (all need ``kernels``). ``tuned``: cuDNN tries its algorithms on the first use of a shape. ``attention`` is
    the order in which PyTorch's backends are tried; empty leaves it to PyTorch. ``short``: attention to a prompt of at
    most 128 tokens in Triton, ``narrow``: attention of heads of 40 or 80 channels to many keys in CUDA C++, ``wide``:
    attention of one wide head, an autoencoder's, by matrix products and a softmax in Triton (all need ``kernels``).
    ``shapes`` is how many captured graphs a model keeps.

    The last two change results, so they are used only where they are asked for, on a CPU too: ``step_cache`` leaves
    the depth of a U-Net out of some steps; ``linears``, "int8" or "fp8", is the type in which the linear layers of
    models that are called in each step multiply. Raises ``InputError`` for a type that there is none of.
    """

    graphs: bool = True
    channels_last: bool = True
    kernels: bool = True
    packed: bool = True
    prompts: bool = True
    grouped: bool = True
    products: bool = True
    gates: bool = True
    convolutions: bool = True
    tuned: bool = False
    attention: tuple[str, ...] = ()
    short: bool = True
    narrow: bool = True
    wide: bool = True
    shapes: int = 8
    step_cache: StepCache | None = None
    linears: str | None = None

    def __post_init__(self) -> None:
        if self.step_cache is not None and not isinstance(self.step_cache, StepCache):
            raise InputError(
                f"step_cache is a calotype.acceleration.StepCache or None, not {self.step_cache!r}."
            )
        if self.linears is not None and self.linears not in PRODUCTS:
            raise InputError(f"linears is None, 'int8' or 'fp8', not {self.linears!r}.")

    @property
    def by_name(self) -> bool:
        """Whether something is asked for that is not used by itself."""
        return self.step_cache is not None or self.linears is not None
