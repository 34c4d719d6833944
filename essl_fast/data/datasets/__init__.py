"""What annotations ask for: which frames of which files, with which boxes."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Dataset": "dataset",
        "NAMES": "dataset",
        "SOURCES": "dataset",
        "annotations": "",
        "asked_for": "dataset",
        "chaotic": "dataset",
        "flickr": "",
        "from_h5": "dataset",
        "hdf5": "",
        "labels": "",
        "listed": "",
        "pairs": "",
        "pairs_of_files": "dataset",
        "published": "",
        "tables": "",
        "truth": "",
        "vggss": "",
    },
)
