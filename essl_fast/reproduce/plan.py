"""What is reproduced: which runs, and the command line of train for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.common.urls import is_url, placed
from essl_fast.data.shards import Manifest
from essl_fast.report import paper
from essl_fast.reproduce.rows import Row, fraction_of

PROG = "python -m essl_fast.reproduce"
# Settings of the rows themselves, or of this command's options. Overriding one would make the tables wrong.
FIXED = (
    "name",
    "out",
    "seed",
    "data.root",
    "data.labelled_fraction",
    "select_on",
    "baselines",
    "objective.method",
    "model.pcm",
    "model.head",
)
SWEPT_FIXED = ("name", "out", "seed", "data.root", "select_on", "baselines")  # the same of a sweep, whose rows are free
# Small networks (configs/demo.yaml) in place of the recipe's, without pretrained weights, on a CPU.
REDUCED = (
    "--model.trunk",
    "small",
    "--model.audio",
    "small",
    "--model.out_dim",
    "128",
    "--objective.supervised_weight",
    "10",
    "--optim.lr_sound",
    "4e-3",
    "--optim.lr_trunk",
    "4e-3",
    "--optim.lr_pcm",
    "1e-3",
    "--optim.weight_decay",
    "0.01",
    "--optim.schedule",
    "cosine",
    "--optim.warmup",
    "3",
    "--data.last_batch",
    "keep",
    "--eval_every",
    "1",
    "--demo.train_videos",
    "200",
    "--demo.test_videos",
    "50",
)
# On the demo: the recipe's setting in small (configs/worlds.yaml), in which methods without boxes can learn.
REDUCED_DEMO = (
    "--model.trunk",
    "small_frozen",
    "--model.audio",
    "small_frozen",
    "--model.head_dim",
    "512",
    "--objective.supervised_weight",
    "1",
    "--optim.lr_sound",
    "5e-3",
    "--optim.weight_decay",
    "1e-4",
    "--optim.warmup",
    "1",
    "--model.pcm_cycles",
    "1",
    "--demo.objects",
    "one",
)
REDUCED_EPOCHS = 12
REDUCED_BATCH = 8  # the recipe's batch is divided by this
RECIPE_HEAD = {"lss": 1e-4, "pcm": 5e-5, "plain": 2e-3}  # the recipes' learning rates of the head; in their place:
SMALL_HEAD = {"lss": 1e-3, "pcm": 1e-3, "plain": 1e-3}  # of small networks that start from nothing
WORLDS_HEAD = {"lss": 2e-3, "pcm": 1e-3, "plain": 2e-3}  # of small networks that are pretrained


@dataclass
class Plan:
    """What a user wants to reproduce.

    Attributes:
        data: a prepared folder, or "demo" for the synthetic world.
        out: folder of the runs and results.
        seeds: each row is trained once with each.
        protocol: "clean" selects the best epoch on the validation split, "published" on the test split.
        reduced: small networks and few epochs, for a CPU; pretrained and frozen on the demo, else from nothing.
        overrides: train's options, for every row.
        device: auto, cpu, cuda or cuda:N.
        published: published results that a user has, by the rows' names; they replace those of `report.paper`.
        swept: the rows of a sweep, if it is one.
    """

    data: str
    out: Path
    seeds: list[int]
    protocol: str = "clean"
    reduced: bool = False
    overrides: list[str] = field(default_factory=list)
    device: str = "auto"
    published: dict[str, paper.Row] = field(default_factory=dict)
    swept: tuple[Row, ...] = ()

    def arguments(self, row: Row, seed: int) -> list[str]:
        """train's command line for a row and a seed, without --out."""
        return [*self.own_arguments(row, seed), *self.overrides]

    def own_arguments(self, row: Row, seed: int) -> list[str]:
        """The same, without the overrides."""
        arguments = ["--config", row.config]
        if self.reduced:
            own = config.load(row.config)
            kind = "lss" if own.model.head == "lss" else "pcm" if own.model.pcm else "plain"
            heads = WORLDS_HEAD if self.data == "demo" else SMALL_HEAD
            head = heads[kind] * own.optim.lr_head / RECIPE_HEAD[kind]
            batch = max(2, own.data.batch_size // REDUCED_BATCH)
            arguments += [*REDUCED, *(REDUCED_DEMO if self.data == "demo" else ())]
            arguments += ["--optim.lr_head", f"{head:g}", "--data.batch_size", str(batch)]
            arguments += ["--epochs", str(REDUCED_EPOCHS)]
        arguments += ["--data.root", self.data, "--seed", str(seed), "--name", row.name]
        arguments += ["--select_on", "test" if self.protocol == "published" else "val", "--baselines", "false"]
        fraction = fraction_of(row)
        if fraction is not None:
            arguments += ["--data.labelled_fraction", f"{fraction:g}"]
        arguments += [f"--{name}={value}" for name, value in row.settings]
        return [*arguments, "--device", self.device]

    def check(self, rows: Iterable[Row]) -> None:
        """InputError if the overrides are no settings, or change settings that define a row."""
        for row in rows:
            fixed = (*SWEPT_FIXED, *dict(row.settings)) if self.swept else FIXED
            own, given = (config.parse(a, PROG)[0] for a in (self.own_arguments(row, 0), self.arguments(row, 0)))
            for line in config.difference(config.to_dict(own), config.to_dict(given)):
                if line.split(": ")[0] in fixed:
                    options = "--data, --seeds, --protocol" + ", --sweep" * bool(self.swept)
                    raise InputError(f"{line}: a row's own, or set by {options} or --out; leave it")
            models.check(given)

    def check_data(self) -> None:
        """InputError if the prepared folder is none, or lacks a split that the protocol needs."""
        if self.data == "demo":
            return
        if not is_url(self.data) and not (Path(self.data) / "manifest.json").is_file():
            raise InputError(
                f"--data: {self.data} is not a prepared folder (it has no manifest.json); see essl_fast.prepare"
            )
        manifest, needed = Manifest.load(placed(self.data)), {"clean": ("val", "test"), "published": ("test",)}
        if missing := [split for split in needed[self.protocol] if not manifest.pairs(split)]:
            remedy = "; prepare it with --validation above 0, or use --protocol published" * (missing == ["val"])
            raise InputError(f"--data: {manifest.place} has no {missing[0]} split{remedy}")

    def folder(self, row: Row, seed: int) -> Path:
        """The run directory of a row and a seed."""
        return self.out / "runs" / row.run / f"seed-{seed}"
