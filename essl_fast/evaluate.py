"""python -m essl_fast.evaluate CHECKPOINT: how well a checkpoint localizes on a split, as a table and JSON."""

if __name__ == "__main__":
    from essl_fast.commands import begin

    begin()

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from essl_fast import checkpoint, config, distributed, kernels, metrics, models, runlog, sspl
from essl_fast.commands import command
from essl_fast.config import InputError, Options
from essl_fast.data.loader import Loader, RawBatch
from essl_fast.data.pool import Pools
from essl_fast.data.shards import BAD, Manifest
from essl_fast.distributed import ALONE, World
from essl_fast.hearing import sound_of

PROG = "python -m essl_fast.evaluate"
FOREIGN = {  # sounds that are not the frame's, in words
    "silent": "silence",
    "mismatched": "another pair's sound",
}


class Evaluation(NamedTuple):
    """A split, pair by pair, in the manifest's order."""

    rows: np.ndarray  # (N,) int64 manifest rows
    ciou: np.ndarray  # (N,) float64; NaN counts as a miss
    similarity: np.ndarray  # (N, h, w) float32 cosine maps
    samples: list[dict]  # of the rows asked for: frame (224, 224, 3) uint8, similarity, boxes, key, ciou, title
    foreign: dict[str, np.ndarray] = {}  # the largest similarity (N,) float32 under each of FOREIGN, if asked for

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

    def extra(self, manifest: Manifest, consensus: int) -> dict:
        """Plain values of the further metrics: ciou_adaptive (pairs, success_at_half, auc), per_size (the same by
        size), and for each kind of foreign sound average_precision, max_f1, and the threshold of that (None: there is
        none, as the maps are NaN)."""
        maps, boxes = torch.from_numpy(self.similarity), torch.from_numpy(np.array(manifest.boxes[self.rows]))
        chunks = list(zip(maps.split(64), boxes.split(64), strict=True))
        adaptive = torch.cat([metrics.ciou_adaptive(m, b, consensus) for m, b in chunks]).numpy()
        area = torch.cat([metrics.areas(b, consensus) for _, b in chunks]).numpy()
        summary = metrics.summarize(adaptive)
        with np.errstate(invalid="ignore"):
            found = self.ciou >= 0.5
        confidence = self.similarity.max(axis=(1, 2))
        foreign = {kind: metrics.detection(confidence, found, other) for kind, other in self.foreign.items()}
        return {
            "ciou_adaptive": {"pairs": len(area), "success_at_half": summary.success_at_half, "auc": summary.auc},
            "per_size": metrics.per_size(self.ciou, area),
            "foreign": {
                kind: {**one._asdict(), "threshold": one.threshold if np.isfinite(one.threshold) else None}
                for kind, one in foreign.items()
            },
        }


def pick_device(name: str) -> torch.device:
    """The torch device of a setting; InputError if it is none, or asks for a GPU that is not there."""
    config.check_device(name)
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


def loader_settings(settings: config.Config, model: models.Localizer, dtype: torch.dtype) -> dict:
    """What every loader of a run is given."""
    data = settings.data
    return {
        "seed": settings.seed, "threads": data.threads or None, "prefetch": data.prefetch or None,
        "sound": sound_of(settings, model, dtype), "exclude": data.exclude_quarantined, "on_error": data.on_error,
        "max_errors": data.max_errors,
    }  # fmt: skip


def consensus_of(settings: config.Config, manifest: Manifest) -> int:
    """How many annotators must agree: what the settings say or, where that is 0, what the data set says."""
    return settings.objective.consensus or manifest.consensus


def warn_of_consensus(settings: config.Config, manifest: Manifest, console) -> None:
    """Say so where the settings override what the data set says."""
    asked = consensus_of(settings, manifest)
    if asked != manifest.consensus:
        told = f"objective.consensus {asked} overrides the {manifest.consensus} of {manifest.root}"
        console.print(f"warning: {told}: results are not those of its protocol", soft_wrap=True, markup=False)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast: bf16 on a GPU and float32 on a CPU for "auto".

    Also tells PyTorch whether float32 products may round their factors to TF32: for "tf32" alone. Its own default lets
    convolutions do so.
    """
    if name == "auto":
        name = "bf16" if device.type == "cuda" else "fp32"
    if name == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)


def centre_view(frames: torch.Tensor, dtype: torch.dtype, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Stored frames (N, 224, 224, 3) uint8, or rows (B,) of them, as the one view (1, B, 3, 224, 224) of evaluation."""
    rows = torch.arange(len(frames), device=frames.device) if rows is None else rows
    zero = torch.zeros((1, len(rows)), dtype=torch.int32, device=frames.device)
    return kernels.two_views(frames, rows, zero, zero, zero.bool(), config.SIZE, dtype)


