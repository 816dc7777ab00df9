"""The repository keeps its own rules: which way imports point, what gets installed, how large files are."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import tomlkit
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

SHARED = {"errors", "config", "presets", "registry", "types", "weights", "files", "locks", "reading", "noise"}
SHARED |= {"divergence", "plugins", "distributed", "digests", "interruption"}
PARTS = {"model", "priors", "guides", "objectives", "optimizers"}
UP_TO_SCORES = SHARED | PARTS | {"data", "inference", "scores"}
LIBRARY = UP_TO_SCORES | {"runs", "training", "profiling", "comparison", "thoughts", "tasks", "reports"}
# Room -> what else of pyro_ltm it may import. A room that is missing here fails the test: give it its place first.
ARROWS = {
    "errors": set(),
    "digests": {"errors"},
    "reading": {"errors", "digests"},
    "config": {"errors", "reading"},
    "presets": {"errors", "config"},
    "plugins": {"errors", "config"},
    "registry": {"errors", "config", "plugins"},
    "types": {"errors", "weights"},
    "weights": {"errors"},
    "divergence": set(),
    "distributed": {"errors", "interruption"},
    "files": {"errors"},
    "interruption": set(),
    "locks": {"errors", "files", "reading"},
    "noise": {"errors"},
    "data": SHARED,
    "priors": SHARED,
    "model": SHARED | {"priors"},
    "guides": SHARED,
    "objectives": SHARED,
    "optimizers": SHARED,
    "inference": SHARED | PARTS,
    "scores": SHARED | PARTS | {"data", "inference"},
    "runs": UP_TO_SCORES,
    "training": UP_TO_SCORES | {"runs"},
    "profiling": UP_TO_SCORES | {"runs", "training"},
    "comparison": UP_TO_SCORES | {"runs", "training", "profiling"},
    "thoughts": UP_TO_SCORES | {"runs"},
    "tasks": UP_TO_SCORES | {"runs"},
    "reports": LIBRARY - {"reports"},
    "integrations": LIBRARY,
    "": LIBRARY,
}


@cache
def kept_files() -> tuple[Path, ...]:
    """Files that are in git or about to be; without git, all but what lies in hidden or generated folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
        paths = [ROOT / name for name in listed if name]
    else:
        generated = re.compile(r"(^|/)(\.[^/]+|build|dist|__pycache__|[^/]+\.egg-info)/|^runs/")
        paths = [path for path in ROOT.rglob("*") if not generated.search(path.relative_to(ROOT).as_posix())]
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files(*folders: str) -> list[Path]:
    tops = [ROOT / folder for folder in folders]
    return [path for path in kept_files() if path.suffix == ".py" and any(top in path.parents for top in tops)]


