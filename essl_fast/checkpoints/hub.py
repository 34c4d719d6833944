"""Models of the Hugging Face Hub, by a name such as hf://org/name or hf://org/name@revision."""

from __future__ import annotations

import re
from pathlib import Path

from essl_fast.checkpoints.tensors import CONFIG_FILE, MODEL_FILE
from essl_fast.common.errors import InputError, reason

_NAME = re.compile(r"hf:/{1,2}(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?/?", re.ASCII)


def is_hub_name(given: str | Path) -> bool:
    """Whether a path stands for a model of the hub. As a Path, hf://org/name has lost a slash."""
    return str(given).startswith("hf:/")


def fetch(given: str | Path) -> Path:
    """The folder of a model of the hub: from the cache if it is there and current, downloaded otherwise.

    huggingface_hub decides where the cache is (HF_HOME), whether to go online (HF_HUB_OFFLINE), and with which token.

    Raises:
        InputError: the name is none, the package huggingface_hub is missing, or there is no such model within reach.
    """
    found = _NAME.fullmatch(str(given))
    if not found:
        raise InputError(f"{given} is no name of a model; it is like hf://org/name or hf://org/name@revision")
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{given}: the package huggingface_hub is missing: pip install huggingface_hub (or pip install "
            "'.[export]' in the source folder), or give a path"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            found["repo"], revision=found["revision"], allow_patterns=[MODEL_FILE, CONFIG_FILE]
        )
    except Exception as error:  # a dozen types: no such model, no right to it, no network, a full disk
        raise InputError(
            f"hf://{found['repo']} cannot be fetched ({reason(error)}); check the name, the network, and `hf auth "
            "login` for a private model, or give a path"
        ) from error
    if not (Path(folder) / MODEL_FILE).is_file():
        raise InputError(f"hf://{found['repo']} has no {MODEL_FILE}: it was not made by python -m essl_fast.export")
    return Path(folder)
