"""The epochs of a run for TensorBoard, beside the JSON lines (`--tensorboard true`): `tensorboard --logdir runs`."""

from pathlib import Path

from essl_fast.common.errors import InputError


def writer_class() -> type:
    """torch's SummaryWriter; InputError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"tensorboard: it cannot be imported ({error}); run `pip install tensorboard` (or "
            "`pip install '.[tensorboard]'` in the source folder), or leave the setting out: log.jsonl holds the same"
        ) from error
    return SummaryWriter


class TensorBoardLog:
    """Takes what a :class:`runlog.RunLog` takes, and writes the numbers of epochs and of the end as event files.

    The x axis is the epoch. Those from ``epoch`` (counted from 0) on that an earlier process left are hidden: after a
    kill they are trained again. InputError if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, epoch: int = 0) -> None:
        self._writer = writer_class()(str(folder), purge_step=epoch + 1, flush_secs=30)

    def write(self, event: str, **values) -> None:
        if event == "epoch":
            for name, value in scalars(values).items():
                self._writer.add_scalar(name, value, values["epoch"])
        elif event == "end":
            for key in ("success_at_half", "auc"):
                self._writer.add_scalar(f"test/{key}", values["test"][key], values["selected"]["epoch"])
        if event in ("epoch", "end", "stop"):
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def scalars(entry: dict) -> dict[str, float]:
    """The numbers of an epoch's entry of the log, by their names in TensorBoard."""
    found = {f"loss/{name}": value for name, value in entry["losses"].items()}
    found |= {f"selection/{key}": value for key, value in entry.get("selection", {}).items()}
    return found | {f"speed/{key}": entry[key] for key in ("pairs_per_second", "waiting")}


class Both:
    """Two logs that are written together."""

    def __init__(self, first, second) -> None:
        self.logs = (first, second)

    def write(self, event: str, **values) -> None:
        for log in self.logs:
            log.write(event, **values)

    def close(self) -> None:
        for log in self.logs:
            log.close()
