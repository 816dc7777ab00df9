"""Without a network, `hf:` says so in seconds and not in a minute."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from pyro_ltm.data import hub, read_source


@pytest.mark.parametrize("answers", [False, True], ids=["nobody there", "no answer"])
def test_a_hub_that_cannot_be_reached(answers, refused, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen(1)  # takes the call and never says a word
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        began = time.monotonic()
        line = refused(read_source, "hf:org/name:config")
    assert time.monotonic() - began < 5
    assert line.startswith(f"hf:org/name:config: {endpoint} cannot be reached: ")
    assert "HF_HUB_OFFLINE=1" in line


def test_a_hub_that_answers_is_asked_for_the_data(refused, monkeypatch, tmp_path):
    """And a folder, or work offline, needs none."""
    asked = []
    monkeypatch.setattr(hub, "check_hub", lambda *given: asked.append(given))
    assert "cannot be loaded" in refused(read_source, "hf:org/name:config")
    assert asked == [("hf:org/name:config", "org/name")]
    monkeypatch.undo()
    hub.check_hub(f"hf:{tmp_path}", str(tmp_path))
    hub.check_hub("hf:org/name", "org/name")  # tests are offline
