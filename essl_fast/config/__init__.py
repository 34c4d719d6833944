"""The settings: dataclasses, YAML files and command lines."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.config.settings import Config as Config
    from essl_fast.config.settings import DataConfig as DataConfig
    from essl_fast.config.settings import ModelConfig as ModelConfig
    from essl_fast.config.settings import ObjectiveConfig as ObjectiveConfig
    from essl_fast.config.settings import OptimConfig as OptimConfig

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Config": "settings",
        "DataConfig": "settings",
        "DemoConfig": "settings",
        "ModelConfig": "settings",
        "ObjectiveConfig": "settings",
        "OptimConfig": "settings",
        "SIZE": "settings",
        "STORED_SIDE": "settings",
        "check": "settings",
        "check_device": "settings",
        "configs_folder": "parsing",
        "difference": "settings",
        "find_file": "parsing",
        "from_dict": "settings",
        "load": "parsing",
        "parse": "parsing",
        "parser": "parsing",
        "to_dict": "settings",
        "yamls": "",
    },
)
