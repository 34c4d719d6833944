"""One training run: the loop, the step, what keeps it safe, and what it leaves behind."""

from essl_fast.common.lazy import lazy_exports

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
        "fit": "run",
        "register_logger": "observers",
        "replay": "replaying",
        "report_lines": "replaying",
        "train_epoch": "loop",
    },
)
