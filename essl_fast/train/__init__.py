"""One training run: the loop, the step, what keeps it safe, and what it leaves behind."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.train.demo import demo_data as demo_data
    from essl_fast.train.events import Fault as Fault
    from essl_fast.train.events import Preparation as Preparation
    from essl_fast.train.events import Reading as Reading
    from essl_fast.train.graphs import WARMUP as WARMUP
    from essl_fast.train.loop import train_epoch as train_epoch
    from essl_fast.train.observers import Observer as Observer
    from essl_fast.train.observers import Observers as Observers
    from essl_fast.train.observers import register_logger as register_logger
    from essl_fast.train.optimizer import build_optimizer as build_optimizer
    from essl_fast.train.replaying import replay as replay
    from essl_fast.train.replaying import report_lines as report_lines
    from essl_fast.train.run import fit as fit
    from essl_fast.train.trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Fault": "events",
        "Observer": "observers",
        "Observers": "observers",
        "Preparation": "events",
        "Reading": "events",
        "Trainer": "trainer",
        "WARMUP": "graphs",
        "build_optimizer": "optimizer",
        "demo_data": "demo",
        "fit": "run",
        "register_logger": "observers",
        "replay": "replaying",
        "report_lines": "replaying",
        "train_epoch": "loop",
    },
)
