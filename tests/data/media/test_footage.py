"""Frames by their place: those of a video at any rate, and of a still picture."""

import numpy as np
import pytest
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data.media import probe
from essl_fast.data.media.footage import Still, Video, is_picture, read_picture
from tests.tools.media import irregular, make_video, noisy, number_of


@pytest.mark.parametrize("name, codec", [("v.mp4", "libx264"), ("v.mkv", "libx264"), ("v.avi", "mpeg4")])
def test_places_are_frames(tmp_path, name, codec):
    stamps = {} if name == "v.avi" else {"pts": irregular(40), "ticks": 50}
    video = Video(
        probe(make_video(tmp_path / name, codec=codec, options={"bf": "2"} if "264" in codec else {}, **stamps))
    )
    assert [number_of(picture) - place for place, picture in video.all()] == [1] * 40
    places = [0, 3, 4, 17, 38, 39]
    assert [(place, number_of(picture)) for place, picture in video.some(places)] == [(p, p + 1) for p in places]
    assert len(video.times) == 40 and video.times[0] == 0 and (np.diff(video.times) > 0).all()
    assert video.times == pytest.approx(video.ticks * float(video.time_base)) and not video.faults


def test_of_a_damaged_video_the_whole_frames_come(tmp_path):
    path = make_video(tmp_path / "v.mp4", picture=noisy, options={"bf": "2", "sc_threshold": "0"})
    whole = [place for place, _ in Video(probe(path)).all()]
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    left = [place for place, _ in Video(probe(path)).all()]
    assert whole == list(range(40)) and left == sorted(set(left)) and 20 <= len(left) < 40


def test_a_still_picture_lasts(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    still = Still(picture, 2.5)
    assert len(still.times) == 25 and still.times[-1] == 2.4 and len(Still(picture, 0.01).times) == 1
    assert all(np.array_equal(shown, picture) for _, shown in still.all())


def test_pictures_are_read_upright(tmp_path):
    path = tmp_path / "p.JPG"
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (30, 20), (200, 0, 0)).save(path, exif=exif)
    assert is_picture(path) and read_picture(path).shape == (30, 20, 3)
    (tmp_path / "q.png").write_text("no picture")
    with pytest.raises(InputError, match="q.png is not a picture"):
        read_picture(tmp_path / "q.png")
