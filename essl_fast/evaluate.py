"""python -m essl_fast.evaluate CHECKPOINT: how well a checkpoint localizes on a split, as a table and JSON."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.table import Table

from essl_fast import checkpoint, config, distributed, kernels, metrics, models, runlog
from essl_fast.config import InputError
from essl_fast.data.loader import Loader
from essl_fast.data.pool import Pools
from essl_fast.data.shards import BAD, Manifest
from essl_fast.distributed import ALONE, World


class Evaluation(NamedTuple):
    """A split, pair by pair, in the manifest's order."""

    rows: np.ndarray  # (N,) int64 manifest rows
    ciou: np.ndarray  # (N,) float64; NaN counts as a miss
    similarity: np.ndarray  # (N, h, w) float32 cosine maps
    samples: list[dict]  # of the rows that were asked for: frame (224, 224, 3) uint8, similarity, boxes, title

    def result(self, manifest: Manifest) -> dict:
        """Plain values: success_at_half, auc, the 21-point curve, pairs, and the same per class."""
        summary = metrics.summarize(self.ciou)
        classes = metrics.per_class(self.ciou, manifest.class_id[self.rows], manifest.classes)
        return {
            "pairs": len(self.rows),
            "success_at_half": summary.success_at_half,
            "auc": summary.auc,
            "curve": summary.curve.tolist(),
            "per_class": classes,
        }


def pick_device(name: str) -> torch.device:
    """The torch device of a setting; InputError if it asks for a GPU that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name.startswith("cuda") and not count:
        raise InputError(
            f"device: {name} was asked for, but PyTorch sees no GPU; use --device cpu, or check the driver"
        )
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device: {name} was asked for, but there are {count} GPUs, counted from 0")
    return device


def log_mel(pcm: torch.Tensor) -> torch.Tensor:
    """What batches carry of the sound (see :func:`kernels.log_mel`)."""
    return kernels.log_mel(pcm)


def loader_settings(settings: config.Config) -> dict:
    """What every loader of a run is given."""
    data = settings.data
    return {
        "seed": settings.seed, "threads": data.threads or None, "prefetch": data.prefetch or None,
        "sound": log_mel, "exclude": data.exclude_quarantined, "on_error": data.on_error,
        "max_errors": data.max_errors,
    }  # fmt: skip


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: bf16 on a GPU and float32 on a CPU for "auto"."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def centre_view(frames: torch.Tensor, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Stored frames (N, 224, 224, 3) uint8, or rows (B,) of them, as the one view (1, B, 3, 224, 224) of evaluation."""
    rows = torch.arange(len(frames), device=frames.device) if rows is None else rows
    zero = torch.zeros((1, len(rows)), dtype=torch.int32, device=frames.device)
    return kernels.two_views(frames, rows, zero, zero, zero.bool(), config.SIZE, dtype)


def evaluation_loader(
    manifest: Manifest,
    split: str,
    settings: config.Config,
    device: torch.device,
    pools: Pools | None = None,
    on_fault: Callable[[int, str], None] | None = None,
    world: World = ALONE,
) -> Loader:
    """Every pair of a split once, in the manifest's order, at the size that evaluation sees. InputError if none is.

    Ranks share the pairs, unless these are too few for each to have one: then every rank sees all.
    """
    pairs = manifest.pairs(split)
    if not pairs:
        raise InputError(
            f"{manifest.root}: the {split} split is empty; prepare the data with one, or choose another split"
        )
    return Loader(
        manifest, [split], batch_size=min(max(2, settings.data.batch_size), pairs), side=config.SIZE, device=device,
        shuffle=False, epochs=1, pools=pools, on_fault=on_fault, least=0, **_part(manifest, split, settings, world),
        **loader_settings(settings),
    )  # fmt: skip


def _part(manifest: Manifest, split: str, settings: config.Config, world: World) -> dict[str, int]:
    """Which part of a split's pairs this rank's loader gives; {} for all of them."""
    if world.size == 1:
        return {}
    exclude = settings.data.exclude_quarantined
    listed = {} if exclude == "none" else manifest.quarantine()
    out = [row for row, reason in listed.items() if exclude == "all" or reason in BAD]
    enough = manifest.pairs(split) - np.isin(manifest.rows(split), out).sum() >= world.size
    return {"rank": world.rank, "world_size": world.size} if enough else {}


