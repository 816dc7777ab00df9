"""A run of an earlier version still loads: it was made as the defaults of the settings say that came later."""

from __future__ import annotations

import dataclasses

import pytest
import tomlkit

from pyro_ltm.config import Component, Config, dump_toml, load_toml
from pyro_ltm.errors import UserError
from pyro_ltm.presets import preset


def test_settings_that_came_later_may_be_missing(tmp_path):
    document = tomlkit.parse(dump_toml(preset("nano")))
    for key in ("tolerance", "patience", "subsample", "record"):
        del document["fast"][key]
    del document["compile"]
    for key in ("recompute", "decoder_warmup"):
        del document["slow"][key]
    path = tmp_path / "config.toml"
    path.write_text(tomlkit.dumps(document), encoding="utf-8")
    assert load_toml(path, whole=True) == preset("nano")
    del document["fast"]["noise"]
    path.write_text(tomlkit.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match=r"fast\.noise is missing"):
        load_toml(path, whole=True)


def test_the_name_of_an_earlier_release_is_read(tmp_path):
    text = dump_toml(preset("nano-long"))
    path = tmp_path / "config.toml"
    path.write_text(text.replace("decoder_warmup = ", "alone = "), encoding="utf-8")
    assert load_toml(path, whole=True) == preset("nano-long")
    path.write_text(text.replace("decoder_warmup = ", "alone = 0.2\ndecoder_warmup = "), encoding="utf-8")
    with pytest.raises(UserError, match=r"slow\.decoder_warmup is set twice"):
        load_toml(path)


def test_an_option_that_a_run_does_not_name_is_that_of_its_class(tmp_path):
    """The defaults of a configuration change from version to version; a run's must not."""
    bare = dataclasses.replace(
        Config(), optimizer=Component(name=Config().optimizer.name), objective=Component(name=Config().objective.name)
    )
    assert Config().optimizer.options
    assert Config().objective.options
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(bare), encoding="utf-8")
    assert load_toml(path, whole=True) == bare
