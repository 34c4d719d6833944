"""The epochs of a run for TensorBoard (`--tensorboard true`): `tensorboard --logdir runs`."""

from pathlib import Path

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.train.observers import Observer, register_logger
from essl_fast.train.pictures import blended, final_scalars, scalars


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


@register_logger("tensorboard")
class TensorBoardLog(Observer):
    """Writes numbers and pictures of each epoch and of the end as event files into ``folder``/tensorboard, by epoch.

    Entries that an earlier process wrote for epochs after ``epoch`` are hidden: those epochs are trained again.
    InputError if TensorBoard is not installed.
    """

    pictures = 4

    def __init__(self, settings: config.Config | None, folder: Path, epoch: int = 0) -> None:
        self._writer = writer_class()(str(Path(folder) / "tensorboard"), purge_step=epoch + 1, flush_secs=30)

    @classmethod
    def check(cls) -> None:
        writer_class()

    def on_epoch(self, entry: dict) -> None:
        for name, value in scalars(entry).items():
            self._writer.add_scalar(name, value, entry["epoch"])
        self._writer.flush()

    def on_pictures(self, split: str, epoch: int, samples: list[dict]) -> None:
        for number, sample in enumerate(samples, 1):
            self._writer.add_image(f"{split}/{number}", blended(sample), epoch, dataformats="HWC")
        self._writer.flush()

    def on_stop(self, signal: str, epoch: int, step: int, checkpoint: Path) -> None:
        self._writer.flush()

    def on_end(self, summary: dict) -> None:
        for name, value in final_scalars(summary).items():
            self._writer.add_scalar(name, value, summary["selected"]["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
