"""Clips among pictures: decoded to the frame that was meant, upright, on the CPU and by the graph that a GPU runs."""

import functools
import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from essl_fast.common.errors import InputError
from essl_fast.data import shards
from essl_fast.data.loading import DecodeError, FrameDecoder, Loader, Pools, resize_host
from essl_fast.data.loading.graph import build_graph, graph_input
from essl_fast.data.media import Clip, cut_clips, decode_clip
from essl_fast.data.shards import Picture
from tests.data.shards.test_shards import jpeg, sound
from tests.tools.batches import assert_equal, batches
from tests.tools.media import make_video, noisy, number_of, set_matrix

SIDE = 48
CPU = torch.device("cpu")


def cut(path: Path, fids: list[int], fps: int = 10) -> list[Clip]:
    clips = dict(cut_clips(path, [(fid, (fid - 1) / fps) for fid in fids]))
    assert all(isinstance(clip, Clip) for clip in clips.values()), clips
    return [clips[i] for i in range(len(fids))]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Clip]]:
    """Clips of frames 3, 8, 17 and 20 by codec; "turned" is h264 with a display matrix of a quarter turn."""
    place = tmp_path_factory.mktemp("videos")
    make = partial(make_video, seconds=2, sound=None)
    files = {
        "h264": make(place / "a.mp4", picture=noisy, options={"bf": "2"}),
        "turned": set_matrix(make(place / "b.mp4", options={"bf": "2"}), 0, 1, -1, 0),
        "vp9": make(place / "c.mp4", codec="libvpx-vp9", options={"deadline": "realtime", "crf": "10"}),
        "mjpeg": make(place / "d.mp4", codec="mjpeg", pix_fmt="yuvj420p", options={"q": "3"}),
    }
    return {name: cut(path, [3, 8, 17, 20]) for name, path in files.items()}


def picture(visual: bytes | Clip) -> Picture:
    if isinstance(visual, bytes):
        return Picture(np.frombuffer(visual, np.uint8))
    return Picture(np.frombuffer(visual.data, np.uint8), visual.target, visual.quarters)


@functools.cache
def expected(visual: bytes | Clip, side: int = SIDE) -> np.ndarray:
    """By the plain way: FFmpeg for a clip, the same DALI and resize for a JPEG."""
    if isinstance(visual, Clip):
        return resize_host(torch.from_numpy(decode_clip(visual.data, visual.target))[None], side)[0].numpy()
    with ThreadPoolExecutor(1) as pool:
        return decode([[visual]], pool, side=side)[0][0].numpy()


def decode(groups: list[list], pool, device=CPU, side: int = SIDE, **kinds) -> list[torch.Tensor]:
    feed = iter([[picture(visual) for visual in batch] for batch in groups])
    decoder = FrameDecoder(lambda: next(feed), max(map(len, groups)), side, device, 2, 2, pool, **kinds)
    frames = list(decoder)
    decoder.close()
    return frames


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def mix(clips: dict[str, list[Clip]]) -> list[list]:
    h264, turned, vp9 = clips["h264"], clips["turned"], clips["vp9"]
    return [
        [h264[0], jpeg(1), turned[1], jpeg(2, (33, 97)), h264[3]],
        [jpeg(3), jpeg(4)],  # no clip
        [turned[2], h264[1], vp9[0]],  # nothing else
        [h264[2]],
    ]


@pytest.mark.slow
def test_batches_of_both_kinds(clips, pool):
    for batch, frames in zip(mix(clips), decode(mix(clips), pool, clips=True), strict=True):
        assert frames.shape == (len(batch), SIDE, SIDE, 3)
        for visual, frame in zip(batch, frames, strict=True):
            assert np.array_equal(frame.numpy(), expected(visual))


@pytest.mark.parametrize("codec", ["h264", "vp9", "mjpeg"])
def test_the_frame_is_the_one_that_was_meant(clips, codec):
    for clip, fid in zip(clips[codec], (3, 8, 17, 20), strict=True):
        assert number_of(decode_clip(clip.data, clip.target)) == fid


def graph(batches: list[list], jpegs: bool, clips: bool, side: int = SIDE) -> list[list[np.ndarray]]:
    """The graph that a GPU runs, on DALI's CPU backend, without the resize."""
    feed = iter([graph_input([picture(visual) for visual in batch], jpegs, clips) for batch in batches])
    pipe = build_graph(lambda: next(feed), 4, side, CPU, 2, 2, jpegs=jpegs, clips=clips)
    found = []
    for _ in batches:
        (images,) = pipe.run()
        found.append([np.array(images.at(i)) for i in range(len(images))])
    with pytest.raises(StopIteration):
        pipe.run()
    return found


