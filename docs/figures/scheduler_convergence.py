"""docs/images/scheduler-convergence.png: the error of every solver against the evaluations that it may use.

    python docs/figures/scheduler_convergence.py [--output FILE.png]

The problem is that of the tests: a mixture of Gaussians on a line, whose denoiser and probability flow are exact. Each
run goes from the highest noise level of Stable Diffusion to its lowest, evenly in λ. Methods that step evenly in time
(DDIM, PLMS, PNDM, iPNDM, flows) are measured from 0.9 or 1 to 0.2 of it. Nothing is done for the first steps of
multistep methods, as in use. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from tests.solver_cases import CASES, Case, error  # noqa: E402

import calotype  # noqa: E402

GROUPS = {
    "one slope a step": ("Euler", "DDIM", "EDM Euler", "flow Euler"),
    "two evaluations a step": ("Heun", "DPM2", "Karras VE, no churn", "flow Heun"),
    "multistep on slopes": ("LMS", "PLMS", "PNDM", "iPNDM"),
    "DPM-Solver++ and DEIS": ("DPM++ 1M", "DPM++ 2M", "DPM++ 2M heun", "DPM++ 3M", "DPM 2M", "DEIS-2", "DEIS-3",
                              "EDM DPM++ 2M", "DPM++ 2M, flow"),
    "singlestep": ("DPM++ 2S", "DPM++ 2S heun", "DPM++ 3S", "DPM++ 3S heun", "DPM 2S", "DPM 3S"),
    "predictor and corrector": ("UniP-2 bh2", "UniPC-2 bh1", "UniPC-2 bh2", "UniPC-3 bh2", "SA-2, τ = 0",
                                "SA-3, τ = 0"),
}  # fmt: skip
EVALUATIONS = (10, 15, 20, 30, 40, 60, 90, 130)
TABLE_STEPS = (10, 20, 40, 50, 100, 125)
"""Methods that step evenly over 1,000 training steps: numbers that divide these."""


def curve(case: Case) -> list[tuple[int, float]]:
    """(evaluations, error) of one solver, as near to ``EVALUATIONS`` as it comes."""
    if case.coordinates == "table":
        steps = [n for n in TABLE_STEPS if not ("PNDM" in case.label and n < 20)]
    else:
        two_stage = case.label in GROUPS["two evaluations a step"]
        group = case.order if case.scheduler == "DPMSolverSinglestepScheduler" else 1
        steps = [n // (2 if two_stage else group) * (1 if two_stage else group) + 1 for n in EVALUATIONS]
    return [error(case, n, calotype, exact_start=False) for n in steps]


def draw(output: Path) -> None:
    """Six panels, one a family, with Euler in all of them and lines of order 1 to 4."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = {
        case.label: curve(case) for case in CASES if any(case.label in group for group in GROUPS.values())
    }
    missing = {label for group in GROUPS.values() for label in group} - set(curves)
    if missing:
        raise SystemExit(f"tests/solver_cases.py has no case {', '.join(sorted(missing))}.")
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(2, 3, figsize=(11, 7), sharex=True, sharey=True, layout="constrained")
    for panel, (title, labels) in zip(panels.flat, GROUPS.items(), strict=True):
        for order, start in ((1, 0.5), (2, 2.0), (3, 12.0), (4, 60.0)):
            n = [10, 130]
            panel.plot(n, [start * v**-order for v in n], color="0.85", linewidth=1, zorder=0)
            panel.annotate(f"{order}", (n[1], start * n[1] ** -order), color="0.6", fontsize=8)
        if "Euler" not in labels:
            panel.plot(
                *zip(*curves["Euler"], strict=True), color="0.5", linewidth=1, linestyle=":", label="Euler"
            )
        for i, label in enumerate(labels):
            colour = plt.get_cmap("tab10")(i)
            panel.plot(
                *zip(*curves[label], strict=True),
                "o-",
                color=colour,
                label=label,
                markersize=3,
                linewidth=1.3,
            )
        panel.set(xscale="log", yscale="log", title=title)
        panel.set_xticks([10, 20, 40, 80, 130], labels=["10", "20", "40", "80", "130"])
        panel.minorticks_off()
        panel.legend(fontsize=7, frameon=False, loc="lower left")
    for panel in panels[1]:
        panel.set_xlabel("evaluations of the network")
    for panel in panels[:, 0]:
        panel.set_ylabel("error (root mean square)")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the convergence of all solvers.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/scheduler-convergence.png")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    output = parser.parse_args().output
    draw(output)
    print(output)


if __name__ == "__main__":
    main()
