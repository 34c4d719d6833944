"""Checkpoints under the name that notebooks use; they are in essl_fast/checkpoints/."""

from essl_fast.checkpoints.saving import load, save
from essl_fast.checkpoints.sspl import from_sspl_name, load_sspl, load_sspl_part

__all__ = ["from_sspl_name", "load", "load_sspl", "load_sspl_part", "save"]