@pytest.mark.parametrize("jpegs", [False, True])
def test_the_graph_takes_the_frame_that_was_meant(clips, jpegs):
    """DALI decodes VP9 and MJPEG on a CPU, too: each by its own frame number, whatever else is in the batch."""
    vp9, mjpeg = clips["vp9"], clips["mjpeg"]
    groups = [[vp9[0], mjpeg[1], vp9[2]], [mjpeg[3]], [vp9[3], vp9[1]]]
    if jpegs:
        groups = [[vp9[0], jpeg(1), mjpeg[1], vp9[2]], [jpeg(2), jpeg(3)], [mjpeg[3]], [jpeg(4), vp9[3], vp9[1]]]
    for batch, images in zip(groups, graph(groups, jpegs, True), strict=True):
        for visual, image in zip(batch, images, strict=True):
            if isinstance(visual, Clip):
                ours = decode_clip(visual.data, visual.target)
                assert image.shape == ours.shape and number_of(image) == number_of(ours)
                assert np.abs(image.astype(int) - ours).mean() <= 2
            else:
                assert image.shape == (36, 64, 3)


def test_the_graph_refuses_a_frame_that_is_not_there(clips):
    """DALI would otherwise give a black one."""
    short = clips["vp9"][1]
    with av.open(io.BytesIO(short.data)) as file:
        count = sum(1 for _ in file.decode(video=0))
    with pytest.raises(RuntimeError):
        graph([[Clip(short.data, count)]], False, True)


def test_a_turned_frame_is_put_upright(clips):
    """NVDEC does not turn frames, so on a GPU the square frame is turned after the resize."""
    clip = clips["turned"][1]
    assert clip.quarters == 3
    with av.open(io.BytesIO(clip.data)) as file:
        stored = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)][clip.target]
    assert stored.shape == (90, 160, 3) and number_of(stored) == 8
    square = resize_host(torch.from_numpy(stored)[None], SIDE)[0]
    upright = np.abs(torch.rot90(square, clip.quarters).numpy().astype(int) - expected(clip).astype(int))
    assert upright.max() <= 2  # rows and columns are rounded in another order
    assert np.abs(torch.rot90(square, 1).numpy().astype(int) - expected(clip).astype(int)).mean() > 20


