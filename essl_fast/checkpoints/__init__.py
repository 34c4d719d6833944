"""Checkpoints: ours, and those of the published SSPL code; a localizer out of either."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "FORMAT": "saving",
        "UNSEALED": "saving",
        "VERSION": "saving",
        "checkpoint_of": "saving",
        "fault": "saving",
        "forerunners": "saving",
        "from_sspl_name": "sspl",
        "kept": "saving",
        "load": "saving",
        "load_checkpoint": "restoring",
        "load_sspl": "sspl",
        "load_sspl_part": "sspl",
        "load_trained": "saving",
        "newest": "saving",
        "numbered": "saving",
        "restore": "restoring",
        "restore_published": "restoring",
        "save": "saving",
        "saving": "",
        "settings_of": "saving",
        "sspl": "",
        "trained_state": "saving",
    },
)
