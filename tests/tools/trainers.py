"""Trainers of the demo's networks on a small prepared folder, on the CPU."""

import shlex
from pathlib import Path

import torch

from essl_fast import config
from essl_fast.common.errors import in_shell
from essl_fast.data.shards import Manifest
from essl_fast.train import Trainer


def trainer_of(prepared: Path, *options: str) -> Trainer:
    """A trainer with batches of four pairs; ``options`` are those of the command line. Close its loader."""
    words = f"--data.root {in_shell(prepared)} --data.batch_size 4 --data.threads 1 --epochs 3 --data.last_batch keep"
    return Trainer(config.load("demo", [*shlex.split(words), *options]), Manifest.load(prepared), torch.device("cpu"))
