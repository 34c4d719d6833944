"""Where the pictures, sounds and videos of listed names are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.datasets.dataset import MIDDLE, STILL, Files

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SOUNDS = (".wav", ".mp3", ".flac", ".ogg", ".m4a")
_FRAME_FOLDERS = ("frames", "Data/frames", "5k_labeled/Data/frames")
_SOUND_FOLDERS = ("audio", "Data/audio", "5k_labeled/Data/audio")
_VIDEO_FOLDERS = ("videos", "Data/videos", "5k_labeled/Data/videos", ".")


class Folders:
    """Finds the files of names under some root folders, in the layouts that the published codes use:

        frames/<name>.jpg, audio/<name>.wav                          LVS, EZ-VSL; also below Data/ and 5k_labeled/Data/
        Data/<name>/*.jpg, Data/<name>/*.wav                         the labelled pairs of Flickr-SoundNet, as published
        frames/<entry>/*.jpg, mp3/<entry's folder>/*.mp3             SoundNet: the picture in the middle of the folder
        videos/<name>.mp4 (or <name>.mp4)                            the middle of the video

    Other formats of pictures, sounds and videos work as well. Each folder is listed once.
    """

    def __init__(self, roots: Iterable[Path], names: Mapping[str, str]):
        """List the folders.

        Args:
            roots: where to look; the first one that has a file counts.
            names: name → its entry in the list.

        Raises:
            InputError: no root has any of these layouts.
        """
        self.roots, self.names = [Path(root) for root in roots], names
        self.pictures = self._list(_FRAME_FOLDERS, PICTURES)
        self.sounds = self._list(_SOUND_FOLDERS, SOUNDS)
        self.videos = self._list(_VIDEO_FOLDERS, media.EXTENSIONS)
        nested = any((root / "mp3").is_dir() or (root / "Data").is_dir() for root in self.roots)
        if not (self.videos or nested or (self.pictures and self.sounds)):
            where = " or ".join(str(root) for root in self.roots)
            lack = "no picture" if not self.pictures else "no sound"
            looked = ", ".join(f"{name}/" for name in (*_FRAME_FOLDERS, *_SOUND_FOLDERS, *_VIDEO_FOLDERS[:-1]))
            raise InputError(f"{where} holds {lack} of any listed name, and no video: looked in {looked}")

    def __call__(self, name: str) -> Files:
        """The files of a name. MediaError says which one is missing, and which folders were searched."""
        if name in self.pictures and name in self.sounds:
            return Files(self.pictures[name], STILL, self.sounds[name])
        for root in self.roots:
            if found := self._nested(root, name):
                return found
        if name in self.videos:
            return Files(self.videos[name], MIDDLE)
        lack = [what for what, there in (("picture", self.pictures), ("sound", self.sounds)) if name not in there]
        looked = {"picture": _FRAME_FOLDERS, "sound": _SOUND_FOLDERS}
        searched = "; ".join(f"no {what} in {', '.join(f'{folder}/' for folder in looked[what])}" for what in lack)
        raise media.MediaError(media.MISSING, f"{name}: {searched}; no video in {', '.join(_VIDEO_FOLDERS[:-1])}")

    def _list(self, folders: Sequence[str], extensions: Sequence[str]) -> dict[str, Path]:
        """Name → file, of the listed names. The first root counts, then the first folder, then the first extension."""
        found: dict[str, tuple[int, Path]] = {}
        named = {media.one_form(name): name for name in self.names}
        for number, folder in enumerate(root / name for root in self.roots for name in folders):
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    stem, dot, kind = entry.name.rpartition(".")
                    stem = stem if stem in self.names else named.get(media.one_form(stem), "")
                    if stem and dot + kind.lower() in extensions and entry.is_file():
                        rank = number * len(extensions) + extensions.index(dot + kind.lower())
                        if stem not in found or (rank, folder / entry.name) < found[stem]:
                            found[stem] = rank, folder / entry.name
        return {name: path for name, (_, path) in found.items()}

    def _nested(self, root: Path, name: str) -> Files | None:
        """The files of a name that has folders of its own."""
        entry = self.names[name]
        for picture_folder, sound_folder in (
            (root / "Data" / name, root / "Data" / name),
            (root / "frames" / entry, root / "mp3" / entry.rpartition("/")[0]),
        ):
            pictures, sounds = _files(picture_folder, PICTURES), _files(sound_folder, SOUNDS)
            if pictures and sounds:
                return Files(pictures[len(pictures) // 2], STILL, sounds[0])
        return None


def _files(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """The folder's files with these extensions, sorted by name; none if there is no such folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in extensions and path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
