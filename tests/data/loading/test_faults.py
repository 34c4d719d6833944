"""Pairs that do not decode, and pairs that `prepare --verify` has listed: stopped at, skipped and counted, left out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from essl_fast.common.errors import InputError, in_shell
from essl_fast.data.loading import Loader, Pools
from essl_fast.data.shards import BLACK, CORRUPT, QUARANTINE, SILENT, TRUNCATED, Manifest, read_index
from tests.data.shards.test_shards import write_folder
from tests.tools.batches import assert_equal, batches, plain

BAD = [3, 17, 18]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared"), train=30, val=5, test=0)


@pytest.fixture(scope="module")
def damaged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pairs, but the frames of BAD are not pictures."""
    return damage(folder, tmp_path_factory.mktemp("damaged") / "prepared", BAD)


def damage(folder: Path, out: Path, rows: list[int]) -> Path:
    shutil.copytree(folder, out)
    first = 0
    for idx in sorted(out.glob("train-*.idx")) + sorted(out.glob("val-*.idx")):
        index = read_index(idx)
        with open(idx.with_suffix(".tar"), "r+b") as file:
            for row in set(rows) & set(range(first, first + len(index.stems))):
                file.seek(int(index.visual_offset[row - first]))
                file.write(bytes(100))
        first += len(index.stems)
    return out


def make(root: Path, resident: bool = False, splits=("train",), **settings) -> Loader:
    pools = Pools("always", 1, "cpu") if resident else None
    given = {"batch_size": 5, "side": 32, "shuffle": True, "threads": 1, "seed": 3, "pools": pools} | settings
    return Loader(Manifest.load(root), splits, **given)


@pytest.mark.parametrize("resident", [False, True])
def test_a_pair_that_does_not_decode_stops_the_run(damaged, resident):
    with pytest.raises(InputError) as error, make(damaged, resident) as loader:
        list(loader)
    said = str(error.value)
    assert any(f"a_{row:06d}' in shard" in said for row in BAD) and "it is no JPEG file" in said
    for remedy in (
        f"prepare --verify --out {in_shell(damaged)}",
        "--data.exclude_quarantined bad",
        "--data.on_error skip",
    ):
        assert remedy in said
    assert loader.lost == 0


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("resident", [False, True])
def test_skipping_leaves_it_out_of_its_batch_and_nothing_else(folder, damaged, resident, prefetch):
    """Over three epochs, each batch is that of undamaged data without the bad pairs; each bad pair is reported once."""
    heard = []
    with make(folder) as loader:
        expected = batches(loader, 18)
    with make(
        damaged,
        resident,
        on_error="skip",
        max_errors=0.1,
        prefetch=prefetch,
        on_fault=lambda *fault: heard.append(fault),
    ) as loader:
        found = batches(loader, 18)
        assert loader.lost == 3 and loader.pairs == 30
    kept = []
    for index, frames, pcm in expected:
        good = ~np.isin(index.numpy(), BAD)
        kept.append((index[good], frames[good], pcm[good]))
    assert_equal(found, kept)
    assert sorted(row for row, _ in heard) == BAD and {reason for _, reason in heard} == {"it is no JPEG file"}


@pytest.mark.parametrize("resident", [False, True])
def test_too_many_stop_it_all_the_same(damaged, resident):
    with pytest.raises(
        InputError,
        match=r"^3 of 30 pairs do not decode, more than data.max_errors = 0.09 allows; the "
        r"last is pair 'vidéo.\d a_0000\d\d' in shard .* \(it is no JPEG file\)",
    ):
        with make(damaged, resident, on_error="skip", max_errors=0.09) as loader:
            batches(loader, 6)


@pytest.mark.slow
@pytest.mark.parametrize("resident", [False, True])
def test_a_resume_skips_the_same(damaged, resident):
    settings = {"on_error": "skip", "max_errors": 0.1}
    with make(damaged, resident, **settings) as loader:
        whole = batches(loader, 15)
    with make(damaged, resident, **settings) as loader:
        first, state = batches(loader, 4), loader.state_dict()
    with make(damaged, resident, **settings) as loader:
        loader.load_state_dict(state)
        assert_equal(first + batches(loader, 11), whole)


@pytest.mark.slow
@pytest.mark.parametrize("resident", [False, True])
def test_a_batch_of_which_too_little_is_left(folder, tmp_path, resident):
    """Rows 30 and 31 are the first two of val: a batch of two loses both its pairs, or one of them."""
    settings = {"splits": ("val",), "batch_size": 2, "shuffle": False, "on_error": "skip", "max_errors": 1.0}
    both = damage(folder, tmp_path / "both", [30, 31])
    with make(both, resident, **settings, least=0) as loader:
        assert [plain(batch)[0].tolist() for batch in loader] == [[32, 33], [34]] and loader.epoch == 1
        assert [plain(batch)[0].tolist() for batch in loader] == [[32, 33], [34]]
    one = damage(folder, tmp_path / "one", [33])
    with pytest.raises(
        InputError, match="^batch 2 of epoch 1 lost 1 of its 2 pairs, and training needs 2: choose a larger"
    ):
        with make(one, resident, **settings, least=2) as loader:
            list(loader)
    every = damage(folder, tmp_path / "every", list(range(30, 35)))
    with make(every, resident, **settings, least=0, epochs=1) as loader:
        assert list(loader) == [] and loader.lost == 5
    with pytest.raises(InputError, match="none of the 5 pairs decodes"), make(every, **settings, least=0) as loader:
        batches(loader, 1)


def test_files_that_cannot_be_read_are_never_skipped(folder, tmp_path):
    root = Path(shutil.copytree(folder, tmp_path / "cut"))
    loader = make(root, on_error="skip", max_errors=1.0)
    shard = root / "train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:100_000])
    with pytest.raises(InputError, match="the shard ends .* early"), loader:
        list(loader)


def quarantine(folder: Path, out: Path, entries: list[tuple[int | None, str]]) -> Path:
    shutil.copytree(folder, out)
    manifest = Manifest.load(out)
    lines = [{"row": row, "key": None if row is None else manifest.key(row), "reason": why} for row, why in entries]
    (out / QUARANTINE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def test_quarantined_pairs_are_left_out_where_that_is_asked_for(folder, tmp_path):
    listed = [(3, CORRUPT), (17, SILENT), (18, TRUNCATED), (20, BLACK), (31, CORRUPT), (None, CORRUPT)]
    root = quarantine(folder, tmp_path / "listed", listed)
    for exclude, gone in (("none", []), ("bad", [3, 18]), ("all", [3, 17, 18, 20])):
        with make(root, exclude=exclude) as loader:
            assert sorted(row for index, *_ in batches(loader, len(loader)) for row in index.tolist()) == sorted(
                set(range(30)) - set(gone)
            )
            assert (loader.pairs, loader.excluded) == (30 - len(gone), len(gone))
    with make(root, exclude="bad") as loader, make(root) as other, make(folder) as untouched:
        assert untouched.state_dict() == other.state_dict()
        with pytest.raises(InputError, match="this changed: the prepared data"):
            loader.load_state_dict(other.state_dict())
    with pytest.raises(InputError, match="every pair in val is quarantined"):
        make(
            quarantine(folder, tmp_path / "val", [(row, BLACK) for row in range(30, 35)]),
            splits=("val",),
            exclude="all",
        )
