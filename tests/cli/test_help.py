"""Help, examples, and that neither waits for the library."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import click
import pytest
from pyro_ltm_cli.main import COMMANDS, cli

from pyro_ltm import __version__

HEAVY = (
    "torch",
    "pyro",
    "datasets",
    "tokenizers",
    "numpy",
    "matplotlib",
    "rich",
    "safetensors",
    "pyarrow",
    "transformers",
)
COMMON = ("--json", "--seed", "--device", "--dtype")


def loaded_by(*arguments: str) -> set[str]:
    """Heavy modules that a command leaves imported, in a process of its own."""
    code = (
        "import sys\nfrom pyro_ltm_cli.main import cli\n"
        f"try: cli.main({list(arguments)!r})\nexcept SystemExit: pass\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def examples(command: click.Command) -> list[list[str]]:
    lines = re.findall(r"^  pyro-ltm (.+)$", command.epilog or "", flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("trian",), ("train", "--help"), ("score-samples", "--help")]
)
def test_help_imports_nothing_heavy(arguments):
    assert loaded_by(*arguments) == set()


def test_it_is_a_module_as_torchrun_starts_it():
    command = [sys.executable, "-W", "error", "-m", "pyro_ltm_cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"pyro-ltm {__version__}\n", "")


def test_what_draws_nothing_does_not_load_matplotlib(trained):
    loaded = loaded_by("generate", str(trained), "--max-new-tokens", "2")
    assert "torch" in loaded, "it did generate"
    assert "matplotlib" not in loaded


def test_every_command_is_listed_in_help_with_a_whole_sentence(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", result.stdout, flags=re.MULTILINE), name
    assert "..." not in result.stdout.replace("COMMAND [ARGS]...", "")


def test_version(invoke):
    assert invoke("--version").stdout == f"pyro-ltm {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_the_common_options(name, invoke):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"\n    pyro-ltm {name} " in result.stdout
    for option in COMMON:
        assert option in result.stdout


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_examples_parse(name):
    context = click.Context(cli)
    command = cli.get_command(context, name) if name else cli
    assert command is not None
    lines = examples(command)
    assert lines
    for called, *arguments in lines:
        assert called == name or not name
        example = cli.get_command(context, called)
        assert example is not None
        with example.make_context(called, arguments):
            pass


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    silent = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
    assert silent == []


def test_no_word_at_all_shows_the_help(invoke):
    result = invoke()
    assert result.exit_code == 0
    assert result.stdout == invoke("--help").stdout
    assert result.stderr == ""


def test_unknown_command_gets_a_suggestion(invoke, refused):
    result = invoke("trian")
    refused(result.exit_code, result.stdout, result.stderr, "'trian'", "did you mean 'train'?")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate"], "Missing argument 'RUN'"),
        (["evaluate", "x", "--particles", "0"], "'--particles': 0 is not in the range x>=1"),
        (["evaluate", "x", "--seed", "-1"], "'--seed': -1 is not in the range x>=0"),
        (["evaluate", "x", "--dtype", "float16"], "'--dtype': 'float16' is not one of"),
        (["evaluate", "x", "--partikles", "3"], "--partikles"),
        (["generate", "x", "--num", "0"], "'--num'"),
        (["plan", "--devices", "8xH100", "--rate", "nan"], "'--rate': nan is no finite number"),
        (["plan", "--devices", "8xH100", "--price", "inf"], "'--price': inf is no finite number"),
        (["train"], "Missing option '--out'"),
        (["prepare", "--out", "x"], "Missing argument 'SOURCE...'"),
        (["prepare", "x", "--out", "x", "--vocab-size", "300", "--tokenizer", "x"], "exclude each other"),
        (["prepare", "x", "--out", "x", "--validation", "y", "--validation-fraction", "0.2"], "exclude each other"),
        (["infer", "x", "--out", "y"], "give either --text or --input"),
        (["infer", "x", "--out", "y", "--text", "a", "--input", "b"], "give either --text or --input"),
        (["generate", "x", "--prompt", "\udcff"], "not valid UTF-8"),
    ],
)
def test_bad_usage_is_one_line(arguments, expected, invoke, refused):
    result = invoke(*arguments)
    line = refused(result.exit_code, result.stdout, result.stderr, expected, f"(see pyro-ltm {arguments[0]} --help)")
    assert result.stderr == line + "\n"
