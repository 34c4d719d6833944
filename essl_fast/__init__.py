"""Fast training of event sound source localization: where in a video frame does the sound come from?

The commands are `python -m essl_fast.train`, `.prepare`, `.evaluate`, `.localize`, `.report`, `.reproduce`, `.doctor`,
`.pretrain`, `.export` and `.replay`; README.md tells how to use them. In Python, the work of a command is a function of
its package: `essl_fast.prepare.prepare`, `essl_fast.train.fit`, `essl_fast.evaluate.evaluate_checkpoint`. docs/api.md
lists them all.
"""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports
from essl_fast.common.places import name_user

if TYPE_CHECKING:
    from essl_fast import kernels as kernels
    from essl_fast import models as models
    from essl_fast.checkpoints import load_checkpoint as load_checkpoint
    from essl_fast.data.datasets import register_dataset as register_dataset
    from essl_fast.data.loading import Loader as Loader
    from essl_fast.data.shards import Manifest as Manifest
    from essl_fast.localize import SoundFinder as SoundFinder
    from essl_fast.models import register_audio as register_audio
    from essl_fast.models import register_objective as register_objective
    from essl_fast.models import register_trunk as register_trunk
    from essl_fast.train import register_logger as register_logger

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Loader": "data.loading",
        "Manifest": "data.shards",
        "SoundFinder": "localize",
        "kernels": "",
        "load_checkpoint": "checkpoints",
        "models": "",
        "register_audio": "models",
        "register_dataset": "data.datasets",
        "register_logger": "train",
        "register_objective": "models",
        "register_trunk": "models",
    },
)

name_user()  # before PyTorch is imported, which asks a user without a name for it
