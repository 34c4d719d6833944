"""The tests, a folder for each folder of the package."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the repository
