"""A stable name for notebooks: the checkpoints of essl_fast/checkpoints/."""

from essl_fast.checkpoints import from_sspl_name, load, load_sspl, load_sspl_part, save

__all__ = ["from_sspl_name", "load", "load_sspl", "load_sspl_part", "save"]
