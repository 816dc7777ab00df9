"""Opening what commands work on: devices, runs, data. The library is imported in here, not before."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_ltm.errors import UserError

from .options import Common
from .progress import Reporter

if TYPE_CHECKING:
    from pyro_ltm.config import Config
    from pyro_ltm.data import Reading, TokenDataset
    from pyro_ltm.runs import Run
    from pyro_ltm.tasks.written_texts import Scorer


def check_device(name: str) -> str:
    """`name`, if torch can compute there. Raises UserError otherwise, before any work is done."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no such device; choose cpu, cuda, cuda:1 or mps") from None
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch warns of a driver that does not fit; the error below says it in one line
        count = torch.cuda.device_count() if device.type == "cuda" and torch.cuda.is_available() else 0
    if device.type == "cuda":
        if not count:
            raise UserError(f"--device {name}: torch finds no CUDA device on this machine; use --device cpu")
        if (device.index or 0) >= count:
            raise UserError(f"--device {name}: this machine has cuda:0 to cuda:{count - 1}")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"--device {name}: torch finds no Metal device on this machine; use --device cpu")
    elif device.type != "cpu":
        raise UserError(f"--device {name}: not supported; choose cpu, cuda, cuda:1 or mps")
    return name


def leave_of(config: Config) -> list[str]:
    """--allow-code, where a run of this configuration holds classes of the user's own: commands refuse it without."""
    return ["--allow-code"] if any(one.own_class for one in config.components.values()) else []


def say_what_for(run: Run) -> None:
    """A line where thoughts are looked at as features, of a run that was trained for likelihood alone."""
    from .output import note

    if run.config.model.thoughts and run.loop.objective.likelihood_alone:
        note(
            f"This run was trained for likelihood (objective {run.config.objective.name}), which leaves little in "
            "thoughts: for features, train --rate 40 or --preset nano-thoughts."
        )


def open_run(folder: Path, common: Common) -> Run:
    """The run in `folder`, on the device and in the precision asked for."""
    device = check_device(common.device)
    from pyro_ltm.distributed import current
    from pyro_ltm.runs import Run

    return Run.load(
        folder,
        device=current().device(device),
        dtype=common.dtype,
        weights=common.weights,
        allow_code=common.allow_code,
    )


def open_scorer(folder: Path, common: Common) -> Run | Scorer:
    """A scorer of texts: the run in `folder`, or the Hugging Face model where that is what lies there."""
    if (folder / "config.toml").is_file():
        return open_run(folder, common)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: neither a run folder, which has a config.toml, nor a Hugging Face model's, with a config.json"
        )
    device = check_device(common.device)
    from pyro_ltm.integrations.causal_lm import CausalLM

    return CausalLM.load(folder, device=device, dtype=common.dtype)


def open_rivals(
    run: Run, twin: Path | None, diffusion: Path | None, common: Common, *, base: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs to score beside `run`, by what they are, and for JSON which they are; says in what else they differ.

    Args:
        base: the twin of a graft is its base model, where no other is given.
    """
    from pyro_ltm.runs.twin import base_of, check_masked_diffusion

    from .output import note

    found: dict[str, Any] = {}
    about: dict[str, Any] = {}
    own = open_run(twin, common) if twin else base_of(run) if base else None
    if own is not None:
        found["twin"] = own
        about |= {"twin_run": str(twin), "twin_differs": check_twin(run, own)}
    if diffusion is not None:
        rival = found["masked_diffusion"] = open_run(diffusion, common)
        differs = check_masked_diffusion(run, rival)
        about |= {"masked_diffusion_run": str(diffusion), "masked_diffusion_differs": differs}
        if differs:
            what = "thoughts and the order of writing are not all that sets run and masked diffusion apart"
            note(f"Warning: {what}. Of the latter: {'; '.join(differs)}.")
    return found, about


def check_twin(run: Run, twin: Run) -> list[str]:
    """`check_twin` of the library, which says what it found."""
    from pyro_ltm.runs.twin import check_twin as check

    from .output import note

    if differs := check(run, twin):
        note(f"Warning: thoughts are not all that sets run and twin apart. Of the twin: {'; '.join(differs)}.")
    return differs


@contextlib.contextmanager
def open_data(run: Run, spec: str | None, reading: Reading, reporter: Reporter) -> Iterator[TokenDataset]:
    """`data_to_score`, which says what may not be expected of text that is prepared here."""
    from pyro_ltm.data.folder import is_token_folder
    from pyro_ltm.runs.data import data_to_score

    from .output import note
    from .sources import remarks

    with data_to_score(run, spec, reading=reading, on_prepare=reporter.preparing) as data:
        if spec is not None and not is_token_folder(spec):
            for line in remarks(data.folder.meta):
                note(line)
        yield data


def check_target(path: Path, *inputs: Path | None) -> None:
    """Raises UserError when no file can be written at `path`, before any work is done.

    A file of a run or of a prepared folder, or one that the command reads, is not written over.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if any(one is not None and one.exists() and path.exists() and one.samefile(path) for one in inputs):
        raise UserError(f"{path}: is read by this command, and not written over; name another file")
    from pyro_ltm.data.manifest import is_prepared, strangers
    from pyro_ltm.runs.folder import CONFIG
    from pyro_ltm.training.launch import WRITTEN

    place, name = path.absolute().parent, path.name
    of_a_run = (place / CONFIG).is_file() and name in (CONFIG, "data.json", "init.json", *WRITTEN)
    if path.exists() and (of_a_run or (is_prepared(place) and name not in strangers(place))):
        raise UserError(f"{path}: is a part of {place}, and not written over; name another file")


def check_thoughts_target(path: Path) -> None:
    """Raises UserError when no file of thoughts can be written at `path`, before the fits that it is to hold."""
    from pyro_ltm.reading import check_name
    from pyro_ltm.runs.thoughts_file import SUFFIXES

    check_target(path)
    check_name(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {path}: expected a name that ends in {' or '.join(SUFFIXES)}")
