"""Each notebook runs whole from a bare kernel, is kept with its outputs, and says the same as its source."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = {"variational_objectives": [0, 5], "training_with_objectives": [0]}
"""Their cells of code that say nothing: the imports, and the fits of section 3."""
# Of ipykernel itself, as it shuts down: it is not the notebook's.
WARNINGS = "error,ignore::PendingDeprecationWarning"


@pytest.fixture(scope="module", params=NOTEBOOKS)
def source(request):
    return EXAMPLES / f"{request.param}.py"


@pytest.fixture(scope="module")
def saved(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def outputs(notebook, kind):
    return [output for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == kind]


def execute(source, tmp_path, monkeypatch, share, timeout):
    """The notebook made from its source and run in an empty folder by a new kernel, warnings being errors."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONWARNINGS", WARNINGS)
    monkeypatch.setenv("PYRO_LTM_NOTEBOOK_SHARE", str(share))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(EXAMPLES / "made_language.py", work)
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": str(work)}}).execute()
    return notebook


def check(notebook, saved):
    """No warnings, and the same kinds of output in the same cells as those that are kept."""
    assert not outputs(notebook, "error")
    assert not [output for output in outputs(notebook, "stream") if output.name == "stderr"]
    for new, old in zip(notebook.cells, saved.cells, strict=True):
        assert bool(new.get("outputs")) == bool(old.get("outputs")), new.source[:80]
    said = [
        output.data["text/markdown"] for output in outputs(notebook, "display_data") if "text/markdown" in output.data
    ]
    assert sum(text.startswith("**Seen.**") for text in said) == 3
    assert not [text for text in said if re.search(r"\b(nan|inf)\b", text)]


def test_source_and_notebook_are_in_step(source, saved):
    assert cells(jupytext.read(source)) == cells(saved), f"run: jupytext --sync examples/{source.name}"


def test_is_kept_with_its_outputs(source, saved):
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    silent = [index for index, cell in enumerate(code) if not cell.outputs]
    assert silent == NOTEBOOKS[source.stem]
    assert [output for output in outputs(saved, "display_data") if "image/png" in output.data]
    assert not outputs(saved, "error")
    assert not [output for output in outputs(saved, "stream") if output.name == "stderr"]
    (last,) = code[-1].outputs
    assert re.fullmatch(r"run in \d+ s\n", last.text), "kept with all steps and texts"


def test_sliders_show_without_a_kernel():
    saved = nbformat.read(EXAMPLES / "variational_objectives.ipynb", as_version=4)
    widget = "application/vnd.jupyter.widget-view+json"
    assert [output for output in outputs(saved, "display_data") if widget in output.data]
    assert saved.metadata.widgets, "their state is kept"


def test_holds_no_path_of_the_machine_that_ran_it(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(tmp|root|home|work|Users|usr)/\w", text)


def test_runs_in_short(source, tmp_path, monkeypatch, saved):
    check(execute(source, tmp_path, monkeypatch, share=0.02, timeout=240), saved)


@pytest.mark.long
def test_runs_whole(source, tmp_path, monkeypatch, saved):
    assert "OMP_NUM_THREADS" in os.environ
    check(execute(source, tmp_path, monkeypatch, share=1, timeout=1200), saved)
