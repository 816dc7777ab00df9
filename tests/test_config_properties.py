"""Any configuration: it is written and read back as it is, or refused in one line that names the setting."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from helpers.fuzz import OBEYED
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_ltm.config import Config, apply_settings, dump_toml, load_toml
from pyro_ltm.config.settings import flat
from pyro_ltm.errors import LONGEST, UserError
from pyro_ltm.presets import PRESETS, preset
from pyro_ltm.training.schedule import learning_rate

OPTIONS = {
    f"{section.name}.{entry.name}": entry
    for section in dataclasses.fields(Config)
    if dataclasses.is_dataclass(value := getattr(Config(), section.name))
    for entry in dataclasses.fields(value)
    if "doc" in entry.metadata
}
OPTIONS |= {entry.name: entry for entry in dataclasses.fields(Config) if "doc" in entry.metadata}


def within(entry):
    """Values of an option's type and range, its ends among them."""
    kind, low, high = type(entry.default), entry.metadata["low"], entry.metadata["high"]
    if entry.metadata["choices"]:
        return st.sampled_from(entry.metadata["choices"])
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.just(entry.default)
    if kind is int:
        return st.integers(int(low or 0), int(high) if high is not None else 1 << 40)
    return st.floats(low, high if high is not None else 1e9, allow_nan=False)


VALID = st.lists(
    st.sampled_from(sorted(OPTIONS)).flatmap(lambda key: st.tuples(st.just(key), within(OPTIONS[key]))),
    min_size=1,
    max_size=6,
)
ANYTHING = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(max_size=20), st.lists(st.integers(), max_size=2), st.none()
)


def applied(base, pairs):
    """The configuration, or None where it is refused as it should be."""
    try:
        config = apply_settings(preset(base), [f"{key}={str(value).lower()}" for key, value in pairs])
    except UserError as error:
        message = str(error)
        assert message
        assert len(message) <= LONGEST
        assert not OBEYED.search(message), repr(message)
        return None
    return config


@settings(max_examples=40)
@given(st.sampled_from(sorted(PRESETS)), VALID)
def test_what_is_in_its_range_is_read_back_as_it_was_written(base, pairs):
    config = applied(base, pairs)
    if config is None:  # two settings that do not fit each other
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(dump_toml(config), encoding="utf-8")
        assert load_toml(path, whole=True) == config
    assert flat(config) == flat(dataclasses.replace(config))
    for step in (0, config.slow.steps // 2, config.slow.steps - 1):
        assert 0 <= learning_rate(step, config.slow) <= config.slow.lr


@settings(max_examples=60)
@given(st.sampled_from(sorted(OPTIONS)), ANYTHING)
def test_whatever_stands_for_a_value_is_taken_or_refused_in_one_line(key, value):
    applied("nano", [(key, value)])
