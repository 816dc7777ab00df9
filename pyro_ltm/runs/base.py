"""The base model of a grafted run: in the run's own folder, or elsewhere by its path and digest."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from pyro_ltm.config import Config, dump_toml, read_config
from pyro_ltm.errors import UserError
from pyro_ltm.files import new_folder, write_text
from pyro_ltm.model.grafting import base_files, digest_of
from pyro_ltm.runs.folder import CONFIG

BASE = "base"
"""The folder of a run in which its base lies."""


def load_config(folder: Path) -> Config:
    """The configuration of the run in `folder`; where it is grafted, with the path to its base. Raises UserError.

    Whoever builds by it looks first whether it names code (`without_code`).
    """
    config = read_config(folder / CONFIG, whole=True)
    return with_base(config, folder / config.graft.base) if config.graft.base else config


def save_config(folder: Path, config: Config) -> None:
    """Writes the configuration of the run in `folder`; a base that lies there is named by its place in it."""
    if config.graft.base and _is_inside(Path(config.graft.base), folder):
        config = with_base(config, Path(BASE))
    write_text(folder / CONFIG, dump_toml(config))


def with_base(config: Config, base: Path) -> Config:
    """`config`, whose base lies at `base`."""
    return replace(config, graft=replace(config.graft, base=str(base)))


def take_base(source: Path, out: Path, *, copy: bool) -> Path:
    """Puts the files of a base model into the run folder `out`, and gives their folder there.

    Args:
        copy: a true copy; else the files get a second name where the file system can do that.

    Raises:
        UserError: another folder is there already, or it cannot be written.
    """
    place = out / BASE
    if place.exists():
        if digest_of(place) != digest_of(source):
            raise UserError(f"{place}: is there already, and is not the base model: choose another folder")
        return place
    with new_folder(place) as folder:
        for path in base_files(source):
            _bring(path, folder / path.name, copy=copy)
    return place


def share_base(config: Config, out: Path) -> Config:
    """`config` for a run in `out` that goes on from a grafted one: with the base in `out`, where it lay in that run."""
    base = Path(config.graft.base)
    if not config.graft.base or _is_inside(base, out) or not (base.name == BASE and (base.parent / CONFIG).is_file()):
        return config
    return with_base(config, take_base(base, out, copy=False))


def _bring(path: Path, target: Path, *, copy: bool) -> None:
    if not copy:
        try:
            os.link(path.resolve(), target)
            return
        except OSError:  # another file system, or one without second names
            pass
    shutil.copyfile(path, target)


def _is_inside(base: Path, folder: Path) -> bool:
    return base.name == BASE and base.parent.resolve() == folder.resolve()
