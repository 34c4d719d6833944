"""VGG-SS: clips of VGG-Sound. About 5,000 are annotated, in one JSON file that `--annotations` names.

    VGG-Sound/
        5k_labeled/Annotations/vggss_test_5158.json     or vggss.json, here or in metadata/
        5k_labeled/Data/frames/<name>.jpg               also Data/frames/, frames/
        5k_labeled/Data/audio/<name>.wav                also Data/audio/, audio/
        videos/<name>.mp4                               clips instead: the middle frame and the 3 s around it

    vggss_10k.txt, vggss_144k.txt                       training lists: a name on each line
    vggss_test.csv, vggss_test_4692.csv                 test lists, likewise; vggss_heard_test.csv and others work too

A name is `<YouTube id>_<second, six digits>`. The JSON file is a list of {"file": name, "class": ..., "bbox": [[x1, y1,
x2, y2], ...]}; the boxes are fractions of the picture's width and height. There is one annotator: consensus 1.
"""

from __future__ import annotations

from pathlib import Path

from essl_fast.common.errors import InputError, short
from essl_fast.common.files import parse_json
from essl_fast.data.datasets.dataset import Dataset, register_dataset
from essl_fast.data.datasets.listed import LISTED, Label, NoAnnotations, listed_dataset
from essl_fast.data.datasets.options import DatasetOptions
from essl_fast.data.datasets.tables import is_box, read_text

CONSENSUS = 1
_FILES = (
    "vggss.json",
    "metadata/vggss.json",
    "5k_labeled/Annotations/vggss_test_5158.json",
    "5k_labeled/Annotations/vggss.json",
    "Annotations/vggss.json",
)
_LARGEST = 1 << 28  # bytes; the published file has 0.6 MB


@register_dataset("vggss", **LISTED)
def read_vggss(options: DatasetOptions) -> Dataset:
    """`--dataset vggss`. InputError as `listed_dataset`."""
    return listed_dataset("vggss", JsonLabels, CONSENSUS, options)


class JsonLabels:
    """The labels of a JSON file."""

    def __init__(self, roots: list[Path], file: Path | None = None):
        """Find and read the file.

        Args:
            roots: folders that may hold it.
            file: the file itself, if it is known.

        Raises:
            NoAnnotations: `file` is not there, or no root has one.
            InputError: it is malformed.
        """
        places = [file] if file else [root / name for root in roots for name in _FILES]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise NoAnnotations(f"no annotations: looked for {', '.join(map(str, places))}; name the JSON file")
        self.where, self._labels = path.name, read_boxes(path, side=1)

    def has(self, name: str) -> bool:
        return name in self._labels

    def __call__(self, name: str) -> Label | None:
        """The label of a name, None if the file does not have it."""
        return self._labels.get(name)


def read_boxes(path: Path, side: float) -> dict[str, Label]:
    """Read a JSON file as above, or one whose "bbox" is a single box, as the published Chaotic World code writes it.

    Args:
        path: the file.
        side: of the square frame that the boxes refer to, in their units.

    Returns:
        Name → label. Several entries of a name are joined.

    Raises:
        InputError: the file is malformed.
    """
    if (size := path.stat().st_size) > _LARGEST:
        raise InputError(f"{path} has {size / 1e6:.0f} MB: is it the annotations?")
    try:
        entries = parse_json(read_text(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no JSON file ({error}): fetch it again") from None
    if not isinstance(entries, list):
        raise InputError(f"{path} holds no list of entries: is it the annotations?")
    labels: dict[str, Label] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path} entry {number}"
        if not isinstance(entry, dict) or not {"file", "class", "bbox"} <= entry.keys():
            raise InputError(f"{where}: {short(str(entry))} has not file, class and bbox: complete it")
        name, named, boxes = entry["file"], entry["class"], entry["bbox"]
        if not (isinstance(name, str) and name and isinstance(named, str) and named.strip()):
            raise InputError(f"{where}: file {short(str(name))} and class {short(str(named))} must be words")
        boxes = [boxes] if is_box(boxes) else boxes
        if not isinstance(boxes, list) or not all(map(is_box, boxes)):
            raise InputError(f"{where}: {short(str(boxes))} is no list of boxes of four finite numbers")
        known = labels.get(name, Label([], side, (), f"{path.name} entry {number}"))
        classes = tuple(dict.fromkeys((*known.classes, named.strip())))
        labels[name] = known._replace(boxes=[*known.boxes, *boxes], classes=classes)
    return labels
