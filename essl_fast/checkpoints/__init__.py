"""Checkpoints: ours and those of the published SSPL code, and the localizer restored from either."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.checkpoints import sspl as sspl
    from essl_fast.checkpoints.files import UNSEALED as UNSEALED
    from essl_fast.checkpoints.files import checkpoint_of as checkpoint_of
    from essl_fast.checkpoints.files import damage as damage
    from essl_fast.checkpoints.files import existing as existing
    from essl_fast.checkpoints.files import load as load
    from essl_fast.checkpoints.files import newest as newest
    from essl_fast.checkpoints.files import numbered as numbered
    from essl_fast.checkpoints.files import save as save
    from essl_fast.checkpoints.form import FORMAT as FORMAT
    from essl_fast.checkpoints.form import VERSION as VERSION
    from essl_fast.checkpoints.model_state import load_trained as load_trained
    from essl_fast.checkpoints.model_state import settings_of as settings_of
    from essl_fast.checkpoints.model_state import trained_state as trained_state
    from essl_fast.checkpoints.restoring import load_checkpoint as load_checkpoint
    from essl_fast.checkpoints.restoring import restore as restore
    from essl_fast.checkpoints.restoring import restore_published as restore_published
    from essl_fast.checkpoints.resuming import forbidden as forbidden
    from essl_fast.checkpoints.sspl import from_sspl_name as from_sspl_name
    from essl_fast.checkpoints.sspl import load_sspl as load_sspl
    from essl_fast.checkpoints.sspl import load_sspl_part as load_sspl_part
    from essl_fast.checkpoints.tensors import CONFIG_FILE as CONFIG_FILE
    from essl_fast.checkpoints.tensors import MODEL_FILE as MODEL_FILE
    from essl_fast.checkpoints.tensors import about as about
    from essl_fast.checkpoints.tensors import check_safetensors as check_safetensors
    from essl_fast.checkpoints.tensors import save_safetensors as save_safetensors

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CONFIG_FILE": "tensors",
        "FORMAT": "form",
        "MODEL_FILE": "tensors",
        "UNSEALED": "files",
        "VERSION": "form",
        "about": "tensors",
        "check_safetensors": "tensors",
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
        "save_safetensors": "tensors",
        "settings_of": "model_state",
        "sspl": "",
        "trained_state": "model_state",
    },
)
