"""The settings: dataclasses, YAML files and command lines."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.config import yamls as yamls
    from essl_fast.config.parsing import choices_of as choices_of
    from essl_fast.config.parsing import configs_folder as configs_folder
    from essl_fast.config.parsing import find_file as find_file
    from essl_fast.config.parsing import load as load
    from essl_fast.config.parsing import parse as parse
    from essl_fast.config.parsing import parser as parser
    from essl_fast.config.parsing import shipped_names as shipped_names
    from essl_fast.config.settings import MOST_PARTS as MOST_PARTS
    from essl_fast.config.settings import SIZE as SIZE
    from essl_fast.config.settings import STORED_SIDE as STORED_SIDE
    from essl_fast.config.settings import Config as Config
    from essl_fast.config.settings import DataConfig as DataConfig
    from essl_fast.config.settings import DemoConfig as DemoConfig
    from essl_fast.config.settings import ModelConfig as ModelConfig
    from essl_fast.config.settings import ObjectiveConfig as ObjectiveConfig
    from essl_fast.config.settings import OptimConfig as OptimConfig
    from essl_fast.config.settings import check as check
    from essl_fast.config.settings import check_device as check_device
    from essl_fast.config.settings import difference as difference
    from essl_fast.config.settings import from_dict as from_dict
    from essl_fast.config.settings import leaves as leaves
    from essl_fast.config.settings import to_dict as to_dict
    from essl_fast.config.settings import value_of as value_of
    from essl_fast.config.sharing import fewest_parts as fewest_parts
    from essl_fast.config.sharing import own_batch as own_batch
    from essl_fast.config.sharing import own_batches as own_batches
    from essl_fast.config.sharing import shared_batch as shared_batch
    from essl_fast.config.sharing import turns as turns
    from essl_fast.config.sharing import update_batches as update_batches
    from essl_fast.config.sharing import update_pairs as update_pairs

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Config": "settings",
        "DataConfig": "settings",
        "DemoConfig": "settings",
        "ModelConfig": "settings",
        "ObjectiveConfig": "settings",
        "OptimConfig": "settings",
        "MOST_PARTS": "settings",
        "SIZE": "settings",
        "STORED_SIDE": "settings",
        "check": "settings",
        "check_device": "settings",
        "configs_folder": "parsing",
        "choices_of": "parsing",
        "difference": "settings",
        "fewest_parts": "sharing",
        "find_file": "parsing",
        "from_dict": "settings",
        "leaves": "settings",
        "load": "parsing",
        "own_batch": "sharing",
        "own_batches": "sharing",
        "parse": "parsing",
        "parser": "parsing",
        "shared_batch": "sharing",
        "shipped_names": "parsing",
        "to_dict": "settings",
        "turns": "sharing",
        "update_batches": "sharing",
        "update_pairs": "sharing",
        "value_of": "settings",
        "yamls": "",
    },
)
