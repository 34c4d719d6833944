"""The end of a run: it tests the best weights and the baselines, and writes summary, pictures and report."""

import numpy as np

from essl_fast import checkpoints, config
from essl_fast.common.files import write_json
from essl_fast.data.datasets import boxes_to_grid
from essl_fast.evaluate import Evaluation, boxes_prior, centre_prior, consensus_of, evaluation_loader
from essl_fast.report import RESULTS, figures, gallery, write_report
from essl_fast.runtime import distributed
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
    checkpoints.load_trained(trainer.model, best["model"])
    found = trainer.evaluate("test", show=trainer.settings.overlays)
    results = {"test": found.result(trainer.manifest)}
    if trainer.settings.baselines:
        results |= baselines(trainer, found.rows, objects)
    summary = summarize(trainer, results, best["best"], data_seconds, environment)
    if trainer.world.leads:
        write_json(directory.summary, summary)
        write_pictures(trainer, directory, found, results)
    trainer.observers.on_end(summary)
    if trainer.world.leads:
        write_report([directory.path], directory.report)
    return summary


def baselines(trainer: Trainer, rows: np.ndarray, objects: dict | None) -> dict[str, dict]:
    """The results of the baselines, on the rows of the test split that the trained model was tested on."""
    consensus, manifest = consensus_of(trainer.settings, trainer.manifest), trainer.manifest
    results = {"untrained": trainer.untrained} if trainer.untrained else {}
    results["centre_prior"] = centre_prior(manifest, rows, consensus)
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
        "seconds": trainer.speed.total_seconds(),
        "stage_seconds": {"data": data_seconds, **trainer.speed.seconds},
        "pairs_per_second": trainer.speed.mean_rate(),
        "steps": dict(trainer.step.stepper.counts),
        "left_out": {"quarantined": trainer.data.excluded, "skipped": len(trainer.faults.skipped)},
        "config": config.to_dict(trainer.settings),
        "environment": environment,
    }


def write_pictures(trainer: Trainer, directory: RunDirectory, found: Evaluation, results: dict[str, dict]) -> None:
    """Curves, overlays, and the frames and maps that the report shows."""
    settings, pools = trainer.settings, trainer.data.pools
    loader = evaluation_loader(trainer.manifest, "test", settings, trainer.model, trainer.device, trainer.dtype, pools)
    with loader:
        gallery.write(directory.path, trainer.manifest, found, loader, -(-settings.overlays // 3))
    labelled = {RESULTS[name]: result for name, result in results.items()}
    figures.curves(directory.curves, trainer.history, labelled)
    figures.overlays(directory.overlays, found.samples)
