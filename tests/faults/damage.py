"""Cases of the matrix: files that are damaged, of something else, or gone."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from essl_fast import checkpoints
from essl_fast.data.shards import Manifest, read_index
from tests.faults import worlds
from tests.faults.acts import begun, case, evaluated, interrupted, prepared_again, resumed, succeeds, told, until
from tests.faults.worlds import Bench

# ---------------------------------------------------------------- damaged files


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 6 // 10)


def flip(file: Path, at: int | None = None) -> None:
    """Flip one bit of a file, in its middle by default."""
    at = file.stat().st_size // 2 if at is None else at
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 16]))


def _damage_checkpoint(fault: str, damage: Callable[[Path], None]) -> None:
    @case(fault, "checkpoint")
    def _(bench: Bench) -> None:
        out = interrupted(bench)
        damage(out / "last.pt")
        said = resumed(bench, out)
        assert f"passed over: {out / 'last.pt'}" in said and f"goes on from {out / 'last-1.pt'}" in said

    @case(fault, "evaluation")
    def _(bench: Bench) -> None:
        out = bench.copy(bench.reference, "run")
        damage(out / "best.pt")
        told(
            bench.server.start("evaluate", out / "best.pt", "--device", "cpu"),
            out / "best.pt",
            "is not a readable checkpoint",
            f"{out / 'last.pt'} is whole",
        )


_damage_checkpoint("checkpoint half written", cut)
_damage_checkpoint("checkpoint with a flipped bit", flip)


def shard(data: Path, split: str) -> Path:
    return Manifest.load(data).shards(split)[0][0]


def within_the_first_picture(tar: Path) -> int:
    """An offset late in its data, where a decoder notices nothing."""
    index = read_index(tar.with_suffix(".idx"))
    return int(index.visual_offset[0] + index.visual_size[0] * 3 // 4)


@case("shard cut short", "prepare")
def _(bench: Bench) -> None:
    out = bench.copy(bench.prepared, "data")
    cut(shard(out, "train"))
    assert "is damaged: preparing it again" in prepared_again(bench, out)


@case("shard cut short", "training")
def _(bench: Bench) -> None:
    data, out = bench.copy(bench.prepared, "data"), interrupted(bench)
    tar = shard(data, "train")
    cut(tar)
    told(bench.server.start("train", "--resume", out, "--data.root", data), tar, "instead of", "again")
    prepared_again(bench, data)
    resumed(bench, out, "--data.root", data)


@case("shard cut short", "evaluation")
def _(bench: Bench) -> None:
    data = bench.copy(bench.prepared, "data")
    tar = shard(data, "test")
    cut(tar)
    arguments = bench.reference / "best.pt", "--device", "cpu", "--data", data
    told(bench.server.start("evaluate", *arguments), tar, "instead of", "again")
    prepared_again(bench, data)
    evaluated(bench, bench.reference, "--data", data)


@case("shard with a flipped bit", "prepare")
def _(bench: Bench) -> None:
    data = bench.copy(bench.prepared, "data")
    tar = shard(data, "train")
    flip(tar, within_the_first_picture(tar))
    code, said = bench.server.run("prepare", "--verify", "--out", data, "--workers", "1")
    listed = [json.loads(line) for line in (data / "quarantine.jsonl").read_text().splitlines()]
    assert code == 1 and "quarantine.jsonl" in said.replace("\n", "") and listed[0]["reason"] == "corrupt"
    assert listed[0]["key"] == Manifest.load(data).key(0)


@case("shard with a flipped bit", "training")
def _(bench: Bench) -> None:
    data, out = bench.copy(bench.prepared, "data"), bench.new("run")
    tar = shard(data, "train")
    at = within_the_first_picture(tar)
    flip(tar, at)
    child = bench.server.start("train", *bench.train(out, data=data))
    told(child, tar, Manifest.load(data).key(0), "CRC-32", "--data.on_error skip")
    flip(tar, at)
    resumed(bench, out)


@case("shard with a flipped bit", "evaluation")
def _(bench: Bench) -> None:
    data = bench.copy(bench.prepared, "data")
    tar = shard(data, "test")
    at = within_the_first_picture(tar)
    flip(tar, at)
    child = bench.server.start("evaluate", bench.reference / "best.pt", "--device", "cpu", "--data", data)
    told(child, tar, "CRC-32")
    flip(tar, at)
    evaluated(bench, bench.reference, "--data", data)


def another(bench: Bench) -> Path:
    """Other data, prepared from the same videos."""
    out = bench.root / "another"
    if not out.exists():
        code, said = bench.server.run("prepare", *bench.prepare(out), "--seed", "2")
        assert code == 0, said
    return out


@case("manifest of another data set", "prepare")
def _(bench: Bench) -> None:
    before = worlds.hashes(another(bench))
    child = bench.server.start("prepare", *bench.prepare(another(bench)))
    told(child, another(bench), "prepared differently (seed was")
    assert worlds.hashes(another(bench)) == before


@case("manifest of another data set", "training")
def _(bench: Bench) -> None:
    out = interrupted(bench)
    child = bench.server.start("train", "--resume", out, "--data.root", another(bench))
    told(child, another(bench), "is not the data set that the checkpoint was trained on")
    resumed(bench, out, "--data.root", bench.prepared)


@case("manifest of another data set", "evaluation")
def _(bench: Bench) -> None:
    data, out = bench.copy(bench.prepared, "data"), bench.copy(bench.reference, "run")
    state = checkpoints.load(out / "best.pt")
    checkpoints.save(out / "best.pt", {**state, "data_root": str(data)})
    shutil.rmtree(data)
    shutil.copytree(another(bench), data)
    told(bench.server.start("evaluate", out / "best.pt", "--device", "cpu"), data, "no longer the data set", "--data")
    succeeds(bench.server.start("evaluate", out / "best.pt", "--device", "cpu", "--data", data))
    evaluated(bench, out, "--data", bench.prepared)


# ---------------------------------------------------------------- things that vanish


@case("a file deleted while running", "prepare")
def _(bench: Bench) -> None:
    world, out = bench.copy(bench.world, "world"), bench.new("data")
    arguments = ["--videos", world / "videos", "--annotations", world / "notes", "--out", out, *worlds.PREPARE]
    child = bench.server.start("prepare", *arguments, "--workers", "1", "--strict", PAUSE=0.1)
    until(child, out.exists)
    gone = world / "videos" / "ü f.mp4"  # the last to be read
    kept = gone.rename(world / "kept.mp4")
    assert child.wait() == 1, child.said()
    assert "were left out" in child.said() and "video file missing" in child.said(), child.said()
    left = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert "video file missing" in {entry["reason"] for entry in left if entry["video"] == "ü f"}
    kept.rename(gone)
    shutil.rmtree(out)
    succeeds(bench.server.start("prepare", *arguments, "--workers", "1"))
    assert worlds.data_differs(out, bench.prepared) is None


@case("a file deleted while running", "training")
def _(bench: Bench) -> None:
    data = bench.copy(bench.prepared, "data")
    child, out = begun(bench, "--data.resident", "never", data=data, writes=1)  # it has been evaluated once
    tar = shard(data, "test")
    kept = tar.rename(data.parent / f"{data.name}.kept")
    told(child, tar, "No such file", "prepare again")
    kept.rename(tar)
    resumed(bench, out)


@case("a file deleted while running", "checkpoint")
def _(bench: Bench) -> None:
    child, out = begun(bench)
    (out / "last.pt").unlink()
    child.kill(signal.SIGKILL)
    child.wait()
    (out / "last.pt").unlink(missing_ok=True)  # it may have been written once more
    assert f"goes on from {out / 'last-1.pt'}" in resumed(bench, out)


@case("a file deleted while running", "evaluation")
def _(bench: Bench) -> None:
    data = bench.copy(bench.prepared, "data")
    tar = shard(data, "test")
    kept = tar.rename(data.parent / f"{data.name}.kept")
    child = bench.server.start("evaluate", bench.reference / "best.pt", "--device", "cpu", "--data", data)
    told(child, tar, "missing", "prepare")
    kept.rename(tar)
    evaluated(bench, bench.reference, "--data", data)
