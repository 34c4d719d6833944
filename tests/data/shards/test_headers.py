"""A manifest that `prepare` would not write is refused, with its file and the remedy."""

import json
import shutil

import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data import shards
from tests.data.shards.test_shards import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("prepared"))


def changed(header: dict, where: str, value) -> None:
    """Put a value into a header; `where` leads there, as splits.train.pairs does."""
    *path, last = where.split(".")
    for name in path:
        header = header[int(name) if name.isdecimal() else name]
    header[last] = value


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("splits.train.shards.0.sha256", "0" * 63, "is no SHA-256"),
        ("splits.train.shards.0.pairs", 1, "the shards of train do not hold its 41 pairs"),
        ("splits.train.shards.0.index", "other.idx", "'other.idx' is no name of a shard"),
        ("sound", "mp3", "no such sound or consensus"),
        ("consensus", 256, "no such sound or consensus"),
        ("classes", [1], "a class is no text"),
        ("further", ["depth"], "further columns .'depth'. are unknown"),
        ("further", "mask", "further columns 'mask' are unknown"),
        ("jpeg_instead", {"too large": {"first": 3, "pairs": 1}}, "an entry without an example"),
        ("pairs", 51, "manifest.json"),
        ("files", ["pairs/key.npy"], "lacks an entry or has one of another kind"),
    ],
)
def test_a_header_that_prepare_would_not_write_is_refused(folder, tmp_path, where, value, message):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    header = json.loads((root / "manifest.json").read_text())
    changed(header, where, value)
    (root / "manifest.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match=message) as error:
        shards.Manifest.load(root)
    assert "manifest.json" in str(error.value) and "essl_fast.prepare" in str(error.value)


def test_a_split_column_of_another_folder_is_refused(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    np.save(root / "pairs" / "split.npy", np.zeros(50, np.uint8))
    with pytest.raises(InputError, match="split.npy does not fit the counts in .*manifest.json"):
        shards.Manifest.load(root)
