"""The journal of finished shards: what a run notes, and what the next one takes over.

OUT/.parts/shards/<shard>.json      a finished shard: its entry for the manifest, its pairs and its videos
OUT/.parts/shards/settings.json     what the shards are made of
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from essl_fast.common.files import atomic_file, sealed, unsealed
from essl_fast.data.shards import SPLITS
from essl_fast.prepare.folder import changes
from essl_fast.prepare.parts import drop_part
from essl_fast.prepare.plan import Plan
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.rows import Rows
from essl_fast.prepare.sending import Destination
from essl_fast.prepare.slices import SETTINGS
from essl_fast.prepare.supply import Supply

_SHARD_FILES = re.compile(r"\.?(train|val|test)-\d{5,}\.(tar|idx)(\.partial)?")


def _difference(was: bytes, now: bytes) -> str:
    """How the settings of a journal differ from those of now, in brackets; "" if the journal's cannot be read."""
    try:
        found = changes(json.loads(was), json.loads(now))
    except ValueError:
        return ""
    return f" ({'; '.join(found)})" if found else ""


class Journal:
    """The finished shards of the folder `out`, in `shards` by split, as entries of the manifest."""

    def __init__(
        self, out: Path, parts: Path, settings: Mapping[str, Any], supply: Supply, sent: Destination | None = None
    ):
        """Open the journal, empty it if it is of other settings, and remove what killed workers left.

        Args:
            out: the prepared folder.
            parts: its folder for parts.
            settings: what the manifest will say of them.
            supply: where the parts of the videos come from.
            sent: where the shards are sent, if the folder is made at a URL.
        """
        self.out, self.supply, self.sent, self.folder = out, supply, sent, parts / "shards"
        self.shards: dict[str, list[dict]] = {split: [] for split in SPLITS}
        self.rows_noted = 0
        self._videos: list[list] = []  # finished videos that no entry has yet
        self._dropped = ""  # what is said of shards of other settings
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in parts.glob(".*.partial"):
            file.unlink()
        path, now = self.folder / SETTINGS, json.dumps(settings, sort_keys=True).encode()
        was = path.read_bytes() if path.exists() else b""
        if was == now:
            return
        noted = len(list(self.folder.glob("*-*.json")))
        self._dropped = f"{noted} shards of an interrupted run{_difference(was, now)} are made anew" if noted else ""
        for file in self.folder.iterdir():
            file.unlink()
        with atomic_file(path) as written:
            written.write(now)
        if sent is not None:
            sent.forget()
            sent.noted(path)

    def replay(self, plan: Plan, rows: Rows, say: Reporter) -> None:
        """Take over the noted shards, up to the first one that no longer holds, into `rows`. Remove all others."""
        holds = True
        if self._dropped:
            say.line(self._dropped)
        for split in SPLITS:
            while holds and (path := self._path(split, len(self.shards[split]))).exists():
                holds = self._take_over(split, path, plan, rows, say)
        kept = {entry[kind] for entries in self.shards.values() for entry in entries for kind in ("file", "index")}
        noted = {self._path(split, n).name for split in SPLITS for n in range(len(self.shards[split]))}
        for path in self.folder.iterdir():
            if path.name not in noted | {SETTINGS}:
                path.unlink()
        for path in self.out.iterdir():
            if _SHARD_FILES.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    def video_done(self, video: str, part: dict) -> None:
        """All pairs of a video are in shards, or will be when the next shard is noted."""
        self._videos.append([video, part["fingerprint"], True, part["left_out"], part["pictures"], part["notes"]])

    def note(self, split: str, shard: dict, rows: Rows, begun: tuple[str, dict] | None = None) -> None:
        """Note a finished shard, and remove the parts that are completely in shards now.

        Args:
            split: of the shard.
            shard: its entry for the manifest.
            rows: all rows so far; the shard has those that are not noted yet.
            begun: (video, index of its part), if the shard ends inside of this video.
        """
        videos = list(self._videos)
        if begun is not None:
            video, part = begun
            videos.append([video, part["fingerprint"], False, [], [], []])
        new = slice(self.rows_noted, len(rows))
        entry = {"row": self.rows_noted, "shard": shard, "videos": videos, "pairs": rows.pair[new].tolist()}
        entry |= {name: column[new].tolist() for name, column in rows.columns.items()}
        path = self._path(split, len(self.shards[split]))
        if self.sent is not None:
            self.sent.send(shard)
        with atomic_file(path) as file:
            file.write(sealed(entry))
        if self.sent is not None:
            self.sent.noted(path)
        self.shards[split].append(shard)
        for video, *_ in self._videos:
            drop_part(video, self.supply.folder(video))
        self._videos, self.rows_noted = [], len(rows)

    def _path(self, split: str, number: int) -> Path:
        return self.folder / f"{split}-{number:05d}.json"

    def _holds(self, tar: Path, shard: dict) -> bool:
        """Whether a noted shard is still there."""
        if self.sent is not None:
            return self.sent.holds(shard)
        return tar.is_file() and tar.stat().st_size == shard["bytes"] and (self.out / shard["index"]).is_file()

    def _take_over(self, split: str, path: Path, plan: Plan, rows: Rows, say: Reporter) -> bool:
        """Take over one shard. False if it is not what would be made now."""
        try:
            entry = unsealed(path.read_bytes())
            shard = entry["shard"]
        except (ValueError, KeyError):
            return False
        tar = self.out / shard["file"]
        if not self._holds(tar, shard):
            say.line(f"{tar} is gone or damaged: it and the shards after it are made again")
            return False
        if entry["row"] != len(rows):
            return False  # an earlier shard is missing
        for number, (video, fingerprint, *_) in enumerate(entry["videos"], rows.videos_done):
            if number >= len(plan) or plan.videos[number].video != video:
                return False
            if self.supply.fingerprint(number) != fingerprint:
                say.line(f"the file of {video} was changed: {tar.name} and the shards after it are made again")
                return False
        rows.pair.extend(entry["pairs"])
        for name, column in rows.columns.items():
            column.extend(entry[name])
        for video, _, done, *told in entry["videos"]:
            if done:
                rows.finish_video(video, *told)
        self.shards[split].append(shard)
        self.rows_noted = len(rows)
        return True
