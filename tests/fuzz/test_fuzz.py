"""The short fuzzing: every target some hundred times, the same inputs each time, and structures that Hypothesis draws.

`python -m tests.fuzz.run --minutes 10` is the long one.
"""

import json
import os
import signal
import tarfile
import time
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from essl_fast.common.errors import InputError
from essl_fast.common.files import parse_json, sealed, unsealed
from essl_fast.config.yamls import refuse_bombs
from essl_fast.data.datasets.tables import Table
from essl_fast.data.media.mp4 import header_boxes
from essl_fast.data.shards import tars
from essl_fast.prepare.tasks import stem_of
from tests.fuzz import engine
from tests.fuzz.engine import Child, fuzz
from tests.fuzz.targets import TARGETS

EXECUTIONS = {  # about a second each; what runs under Python's tracing, to keep inputs that reach new lines, runs less
    "annotations": 60,
    "lists": 200,
    "folder": 60,
    "shard": 150,
    "verify": 60,
    "config": 12,
    "commands": 300,
    "settings": 400,
    "checkpoint": 40,
    "jpeg": 1500,
    "still": 150,
    "hdf5": 40,
    "clip": 1500,
    "video": 60,
    "dali": 5,
    "moments": 40,
    "figures": 400,
}
EXAMPLES = settings(max_examples=150, derandomize=True, database=None, deadline=None)


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    child = Child(tmp_path_factory.mktemp("fuzz"), list(TARGETS), deadline=60.0)  # the machine may have other work
    yield child
    child.close()


def test_every_target_is_fuzzed():
    assert EXECUTIONS.keys() == TARGETS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_does_more_than_be_refused(child, target):
    tally = fuzz(child, target, executions=EXECUTIONS[target], watch=False)
    assert tally.executions == EXECUTIONS[target]
    told = "\n".join(f"{f.what} at {f.where} from {f.data[:300]!r}\n{f.trace}" for f in tally.failures.values())
    assert not tally.failures, told


def escape(place, name, data):
    (place.parent.parent.parent / "outside.txt").write_bytes(data)


def crash(place, name, data):
    os.kill(os.getpid(), signal.SIGSEGV)


def hog(place, name, data):
    bytearray(1 << 40)


def sleep(place, name, data):
    time.sleep(600)


BAD = [(escape, "outside"), (crash, "signal 11"), (hog, "MemoryError"), (sleep, "hang")]


@pytest.mark.slow
@pytest.mark.parametrize("does, what", BAD)
def test_the_fuzzer_sees(tmp_path, monkeypatch, does, what):
    """A child with a target that does it."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.fuzz import child, target, targets, test_fuzz\n"
        f"targets.TARGETS['bad'] = target.Target('bad', lambda place: {{'x': b'1'}}, test_fuzz.{does.__name__})\n"
        "child.serve(Path(sys.argv[1]), sys.argv[2:])\n"
    )
    monkeypatch.setattr(engine, "SERVE", ("-c", script))
    child = Child(tmp_path / "a" / "b", ["bad"], deadline=2.0 if does is sleep else 300.0)
    try:
        told = child.ask("bad", "x", b"1")
        assert told["failure"]["what"] == what, told
        assert child.process.poll() is None  # it goes on
    finally:
        child.close()


# ---------------------------------------------------------------- structures

odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
numbers = st.floats(-1e4, 1e4) | st.integers(-999, 999)
boxes = st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=5)
kinds = st.sampled_from([b"moov", b"trak", b"stbl", b"stsd", b"free"])
names = st.sampled_from(["a.jpg", "../a.jpg", "/etc/passwd", "a/b.jpg", "a.exe", "", "%2e.s16", "a.row"])


def table(path, cell: str):
    text = '"' + cell.replace('"', '""') + '"'
    path.write_bytes(f"bbox\n{text}\n".encode("utf-8", "surrogatepass"))
    (row,) = Table(path, {"bbox": True}).rows()
    return row.boxes("bbox")


@EXAMPLES
@given(value=boxes, style=st.sampled_from(["json", "python", "tuples", "commas"]))
def test_lists_of_boxes_are_read_however_they_are_written(tmp_path_factory, value, style):
    text = {
        "json": json.dumps,
        "python": repr,
        "tuples": lambda v: repr(tuple(map(tuple, v))),
        "commas": lambda v: repr(v).replace("]", " , ]"),
    }[style](value)
    assert table(tmp_path_factory.getbasetemp() / "boxes.csv", text) == value


@pytest.mark.slow
@EXAMPLES
@given(value=odd, style=st.sampled_from([json.dumps, repr]))
def test_a_cell_of_something_else_is_refused_or_a_list_of_boxes(tmp_path_factory, value, style):
    try:
        read = table(tmp_path_factory.getbasetemp() / "odd.csv", style(value))
    except InputError:
        return
    assert all(len(box) == 4 and all(isinstance(x, (int, float)) and abs(x) < 1e9 for x in box) for box in read)


@EXAMPLES
@given(st.text())
def test_any_name_becomes_a_plain_file_name(video):
    stem = stem_of(video) if video.isascii() or not any("\ud800" <= c <= "\udfff" for c in video) else "x"
    assert "/" not in stem and "\0" not in stem and len(f".{stem}.json.1234567.partial".encode()) <= 255
    if video and not any("\ud800" <= c <= "\udfff" for c in video):
        assert tars.decode_key(tars.encode_key(video)) == video and "." not in tars.encode_key(video)


@EXAMPLES
@given(st.dictionaries(st.text(max_size=4), odd, max_size=4))
def test_what_is_sealed_is_what_is_unsealed(values):
    try:
        told = json.dumps(values, allow_nan=False)
        told.encode()
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, UnicodeEncodeError):
        with pytest.raises(ValueError):
            unsealed(sealed(values))
        return
    values.pop("seal", None)
    data = sealed(values)
    assert unsealed(data) == values
    with pytest.raises(ValueError, match="CRC-32"):
        unsealed(json.dumps(parse_json(data) | {"more": 1}).encode())


@EXAMPLES
@given(st.lists(st.sampled_from(["- &a x", "- *a", "- [*a, *a]", "- &b [*a]", "- *b", "- &c [*c]", "- {x: *b, y: 1}"])))
def test_yaml_that_passes_is_small(lines):
    import yaml

    text = "\n".join(lines)
    try:
        refuse_bombs(text)
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return
    assert len(json.dumps(value)) < 1 << 20  # a cycle would be an error


@EXAMPLES
@given(
    name=names | st.text(max_size=9),
    kind=st.sampled_from(b"0\x0001234567LKxgSV"),
    size=st.integers(-1, 1 << 70) | st.sampled_from([0, 8, 512]),
)
def test_a_tar_of_one_member_is_refused(tmp_path_factory, name, kind, size):
    path = tmp_path_factory.getbasetemp() / "one.tar"
    info = tarfile.TarInfo(quote(name) if not name.isascii() else name)
    info.size, info.type = size, bytes([kind])
    try:
        header = info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
    except (ValueError, OverflowError):
        return
    path.write_bytes(header + bytes(8 * 512))
    with pytest.raises(InputError):  # whatever it is, it is no pair
        list(tars.iterate(path))


@EXAMPLES
@given(st.lists(st.tuples(kinds, st.integers(0, 1 << 32)), max_size=30))
def test_boxes_of_any_size_end(boxes):
    data = b"".join((size & 0xFFFFFFFF).to_bytes(4) + kind for kind, size in boxes)
    try:
        assert all(isinstance(kind, bytes) for kind in header_boxes(data))
    except ValueError:
        return