@torch.inference_mode()
def evaluate(
    model: models.Localizer,
    manifest: Manifest,
    split: str,
    settings: config.Config,
    device: torch.device,
    dtype: torch.dtype,
    show: int = 0,
    pools: Pools | None = None,
    on_fault: Callable[[int, str], None] | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Localize every pair of a split; results leave the device once, at the end. ``show`` pairs are kept to draw.

    ``pools`` may keep what is decoded for the next time. A pair that settings.data leaves out or lets skip is not in
    the result; ``on_fault`` hears of those skipped.
    """
    loader = evaluation_loader(manifest, split, settings, device, pools, on_fault, world)
    rows_wanted = manifest.rows(split)
    shown = set(rows_wanted[np.linspace(0, len(rows_wanted) - 1, min(show, len(rows_wanted))).astype(int)].tolist())
    boxes = torch.from_numpy(np.array(manifest.boxes)).to(device)
    rows, scores, maps, frames = [], [], [], {}
    was_training = model.training
    model.eval()
    try:
        for raw in loader:
            views = centre_view(raw.frames, dtype, raw.rows)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                similarity = model.attend(views, raw.sound).similarity[0]
            rows.append(raw.index)
            maps.append(similarity)
            scores.append(metrics.ciou(similarity, boxes[raw.index], settings.objective.consensus))
            for at, row in enumerate(raw.index.tolist() if shown else ()):
                if row in shown:
                    frames[row] = raw.frames[raw.rows[at]].cpu().numpy()
    finally:
        loader.close()
        model.train(was_training)
    found = [torch.cat(parts).cpu().numpy() for parts in (rows, scores, maps)] if rows else None
    expected = loader.pairs - loader.lost
    if _part(manifest, split, settings, world):
        everything = distributed.gather((found, frames, loader.lost), world)
        parts = [part for part, _, _ in everything if part is not None]
        found = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if parts else None
        frames = {row: frame for _, some, _ in everything for row, frame in some.items()}
        expected = loader.pairs - sum(lost for *_, lost in everything)
    if found is None:
        raise InputError(f"{manifest.root}: no pair of the {split} split decodes; run prepare again")
    rows, scores, maps = found
    order = np.argsort(rows)
    rows, scores, maps = rows[order], scores[order], maps[order].astype(np.float32)
    if len(np.unique(rows)) != len(rows) or len(rows) != expected or not np.isin(rows, rows_wanted).all():
        raise RuntimeError(f"evaluation of {split} saw {len(rows)} pairs, expected each of {expected} once")
    samples = []
    for at, row in enumerate(rows.tolist()):
        if row in frames:
            name = manifest.classes[manifest.class_id[row]]
            title = f"{name}: cIoU {scores[at]:.2f}\n{manifest.key(row)}"
            samples.append({"frame": frames[row], "similarity": maps[at], "boxes": manifest.boxes[row], "title": title})
    return Evaluation(rows, scores, maps, samples)


def centre_prior(manifest: Manifest, rows: np.ndarray, consensus: int) -> dict:
    """What always answering "the middle" scores on some rows: a box of half the frame's width and height."""
    quarter = config.SIZE // 4
    middle = [quarter, quarter, config.SIZE - quarter, config.SIZE - quarter]
    return boxes_prior(manifest, rows, consensus, {manifest.key(row): middle for row in rows})


def boxes_prior(manifest: Manifest, rows: np.ndarray, consensus: int, guesses: dict[str, list[int]]) -> dict:
    """What answering with one given box a pair scores; ``guesses`` maps each key to xyxy on the 224 grid."""
    guess = torch.tensor([guesses[manifest.key(row)] for row in rows], dtype=torch.int32)[:, None]
    boxes = torch.from_numpy(np.array(manifest.boxes[rows]))
    chunks = zip(guess.split(64), boxes.split(64), strict=True)
    scores = [metrics.ciou(kernels.box_weights(g, config.SIZE), b, consensus) for g, b in chunks]
    return Evaluation(rows, torch.cat(scores).numpy(), np.empty(0), []).result(manifest)


def restore(state: dict, device: torch.device) -> tuple[models.Localizer, config.Config]:
    """The localizer of a checkpoint's dict, and the config that it was trained with."""
    settings = config.from_dict(state["config"])
    model = models.build(settings.model)
    models.load_pretrained(model, settings.model)
    checkpoint.load_trained(model, state["model"])
    return model.to(device, memory_format=torch.channels_last), settings


def table(title: str, results: dict[str, dict]) -> Table:
    """Success rate and AUC in per cent, a row a result."""
    out = Table(title=title)
    for column in ("", "pairs", "success at cIoU 0.5, %", "AUC, %"):
        out.add_column(column, justify="left" if not column else "right")
    for name, result in results.items():
        out.add_row(name, str(result["pairs"]), f"{100 * result['success_at_half']:.1f}", f"{100 * result['auc']:.1f}")
    return out


def command(main, prog: str):
    """Run a command's main: what the user can mend becomes one line and exit code 2."""
    try:
        return main()
    except (InputError, models.WeightsError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # training went astray: nothing of the user's input is wrong
        print(f"{prog}: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m essl_fast.evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="best.pt or last.pt of a run directory")
    parser.add_argument("--data", default="", help="prepared folder (default: the one the run was trained on)")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="split (default: test)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp16", "fp32"), help="default: auto")
    for name in ("vgg16", "vggish"):
        text = f"the file of {name}'s published weights, if it has moved"
        parser.add_argument(f"--model.{name}_weights", dest=f"{name}_weights", default="", metavar="PATH", help=text)
    parser.add_argument("--json", type=Path, help="write the result here (default: print the table alone)")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    state = checkpoint.load(options.checkpoint)
    root = Path(options.data or state["data_root"])
    if not root.is_dir():
        raise InputError(
            f"there is no folder {root}, which {options.checkpoint} was trained on; say where it is with --data DIR"
        )
    for name in ("vgg16_weights", "vggish_weights"):
        if given := getattr(options, name):
            state["config"]["model"][name] = given
    model, settings = restore(state, device)
    manifest = Manifest.load(root)
    console = runlog.console()

    def skipped(row: int, reason: str) -> None:
        console.print(f"skipped {manifest.key(row)}, which does not decode: {reason}", soft_wrap=True, markup=False)

    precision = pick_precision(options.precision, device)
    found = evaluate(model, manifest, options.split, settings, device, precision, on_fault=skipped)
    result = found.result(manifest)
    console.print(table(f"{options.checkpoint} on {options.split}", {"all": result, **result["per_class"]}))
    curve = " ".join(f"{100 * x:.1f}" for x in result["curve"])
    console.print(f"success at cIoU >= 0, 0.05, ..., 1, %: {curve}", highlight=False, soft_wrap=True)
    if options.json:
        pairs = [
            {"key": manifest.key(row), "ciou": None if np.isnan(score) else float(score)}
            for row, score in zip(found.rows.tolist(), found.ciou, strict=True)
        ]
        runlog.write_json(
            options.json, {"checkpoint": str(options.checkpoint), "split": options.split, **result, "each": pairs}
        )
        console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, "essl_fast.evaluate"))
