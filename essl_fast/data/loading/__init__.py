"""What training sees of the data: order, decoding, memory, and the batches."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "exchange": "",
        "loader": "",
        "order": "",
        "pipeline": "",
        "pool": "",
        "reels": "",
    },
)
