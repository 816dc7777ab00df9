"""Progress: a bar on a terminal, plain lines elsewhere, with the figures that the issue asks for."""

from __future__ import annotations

import io
import math

import pytest
from pyro_ltm_cli import progress as module
from pyro_ltm_cli.output import emit, nats, size_of
from rich.console import Console

from pyro_ltm.runs.description import file_sizes
from pyro_ltm.scores import Bound
from pyro_ltm.training import Progress


def step(number, **changes):
    figures = {"tokens_per_second": 1234.5, "bound": 5.25, "distortion": 5.125, "rate": 16.5}
    return Progress(step=number, steps=10, **{**figures, **changes})


def validation(stderr=0.0625):
    zeros = dict.fromkeys(Bound.__dataclass_fields__, 0)
    figures = {"nats_per_token": 4.5, "nats_per_token_stderr": stderr, "kl_nats_per_sequence": 3.0}
    return Bound(**{**zeros, **figures, "distortion_nats_per_token": 4.25, "active_fraction_by_layer": []})


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set."""
    now = {"time": 1000.0}
    monkeypatch.setattr(module.time, "monotonic", lambda: now["time"])
    return now


def test_lines_come_now_and_then(clock, capsys):
    lines = module.LineReporter(seconds=10)
    for number in range(1, 11):
        clock["time"] += 4
        lines.training(step(number))
    shown = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in shown] == ["1/10", "4/10", "7/10", "10/10"]
    assert shown[1] == (
        "step 4/10  1,234 tokens/s  bound 5.250 nats/token  rate 16.50 nats/sequence  "
        "distortion 5.125 nats/token  0:00:24 left"
    )


def test_time_left_is_of_one_pace(clock, capsys):
    """Without thoughts a step takes a second, with them five; of a pace to come nothing is known."""
    lines = module.LineReporter(seconds=0)
    for number in range(1, 11):
        clock["time"] += 1 if number <= 4 else 5
        lines.training(step(number, decoder_warmup_steps=4, figure="exact" if number <= 4 else "bound"))
    left = [line.rpartition("  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert left[1:3] == ["0:00:02 until it is given thoughts", "0:00:01 until it is given thoughts"]
    assert left[5:9] == [f"0:00:{seconds:02} left" for seconds in (20, 15, 10, 5)]
    assert not any(left[number].endswith(("left", "thoughts")) for number in (0, 3, 4, 9))


def test_every_validation_has_its_line(clock, capsys):
    lines = module.LineReporter()
    nan = math.nan
    lines.training(step(0, validation=validation()))
    lines.training(step(0, tokens_per_second=nan, bound=nan, validation=validation(stderr=nan)))
    first, second = capsys.readouterr().err.splitlines()
    assert "validation bound 4.500 ± 0.062 nats/token  rate 3.00 nats/sequence  distortion 4.250" in first
    assert "validation bound 4.500 nats/token" in second


def test_a_model_without_thoughts_has_no_bound(clock, capsys):
    lines = module.LineReporter()
    lines.training(step(0, validation=validation(), figure="exact"))
    lines.training(step(4, figure="exact"))
    assert capsys.readouterr().err.splitlines() == [
        "step 0/10  validation 4.500 ± 0.062 nats/token, exact",
        "step 4/10  1,234 tokens/s  5.250 nats/token, exact",
    ]


def test_preparing_and_counting(clock, capsys):
    lines = module.LineReporter(seconds=10)
    lines.preparing("encode", 1, 2_000_000)
    lines.preparing("encode", 2, 3_000_000)
    count = lines.counting("evaluate", 64)
    count(32, 5.5)
    count(64, 5.25)
    lines.counting("infer", None)(3, math.nan)
    assert capsys.readouterr().err.splitlines() == [
        "text to tokens: 2,000,000 characters",
        "evaluate: 64/64 sequences  5.250 nats/token",
    ]


def test_a_bar_on_a_terminal():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, markup=False, highlight=False)
    with module.BarReporter(console) as bar:
        bar.preparing("encode", 1, 2_000_000)
        bar.training(step(0, validation=validation()))
        bar.training(step(3))
        bar.training(step(4))
        bar._bars.refresh()
        bar.counting("evaluate", 8)(4, 5.5)
        bar._bars.refresh()
    shown = screen.getvalue()
    for expected in (
        "step 0/10  validation bound 4.500",
        "4/10  1,234 tok/s  bound 5.250 rate 16.5 dist 5.125",
        "4/8 sequences  5.500 nats/token",
    ):
        assert expected in shown


def test_the_reporter_suits_stderr(monkeypatch):
    assert isinstance(module.reporter(), module.LineReporter)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(module.reporter(), module.BarReporter)


def test_json_holds_no_nan(capsys):
    emit({"a": math.nan, "b": [1, math.inf, {"c": "\udcff\u00e9"}]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert "NaN" not in out
    assert out.count("null") == 2


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_340_000, "2.3 MB"), (5e15, "5000.0 TB")]
)
def test_sizes(count, shown):
    assert size_of(count) == shown


def test_figures_that_are_not_known():
    assert [nats(None), nats(math.nan), nats(1.23456)] == ["-", "-", "1.2346"]
    assert [nats(8e8, 1), nats(-2.5e300, 2), nats(math.inf)] == ["800000000.0", "-2.50e+300", "over 1e308"]


def test_files_of_a_run(tmp_path):
    for name in ("data/a.bin", "data/deep/b.bin", "plots/c.png", ".hidden/x", "config.toml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("four")
    assert file_sizes(tmp_path) == {"config.toml": 4, "data/": 8, "plots/c.png": 4}
