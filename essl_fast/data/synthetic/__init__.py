"""The demo world: short videos, made from a seed, in which one of several moving objects sounds."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {"World": "world", "make_world": "world"})
