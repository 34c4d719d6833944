"""What data sets ask for: which frames of which files, with which boxes."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.data.datasets import hdf5 as hdf5
    from essl_fast.data.datasets.annotations import GRID as GRID
    from essl_fast.data.datasets.annotations import Annotations as Annotations
    from essl_fast.data.datasets.annotations import LeftOut as LeftOut
    from essl_fast.data.datasets.annotations import boxes_to_grid as boxes_to_grid
    from essl_fast.data.datasets.annotations import choose_validation as choose_validation
    from essl_fast.data.datasets.annotations import digest as digest
    from essl_fast.data.datasets.chaotic import chaotic_world as chaotic_world
    from essl_fast.data.datasets.chaotic import read_chaotic_world as read_chaotic_world
    from essl_fast.data.datasets.dataset import HDF5 as HDF5
    from essl_fast.data.datasets.dataset import MIDDLE as MIDDLE
    from essl_fast.data.datasets.dataset import STILL as STILL
    from essl_fast.data.datasets.dataset import UNKNOWN as UNKNOWN
    from essl_fast.data.datasets.dataset import VIDEO as VIDEO
    from essl_fast.data.datasets.dataset import Dataset as Dataset
    from essl_fast.data.datasets.dataset import Files as Files
    from essl_fast.data.datasets.dataset import dataset_names as dataset_names
    from essl_fast.data.datasets.dataset import read_dataset as read_dataset
    from essl_fast.data.datasets.dataset import register_dataset as register_dataset
    from essl_fast.data.datasets.further import Further as Further
    from essl_fast.data.datasets.labels import boxes_by_class as boxes_by_class
    from essl_fast.data.datasets.labels import labelled as labelled
    from essl_fast.data.datasets.options import FRAMES as FRAMES
    from essl_fast.data.datasets.options import ROW_BOXES as ROW_BOXES
    from essl_fast.data.datasets.options import SOURCES as SOURCES
    from essl_fast.data.datasets.options import SUBSETS as SUBSETS
    from essl_fast.data.datasets.options import DatasetOptions as DatasetOptions
    from essl_fast.data.datasets.pairs import Pair as Pair
    from essl_fast.data.datasets.pairs import Pairs as Pairs
    from essl_fast.data.datasets.pairs import pair_key as pair_key
    from essl_fast.data.datasets.truth import Truth as Truth
    from essl_fast.data.datasets.truth import read_truth as read_truth

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Annotations": "annotations",
        "Dataset": "dataset",
        "DatasetOptions": "options",
        "FRAMES": "options",
        "Files": "dataset",
        "Further": "further",
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
        "boxes_by_class": "labels",
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
