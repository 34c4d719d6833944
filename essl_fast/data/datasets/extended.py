"""Extended Flickr-SoundNet and Extended VGG-SS: the test pairs, and as many whose sound is not in the frame.

    --data, --annotations       as for `flickr` and `vggss`
    --test-list                 flickr_test.csv or vggss_test.csv: the pairs with boxes
    --negatives                 flickr_test_plus_silent.csv or vggss_test_plus_silent.csv

The list of negatives is a CSV file with the columns video, audio, label: the name of a picture, that of a sound, and
`non-sounding` where the sound has no source in the frame. Lines with another label are passed over: the test list has
them. Pictures and sounds lie in the same folders; extend_frames/ and extend_audio/ are searched as well.

Mo & Morgado, A Closer Look at Weakly-Supervised Audio-Visual Source Localization, NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from essl_fast.common.errors import InputError, short
from essl_fast.data import media
from essl_fast.data.datasets.annotations import LONGEST_NAME
from essl_fast.data.datasets.dataset import STILL, Dataset, Files, register_dataset
from essl_fast.data.datasets.flickr import read_flickr
from essl_fast.data.datasets.folders import PICTURES, SOUNDS
from essl_fast.data.datasets.further import Further
from essl_fast.data.datasets.options import DatasetOptions
from essl_fast.data.datasets.pairs import pair_key
from essl_fast.data.datasets.tables import Table
from essl_fast.data.datasets.vggss import read_vggss

NEGATIVE = "non-sounding"  # the published label, and the class of such a pair
_OPTIONS = {"needs": ("data", "test_list", "negatives"), "takes": ("annotations", "train_list", "val_list")}
_PICTURES = ("frames", "Data/frames", "5k_labeled/Data/frames", "extend_frames")
_SOUNDS = ("audio", "Data/audio", "5k_labeled/Data/audio", "extend_audio")


@register_dataset("flickr-extended", **_OPTIONS)
def read_flickr_extended(options: DatasetOptions) -> Dataset:
    """`--dataset flickr-extended`. InputError as `read_flickr`, or for the list of negatives."""
    return _extended("flickr-extended", read_flickr(options), options)


@register_dataset("vggss-extended", **_OPTIONS)
def read_vggss_extended(options: DatasetOptions) -> Dataset:
    """`--dataset vggss-extended`. InputError as `read_vggss`, or for the list of negatives."""
    return _extended("vggss-extended", read_vggss(options), options)


def _extended(name: str, positives: Dataset, options: DatasetOptions) -> Dataset:
    """The data set with its negatives as further test pairs."""
    assert options.negatives is not None  # "needs" of these data sets
    read, pairs = positives.annotations, positives.annotations.pairs
    negatives = read_negatives(options.negatives)
    taken = {video for video, _, _ in pairs.videos()}
    if both := sorted(taken & negatives.keys()):
        raise InputError(f"{options.negatives}: {short(both[0])} is a negative and in another list; keep it in one")
    for video in negatives:
        pairs.add_video(video, "test", [(1, 0.0, [], (NEGATIVE,))])
    read.videos.setdefault("test", []).extend(negatives)

    def files_of(video: str) -> Files:
        if video not in negatives:
            return positives.files_of(video)
        picture, sound = (
            _find(options.data, folders, stem, kinds)
            for folders, stem, kinds in zip((_PICTURES, _SOUNDS), negatives[video], (PICTURES, SOUNDS), strict=True)
        )
        for what, stem, there in zip(("picture", "sound"), negatives[video], (picture, sound), strict=True):
            if there is None:
                raise media.MediaError(media.MISSING, f"{video}: no {what} {stem} in frames/ and audio/, nor extend_…/")
        assert picture is not None
        return Files(picture, STILL, sound)

    return replace(
        positives,
        name=name,
        files_of=files_of,
        settings={**positives.settings, "dataset": name},
        further=Further(negatives=frozenset(pair_key(video, 1) for video in negatives)),
    )


def read_negatives(path: Path) -> dict[str, tuple[str, str]]:
    """Name of the pair -> (picture, sound), of the lines labelled non-sounding. InputError if the list is malformed."""
    if not path.is_file():
        raise InputError(f"there is no list {path}: --negatives names the published …_test_plus_silent.csv")
    found: dict[str, tuple[str, str]] = {}
    for row in Table(path, {("video", "image", "frame"): True, "audio": True, "label": True}).rows():
        if row.text("label") != NEGATIVE:
            continue
        picture, sound = row.text(("video", "image", "frame")), row.text("audio")
        for text in (picture, sound):
            if not text or text.startswith(".") or "/" in text or "\\" in text or not text.isprintable():
                raise row.error("audio", f"{short(text)} is no file's name", "write a name without a folder")
        # A picture may be of a test pair as well, and so may a sound: the pair's name is of both.
        name = f"{picture}+{sound}"
        if len(name.encode()) > LONGEST_NAME:
            raise row.error("audio", f"{short(name)} is longer than {LONGEST_NAME} bytes", "shorten the names")
        if name in found:
            raise row.error("audio", f"{short(name)} is there twice", "keep one of the lines")
        found[name] = picture, sound
    if not found:
        raise InputError(f"{path} has no line with the label {NEGATIVE}: is it the list of negatives?")
    return found


def _find(roots: tuple[Path, ...], folders: tuple[str, ...], stem: str, kinds: tuple[str, ...]) -> Path | None:
    """The file of a name in the first folder that has one."""
    places = (root / folder / (stem + kind) for root in roots for folder in folders for kind in kinds)
    return next((place for place in places if place.is_file()), None)
