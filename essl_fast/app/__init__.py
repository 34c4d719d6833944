"""A page in the browser that localizes the sound of a video."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.app.blocks import page as page
    from essl_fast.app.work import Answer as Answer
    from essl_fast.app.work import Limits as Limits
    from essl_fast.app.work import answer as answer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"Answer": "work", "Limits": "work", "answer": "work", "page": "blocks"}
)
