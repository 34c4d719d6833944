"""Methods by worlds: each method on synthetic worlds of rising difficulty, beside what knows no sound.

The worlds are those of `demo.objects`: a single object in each frame; a silent one of another class beside it; two to
four silent ones. The networks are the recipe's in small: a trunk and an audio network that were pretrained on single
objects and single sounds (`essl_fast.pretrain`) and are frozen; the projection of the sound, the PCM and the head are
trained. So the published order of the methods can show, which it cannot where everything starts from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from essl_fast import config, models
from essl_fast.common.errors import InputError
from essl_fast.reproduce.results import mean, mean_and_spread

PROG = "python -m essl_fast.reproduce worlds"
CONFIG = "worlds"
WORLDS = {"one": "one object", "two": "one silent beside it", "several": "two to four silent beside it"}
FIXED = ("name", "out", "seed", "data.root", "data.labelled_fraction", "baselines", "demo.objects", "objective.method")
_PCM = ("--model.pcm", "true", "--model.pcm_cycles", "1", "--optim.lr_head", "1e-3")  # 4 cycles take four times as long


class Method(NamedTuple):
    """A line of the table."""

    name: str
    label: str
    settings: tuple[str, ...]  # train's options beyond CONFIG


def _semipl(share: float) -> Method:
    settings = ("--objective.method", "semipl", "--data.labelled_fraction", f"{share:g}")
    return Method(f"semipl-{share:g}", f"SemiPL, {100 * share:g}% of the labels", settings)


METHODS = (
    Method("sspl", "SSPL without PCM (SemiPL, no label)", ("--objective.method", "sspl")),
    Method("sspl-pcm", "SSPL with PCM", ("--objective.method", "sspl", *_PCM)),
    Method("lss", "LSS", ("--objective.method", "lss", "--model.head", "lss")),
    *map(_semipl, (0.01, 0.1, 0.5, 1.0)),
    Method("supervised", "supervised, all labels", ("--objective.method", "supervised")),
)
BASELINES = {  # of a run's summary; those of the first method's runs are shown
    "untrained": "untrained",
    "centre_prior": "centre",
    "object_prior": "object prior (trunk, without sound)",
    "largest_object_prior": "largest object (told the objects)",
}
UNTOLD = ("centre_prior", "object_prior", "untrained")  # those that nobody told where objects are


@dataclass
class Grid:
    """What is run, and its results.

    Attributes:
        out: folder of runs and results.
        seeds: each method is trained once with each, on each world.
        worlds: of WORLDS.
        overrides: train's options, for every run.
        device: auto, cpu, cuda or cuda:N.
        summaries: (world, method, seed) -> the summary of a run that has ended.
        failed: (world, method, seed) -> why there is none.
    """

    out: Path
    seeds: list[int]
    worlds: list[str] = field(default_factory=lambda: list(WORLDS))
    overrides: list[str] = field(default_factory=list)
    device: str = "auto"
    summaries: dict[tuple[str, str, int], dict] = field(default_factory=dict)
    failed: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def runs(self) -> list[tuple[str, Method, int]]:
        """Every run, seed by seed, so that an interrupted table has whole columns first."""
        return [(world, method, seed) for seed in self.seeds for world in self.worlds for method in METHODS]

    def folder(self, world: str, method: Method, seed: int) -> Path:
        """The run directory."""
        return self.out / "runs" / world / method.name / f"seed-{seed}"

    def arguments(self, world: str, method: Method, seed: int) -> list[str]:
        """train's command line for a run, without --out."""
        own = ["--config", CONFIG, "--demo.objects", world, *method.settings]
        own += ["--seed", str(seed), "--name", f"{world}-{method.name}", "--device", self.device]
        own += ["--baselines", "true" if method is METHODS[0] else "false"]
        return [*own, *self.overrides]

    def check(self) -> None:
        """InputError if the overrides are no settings, or change what defines a run."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"--seeds: each once, and from 0, got {self.seeds}")
        plain = Grid(self.out, self.seeds, self.worlds, [], self.device)
        for method in METHODS:
            own, given = (config.parse(each.arguments("one", method, 0), PROG)[0] for each in (plain, self))
            for line in config.difference(config.to_dict(own), config.to_dict(given)):
                if line.split(": ")[0] in FIXED:
                    raise InputError(f"{line}: it belongs to a line or column of the table, or to --seeds; leave it")
            models.check(given)

    def values(self, world: str, method: str, key: str = "success_at_half", part: str = "test") -> list[float]:
        """A figure of a method, or of a baseline (`part`) in a method's runs, one for each seed that has ended."""
        found = (self.summaries.get((world, method, seed)) for seed in self.seeds)
        return [summary[part][key] for summary in found if summary and part in summary]

    def lines(self, key: str) -> list[list[str]]:
        """The table: a line for each method and baseline, a column for each world; mean ± deviation in per cent."""
        methods = [[each.label, *(self._cell(world, each.name, key) for world in self.worlds)] for each in METHODS]
        known = METHODS[0].name
        priors = [
            [label, *(mean_and_spread(self.values(world, known, key, part)) for world in self.worlds)]
            for part, label in BASELINES.items()
        ]
        return methods + priors

    def _cell(self, world: str, name: str, key: str) -> str:
        why = next((why for (place, method, _), why in self.failed.items() if (place, method) == (world, name)), "")
        found = mean_and_spread(self.values(world, name, key))
        return f"{found} (failed: {why})" if why else found

    def finding(self) -> str:
        """What learns without a box, beside the best baseline that nobody told where objects are, in words."""
        told = []
        for world in self.worlds:
            priors = {part: self.values(world, METHODS[0].name, part=part) for part in UNTOLD}
            means = {part: mean(values)[0] for part, values in priors.items() if values}
            ours = {each: self.values(world, each.name) for each in METHODS[:3]}
            learned = {each.label: mean(values)[0] for each, values in ours.items() if values}
            if not means or not learned:
                continue
            best, prior = max(learned, key=learned.__getitem__), max(means, key=means.__getitem__)
            times = f", {learned[best] / means[prior]:.1f} times" if means[prior] else ""
            told.append(
                f"{WORLDS[world]}: without boxes the best is {best} with {learned[best]:.1f}%{times} the best baseline "
                f"that is told no object ({BASELINES[prior]}, {means[prior]:.1f}%)"
                if times
                else f"{WORLDS[world]}: {best} {learned[best]:.1f}%, {BASELINES[prior]} 0.0%"
            )
        return "; ".join(told) + "." if told else "No world has both a method and a baseline: there is no finding."

    def to_dict(self) -> dict:
        """Plain values, for worlds.json."""
        rows = []
        for (world, method, seed), summary in sorted(self.summaries.items()):
            parts = {part: summary[part] for part in ("test", *BASELINES) if part in summary}
            figures = {
                part: {key: each[key] for key in ("pairs", "success_at_half", "auc")} for part, each in parts.items()
            }
            rows.append({"world": world, "method": method, "seed": seed, "seconds": summary["seconds"], **figures})
        failed = [{"world": w, "method": m, "seed": s, "why": why} for (w, m, s), why in self.failed.items()]
        return {"seeds": self.seeds, "overrides": self.overrides, "runs": rows, "failed": failed}


def heads(worlds: Sequence[str]) -> tuple[str, ...]:
    """The heads of the table's columns."""
    return ("", *(WORLDS[world] for world in worlds))
