"""What `localize` reads of a video and `reproduce` of a file of figures, as targets of `tests.fuzz.targets`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from essl_fast.data import media
from essl_fast.data.media.footage import Video
from essl_fast.reproduce.published import read_published

TOGETHER = 4  # frames of a reel, of five in a group of pictures
FIGURES = {
    "figures.yaml": b"source: table 2\nrows:\n  lss: {success: 31.4, auc: 37}\n  semipl_w_pcm: {auc: 1e1}\n",
}


def read_moments(place: Path, name: str, data: bytes) -> None:
    """Every second frame by reels, and the sound around it: each frame once and in order, or why there is none."""
    path = place / "moments" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    video = Video(media.probe(path))
    assert (np.diff(video.times) >= 0).all() and len(video.times) == len(video.ticks)
    places = list(range(0, len(video.times), 2))[:20]
    covered: list[int] = []
    for some, reel in media.cut_reels(video.found, places, TOGETHER):
        covered += some
        if not isinstance(reel, media.Reel):
            assert len(some) == 1 and (reel is None or reel.reason == media.NO_CLIP), reel
            continue
        assert reel.places == some and len(reel.targets) == len(some) <= TOGETHER
        assert list(reel.targets) == sorted(set(reel.targets)), reel.targets
        for target in reel.targets:
            try:
                assert media.decode_clip(reel.data, target).size
            except ValueError as error:  # of which MediaError is one: PyAV decodes the frame, or says why not
                assert type(error) in (ValueError, media.MediaError), repr(error)
    assert covered == places, (covered, places)
    shown = [at for at, picture in video.some(places) if isinstance(picture, media.MediaError) or picture.size]
    assert shown == places, (shown, places)
    with media.open_windows(path) as windows:
        for time in video.times[places]:
            window = windows.around(float(time))
            assert window is None or (window.pcm.shape == (48_000,) and 0 <= window.begin < window.end)


def read_figures(place: Path, name: str, data: bytes) -> None:
    """Shares from 0 to 1 of rows that there are."""
    path = place / name
    path.write_bytes(data)
    for row in read_published(path).values():
        figures = [value for value in (row.success_at_half, row.auc) if value is not None]
        assert figures and all(0 <= value <= 1 for value in figures) and row.source, row
