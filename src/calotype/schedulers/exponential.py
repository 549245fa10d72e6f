"""Family D, exponential integrators: every DPM-Solver, DEIS, UniPC and SA-Solver update is one integral.

In λ = −ln κ, from s to t with h = λ_t − λ_s and u = λ − λ_s, the exact solution is

    data:  x_t = (σ_t/σ_s)·e^{−τ²h}·x_s + α_t ∫₀^h q·e^{q(u−h)} x̂0(u) du + σ_t·√(1 − e^{−2τ²h})·z
    noise: x_t = (α_t/α_s)·x_s − q·α_t·κ_s ∫₀^h e^{−u} ε̂(u) du + σ_t·√(e^{2τ²h} − 1)·z

with q = 1 + τ² (τ = 0: the ODE, τ = 1: the reverse SDE). A method replaces x̂0 or ε̂ by the polynomial through the
predictions it has; what remains is a weight for each (Lu et al., arXiv:2211.01095; Gonzalez et al.,
arXiv:2305.14267; Xue et al., arXiv:2309.05019).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.schedulers.affine import Value, affine
from calotype.schedulers.levels import Level

RULES = ("exact", "midpoint", "linear", "halved")
"""How the first and second moment of the integral are taken.

``exact``: as they are. ``midpoint``: the slope has half of the zeroth moment (DPM-Solver's `midpoint`, UniPC's bh2).
``linear``: with half of the step (bh1). ``halved``: exact, but the curvature's weight is halved (DPM-Solver's third
order)."""


class Update(NamedTuple):
    """x_t = sample·x_s + Σ predictions[j]·m_j + noise·z, the predictions newest first (or as the nodes were given)."""

    sample: float
    predictions: tuple[float, ...]
    noise: float

    def of(
        self, sample: Value, known: Iterable[Value], z: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Value:
        """x_t of these, and of noise where some is given."""
        terms = [(self.sample, sample), *zip(self.predictions, known, strict=False)]
        if z is not None:
            terms.append((self.noise, z))
        return affine(*terms, dtype=dtype)


def _data_moments(span: float, count: int) -> list[float]:
    """∫₀¹ H·e^{H(v−1)}·v^k dv for k < count; the recurrence loses digits for small H, the series does not."""
    if abs(span) < 1e-2:
        return [
            sum((-1) ** j * span ** (j + 1) * math.factorial(k) / math.factorial(k + j + 1) for j in range(7))
            for k in range(count)
        ]
    moments = [-math.expm1(-span)]
    for k in range(1, count):
        moments.append(1.0 - k * moments[-1] / span)
    return moments


def _noise_moments(span: float, count: int) -> list[float]:
    """∫₀¹ H·e^{−Hv}·v^k dv for k < count: the mirror image of the data moments, Σ (−1)^j C(k,j) of them."""
    data = _data_moments(span, count)
    return [sum((-1) ** j * math.comb(k, j) * data[j] for j in range(k + 1)) for k in range(count)]


def moments(h: float, count: int, *, data: bool, q: float, rule: str) -> list[float]:
    """The moments of the integral over (u/h)^k, under one of the ``RULES``."""
    found = _data_moments(q * h, count) if data else [q * m for m in _noise_moments(h, count)]
    if count > 1 and rule == "midpoint":
        found[1] = 0.5 * found[0]
    elif count > 1 and rule == "linear":
        found[1] = 0.5 * q * h * (1.0 if data else math.exp(-h))
    if count > 2 and rule == "halved":
        found[2] *= 0.5
    return found


def interpolation_weights(nodes: Sequence[float], moment: Sequence[float]) -> list[float]:
    """w with Σ_j w_j·v_j^k = moment_k: the weights that integrate the polynomial through the nodes v_j."""
    count = len(nodes)
    rows = [[v**k for v in nodes] + [moment[k]] for k in range(count)]
    for i in range(count):  # Gauss-Jordan; at most 4x4 and well scaled
        pivot = max(range(i, count), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(count):
            if r != i:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [row[-1] for row in rows]


def exponential_update(
    s: Level, t: Level, others: Sequence[Level] = (), *, data: bool, tau: float = 0.0, rule: str = "exact"
) -> Update:
    """The update from ``s`` to ``t`` with predictions at ``s`` and at the ``others``.

    A step of no length is idle, and of the levels from the first on that repeats one before it none is used.
    """
    base = s.log_snr
    h = t.log_snr - base
    if h == 0:
        return Update(1.0, (0.0,) * (1 + len(others)), 0.0)
    nodes = [0.0]
    for level in others:
        node = (level.log_snr - base) / h
        if node in nodes:
            break
        nodes.append(node)
    moment = moments(h, len(nodes), data=data, q=1.0 + tau**2, rule=rule)
    weights = interpolation_weights(nodes, moment)
    if data:
        decay = math.exp(-(tau**2) * h) if tau else 1.0
        noise = t.sigma * math.sqrt(max(-math.expm1(-2 * tau**2 * h), 0.0)) if tau else 0.0
        return Update(t.sigma / s.sigma * decay, tuple(t.alpha * w for w in weights), noise)
    scale = t.alpha * s.sigma / s.alpha
    noise = t.sigma * math.sqrt(max(math.expm1(2 * tau**2 * h), 0.0)) if tau else 0.0
    return Update(t.alpha / s.alpha, tuple(-scale * w for w in weights), noise)