def test_what_dali_decodes_of_a_turned_clip_is_put_upright(tmp_path, pool):
    """On a CPU, of a codec that DALI knows there; as NVDEC it does not turn frames."""
    options = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"q": "3"}}
    (clip,) = cut(set_matrix(make_video(tmp_path / "v.mp4", seconds=1, sound=None, **options), 0, 1, -1, 0), [8])
    assert clip.quarters == 3
    with warnings.catch_warnings(action="error"):  # PyAV's frame in place of DALI's would be one
        ((frame,),) = decode([[clip]], pool, clips=True, clips_by_dali=True)
    assert np.abs(frame.numpy().astype(int) - expected(clip).astype(int)).mean() <= 4
    assert np.abs(frame.flip(0, 1).numpy().astype(int) - expected(clip).astype(int)).mean() > 20


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["cut short", "no clip", "no such frame"])
def test_a_bad_clip_is_found_and_dropped(clips, pool, wrong):
    good = clips["h264"][3]
    bad = {
        "cut short": Clip(good.data[: len(good.data) // 2], good.target),
        "no clip": Clip(b"x" * 500, 0),
        "no such frame": Clip(good.data, 99),
    }[wrong]
    groups = [[good, jpeg(1), bad], [bad], [jpeg(2), good]]
    feed = iter([[picture(visual) for visual in batch] for batch in groups])
    decoder = FrameDecoder(lambda: next(feed), 3, SIDE, CPU, 2, 2, pool, clips=True)
    with pytest.raises(DecodeError) as error:
        next(decoder)
    assert error.value.faults.keys() == {2} and error.value.faults[2]
    decoder.drop([2])
    assert np.array_equal(next(decoder).numpy(), np.stack([expected(good), expected(jpeg(1))]))
    with pytest.raises(DecodeError) as error:
        next(decoder)
    assert error.value.faults.keys() == {0}
    decoder.drop([0])
    assert np.array_equal(next(decoder).numpy(), np.stack([expected(jpeg(2)), expected(good)]))
    with pytest.raises(StopIteration):
        next(decoder)
    decoder.close()


def write(out: Path, visuals: list[bytes | Clip]) -> Path:
    """A prepared folder, all of it training pairs; pair r's sound is sound(r)."""
    keys, crc = [f"v_{row:06d}" for row in range(len(visuals))], []
    with shards.ShardWriter(out, "train", 6) as writer:
        for row, visual in enumerate(visuals):
            is_clip = isinstance(visual, Clip)
            place = (visual.target, visual.quarters) if is_clip else None
            data, pcm = visual.data if is_clip else visual, sound(row).tobytes()
            writer.add(keys[row], data, pcm, {"key": keys[row]}, row, place)
            crc.append(shards.pair_crc(data, pcm))
        entry = {"pairs": len(visuals), "videos": 1, "shards": writer.close()}
    none = {"pairs": 0, "videos": 0, "shards": []}
    of = [visual if isinstance(visual, Clip) else None for visual in visuals]
    n = len(visuals)
    shards.write_manifest(
        out,
        keys=keys,
        split=np.zeros(n),
        class_id=np.zeros(n),
        labelled=np.ones(n),
        boxes=np.zeros((n, 1, 4)),
        time=np.zeros(n),
        visual=[clip is not None for clip in of],
        target=[clip.target if clip else 0 for clip in of],
        quarters=[clip.quarters if clip else 0 for clip in of],
        crc=crc,
        classes=("a",),
        splits={"train": entry, "val": none, "test": none},
        left_out=[],
        settings={},
    )
    return out


@pytest.mark.slow
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("kinds", ["clips", "both"])
def test_the_loader_streams_and_keeps_clips(clips, tmp_path, kinds, resident):
    visuals = [clip for name in ("h264", "turned", "vp9") for clip in clips[name]]
    if kinds == "both":
        visuals = [visual for clip in visuals for visual in (clip, jpeg(len(clip.data)))]
    root = write(tmp_path / "prepared", visuals)
    settings = {"batch_size": 5, "side": SIDE, "shuffle": True, "threads": 2, "seed": 1}
    pools = Pools("always", 1, "cpu") if resident else None
    with Loader(shards.Manifest.load(root), ["train"], pools=pools, **settings) as loader:
        for index, frames, pcm in batches(loader, 2 * len(loader)):
            for row, frame, samples in zip(index.tolist(), frames, pcm, strict=True):
                assert np.array_equal(frame.numpy(), expected(visuals[row]))
                assert np.array_equal(samples.numpy(), sound(row))


@pytest.mark.slow
def test_a_bad_clip_is_named_or_skipped(clips, tmp_path):
    good = clips["h264"]
    bad = Clip(good[3].data[:-200], good[3].target)
    visuals = [*good, jpeg(1), bad, *clips["vp9"]]
    manifest = shards.Manifest.load(write(tmp_path / "prepared", visuals))
    settings = {"batch_size": 5, "side": SIDE, "shuffle": False, "threads": 1}
    with pytest.raises(InputError, match=r"the frame of pair 'v_000005' in shard .* cannot be decoded \(.*--verify"):
        with Loader(manifest, ["train"], **settings) as loader:
            list(loader)
    heard = []
    settings |= {"on_error": "skip", "max_errors": 0.1, "on_fault": lambda row, reason: heard.append(row)}
    with Loader(manifest, ["train"], **settings) as loader:
        assert [batch.index.tolist() for batch in loader] == [[0, 1, 2, 3, 4], [6, 7, 8, 9]]
    assert heard == [5]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("only", [None, "h264", "turned", "vp9"])
def test_gpu_decodes_clips_as_the_cpu(clips, pool, only):
    """NVDEC's frames are FFmpeg's within 2 grey levels on average, of every kind of batch."""
    groups = mix(clips) if only is None else [clips[only][:3], clips[only][3:]]
    device = torch.device("cuda", torch.cuda.current_device())
    kinds = {"jpegs": only is None, "clips": True}
    for ours, theirs in zip(decode(groups, pool, device, **kinds), decode(groups, pool, clips=True), strict=True):
        assert ours.device == device and ours.dtype == torch.uint8 and ours.shape == theirs.shape
        assert (ours.cpu().int() - theirs.int()).abs().float().mean(dim=(1, 2, 3)).max() <= 2


@pytest.mark.gpu
@needs_gpu
def test_gpu_streams_and_keeps_clips(clips, tmp_path):
    visuals = [visual for clip in clips["h264"] + clips["turned"] for visual in (clip, jpeg(len(clip.data)))]
    manifest = shards.Manifest.load(write(tmp_path / "prepared", visuals))
    settings = {"batch_size": 5, "side": 246, "shuffle": True, "threads": 2}
    with Loader(manifest, ["train"], **settings) as cpu, Loader(manifest, ["train"], device="cuda", **settings) as gpu:
        expected = batches(cpu, 8)
        found = batches(gpu, 8)
    for (index, frames, pcm), (same, ours, samples) in zip(expected, found, strict=True):
        assert torch.equal(index, same) and torch.equal(pcm, samples)
        assert (frames.int() - ours.int()).abs().float().mean(dim=(1, 2, 3)).max() <= 2
    with Loader(manifest, ["train"], device="cuda", pools=Pools("always", 1, "cuda"), **settings) as resident:
        assert_equal(batches(resident, 8), found)
