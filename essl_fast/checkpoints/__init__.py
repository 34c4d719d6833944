"""Checkpoints: ours and those of the published SSPL code, and the localizer restored from either."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.checkpoints.restoring import load_checkpoint as load_checkpoint

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "FORMAT": "files",
        "UNSEALED": "files",
        "VERSION": "files",
        "checkpoint_of": "files",
        "damage": "files",
        "existing": "files",
        "forbidden": "resuming",
        "from_sspl_name": "sspl",
        "load": "files",
        "load_checkpoint": "restoring",
        "load_sspl": "sspl",
        "load_sspl_part": "sspl",
        "load_trained": "model_state",
        "newest": "files",
        "numbered": "files",
        "restore": "restoring",
        "restore_published": "restoring",
        "save": "files",
        "settings_of": "model_state",
        "sspl": "",
        "trained_state": "model_state",
    },
)
