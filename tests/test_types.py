"""Types hold. A test like the others, so that a core that mypy leaves idle runs them meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)  # from an empty cache it reads torch's types, too
def test_types_hold():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
