"""What training sees of the data: the order of pairs, their decoding, what stays in memory, and the batches."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.data.loading import reels as reels
    from essl_fast.data.loading.decode_faults import DecodeError as DecodeError
    from essl_fast.data.loading.decoder import FrameDecoder as FrameDecoder
    from essl_fast.data.loading.exchange import Exchange as Exchange
    from essl_fast.data.loading.loader import Loader as Loader
    from essl_fast.data.loading.loader import RawBatch as RawBatch
    from essl_fast.data.loading.memory import GPU_SHARE as GPU_SHARE
    from essl_fast.data.loading.memory import HOST_SHARE as HOST_SHARE
    from essl_fast.data.loading.memory import host_memory as host_memory
    from essl_fast.data.loading.order import Order as Order
    from essl_fast.data.loading.pools import Pools as Pools
    from essl_fast.data.loading.resize import resize_host as resize_host
    from essl_fast.data.loading.settings import LoaderSettings as LoaderSettings
    from essl_fast.data.loading.sounds import SoundLayout as SoundLayout
    from essl_fast.data.loading.sounds import bytes_per_pair as bytes_per_pair

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
