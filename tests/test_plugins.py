"""Classes from outside of the library: named as `module:Class`, or announced by an installed package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest
from helpers import own_classes
from pyro_ltm_cli.main import cli

from pyro_ltm.config import Component
from pyro_ltm.errors import UserError
from pyro_ltm.guides import MeanField
from pyro_ltm.inference.parts import AXES
from pyro_ltm.plugins import find_class
from pyro_ltm.registry import parameters_of

SOURCE = Path(own_classes.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mine:MyGuide", "mine:MyGuide"),
        ("my.package:Outer.Inner:8:rank=3", "my.package:Outer.Inner"),
        ("renyi:0.5:16", ""),
        ("low-rank:rank=8", ""),
        ("laplace:full", ""),
        ("free-bits:0:thought", ""),
        ("mixture:Components=4", ""),
        ("gaussian:True", ""),
        ("<__main__.MyGuide>", ""),
        ("mean-field", ""),
        ("../mine:MyGuide", ""),
    ],
)
def test_a_class_is_told_from_a_name_with_arguments(name, own):
    assert Component(name=name).own_class == own


def test_no_member_takes_a_first_argument_that_reads_as_a_class():
    for registry in AXES.values():
        for name, kind in registry.items():
            defaults = [parameters_of(kind)[place].default for place in kind.arguments[:1]]
            assert not any(Component(name=f"{name}:{value}").own_class for value in defaults), name


MODULES = {
    "door_broken": ("import math\nmath.nothing\n", r"door_broken:X: .*AttributeError: .*\(door_broken\.py, line 2\)"),
    "door_syntax": ("def f(:\n", r"door_syntax:X: .*SyntaxError: .*line 1"),
    "door_exits": ("import sys\nsys.exit(3)\n", r"door_exits:X: .*SystemExit"),
    "door_needs": ("import door_absent.part\n", r"door_needs:X: .*ModuleNotFoundError: .*door_absent"),
    "door_empty": ("Z = 1\n", r"door_empty:X: there is no X in .*door_empty\.py"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_does_not_give_the_class_is_said_in_a_line(name, tmp_path, monkeypatch):
    source, says = MODULES[name]
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match=says):
        find_class(f"{name}:X")


def test_a_module_is_found_in_the_current_directory_and_one_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match="no module door_here"):
        find_class("door_here:Isotropic")
    (tmp_path / "door_here.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    assert find_class("door_here:Isotropic").__name__ == "Isotropic"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder into which pip installed a package that announces guides, two of which are of no use."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "door_package").mkdir()
    (folder / "door_package/__init__.py").write_text(SOURCE)
    (folder / "door_package/broken.py").write_text("import nothing_of_this_name\n")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "door-package"\nversion = "0.3"\n'
        '[project.entry-points."pyro_ltm.guides"]\nisotropic = "door_package:Isotropic"\n'
        'broken = "door_package.broken:X"\nno-guide = "door_package:Half"\nflow = "door_package:Isotropic"\n'
        '[project.entry-points."pyro_ltm.objectives"]\nhalf = "door_package:Half"\n'
        '[project.entry-points."pyro_ltm.optimizers"]\nplain = "door_package:Plain"\n'
        '[project.entry-points."pyro_ltm.slow_optimizers"]\nnadam = "door_package:NAdam"\n'
        '[project.entry-points."pyro_ltm.priors"]\nwide = "door_package:Wide"\n'
    )
    target = folder / "installed"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(folder)], check=True)
    return target


def test_an_installed_package_adds_names_to_every_axis(package, monkeypatch):
    names = {
        "guide": "isotropic:0.5",
        "objective": "half",
        "optimizer": "plain",
        "slow_optimizer": "nadam:",
        "prior": "wide",
    }
    for axis, name in names.items():
        with pytest.raises(UserError, match=f"unknown {axis}"):
            AXES[axis].build(Component(name=name.rstrip(":")))
    monkeypatch.syspath_prepend(package)
    assert "door_package" not in sys.modules
    assert {one.name for one in AXES["guide"].installed()} == {"broken", "isotropic", "no-guide"}
    assert "door_package" not in sys.modules, "listing names imports nothing"
    guide = AXES["guide"].build(Component(name="isotropic:0.5"), thoughts=2, dim=4, layers=1)
    assert (guide.width, guide.thoughts) == (0.5, 2)
    assert AXES["guide"].component(guide) == Component(name="isotropic", options={"width": 0.5})
    for axis, name in names.items():
        assert AXES[axis].build(
            Component(name=name.rstrip(":")), **({} if "opt" in axis else {"thoughts": 2, "dim": 4})
        )
    for name, says in (("broken", "door-package 0.3: .*nothing_of_this_name"), ("no-guide", "does not extend .*Guide")):
        with pytest.raises(UserError, match=says):
            AXES["guide"].build(Component(name=name))
    assert AXES["guide"]["flow"].__module__ == "pyro_ltm.guides.flow", "the library's own names are its own"
    assert isinstance(AXES["guide"].build(Component(name="mean-field"), thoughts=1, dim=2), MeanField)


def test_the_list_says_where_a_name_comes_from_and_what_is_of_no_use(package, monkeypatch):
    monkeypatch.syspath_prepend(package)
    call = click.testing.CliRunner(catch_exceptions=False).invoke
    found = {entry["name"]: entry for entry in json.loads(call(cli, ["guides", "--json"]).stdout)["guides"]}
    assert found["mean-field"]["source"] == "pyro-ltm"
    assert found["isotropic"]["source"] == "door-package 0.3"
    assert found["isotropic"]["summary"] == "A Normal with one width for all dimensions of a thought."
    assert found["isotropic"]["options"] == {"width": 1.0}
    assert "nothing_of_this_name" in found["broken"]["problem"]
    said = call(cli, ["guides"]).stdout
    assert "isotropic:[WIDTH]  [door-package 0.3]" in said
    assert "Not usable: guide 'no-guide' of the package door-package 0.3" in said
