"""The paper's tables and figures from runs on the user's data, beside the published ones."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.reproduce.command import reproduce as reproduce

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"reproduce": "command"})
