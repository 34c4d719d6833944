"""A stable name for notebooks: the metrics of essl_fast/evaluate/metrics.py."""

from essl_fast.evaluate.metrics import *  # noqa: F403
