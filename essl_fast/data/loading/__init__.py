"""What training sees of the data: the order of pairs, their decoding, what stays in memory, and the batches."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DecodeError": "decode_faults",
        "Exchange": "exchange",
        "FrameDecoder": "decoder",
        "GPU_SHARE": "memory",
        "HOST_SHARE": "memory",
        "Loader": "loader",
        "LoaderSettings": "settings",
        "Order": "order",
        "Pools": "pools",
        "RawBatch": "loader",
        "SoundLayout": "sounds",
        "bytes_per_pair": "sounds",
        "host_memory": "memory",
        "reels": "",
        "resize_host": "resize",
    },
)
