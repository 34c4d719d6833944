"""A stable name for notebooks: the objectives of essl_fast/models/objectives.py."""

from essl_fast.models.objectives import *  # noqa: F403
