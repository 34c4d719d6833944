"""The end of a run: it tests the best weights and the baselines, and writes summary, pictures and report."""

import contextlib
from collections.abc import Iterator

from essl_fast import checkpoints, config
from essl_fast.common.errors import reason
from essl_fast.common.files import write_json
from essl_fast.data.datasets import boxes_to_grid
from essl_fast.evaluate import Evaluation, boxes_prior, centre_prior, consensus_of, evaluation_loader, object_prior
from essl_fast.report import RESULTS, figures, gallery, write_report
from essl_fast.runtime import distributed
from essl_fast.train.ending import ended_early
from essl_fast.train.observers import pictures_wanted
from essl_fast.train.rundir import RunDirectory
from essl_fast.train.trainer import Trainer

ANNOTATED = 320, 180  # width and height of the frames in which the demo's objects are given, in pixels


def conclude(
    trainer: Trainer, directory: RunDirectory, objects: dict | None, data_seconds: float, environment: dict
) -> dict:
    """Test the best weights, write the files of a finished run, and return the summary.

    Args:
        trainer: after its last step.
        directory: of the run.
        objects: every object of each pair's frame, if they are known (in the demo).
        data_seconds: seconds that it took to make and open the data.
        environment: versions and machine, as plain values.
    """
    with distributed.leader_first(trainer.world):
        best = checkpoints.load(directory.best)
    averaged = test_average(trainer, directory)
    checkpoints.load_trained(trainer.model, best["model"])
    frozen = trainer.settings.baselines and trainer.model.freeze_trunk  # then its object map is a prior
    found = trainer.evaluate("test", show=trainer.settings.overlays, guidance=frozen)
    results = {"test": found.result(trainer.manifest), **averaged}
    if trainer.settings.baselines:
        results |= baselines(trainer, found, objects)
    summary = summarize(trainer, results, best["best"], data_seconds, environment)
    if trainer.world.leads:
        write_json(directory.summary, summary)
    trainer.observers.on_end(summary)  # the log says that the summary is of this run's end
    if trainer.world.leads:
        write_pictures(trainer, directory, found, results)
        if count := pictures_wanted(trainer.settings):
            trainer.observers.on_pictures("test", best["best"]["epoch"], found.samples[:count])
    return summary


def test_average(trainer: Trainer, directory: RunDirectory) -> dict[str, dict]:
    """The result of best-ema.pt on the test split, if the run averages its weights. They are then the model's."""
    if trainer.step.average is None:
        return {}
    with distributed.leader_first(trainer.world):
        best = checkpoints.load(directory.best_average)
    checkpoints.load_trained(trainer.model, best["model"])
    return {"test_ema": trainer.evaluate("test").result(trainer.manifest)}


@contextlib.contextmanager
def not_needed(what: str, trainer: Trainer) -> Iterator[None]:
    """An error inside is a warning: the run has its results, and ends well without ``what``."""
    try:
        yield
    except Exception as error:  # a full disk, a font, a library: a run of days must not end for a picture
        line = f"{what} could not be written ({reason(error)})"
        trainer.observers.on_warning(trainer.epoch, f"{line}; the results are complete without it")


def baselines(trainer: Trainer, found: Evaluation, objects: dict | None) -> dict[str, dict]:
    """The results of the baselines, on the pairs of the test split that the trained model was tested on."""
    rows, consensus, manifest = found.rows, consensus_of(trainer.settings, trainer.manifest), trainer.manifest
    results = {"untrained": trainer.untrained} if trainer.untrained else {}
    results["centre_prior"] = centre_prior(manifest, rows, consensus)
    if found.objects is not None:
        results["object_prior"] = object_prior(manifest, rows, consensus, found.objects)
    if objects:
        guesses = {}
        for row in rows:
            largest = max(objects[manifest.key(row)], key=lambda thing: thing["area"])
            guesses[manifest.key(row)] = boxes_to_grid([largest["box"]], *ANNOTATED)[0].tolist()
        results["largest_object_prior"] = boxes_prior(manifest, rows, consensus, guesses)
    return results


def summarize(
    trainer: Trainer, results: dict[str, dict], selected: dict, data_seconds: float, environment: dict
) -> dict:
    """What summary.json holds: plain values."""
    by_test = trainer.settings.select_on == "test"
    protocol = "published: the best epoch on the test set itself" if by_test else "clean"
    return {
        **results,
        "selected": {**selected, "protocol": protocol},
        **({"selected_ema": trainer.best_average} if "test_ema" in results else {}),
        "epochs": trainer.epoch,
        "ended_early": ended_early(trainer),
        "seconds": trainer.speed.total_seconds(),
        "stage_seconds": {"data": data_seconds, **trainer.speed.seconds},
        "pairs_per_second": trainer.speed.mean_rate(),
        "steps": dict(trainer.step.stepper.counts),
        "left_out": {"quarantined": trainer.data.excluded, "skipped": len(trainer.faults.skipped)},
        "config": config.to_dict(trainer.settings),
        "environment": environment,
    }


def write_pictures(trainer: Trainer, directory: RunDirectory, found: Evaluation, results: dict[str, dict]) -> None:
    """What helps to look at the results: curves, overlays, each pair's score, frames and maps, and the report."""
    settings, pools = trainer.settings, trainer.data.pools
    labelled = {RESULTS[name]: result for name, result in results.items()}
    with not_needed(directory.curves.name, trainer):
        figures.curves(directory.curves, trainer.history, labelled)
    with not_needed(directory.overlays.name, trainer):
        figures.overlays(directory.overlays, found.samples)
    with not_needed(f"{gallery.PAIRS} or {gallery.GALLERY}", trainer):
        loader = evaluation_loader(
            trainer.manifest, "test", settings, trainer.model, trainer.device, trainer.dtype, pools
        )
        with loader:
            gallery.write(directory.path, trainer.manifest, found, loader, -(-settings.overlays // 3))
    with not_needed(directory.report.name, trainer):
        write_report([directory.path], directory.report)
