"""What data sets ask for: which frames of which files, with which boxes."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Annotations": "annotations",
        "Dataset": "dataset",
        "DatasetOptions": "options",
        "FRAMES": "options",
        "Files": "dataset",
        "GRID": "annotations",
        "HDF5": "dataset",
        "LeftOut": "annotations",
        "MIDDLE": "dataset",
        "Pair": "pairs",
        "Pairs": "pairs",
        "ROW_BOXES": "options",
        "SOURCES": "options",
        "STILL": "dataset",
        "SUBSETS": "options",
        "Truth": "truth",
        "UNKNOWN": "dataset",
        "VIDEO": "dataset",
        "boxes_to_grid": "annotations",
        "chaotic_world": "chaotic",
        "choose_validation": "annotations",
        "dataset_names": "dataset",
        "digest": "annotations",
        "hdf5": "",
        "labelled": "labels",
        "pair_key": "pairs",
        "read_chaotic_world": "chaotic",
        "read_dataset": "dataset",
        "read_truth": "truth",
        "register_dataset": "dataset",
    },
)