def imports(path: Path, package: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that the file at `path`, a module directly in `package`, imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room(name: str) -> str:
    """The room of a dotted name: `pyro_ltm.guides.base` is in `guides`, `pyro_ltm.__version__` in none."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ARROWS else ""


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_arrows_point_one_way():
    assert python_files("pyro_ltm")
    wrong = []
    for path in python_files("pyro_ltm"):
        here = path.relative_to(ROOT / "pyro_ltm").parts[0].removesuffix(".py").replace("__init__", "")
        if here not in ARROWS:
            wrong.append(f"{named(path)}: room '{here}' has no place in ARROWS")
            continue
        for line, name in imports(path, package_of(path)):
            inside = name.split(".")[0] == "pyro_ltm" and name != "pyro_ltm.__version__"
            if inside and room(name) not in ARROWS[here] | {here}:
                wrong.append(f"{named(path)}:{line} imports {name}; {here or 'pyro_ltm'} may not")
    assert not wrong, "\n".join(wrong)


def test_only_reports_draw():
    """What computes knows neither pictures nor pages."""
    wrong = [
        f"{named(path)}:{line} imports {name}"
        for path in python_files("pyro_ltm", "cli")
        for line, name in imports(path, package_of(path))
        if name.split(".")[0] in ("matplotlib", "html") and path.parent.name != "reports"
    ]
    assert not wrong, "\n".join(wrong)


def test_arrows_have_no_cycle():
    seen: set[str] = set()
    while len(seen) < len(ARROWS):
        ready = {here for here, others in ARROWS.items() if here not in seen and others <= seen}
        assert ready, f"a cycle among {set(ARROWS) - seen}"
        seen |= ready


def test_nobody_imports_the_command_line():
    wrong = [
        f"{named(path)}:{line} imports {name}"
        for path in python_files("pyro_ltm", "examples", "benchmarks")
        for line, name in imports(path, package_of(path))
        if name.split(".")[0] in ("pyro_ltm_cli", "cli")
    ]
    assert not wrong, "\n".join(wrong)


def test_command_line_goes_by_its_installed_name():
    """`cli` exists in the repository alone. Within it imports are relative: those mypy follows as well."""
    rules = (("cli", "pyro_ltm_cli", "a relative import"), ("tests", "cli", "pyro_ltm_cli"))
    wrong = [
        f"{named(path)}:{line} imports {name}: write {right}"
        for folder, forbidden, right in rules
        for path in python_files(folder)
        for line, name in imports(path, package_of(path))
        if name.split(".")[0] == forbidden
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "stranger"),
    [
        *((f"config/{part}.py", stranger) for part in ("option", "sections", "toml") for stranger in ("torch", "pyro")),
        ("model/decoder.py", "pyro"),
        ("model/attention.py", "pyro"),
    ],
)
def test_stays_free_of(file, stranger):
    path = ROOT / "pyro_ltm" / file
    found = [f"line {line}: {name}" for line, name in imports(path, package_of(path)) if name.split(".")[0] == stranger]
    assert not found, f"{named(path)} imports {stranger}: {found}"


def test_no_python_file_is_longer_than_450_lines():
    lengths = {named(path): len(path.read_bytes().splitlines()) for path in python_files(".")}
    assert not {name: lines for name, lines in lengths.items() if lines > 450}


def test_no_file_is_larger_than_a_megabyte():
    sizes = {named(path): path.stat().st_size for path in kept_files()}
    assert not {name: size for name, size in sizes.items() if size > 1_000_000}


def test_no_path_of_somebodys_machine():
    machine = re.compile(rb"(?<![\w.])/(root|Users|home/[a-z]\w*)/[\w.]")
    found = [named(path) for path in kept_files() if machine.search(path.read_bytes())]
    assert not found


@cache
def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def applies(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins_of(name: str, python: str) -> list[Requirement]:
    return [pin for pin in pins() if canonicalize_name(pin.name) == canonicalize_name(name) and applies(pin, python)]


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_once(python):
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [Requirement(text) for group in (PROJECT["project"]["dependencies"], *extras) for text in group]
    wrong = []
    for requirement in asked:
        if requirement.name == PROJECT["project"]["name"] or not applies(requirement, python):
            continue
        versions = [str(pin.specifier).removeprefix("==") for pin in pins_of(requirement.name, python)]
        if len(versions) != 1 or versions[0] not in requirement.specifier:
            wrong.append(f"{requirement} on Python {python}: pinned to {versions or 'nothing'}")
    assert not wrong, "\n".join(wrong)


def test_constraints_are_exact_and_single():
    assert not [str(pin) for pin in pins() if [clause.operator for clause in pin.specifier] != ["=="]]
    for python in PYTHONS:
        assert not {pin.name for pin in pins() if len(pins_of(pin.name, python)) > 1}


def packages_in_tree() -> set[str]:
    """Packages by their installed names: every folder of Python files under pyro_ltm/ and cli/."""
    folders = {path.relative_to(ROOT).parent for path in python_files("pyro_ltm", "cli")}
    return {".".join(folder.parts).replace("cli", "pyro_ltm_cli", 1) for folder in folders}


def test_every_package_is_listed():
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_in_tree()


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    """Names of the files in a wheel built from a copy of what is in git."""
    copy = tmp_path_factory.mktemp("copy")
    for path in kept_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('wheel'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (copy / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_installs_two_packages_and_none_called_cli(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert tops == {"pyro_ltm", "pyro_ltm_cli"}


def test_wheel_holds_every_file_of_the_packages(wheel_names):
    kept = [path for path in kept_files() if {ROOT / "pyro_ltm", ROOT / "cli"} & set(path.parents)]
    wanted = {re.sub(r"^cli/", "pyro_ltm_cli/", named(path)) for path in kept}
    assert wanted <= wheel_names, "package-data in pyproject.toml leaves out what the wheel needs"


def test_console_script_exists():
    module, function = PROJECT["project"]["scripts"]["pyro-ltm"].split(":")
    path = ROOT / (module.replace("pyro_ltm_cli", "cli", 1).replace(".", "/") + ".py")
    names = {getattr(node, "name", None) for node in ast.parse(path.read_text(encoding="utf-8")).body}
    assert function in names


def test_installed_without_a_top_level_cli(tmp_path):
    look = "import importlib.util as u; print([bool(u.find_spec(n)) for n in ('pyro_ltm', 'pyro_ltm_cli', 'cli')])"
    done = subprocess.run([sys.executable, "-I", "-c", look], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, False]"


def test_no_docstring_begins_with_what():
    """It says what a thing is, and not that it is about to."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [
        f"{named(path)}:{node.body[0].lineno}"
        for path in python_files("pyro_ltm", "cli")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (ast.get_docstring(node) or "").startswith("What ")
    ]
    assert not found
