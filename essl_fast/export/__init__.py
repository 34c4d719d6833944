"""A trained model as files that other programs read: ONNX, torch.export, safetensors, a hub's folder, SSPL's files."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.export.command import export_checkpoint as export_checkpoint
    from essl_fast.export.hub import push as push

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"export_checkpoint": "command", "push": "hub"})
