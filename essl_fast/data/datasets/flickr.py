"""Flickr-SoundNet: pictures with sound. 5,000 are annotated; `--annotations` names the folder of their XML files.

    SoundNet_Flickr/
        5k_labeled/Annotations/<name>.xml       a file for each pair; also Annotations/<name>.xml
        5k_labeled/Data/frames/<name>.jpg       also Data/frames/, frames/
        5k_labeled/Data/audio/<name>.wav        also Data/audio/, audio/
        frames/<path>/*.jpg, mp3/<path's folder>/*.mp3      SoundNet's own tree, where the training list has paths

    flickr_10k.txt, flickr_144k.csv             training lists: a name or the path of a video on each line
    flickr_test.csv                             the test list of 249 or 250 pairs: the name comes first on each line

An XML file holds the boxes of several annotators, in pixels of a 256 x 256 picture:

    <annotation> <annotator> <bbox> <type/> <xmin>10</xmin> <ymin>20</ymin> <xmax>100</xmax> <ymax>120</ymax> </bbox> …

As in the published code, every `bbox` two levels below the root is read; its first child is ignored and the next four
are the box, whatever their tags. A pixel counts fully where two boxes agree: consensus 2.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from essl_fast.common.errors import InputError
from essl_fast.data.datasets.dataset import UNKNOWN, Dataset, register_dataset
from essl_fast.data.datasets.listed import LISTED, Label, NoAnnotations, listed_dataset
from essl_fast.data.datasets.options import DatasetOptions

SIDE = 256  # pixels of the pictures that the boxes were drawn on
CONSENSUS = 2
_FOLDERS = ("Annotations", "5k_labeled/Annotations", "annotations")
_LARGEST = 1 << 20  # bytes of an XML file; published ones have 1 KB


@register_dataset("flickr", **LISTED)
def read_flickr(options: DatasetOptions) -> Dataset:
    """`--dataset flickr`. InputError as `listed_dataset`."""
    return listed_dataset("flickr", XmlLabels, CONSENSUS, options)


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type: only there can a file declare entities, which can expand without end."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        del name, public, system
        raise ValueError("it declares a document type, which annotations do not need")


class XmlLabels:
    """The labels of a folder of XML files. Each file is read when its label is asked for."""

    def __init__(self, roots: list[Path], folder: Path | None = None):
        """Find the folder.

        Args:
            roots: folders that may hold it.
            folder: the folder itself, if it is known.

        Raises:
            NoAnnotations: `folder` is no folder, or no root has one.
        """
        places = [folder] if folder else [root / name for root in roots for name in _FOLDERS]
        there = next((place for place in places if place.is_dir()), None)
        if there is None:
            looked = ", ".join(map(str, places))
            raise NoAnnotations(f"no folder of annotations: looked for {looked}; name that of the XML files")
        self.folder = there
        self.where = f"{self.folder.name}/"

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.xml").is_file()

    def __call__(self, name: str) -> Label | None:
        """The label of a name, None if it has no XML file. InputError if the file is malformed."""
        path = self.folder / f"{name}.xml"
        if not path.is_file():
            return None
        return Label(read_boxes(path), SIDE, (UNKNOWN,), path.name)


def read_boxes(path: Path) -> list[list[float]]:
    """The boxes of an XML file, in its order: K x 4, xyxy, pixels of a 256 x 256 picture. InputError if malformed."""
    fix = "fetch it again, or take its name out of the lists"
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"{size:,} bytes are no list of boxes")
        parser = ElementTree.XMLParser(target=_NoDoctype())
        parser.feed(path.read_bytes())
        root = parser.close()
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise InputError(f"{path} cannot be read as XML ({error}): {fix}") from error
    found: list[list[float]] = []
    for box in (box for parent in root for box in parent if box.tag == "bbox"):
        texts = [(child.text or "").strip() for child in box]
        try:
            if len(texts) != 5:
                raise ValueError(f"{len(texts)} children instead of 5")
            values = [float(text) for text in texts[1:]]
            if not all(abs(value) < 1e9 for value in values):  # NaN included
                raise ValueError("a number out of range")
        except ValueError as error:
            raise InputError(f"{path}: box {len(found) + 1} is no xmin, ymin, xmax, ymax ({error}): {fix}") from None
        found.append(values)
    return found
