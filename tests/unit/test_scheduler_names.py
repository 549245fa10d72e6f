"""Schedulers by the names of other programs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import calotype
from calotype.cli.app import app
from calotype.core.config import init_parameters
from calotype.core.errors import InputError
from calotype.schedulers import names
from calotype.schedulers.samplers import CONVERSIONS, ELSEWHERE, LEVELS, SAMPLERS, SPACINGS
from tests.solver_cases import CASES, Case

TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DPM = "DPMSolverMultistepScheduler"

A1111 = """Euler a|Euler|LMS|Heun|DPM2|DPM2 a|DPM++ 2M|DPM++ SDE|DPM++ 2M SDE|DPM++ 2M SDE Heun|DPM++ 3M SDE|DPM fast
LMS Karras|DPM2 Karras|DPM2 a Karras|DPM++ 2M Karras|DPM++ SDE Karras|DPM++ 2M SDE Karras|DPM++ 2M SDE Exponential
DPM++ 2M SDE Heun Karras|DPM++ 2M SDE Heun Exponential|DPM++ 3M SDE Karras|DPM++ 3M SDE Exponential|DDIM|PLMS|UniPC|LCM
TCD|k_euler_a|k_euler_ancestral|k_euler|k_lms|k_heun|k_dpm_2|k_dpm_2_a|k_dpmpp_2m|k_dpmpp_sde|k_dpm_fast|k_lms_ka
k_dpm_2_ka|k_dpm_2_a_ka|k_dpmpp_2m_ka|k_dpmpp_sde_ka|k_dpmpp_2m_sde_ka""".replace("\n", "|").split("|")
COMFYUI = """euler euler_ancestral heun dpm_2 dpm_2_ancestral lms dpm_fast dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_sde
dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm deis res_multistep
sa_solver ddim uni_pc uni_pc_bh2""".split()
COMFYUI_SPACINGS = ("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal")
INVOKEAI = """ddim ddpm deis deis_k lms lms_k pndm heun heun_k euler euler_k euler_a kdpm_2 kdpm_2_k kdpm_2_a kdpm_2_a_k
dpmpp_2s dpmpp_2s_k dpmpp_2m dpmpp_2m_k dpmpp_2m_sde dpmpp_2m_sde_k dpmpp_3m dpmpp_3m_k dpmpp_sde dpmpp_sde_k unipc
unipc_k lcm tcd""".split()


@pytest.mark.parametrize("name", [*A1111, *COMFYUI, *INVOKEAI])
def test_every_name_makes_a_scheduler_that_runs(name: str) -> None:
    scheduler = calotype.Scheduler.named(name, TRAINED)
    scheduler.set_timesteps(10)
    assert scheduler.config.beta_start == 0.00085
    assert scheduler.timesteps[0] > scheduler.timesteps[-1]


@pytest.mark.parametrize("sampler", COMFYUI)
@pytest.mark.parametrize("spacing", COMFYUI_SPACINGS)
def test_pairs_of_sampler_and_spacing(sampler: str, spacing: str) -> None:
    """Each pair is what both words say, or is refused in a sentence; no pair means something else."""
    row = names.find(sampler).sampler
    try:
        choice = names.find(f"{sampler}/{spacing}")
    except InputError as error:
        assert f"{row.name} cannot space its levels" in str(error)
        return
    assert choice.sampler.name in (row.name, row.twin)
    class_name, options = choice.of("discrete")
    chosen = SPACINGS[choice.spacing].options
    assert all(options[key] == value for key, value in chosen.items())
    assert set(options) <= set(init_parameters(getattr(calotype, class_name)))


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_rows_fit_their_classes(row) -> None:
    assert set(row.options) <= set(init_parameters(getattr(calotype, row.scheduler)))
    for spacing in row.spacings:
        scheduler = calotype.scheduler_named(f"{row.name} {spacing}", TRAINED)
        assert type(scheduler).__name__ == row.scheduler
        assert all(scheduler.config[key] == value for key, value in SPACINGS[spacing].options.items())
    takes = init_parameters(getattr(calotype, row.scheduler))
    missing = [w for w in LEVELS if w not in row.spacings and next(iter(SPACINGS[w].options)) in takes]
    assert not missing or any(flag in row.options for flag in CONVERSIONS)


@pytest.mark.parametrize("kind", ["flow", "edm"])
@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_flow_models_and_edms_keep_their_kind(row, kind: str) -> None:
    config = {
        "flow": {"shift": 3.0, "num_train_timesteps": 1000},
        "edm": {
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "rho": 7.0,
            "prediction_type": "v_prediction",
        },
    }[kind]
    if getattr(row, kind) is None:
        with pytest.raises(InputError, match="cannot be used with this model"):
            calotype.Scheduler.named(row.name, config)
        return
    scheduler = calotype.Scheduler.named(row.name, config)
    assert type(scheduler).__name__ == getattr(row, kind)[0]
    entries = scheduler.config
    if kind == "edm":
        assert (entries.sigma_max, entries.prediction_type) == (80.0, "v_prediction")
        karras = calotype.Scheduler.named(f"{row.name} exponential", config)
        assert karras.config.sigma_schedule == "exponential"
        return
    assert (entries.flow_shift if "use_flow_sigmas" in row.flow[1] else entries.shift) == 3.0
    again = calotype.Scheduler.named("Euler simple", entries)
    assert type(again).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert again.config.shift == 3.0
    if "use_flow_sigmas" in row.flow[1]:
        with pytest.raises(InputError, match="cannot space its levels by Karras with this model"):
            calotype.Scheduler.named(f"{row.name} Karras", config)


@pytest.mark.parametrize(
    "spelling",
    ["DPM++ 2M Karras", "dpm++ 2m karras", "dpmpp_2m/karras", "dpmpp_2m_k", "DPM-PP-2M (Karras)", "k_dpmpp_2m_ka",
     "dpm plus plus 2m karras", "DPM++2MKarras", "dpm_pp_2m KARRAS"],
)  # fmt: skip
def test_spellings(spelling: str) -> None:
    class_name, options = names.find(spelling).of("discrete")
    assert class_name == DPM
    assert options == {
        "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "use_karras_sigmas": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DDIMScheduler", ("DDIMScheduler", {})),
        ("EulerDiscrete", ("EulerDiscreteScheduler", {})),
        ("dpm solver multistep", (DPM, {})),
        ("Euler a Karras", (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "solver_type": "midpoint",
                                  "use_karras_sigmas": True})),
        ("ddim_beta", (DPM, {"algorithm_type": "dpmsolver++", "solver_order": 1, "solver_type": "midpoint",
                             "use_beta_sigmas": True})),
        ("Euler Karras", ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "linspace"})),
        ("Euler Automatic", ("EulerDiscreteScheduler", {})),
    ],
)  # fmt: skip
def test_what_names_mean(name: str, expected: tuple[str, dict[str, object]]) -> None:
    assert names.find(name).of("discrete") == expected


def test_a_name_decides_what_the_configuration_had_otherwise() -> None:
    karras = calotype.Scheduler.named("DPM++ 2M SDE Karras", TRAINED)
    plain = calotype.Scheduler.named("DPM++ 2M", karras.config)
    assert plain.config.use_karras_sigmas is False
    assert plain.config.algorithm_type == "dpmsolver++"
    assert calotype.Scheduler.named("euler", karras.config).config.use_karras_sigmas is False
    own = calotype.Scheduler.named(DPM, karras.config)
    assert own.config.use_karras_sigmas is True


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_latents_are_not_clipped(name: str) -> None:
    """A configuration that does not speak of clipping is not that of a model of pixels in [-1, 1]."""
    latents = calotype.PNDMScheduler(**TRAINED).config
    assert calotype.Scheduler.named(name, latents).config.clip_sample is False
    pixels = calotype.DDPMScheduler(clip_sample_range=1.5).config
    assert calotype.Scheduler.named(name, pixels).config.clip_sample is True
    assert calotype.Scheduler.named(name).config.clip_sample is True


def test_a_name_without_a_configuration() -> None:
    assert (
        calotype.Scheduler.named("heun").config.beta_start
        == calotype.HeunDiscreteScheduler().config.beta_start
    )


@pytest.mark.parametrize("name", [*ELSEWHERE, "DPM++ 2S a Karras", "dpm adaptive", "k_dpmpp_2s_a_ka"])
def test_samplers_that_are_not_here_name_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match="does not have. The nearest is") as caught:
        names.find(name)
    nearest = str(caught.value).rsplit(" is ", 1)[1].rstrip(".")
    assert names.find(nearest).sampler.name == nearest


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ddimm", "Did you mean DDIM?"),
        ("euler ancestrall", "Did you mean Euler a?"),
        ("DPMSolverMultistepSheduler", "Did you mean DPMSolverMultistepScheduler?"),
        ("qqq", "There are: Euler, Euler a"),
        ("", "There is no scheduler ''"),
        ("karras", "There is no scheduler 'karras'"),
        ("Scheduler", "There is no scheduler 'Scheduler'"),
        (7, "text"),
    ],
)
def test_unknown_names(name: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        names.find(name)
    assert said in str(caught.value)


def test_no_name_means_two_things() -> None:
    keys = [names._key(name) for row in SAMPLERS for name in (row.name, *row.aliases)]
    assert len(keys) == len(set(keys))
    ends = [names._key(word) for name, spacing in SPACINGS.items() for word in (name, *spacing.aliases)]
    assert len(ends) == len(set(ends))
    assert not {names._key(name) for name in ELSEWHERE} & set(keys)
    for row in SAMPLERS:
        assert names.find(row.name).sampler is row


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_the_name_of_a_scheduler(row) -> None:
    assert names.spoken(row.scheduler, calotype.scheduler_named(row.name, TRAINED).config) == row.name
    for spacing in set(row.spacings) & set(LEVELS):
        scheduler = calotype.scheduler_named(f"{row.name} {spacing}", TRAINED)
        assert names.spoken(row.scheduler, scheduler.config) == f"{row.name} {spacing}"


def test_the_door_is_not_a_scheduler() -> None:
    with pytest.raises(InputError, match="Scheduler.named"):
        calotype.Scheduler()


def test_the_names_need_no_torch() -> None:
    code = (
        "import sys, calotype.cli.schedulers; from calotype import Scheduler; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_command_lists_them() -> None:
    result = CliRunner().invoke(app, ["schedulers"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == len(SAMPLERS) + 1
    assert lines[1].split()[:4] == ["Euler", "EulerDiscreteScheduler", "1", "1"]
    assert not any(character in result.stdout for character in "\x1b│─")
    listed = json.loads(CliRunner().invoke(app, ["schedulers", "--json"]).stdout)
    assert [entry["name"] for entry in listed["samplers"]] == [row.name for row in SAMPLERS]
    assert listed["samplers"][2]["evaluations_per_step"] == 2
    assert listed["spacings"]["Karras"]["options"] == {"use_karras_sigmas": True}


@pytest.mark.parametrize("row", [row for row in SAMPLERS if not row.stochastic], ids=lambda row: row.name)
def test_stated_orders_are_measured_ones(row) -> None:
    """Each order is that of a case of the convergence test with the same class and options."""
    spaced = {*CONVERSIONS, "final_sigmas_type"}

    def same(case: Case) -> bool:
        config = getattr(calotype, case.scheduler)(**case.options).config
        return all(config[key] == value for key, value in row.options.items() if key not in spaced)

    cases = [case for case in CASES if case.scheduler == row.scheduler and same(case)]
    assert row.order in [case.order if case.instead is None else case.instead for case in cases]


def test_the_documentation_has_the_same_tables() -> None:
    """After a change of the tables: python docs/figures/scheduler_names.py."""
    folder = Path(__file__).resolve().parents[2] / "docs"
    script = runpy.run_path(str(folder / "figures/scheduler_names.py"))
    page = (folder / "schedulers.md").read_text(encoding="utf-8")
    assert script["written"](page) == page
    assert all(f"| **{row.name}** |" in page for row in SAMPLERS)
