"""The metrics under the name that notebooks use; they are in essl_fast/evaluate/metrics.py."""

from essl_fast.evaluate.metrics import *  # noqa: F403
