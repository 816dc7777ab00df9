"""What holds for every test: one thread, no network, nothing written outside temporary folders, a known seed."""

from __future__ import annotations

import gc
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Read when torch, matplotlib, tokenizers and datasets are imported, and inherited by the programs that tests start.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
)
_home = tempfile.TemporaryDirectory(prefix="pyro-ltm-tests-")
os.environ["HF_HOME"] = _home.name

import hypothesis  # noqa: E402
import numpy  # noqa: E402
import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
pyro.enable_validation(True)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _known_state() -> Iterator[None]:
    """Each test starts from one seed, with an empty parameter store, in single precision, and leaves one thread."""
    random.seed(0)
    numpy.random.seed(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed notes for devices that are not there who called it
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float32)  # fixtures of a module, which are set up before this, may have set another
    yield
    torch.set_default_dtype(torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 1, "left to the tests after it, whose threads would wait for each other"


@pytest.fixture(scope="session")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file from which 280 tokens are made."""
    from helpers.tiny_run import BIRDS

    path = tmp_path_factory.mktemp("text") / "birds.txt"
    path.write_text(BIRDS)
    return path


@pytest.fixture(scope="session")
def tiny_run(birds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `helpers.tiny_run.configure()` on `birds`, its tokens in it; copy it to write to it."""
    from helpers.tiny_run import configure

    import pyro_ltm as ltm

    return ltm.train(configure(), data=str(birds), out=tmp_path_factory.mktemp("tiny") / "run").folder


FIRST = (".", "fuzz", "training", "inference", "cli", "comparison")
"""Folders with files of half a minute, which would keep one process busy at the end while the others are idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first: single tests of a minute, such as types, lie in no folder."""

    def place(item: pytest.Item) -> int:
        folder = (item.path.parent.relative_to(Path(__file__).parent).parts or (".",))[0]
        return FIRST.index(folder) if folder in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is there before the first test stays: where memory is measured, garbage is looked for in the rest alone.

    Modules and tests are a million objects, and to look through them takes half a second each time.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Closes the temporary folder before the interpreter's end, where an open one is a ResourceWarning."""
    _home.cleanup()
