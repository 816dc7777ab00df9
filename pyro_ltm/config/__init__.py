"""Configuration: frozen dataclasses, their presets, and TOML in both directions.

Knows nothing of torch. Every field carries its one-line meaning and its range, so the file written into a run folder
explains itself and a bad value is refused with what would have been right.
"""

from pyro_ltm.config.option import check_ranges, option, suggest
from pyro_ltm.config.sections import (
    ADAMW,
    GAUSSIAN,
    Component,
    Config,
    DataConfig,
    DistributedConfig,
    FastConfig,
    GraftConfig,
    ModelConfig,
    Scalar,
    SlowConfig,
)
from pyro_ltm.config.toml import (
    RENAMED,
    apply_settings,
    apply_together,
    dump_toml,
    load_toml,
    merge,
    read_config,
    without_code,
)

__all__ = [
    "ADAMW",
    "GAUSSIAN",
    "RENAMED",
    "Component",
    "Config",
    "DataConfig",
    "DistributedConfig",
    "FastConfig",
    "GraftConfig",
    "ModelConfig",
    "Scalar",
    "SlowConfig",
    "apply_settings",
    "apply_together",
    "check_ranges",
    "dump_toml",
    "load_toml",
    "merge",
    "option",
    "read_config",
    "suggest",
    "without_code",
]
