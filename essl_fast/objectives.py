"""The objectives under the name that notebooks use; they are in essl_fast/models/objectives.py."""

from essl_fast.models.objectives import *  # noqa: F403