def evaluation_loader(
    manifest: Manifest,
    split: str,
    settings: config.Config,
    model: models.Localizer,
    device: torch.device,
    dtype: torch.dtype,
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
        **loader_settings(settings, model, dtype),
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
    foreign: bool = False,
) -> Evaluation:
    """Localize every pair of a split; results leave the device once, at the end. ``show`` pairs are kept to draw.

    ``foreign``: also meet each frame with silence, and with the sound of the pair half a split further on (the same
    pair whatever the batches or ranks; no frame is decoded twice for it).

    ``pools`` may keep what is decoded for the next time. A pair that settings.data leaves out or lets skip is not in
    the result; ``on_fault`` hears of those skipped.
    """
    loader = evaluation_loader(manifest, split, settings, model, device, dtype, pools, on_fault, world)
    rows_wanted = manifest.rows(split)
    shown = set(rows_wanted[np.linspace(0, len(rows_wanted) - 1, min(show, len(rows_wanted))).astype(int)].tolist())
    boxes = torch.from_numpy(np.array(manifest.boxes)).to(device)
    rows, scores, maps, frames = [], [], [], {}
    others = {kind: [] for kind in FOREIGN if foreign and (kind == "silent" or loader.pairs > 1)}
    silence = loader.silence() if foreign else None
    was_training = model.training
    model.eval()
    model.prepare(dtype)
    try:
        for raw in loader:
            views = centre_view(raw.frames, dtype, raw.rows)
            sounds = _foreign(loader, raw, silence) if foreign else {}
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                seen = model.see(views)
                similarity = model.meet(seen, raw.sound)[0].similarity[0]
                for kind, sound in sounds.items():
                    others[kind].append(model.meet(seen, sound)[0].similarity[0].amax(dim=(1, 2)))
            rows.append(raw.index)
            maps.append(similarity)
            scores.append(metrics.ciou(similarity, boxes[raw.index], consensus_of(settings, manifest)))
            for at, row in enumerate(raw.index.tolist() if shown else ()):
                if row in shown:
                    frames[row] = raw.frames[raw.rows[at]].cpu().numpy()
    finally:
        loader.close()
        model.train(was_training)
    columns = (rows, scores, maps, *others.values())
    found = [torch.cat(parts).cpu().numpy() for parts in columns] if rows else None
    expected = loader.pairs - loader.lost
    if _part(manifest, split, settings, world):
        everything = distributed.gather((found, frames, loader.lost), world)
        parts = [part for part, _, _ in everything if part is not None]
        found = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] if parts else None
        frames = {row: frame for _, some, _ in everything for row, frame in some.items()}
        expected = loader.pairs - sum(lost for *_, lost in everything)
    if found is None:
        raise InputError(f"{manifest.root}: no pair of the {split} split decodes; run prepare again")
    order = np.argsort(found[0])
    rows, scores, maps, *others_found = (column[order] for column in found)
    maps = maps.astype(np.float32)
    if len(np.unique(rows)) != len(rows) or len(rows) != expected or not np.isin(rows, rows_wanted).all():
        raise RuntimeError(f"evaluation of {split} saw {len(rows)} pairs, expected each of {expected} once")
    samples = []
    for at, row in enumerate(rows.tolist()):
        if row in frames:
            name = manifest.classes[manifest.class_id[row]]
            title = f"{name}: cIoU {scores[at]:.2f}\n{manifest.key(row)}"
            score = float(np.nan_to_num(scores[at]))  # NaN counts as a miss
            told = {"key": manifest.key(row), "ciou": score, "title": title}
            samples.append({"frame": frames[row], "similarity": maps[at], "boxes": manifest.boxes[row], **told})
    return Evaluation(rows, scores, maps, samples, dict(zip(others, others_found, strict=True)))


