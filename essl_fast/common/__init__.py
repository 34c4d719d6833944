"""What all packages may use: errors, atomic files, registries of named parts, and how commands begin and end."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.common import commands as commands
    from essl_fast.common import errors as errors
    from essl_fast.common import files as files
    from essl_fast.common import lazy as lazy
    from essl_fast.common import locks as locks
    from essl_fast.common import nearest as nearest
    from essl_fast.common import outputs as outputs
    from essl_fast.common import places as places
    from essl_fast.common import progress as progress
    from essl_fast.common import pulse as pulse
    from essl_fast.common import registry as registry
    from essl_fast.common import streams as streams
    from essl_fast.common import subprocesses as subprocesses
    from essl_fast.common import urls as urls
    from essl_fast.common import values as values

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "commands": "",
        "errors": "",
        "files": "",
        "lazy": "",
        "locks": "",
        "nearest": "",
        "outputs": "",
        "places": "",
        "progress": "",
        "pulse": "",
        "registry": "",
        "streams": "",
        "subprocesses": "",
        "urls": "",
        "values": "",
    },
)
