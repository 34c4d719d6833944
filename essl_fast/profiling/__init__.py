"""Where the time of a training step goes, and how far each stage is from the least that it could take."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "explain": "",
        "floors": "",
        "gaps": "",
        "profile": "",
    },
)