def _foreign(loader: Loader, raw: RawBatch, silence: torch.Tensor) -> dict[str, torch.Tensor]:
    """FOREIGN's sounds for a batch's frames, each as the batch carries its own."""
    sounds = {"silent": silence.expand_as(raw.sound)}
    if loader.pairs > 1:
        at = np.searchsorted(loader.rows, raw.index.cpu().numpy())
        sounds["mismatched"] = loader.sound_of(loader.rows[(at + loader.pairs // 2) % loader.pairs])
    return sounds


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
    settings = checkpoint.settings_of(state)
    model = models.build(settings.model)
    models.load_pretrained(model, settings.model)
    checkpoint.load_trained(model, state["model"])
    return model.to(device, memory_format=torch.channels_last), settings


def published(folder: Path, device: torch.device) -> tuple[models.Localizer, config.Config]:
    """The localizer of a folder of the published SSPL code's files, and a config of its architecture. InputError."""
    parts = sspl.read_files(folder)
    shape = sspl.shape_of(parts)
    model = config.ModelConfig(trunk="vgg16", audio="vggish", vgg16_weights="none", vggish_weights="none", **shape)
    settings = config.check(config.Config(model=model))
    localizer = models.build(model)
    sspl.load_sspl(localizer, parts)  # the frozen networks, too
    return localizer.to(device, memory_format=torch.channels_last), settings


def table(title: str, results: dict[str, dict]) -> Table:
    """Success rate and AUC in per cent, a row a result."""
    out = Table(title=title)
    for column in ("", "pairs", "success at cIoU 0.5, %", "AUC, %"):
        out.add_column(column, justify="left" if not column else "right")
    for name, result in results.items():
        figures = f"{100 * result['success_at_half']:.1f}", f"{100 * result['auc']:.1f}"
        out.add_row(escape(name), str(result["pairs"]), *figures)
    return out


def extra_tables(extra: dict) -> list[Table]:
    """The further metrics of :meth:`Evaluation.extra`, to be printed."""
    sizes = {f"{name}, from {metrics.SIZES[name]} pixels": found for name, found in extra["per_size"].items()}
    tables = [table("further metrics", {"area of the boxes as threshold": extra["ciou_adaptive"], **sizes})]
    if extra["foreign"]:
        out = Table(title="does it listen? own sound against")
        for column in ("", "average precision, %", "max-F1, %", "at similarity"):
            out.add_column(column, justify="left" if not column else "right")
        for kind, found in extra["foreign"].items():
            figures = (f"{100 * found['average_precision']:.1f}", f"{100 * found['max_f1']:.1f}")
            out.add_row(FOREIGN[kind], *figures, "–" if found["threshold"] is None else f"{found['threshold']:.3f}")
        tables.append(out)
    return tables


def main(argv: list[str] | None = None) -> int:
    parser = Options(prog=PROG, description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a run directory (its best.pt), or a checkpoint")
    parser.add_argument(
        "--sspl-checkpoint", type=Path, metavar="DIR",
        help=f"instead: folder with the published SSPL code's {', '.join(sspl.FILES.values())}",
    )  # fmt: skip
    parser.add_argument("--data", default="", help="prepared folder (default: the one the run was trained on)")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="split (default: test)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    precisions = ("auto", "bf16", "fp16", "fp32", "tf32")
    parser.add_argument("--precision", default="auto", choices=precisions, help="default: auto")
    for name in ("vgg16", "vggish"):
        text = f"the file of {name}'s published weights, if it has moved"
        parser.add_argument(f"--model.{name}_weights", dest=f"{name}_weights", default="", metavar="PATH", help=text)
    parser.add_argument(
        "--extra", action="store_true",
        help="further metrics: cIoU with an adaptive threshold, success by size, and average precision and max-F1 "
        "against silence and another pair's sound",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the result here (default: print the table alone)")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    if (options.checkpoint is None) == (options.sspl_checkpoint is None):
        raise InputError("give a checkpoint, or --sspl-checkpoint DIR, and not both")
    if options.json and options.json.is_dir():
        raise InputError(f"--json: {options.json} is a folder; name a file")
    if options.sspl_checkpoint:
        if not options.data:
            raise InputError("--sspl-checkpoint: say on which prepared folder to evaluate it, with --data DIR")
        model, settings = published(options.sspl_checkpoint, device)
        manifest = Manifest.load(Path(options.data))
    else:
        if options.checkpoint.is_dir():
            options.checkpoint /= "best.pt"
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
        if not options.data and state["data"] != manifest.header:
            raise InputError(
                f"{root} is no longer the data set that {options.checkpoint} was trained on; say which one to evaluate "
                "on with --data DIR"
            )
    name = str(options.checkpoint or options.sspl_checkpoint)
    console = runlog.console()
    warn_of_consensus(settings, manifest, console)

    def skipped(row: int, reason: str) -> None:
        console.print(f"skipped {manifest.key(row)}, which does not decode: {reason}", soft_wrap=True, markup=False)

    precision = pick_precision(options.precision, device)
    found = evaluate(
        model, manifest, options.split, settings, device, precision, on_fault=skipped, foreign=options.extra
    )
    result = found.result(manifest)
    console.print(table(f"{name} on {options.split}", {"all": result, **result["per_class"]}))
    curve = " ".join(f"{100 * x:.1f}" for x in result["curve"])
    console.print(f"success at cIoU >= 0, 0.05, ..., 1, %: {curve}", highlight=False, soft_wrap=True)
    if options.extra:
        result["extra"] = found.extra(manifest, consensus_of(settings, manifest))
        for further in extra_tables(result["extra"]):
            console.print(further)
    if options.json:
        pairs = [
            {"key": manifest.key(row), "ciou": None if np.isnan(score) else float(score)}
            for row, score in zip(found.rows.tolist(), found.ciou, strict=True)
        ]
        runlog.write_json(options.json, {"checkpoint": name, "split": options.split, **result, "each": pairs})
        console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
