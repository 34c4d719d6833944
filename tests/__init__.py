"""The tests, a folder for each folder of the package."""

from pathlib import Path

import essl_fast  # noqa: F401  # a user without a name gets one, before PyTorch asks for it

ROOT = Path(__file__).resolve().parents[1]  # of the repository
