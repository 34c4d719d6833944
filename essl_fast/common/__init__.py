"""What all packages may use: errors, atomic files, registries of named parts, and how commands begin and end."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "commands": "",
        "errors": "",
        "files": "",
        "lazy": "",
        "registry": "",
        "subprocesses": "",
    },
)
