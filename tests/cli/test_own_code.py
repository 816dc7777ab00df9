"""Code outside of the library runs where its name was typed, or with --allow-code: never because a file says so."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from helpers import own_classes

NAMES = [
    "guide.name=cli_parts:Isotropic:0.5",
    "objective.name=cli_parts:Half:particles=2",
    "slow_optimizer.name=cli_parts:NAdam",
]
PAIR = ("--guides", "delta", "--objectives", "map")
SET = [word for name in NAMES for word in ("--set", name)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the user's module, and the run `run` that was trained there by names that were typed."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copyfile(own_classes.__file__, folder / "cli_parts.py")
    (folder / "mine.toml").write_text('[guide]\nname = "cli_parts:Isotropic"\nwidth = 0.5\n')
    (folder / "broken.py").write_text(Path(own_classes.__file__).read_text().replace("def distribution", "def density"))
    return folder


@pytest.fixture(scope="module")
def own(home, invoke, settings, trained):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "path", [entry for entry in sys.path if entry])
        result = invoke("train", "--data", trained / "data", "--out", home / "run", *settings(), *SET)
    assert result.exit_code == 0, result.stderr
    assert 'name = "cli_parts:Isotropic:0.5"' in (home / "run/config.toml").read_text()
    return home / "run"


@pytest.fixture
def _unknown(home, monkeypatch):
    """A new process in that folder: the module is not imported yet."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "cli_parts", raising=False)


@pytest.mark.usefixtures("_unknown")
@pytest.mark.parametrize(
    "command",
    [
        ("info", "RUN"),
        ("evaluate", "RUN"),
        ("generate", "RUN"),
        ("reconstruct", "RUN", "--text", "kalo"),
        ("compare", "RUN", *PAIR, "--out", "out"),
        ("train", "--resume", "--out", "RUN"),
        ("train", "--branch-from", "RUN", "--out", "new", "--steps", "9"),
        ("train", "--init-from", "RUN", "--data", "DATA", "--out", "new"),
        ("train", "--config", "mine.toml", "--data", "DATA", "--out", "new"),
        ("bench", "--config", "mine.toml"),
        (
            "compare",
            "--train",
            "--config",
            "mine.toml",
            "--data",
            "DATA",
            "--guides",
            "delta",
            "--objectives",
            "map",
            "--out",
            "o",
        ),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_file_that_names_code_is_refused(command, own, refuse, trained):
    words = [{"RUN": own, "DATA": trained / "data"}.get(word, word) for word in command]
    refuse(*words, says=("guide.name = 'cli_parts:Isotropic", "--allow-code"))
    assert "cli_parts" not in sys.modules, "it was not run"


@pytest.mark.usefixtures("_unknown")
def test_with_leave_it_runs(own, invoke, ask, home, settings, trained):
    assert ask("info", own, "--allow-code")["config"]["guide"]["name"] == "cli_parts:Isotropic:0.5"
    assert ask("evaluate", own, "--sequences", "2", "--allow-code")["bound"]["guide"] == "Isotropic"
    longer = invoke("train", "--resume", "--out", own, "--steps", "5", "--allow-code")
    assert (longer.exit_code, "from step 4 of 5" in longer.stderr) == (0, True)
    new = ("train", "--data", trained / "data", "--out", home / "new", *settings(**{"slow.steps": 1}))
    assert invoke(*new, "--config", "mine.toml", "--allow-code").exit_code == 0
    assert 'name = "cli_parts:Isotropic"' in (home / "new/config.toml").read_text()


@pytest.mark.usefixtures("_unknown")
@pytest.mark.parametrize(
    "command",
    [
        ("train", "--resume", "--out", "RUN", "--allow-code"),
        ("infer", "RUN", "--text", "kalo", "--out", "z.npz", "--allow-code"),
        ("embed", "RUN", "--data", "texts.txt", "--out", "z.npz", "--fast-steps", "1", "--seed", "3", "--allow-code"),
        ("fit-prior", "TRAINED", "--prior", "cli_parts:Wide", "--out", "fitted", "--steps", "2", "--sequences", "4"),
    ],
    ids=lambda command: command[0],
)
def test_commands_to_try_next_run_as_they_are_printed(command, own, invoke, trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(own.parent)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("-- kalo miter")
    done = invoke(*({"RUN": own, "TRAINED": trained}.get(word, word) for word in command))
    assert done.exit_code == 0, done.stderr
    assert ("trained for likelihood (objective cli_parts:Half" in done.stderr) == (command[0] == "embed")
    follow = [shlex.split(line) for line in done.stdout.partition("Next:\n")[2].splitlines()]
    assert follow
    for words in follow:
        result = invoke(*words[1:])
        assert (words[0], result.exit_code) == ("pyro-ltm", 0), result.stderr


@pytest.mark.usefixtures("_unknown")
def test_a_name_that_is_typed_needs_no_leave_after_training_either(trained, ask):
    pairs = ["--guides", "cli_parts:Isotropic:0.5", "--objectives", "cli_parts:Half:particles=2", "--sequences", "2"]
    found = ask("compare", trained, *pairs, "--particles", "2", "--out", "compared")
    assert [(pair["guide"], pair["objective"]) for pair in found["pairs"]] == [(pairs[1], pairs[3])]
    fitted = ask("evaluate", trained, "--sequences", "2", "--set", "optimizer.name=cli_parts:Plain")
    assert fitted["bound"]["sequences"] == 2


@pytest.mark.usefixtures("_unknown")
def test_a_class_that_breaks_the_contract_leaves_nothing_behind(refuse, settings, trained):
    new = ("train", "--data", trained / "data", "--out", "bad", *settings())
    refuse(*new, "--set", "guide.name=broken:Isotropic", says=("has no distribution(state), which every guide gives",))
    refuse(*new, "--set", "guide.name=cli_parts:Half", says=("does not extend pyro_ltm.guides.base.Guide",))
    refuse(*new, "--set", "guide.name=absent:Isotropic", says=("there is no module absent",))
    assert not Path("bad").exists()
