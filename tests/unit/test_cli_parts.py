"""The parts of the command line that need no model: file names, requests, schedulers' names, progress, errors."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console

import calotype
import calotype.cli
from calotype.cli import files, model, progress, request
from calotype.cli.console import plainly
from calotype.core.errors import InputError, ModelFilesError
from calotype.utils.fingerprint import SAMPLE_BYTES, WHOLE_BYTES, fingerprint
from calotype.utils.metadata import Settings


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red ball", "a-red-ball"),
        ("  A RED,  ball!  ", "a-red-ball"),
        ("größer: 赤いボール é", "groer-e"),
        ("赤いボール", "picture"),
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("word " * 40, "word-" * 11 + "word"),
        ("x" * 200, "picture"),
    ],
)
def test_slug(prompt, name):
    assert files.slug(prompt) == name
    assert len(files.slug(prompt)) <= files.NAME_LENGTH


def test_names_in_a_folder_never_meet_another_picture(tmp_path):
    jobs = [("a ball", 1), ("a ball!", 1), ("a ball", 2)]
    assert [p.name for p in files.plan(f"{tmp_path}/", jobs, overwrite=False)] == [
        "a-ball-1.png",
        "a-ball-1-2.png",
        "a-ball-2.png",
    ]
    (tmp_path / "a-ball-1.png").touch()
    (tmp_path / "a-ball-1-2.png").touch()
    assert [p.name for p in files.plan(str(tmp_path), jobs[:1], overwrite=False)] == ["a-ball-1-3.png"]
    assert [p.name for p in files.plan(str(tmp_path), jobs[:1], overwrite=True)] == ["a-ball-1.png"]


def test_named_files(tmp_path):
    one, two = [("a", 1)], [("a", 1), ("a", 2)]
    assert files.plan(str(tmp_path / "x.PNG"), one, False) == [tmp_path / "x.PNG"]
    assert files.plan(str(tmp_path / "x.png"), two, False) == [tmp_path / "x-1.png", tmp_path / "x-2.png"]
    assert files.plan(str(tmp_path / "new"), one, False) == [tmp_path / "new" / "a-1.png"]
    (tmp_path / "x-2.png").touch()
    with pytest.raises(InputError, match=r"x-2\.png.*exists already.*--overwrite"):
        files.plan(str(tmp_path / "x.png"), two, False)
    assert len(files.plan(str(tmp_path / "x.png"), two, True)) == 2
    with pytest.raises(InputError, match="PNG"):
        files.plan(str(tmp_path / "x.jpg"), one, False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file, not a folder"):
        files.plan(str(tmp_path / "file"), one, False)


def test_a_request_from_options_has_defaults_and_a_random_seed():
    seeds = {request.from_options({"prompts": ("a",)}).seed for _ in range(4)}
    assert len(seeds) > 1
    asked = request.from_options({"prompts": ("a", "b"), "count": 2, "seed": 5})
    assert asked.jobs() == [("a", 5), ("a", 6), ("b", 5), ("b", 6)]
    assert (asked.model, asked.steps) == ("pocket", 20)
    with pytest.raises(InputError, match="Say what to show"):
        request.from_options({})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "--count must be at least 1, not 0"),
        ({"count": 10**6}, "1,000,000 pictures is over the limit"),
        ({"seed": -1}, "--seed must be between 0 and"),
        ({"seed": 2**63 - 1, "count": 2}, "--seed must be between 0 and"),
        ({"steps": 0}, "num_inference_steps"),
        ({"steps": -3}, "-3"),
        ({"steps": 10**9}, "over the limit"),
        ({"guidance": float("nan")}, "guidance_scale must be a finite number"),
        ({"guidance": float("-inf")}, "guidance_scale must be a finite number"),
        ({"width": 0}, "--width"),
        ({"height": -64}, "--height"),
        ({"height": 10**9}, "--height 1000000000 is over the limit"),
    ],
)
def test_requests_that_no_model_could_meet_are_refused(change, words):
    with pytest.raises(InputError, match=words):
        request.from_options({"prompts": ("a",), "seed": 1, **change}).check()


def test_a_request_like_a_picture_takes_everything_from_it_but_what_is_given():
    made = Settings(
        prompt="a",
        negative_prompt="b",
        model="owner/name",
        revision="0" * 40,
        seed=9,
        steps=3,
        guidance=2.0,
        scheduler={"class": "DDIMScheduler", "config": {}},
        size=(64, 128),
        dtype="bfloat16",
    )
    asked = request.like(made, {})
    assert (asked.prompts, asked.negative, asked.model, asked.revision) == (
        ("a",),
        "b",
        "owner/name",
        "0" * 40,
    )
    assert (asked.seed, asked.steps, asked.guidance, asked.width, asked.height) == (9, 3, 2.0, 64, 128)
    assert (asked.scheduler, asked.dtype, asked.device) == (made.scheduler, "bfloat16", "cpu")
    changed = request.like(made, {"prompts": ("c",), "model": "other", "seed": 1})
    assert (changed.prompts, changed.seed, changed.steps, changed.revision) == (("c",), 1, 3, None)


def test_devices_and_dtypes():
    assert model.choose_device("cpu") == torch.device("cpu")
    assert model.choose_dtype("bf16") is torch.bfloat16
    assert model.choose_dtype(None) is None
    with pytest.raises(InputError, match="is no device"):
        model.choose_device("quantum")
    with pytest.raises(InputError, match="no such device"):
        model.choose_device(f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(InputError, match="float32, float16 or bfloat16"):
        model.choose_dtype("int8")


def test_a_fingerprint_follows_what_makes_a_model(tmp_path):
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "model.safetensors"
    weights.write_bytes(b"abc")
    (tmp_path / "model_index.json").write_text("{}")
    first = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("{}")
    assert fingerprint(tmp_path) == first
    weights.write_bytes(b"abd")
    second = fingerprint(tmp_path)
    weights.rename(tmp_path / "unet" / "other.safetensors")
    third = fingerprint(tmp_path)
    assert len({first, second, third}) == 3


def test_a_fingerprint_of_large_files_sees_both_ends(tmp_path):
    size = WHOLE_BYTES + 5 * SAMPLE_BYTES
    seen = set()
    for place in (None, 0, size - 1, size // 2):
        with (tmp_path / "large.safetensors").open("wb") as file:
            file.truncate(size)
            if place is not None:
                file.seek(min(place, size - SAMPLE_BYTES))
                file.write(b"x" * SAMPLE_BYTES)
        seen.add(fingerprint(tmp_path))
    assert len(seen) >= 3


def test_lines_come_ever_more_rarely_and_foretell_the_end():
    now = [0.0]
    stream = io.StringIO()
    with progress.Lines(2, stream, every=5.0, clock=lambda: now[0]) as lines:
        for picture in (1, 2):
            lines.picture(picture)
            for step in range(1, 11):
                now[0] += 2.0
                lines.step(step, 10)
    assert stream.getvalue().splitlines() == [
        "picture 1 of 2, step 3 of 10, about 34 s left",
        "picture 1 of 2, step 8 of 10, about 24 s left",
        "picture 2 of 2, step 8 of 10, about 4.0 s left",
    ]


def test_the_bar_shows_picture_steps_and_time_left():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, no_color=True)
    with progress.Bar(2, 4, console) as bar:
        for picture in (1, 2):
            bar.picture(picture)
            for step in range(1, 5):
                bar.step(step, 4)
        shown = bar._progress.tasks[0]
        assert (shown.description, shown.completed, shown.total) == ("picture 2 of 2", 8, 8)
    assert "8/8" in stream.getvalue()
    assert "left" in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal", "term", "kind"), [(True, "xterm", "Bar"), (True, "dumb", "Lines"), (False, "xterm", "Lines")]
)
def test_a_bar_only_where_a_line_can_be_drawn_again(terminal, term, kind):
    console = Console(file=io.StringIO(), force_terminal=terminal, _environ={"TERM": term})
    assert type(progress.reporter(1, 1, console)).__name__ == kind


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InputError("bad [red]input[/red]."), 2, "Error: bad [red]input[/red]."),
        (ModelFilesError("no file."), 1, "Error: no file."),
        (PermissionError(13, "Permission denied", "x.png"), 1, "Permission denied: 'x.png'"),
        (MemoryError(), 1, "--width"),
        (torch.cuda.OutOfMemoryError("x"), 1, "--width"),
        (ZeroDivisionError("division"), 1, "ZeroDivisionError: division (CALOTYPE_DEBUG=1"),
        (KeyboardInterrupt(), 130, "Stopped."),
    ],
)
def test_errors_become_a_sentence_and_an_exit_code(error, code, words, capsys, monkeypatch):
    monkeypatch.delenv("CALOTYPE_DEBUG", raising=False)

    @plainly
    def command():
        raise error

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    if code != 130:
        monkeypatch.setenv("CALOTYPE_DEBUG", "1")
        with pytest.raises(type(error)):
            command()


def test_without_typer_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(calotype.cli.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"typer and rich: pip install 'calotype\[cli\]'"):
        calotype.cli.main()


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    import runpy

    monkeypatch.setattr(sys, "argv", ["calotype", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("calotype", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"calotype {calotype.__version__}\n"
    assert Path(calotype.__file__).with_name("py.typed").is_file()
