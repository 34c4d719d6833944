"""A picture file and a sound file as a pair: what is stored of pictures of all kinds, and which 3 s of a sound."""

import io

import numpy as np
import pytest
from PIL import Image

from essl_fast.data import media
from essl_fast.data.media import audio, stills
from tests.golden.store import golden
from tests.tools.media import make_sound, make_video, number_of, numbered, truncate


def picture() -> Image.Image:
    """A smooth picture, so that JPEG keeps it; it changes when it is turned or its channels are swapped."""
    y, x = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([4 * x, 5 * y, (x + y) // 2 + 20], -1).astype(np.uint8))


def shown(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "JPEG" and image.mode in ("RGB", "L")
        assert image.getexif().get(0x0112, 1) == 1
        return np.asarray(image.convert("RGB")).astype(int)


def near(ours: np.ndarray, expected: Image.Image, most: float = 3) -> bool:
    expected = np.asarray(expected.convert("RGB")).astype(int)
    return ours.shape == expected.shape and np.abs(ours - expected).mean() < most


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_a_jpeg_is_stored_as_it_is(tmp_path, options):
    for image in (picture(), picture().convert("L")):
        image.save(tmp_path / "a.jpg", **options)
        assert stills.picture_file(tmp_path / "a.jpg") == (tmp_path / "a.jpg").read_bytes()


def test_others_become_jpeg(tmp_path):
    rgb, path = picture(), tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    cases = {
        "a.png": (rgb, {}, rgb),
        "b.png": (rgb.convert("P"), {}, rgb.convert("P")),
        "c.png": (rgb.convert("RGBA"), {}, rgb),
        "d.bmp": (rgb, {}, rgb),
        "e.webp": (rgb, {"lossless": True}, rgb),
        "f.jpg": (rgb.convert("CMYK"), {"quality": 95}, rgb),
        "g.jpg": (rgb, {"exif": exif, "quality": 95}, rgb.transpose(Image.Transpose.ROTATE_270)),
        "h.jpg": (rgb, {"keep_rgb": True, "quality": 95}, rgb),
    }
    for name, (image, options, expected) in cases.items():
        path = tmp_path / name
        image.save(path, **options)
        data = stills.picture_file(path)
        assert data != path.read_bytes() and near(shown(data), expected, 9 if name == "f.jpg" else 3), name
    data_of_h = (tmp_path / "h.jpg").read_bytes()
    begin = data_of_h.index(b"\xff\xee")  # without its Adobe segment, its channels' names tell
    path.write_bytes(data_of_h[:begin] + data_of_h[begin + 16 :])
    data = stills.picture_file(path)
    assert data != path.read_bytes() and near(shown(data), rgb, 3)
    deep = (np.asarray(rgb.convert("L")).astype(np.uint16) << 8) + 255
    Image.fromarray(deep).save(tmp_path / "i.png")
    assert near(shown(stills.picture_file(tmp_path / "i.png")), rgb.convert("L"))


def test_a_damaged_picture_is_left_out(tmp_path):
    picture().save(tmp_path / "cut.jpg")
    truncate(tmp_path / "cut.jpg", 0.6)
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    Image.fromarray(np.zeros((9_000, 8_000), np.uint8)).save(tmp_path / "large.png")
    for name, told in {"cut.jpg": "[Tt]runcated", "none.jpg": "no kind of picture", "large.png": "too many"}.items():
        with pytest.raises(media.MediaError, match=told) as error:
            stills.picture_file(tmp_path / name)
        assert error.value.reason == stills.BAD_PICTURE and error.value.detail.startswith(name)
        assert str(tmp_path) not in error.value.detail
    with pytest.raises(media.MediaError, match="is gone"):
        stills.picture_file(tmp_path / "absent.jpg")


def ramp(seconds: float, rate: int) -> np.ndarray:
    """A sound whose amplitude rises, so that each part tells its own place."""
    time = np.arange(round(seconds * rate)) / rate
    return (time / seconds * np.sin(2 * np.pi * 300 * time)).astype(np.float32)


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame")])
def test_the_middle_of_a_sound(tmp_path, name, codec):
    sound = ramp(7, 16_000)
    ours = stills.middle_sound(make_sound(tmp_path / name, sound, codec, 16_000))
    assert ours.shape == (48_000,) and ours.dtype == np.float32
    expected = sound[32_000:80_000]  # from 2 s to 5 s
    lossless = codec != "libmp3lame"
    lag = 0 if lossless else np.argmax([np.dot(ours[4000:8000], expected[4000 - k : 8000 - k]) for k in range(1200)])
    # an encoder pads the end of an MP3, and FFmpeg may not know by how much: the middle moves by half of it at most
    assert lag <= 600
    assert np.abs(ours[1200:] - np.roll(expected, lag)[1200:]).max() < (2**-15 if lossless else 0.05)


def test_the_middle_of_goldens_sounds(tmp_path):
    data = golden("audio_load")
    for name in ("short_16k", "exact_16k", "stereo_44k1"):
        rate, pcm = int(data[f"{name}_sr"]), data[f"{name}_pcm16"]
        path = make_sound(tmp_path / f"{name}.wav", pcm.T.astype(np.float32) / 32768, "pcm_s16le", rate)
        ours = stills.middle_sound(path)
        ours = ours - ours.min()
        ours = (ours / (ours.max() + np.float32(1e-3)) - np.float32(0.5)) * 2
        assert np.abs(ours - data[f"{name}_audio"]).max() < 1e-5


def test_a_sound_that_breaks_off_is_left_out(tmp_path):
    make_sound(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 80_000).astype(np.float32), "flac", 16_000)
    truncate(tmp_path / "a.flac", 0.5)
    with pytest.raises(media.MediaError) as error:
        stills.middle_sound(tmp_path / "a.flac")
    assert error.value.reason == media.SOUND_TRUNCATED
    Image.fromarray(numbered(1)).save(tmp_path / "b.png")
    with pytest.raises(media.MediaError):
        stills.middle_sound(tmp_path / "b.png")


def test_the_middle_of_a_video(tmp_path):
    sound = ramp(7, 16_000)
    path = make_video(tmp_path / "v.mkv", seconds=7, sound=sound, sound_codec="pcm_s16le")
    found = media.probe(path)
    assert stills.middle_frame(found) == (36, 3.5)
    ((_, frame),) = media.decode_frames(path, [stills.middle_frame(found)])
    assert number_of(frame) == 36
    assert np.abs(stills.middle_sound(path, alone=False) - sound[32_000:80_000]).max() <= 2**-15
    assert audio.SAMPLES == 48_000


def test_a_picture_that_is_too_large_or_gone_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    for read in (stills.picture_file, stills.check_picture):
        with pytest.raises(media.MediaError, match="a.png is gone"):
            read(path)
    picture().save(path)
    assert stills.check_picture(path) is None
    monkeypatch.setattr(stills, "MOST_PIXELS", 64 * 48 - 1)
    for read in (stills.picture_file, stills.check_picture):
        with pytest.raises(media.MediaError, match="a.png: 64 x 48 pixels are too many"):
            read(path)
    monkeypatch.setattr(stills, "_LARGEST", 100)
    with pytest.raises(media.MediaError, match="a.png: 0 MB; pictures may have 67"):
        stills.picture_file(path)
    path.write_text("no picture")
    with pytest.raises(media.MediaError, match="a.png: no kind of picture that is known"):
        stills.check_picture(path)
    Image.new("1", (30_000, 30_000)).save(path)  # a bomb for Pillow
    with pytest.raises(media.MediaError, match="a.png: .*decompression bomb"):
        stills.check_picture(path)


def test_a_jpeg_whose_size_the_loader_cannot_read_is_stored_anew(tmp_path, monkeypatch):
    picture().save(tmp_path / "a.jpg", quality=95)

    def other(_):
        raise ValueError("a marker that is not known")

    monkeypatch.setattr(stills, "jpeg_size", other)
    data = stills.picture_file(tmp_path / "a.jpg")
    assert data != (tmp_path / "a.jpg").read_bytes() and near(shown(data), picture())
