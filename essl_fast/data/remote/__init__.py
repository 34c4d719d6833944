"""Prepared data elsewhere: object stores and web servers, and the cache that shards come into."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.data.remote.ahead import Ahead as Ahead
    from essl_fast.data.remote.cache import Cache as Cache
    from essl_fast.data.remote.folder import Folder as Folder
    from essl_fast.data.remote.folder import open_folder as open_folder
    from essl_fast.data.remote.store import Stopped as Stopped
    from essl_fast.data.remote.store import Store as Store

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Ahead": "ahead",
        "Cache": "cache",
        "Folder": "folder",
        "Stopped": "store",
        "Store": "store",
        "open_folder": "folder",
    },
)
