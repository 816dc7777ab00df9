"""The harness's side of a run of it: tasks found and loaded, its terminal output off, its results that we keep."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from lm_eval import evaluator
from lm_eval.tasks import TaskManager

from pyro_ltm.config import suggest
from pyro_ltm.data.hub import quiet_loggers
from pyro_ltm.errors import UserError, one_line

YAML = (".yaml", ".yml")

BY_TEXT = ("word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics of a text by its words and bytes."""


def load_tasks(tasks: Sequence[str], include_path: Path | None) -> tuple[list[Any], TaskManager]:
    """The groups and tasks that these names, patterns or YAML files stand for, each once, and their manager.

    They are handed on loaded, so that their data are not read a second time.

    Raises:
        UserError: a task is not known or cannot be loaded.
    """
    manager = _manager(tasks, include_path)
    names = _known(tasks, manager)
    try:
        loaded = [manager.load([name]) for name in names]
    except Exception as error:  # whatever a task's file, its code, its data or the network come up with
        raise UserError(f"--tasks {','.join(tasks)}: cannot be loaded: {one_line(error, 300)}") from None
    return [*_each_once(loaded)], manager


def _manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    """Finds tasks: only in `include_path` where that will do, for the harness's own take seconds to list."""
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"--include-path {include_path}: no such folder; expected one with task files (.yaml)")
    if missing := [task for task in tasks if Path(task).suffix in YAML and not Path(task).is_file()]:
        raise UserError(f"--tasks {missing[0]}: no such file")
    own = TaskManager(include_path=include_path, include_defaults=False)
    enough = all(task in own.all_subtasks or Path(task).suffix in YAML for task in tasks)
    return own if enough else TaskManager(include_path=include_path)


def _known(tasks: Sequence[str], manager: TaskManager) -> list[str]:
    """The names that `tasks` stand for."""
    names: list[str] = []
    for task in tasks:
        found = [task] if Path(task).suffix in YAML else list(manager.match_tasks([task]))
        if not found:
            raise UserError(
                f"--tasks {task}: no such task{suggest(task, manager.all_tasks)}: 'lm-eval ls tasks' lists the "
                "harness's own, and --include-path adds a folder of yours"
            )
        names += found
    return list(dict.fromkeys(names))


def _each_once(loaded: Sequence[Any]) -> Iterator[Any]:
    """Groups without those inside others, and tasks without those in groups."""
    for found in loaded:
        groups = found.get("groups") or {}
        inner = {child for group in groups.values() for child in group.child_names}
        below = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
        yield from (group for name, group in groups.items() if name not in inner)
        yield from (task for name, task in found["tasks"].items() if name not in below)


def leave_out(results: dict[str, Any], tasks: Collection[str]) -> None:
    """Makes None of the figures by the word and the byte of these tasks, and of groups that contain one of them."""
    below = results.get("group_subtasks") or {}

    def reaches(name: str) -> bool:
        return name in tasks or any(map(reaches, below.get(name, ())))

    for table in ("results", "groups"):
        for name, metrics in (results.get(table) or {}).items():
            for key in metrics if reaches(name) else ():
                if key.partition(",")[0].removesuffix("_stderr") in BY_TEXT:
                    metrics[key] = None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the harness from stdout and from the log, and from starting processes; afterwards all is as before."""
    # They call other programs to describe the machine; those write to the terminal, and nothing of it is used.
    silent = {"add_env_info": lambda results: None, "get_git_commit_hash": lambda: None}
    with contextlib.ExitStack() as stack:
        for name in filter(evaluator.__dict__.__contains__, silent):
            stack.enter_context(mock.patch.object(evaluator, name, silent[name]))
        stack.enter_context(mock.patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}))
        stack.enter_context(quiet_loggers("lm_eval", "datasets", "huggingface_hub"))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield
