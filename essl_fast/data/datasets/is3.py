"""IS3 and IS3+: one frame with two sources, each with its sound, box and mask. All pairs are test pairs.

    IS3/
        IS3_annotation.json            or the file that --annotations names
        images/<name>.jpg              also visual_frames/, frames/
        audio_wav/<name>.wav           also audio/
        gt_segmentation/<name>.png     a mask, white on black; optional, other formats of pictures too

The JSON file is a list of {"image": file, "audio": file, "gt_box": [x1, y1, x2, y2]}, one for each source; only the
files' names count, not their folders. Boxes are in pixels of a 224 x 224 frame. A name is <scene>_<source>, such as
accordion_baby_10467_baby: pairs of one scene show the same frame. The source is the class, unless the entry has
"class", "category" or "label".

Senocak et al., Aligning Sight and Sound, arXiv 2407.13676. VPO's lists in the same form (vpo_ss_bbox.json and others)
are read with `--dataset is3 --name vpo --annotations vpo_ss_bbox.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from essl_fast.common.errors import InputError, short
from essl_fast.common.files import parse_json
from essl_fast.data import media
from essl_fast.data.datasets.annotations import GRID, LONGEST_NAME, NO_BOX, Annotations, LeftOut, boxes_to_grid
from essl_fast.data.datasets.dataset import STILL, Dataset, Files, register_dataset
from essl_fast.data.datasets.folders import PICTURES, SOUNDS
from essl_fast.data.datasets.further import Further, box_of, packed_mask, read_mask
from essl_fast.data.datasets.options import DatasetOptions
from essl_fast.data.datasets.pairs import Pairs, pair_key
from essl_fast.data.datasets.tables import is_box, read_text

_JSONS = ("IS3_annotation.json", "IS3_annotations.json", "metadata/IS3_annotation.json", "synthetic3240_bbox.json")
_PICTURES, _SOUNDS, _MASKS = ("images", "visual_frames", "frames"), ("audio_wav", "audio"), ("gt_segmentation",)
_EXAMPLE = '{"image": "a_b_1_a.jpg", "audio": "a_b_1_a.wav", "gt_box": [10, 20, 90, 110]}'


class _Source(NamedTuple):
    """A source of a frame."""

    picture: str  # name of a file
    sound: str
    box: list[float]
    kind: str


@register_dataset("is3", needs=("data",), takes=("annotations",))
def read_is3(options: DatasetOptions) -> Dataset:
    """`--dataset is3`. InputError if a file or folder is missing or malformed."""
    roots = list(options.data)
    if nowhere := [root for root in roots if not root.is_dir()]:
        raise InputError(f"{nowhere[0]} is not a folder: --data must name the folder with images/ and audio_wav/")
    places = [options.annotations] if options.annotations else [root / name for root in roots for name in _JSONS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(f"no annotations: looked for {', '.join(map(str, places))}; name the file with --annotations")
    sources = _read(path)
    folders = {
        what: [root / name for root in roots for name in names if (root / name).is_dir()]
        for what, names in (("images", _PICTURES), ("audio_wav", _SOUNDS), ("gt_segmentation", _MASKS))
    }
    for what in ("images", "audio_wav"):
        if not folders[what]:
            raise InputError(f"{roots[0]} has no folder {what}/: --data must name the folder that holds it")
    pairs, left_out, further = Pairs(), [], Further({}, frozenset(), {})
    for name, source in sources.items():
        key = pair_key(name, 1)
        boxes = boxes_to_grid([source.box], GRID, GRID).tolist()
        mask = _find(folders["gt_segmentation"], name, PICTURES)
        if mask is not None:
            seen = read_mask(mask)
            further.masks[key] = packed_mask(seen)  # type: ignore[index]  # a dict here
            boxes = boxes if _covers(boxes[0]) else [each for each in (box_of(seen),) if each]
        if not boxes or not _covers(boxes[0]):
            left_out.append(LeftOut(name, key, NO_BOX, f"{path.name}: box {source.box} covers no pixel"))
            boxes = []
        further.scenes[key] = name.rpartition("_")[0] or name  # type: ignore[index]  # a dict here
        pairs.add_video(name, "test", [(1, 0.0, boxes, (source.kind,))] if boxes else [])
    read = Annotations(pairs, left_out, {"test": list(sources)}, len(sources))

    def files_of(name: str) -> Files:
        source = sources[name]
        picture = _named(folders["images"], source.picture)
        sound = _named(folders["audio_wav"], source.sound)
        for what, there in ((f"images/{source.picture}", picture), (f"audio_wav/{source.sound}", sound)):
            if there is None:
                raise media.MediaError(media.MISSING, f"{name}: no {what}")
        assert picture is not None
        return Files(picture, STILL, sound)

    return Dataset("is3", read, files_of, {"dataset": "is3"}, from_videos=False, further=further, listed=True)


def _covers(box: list[int]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _named(folders: list[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def _find(folders: list[Path], stem: str, extensions: tuple[str, ...]) -> Path | None:
    return next((there for kind in extensions if (there := _named(folders, stem + kind))), None)


def _read(path: Path) -> dict[str, _Source]:
    """Name of the pair -> its source. InputError if the file is malformed, or names a pair twice."""
    try:
        entries = parse_json(read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is no JSON file ({error}): fetch it again") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} holds no list of entries such as {_EXAMPLE}")
    found: dict[str, _Source] = {}
    for number, entry in enumerate(entries, 1):
        where = f"{path} entry {number}"
        if not isinstance(entry, dict) or not {"image", "audio", "gt_box"} <= entry.keys():
            raise InputError(f"{where}: {short(str(entry))} has not image, audio and gt_box: write it as {_EXAMPLE}")
        picture, sound = (_file_name(entry[key], f"{where}: {key}", kinds) for key, kinds in _KINDS)
        if not is_box(entry["gt_box"]):
            raise InputError(f"{where}: gt_box {short(str(entry['gt_box']))} is no box of four finite numbers")
        name = picture.rpartition(".")[0]
        if name in found:
            raise InputError(f"{where}: {short(name)} is there twice; each source of a frame has a name of its own")
        kind = next((entry[key] for key in ("class", "category", "label") if isinstance(entry.get(key), str)), "")
        kind = kind.strip() or name.rpartition("_")[2]
        found[name] = _Source(picture, sound, list(entry["gt_box"]), kind)
    return found


_KINDS = (("image", PICTURES), ("audio", SOUNDS))


def _file_name(given: object, where: str, kinds: tuple[str, ...]) -> str:
    """The last part of a path. InputError if it is no name of such a file."""
    name = given.replace("\\", "/").rpartition("/")[2] if isinstance(given, str) else ""
    if not name.lower().endswith(kinds) or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise InputError(f"{where} {short(str(given))} is no file's name ending with {', '.join(kinds)}")
    return name
