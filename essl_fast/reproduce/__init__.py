"""The paper's tables and figures from runs on the user's data, beside the published ones."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.reproduce import results as results
    from essl_fast.reproduce import worlds as worlds
    from essl_fast.reproduce.command import reproduce as reproduce
    from essl_fast.reproduce.worlds_command import reproduce_worlds as reproduce_worlds

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"reproduce": "command", "reproduce_worlds": "worlds_command", "results": "", "worlds": ""}
)
