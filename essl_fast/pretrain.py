"""python -m essl_fast.pretrain: pretrain the demo's small networks on single objects and single sounds.

The published recipe has a VGG-16 that was trained on ImageNet and a VGGish that was trained on AudioSet, both frozen.
This is the same in small: `small_frozen` as `model.trunk` and `model.audio`. Each network learns to tell the demo
world's eight classes apart, from pictures of one object and from sounds of one class; nothing connects the two. It
takes about a minute on a CPU. The weights are kept in the user's cache, where `model.small_weights: auto` finds them.

    FILE          {"trunk": state dict, "audio": state dict}, for torch.load(..., weights_only=True)
    FILE.json     its SHA-256, the seed, and how many pictures and sounds that were held out were recognised
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from essl_fast.common import places, streams
from essl_fast.common.commands import Options, command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.locks import locked
from essl_fast.common.outputs import output_file
from essl_fast.common.values import a_path, whole_number

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

PROG = "python -m essl_fast.pretrain"
VERSION = 1  # of what the weights are made of: looks, sounds, networks and the numbers below
CHANNELS = 128  # of the trunk's maps
PICTURES, SIDE, PICTURE_EPOCHS = 2400, 160, 6
SOUNDS, SOUND_EPOCHS = 640, 12
HELD_OUT = 6  # every sixth is not trained on
BATCH, RATE = 32, 4e-3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as views have it


def parser() -> Options:
    """The options."""
    parser = Options(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "file to write (default: in the user's cache, where model.small_weights auto finds it)"
    parser.add_argument("--out", type=a_path, metavar="FILE", help=text)
    parser.add_argument("--seed", type=whole_number(0, 2**63 - 1), default=0, help="of everything (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="make the weights again, though they are there")
    return parser


@streams.kept()
def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    path = Path(output_file(options.out, "--out")) if options.out else kept_file(options.seed)
    with slow_imports():
        import torch  # noqa: F401  # the longest import
    there = None if options.overwrite else kept_facts(path, options.seed, named=bool(options.out))
    made = there is None
    facts = there or pretrain(path, options.seed, print)
    seen, heard = (100 * facts[f"{what}_accuracy"] for what in ("picture", "sound"))
    how = f"made in {facts['seconds']:.0f} s" if made else "was already there"
    print(f"{path}: recognises {seen:.1f}% of new pictures and {heard:.1f}% of new sounds; {how}")
    return 0


def kept_facts(path: Path, seed: int, named: bool) -> dict | None:
    """What FILE.json says of the weights that are there; None if they are to be made.

    named: by the user. InputError if that file is another one's, or has other weights.
    """
    facts = intact(path)
    if not named or (facts is None and not path.is_file()) or (facts is not None and facts["seed"] == seed):
        return facts
    holds = (
        "is not a file of this command, or is damaged" if facts is None else f"has the weights of seed {facts['seed']}"
    )
    raise InputError(f"--out: {path} {holds}: give --overwrite to replace it, or another file")


def kept_file(seed: int = 0) -> Path:
    """Where the weights are kept. InputError if the user has no home folder."""
    folder = places.cache_folder()
    if folder is None:
        raise InputError(
            "model.small_weights: this user has no home folder to keep them in; write them with "
            f"{PROG} --out FILE, and give --model.small_weights FILE"
        )
    return folder / f"small-{VERSION}-{seed}.pt"


def small_weights(setting: str, say: Callable[[str], None]) -> Path | None:
    """The file that ``model.small_weights`` means, its hash checked; None for "none".

    With "auto" it is made unless it is there. If another process is making it, this one waits and takes the same.

    Args:
        setting: "auto", "none" or a path.
        say: called with lines for the user.

    Raises:
        InputError: there is no such file, or it has changed since it was made.
    """
    if setting == "none":
        return None
    if setting != "auto":
        path = Path(setting).expanduser()
        if not path.is_file():
            raise InputError(f"model.small_weights: there is no file {path}; write it with {PROG} --out {path}")
        if intact(path) is None:
            raise InputError(
                f"model.small_weights: {path} is not as {PROG} wrote it (its SHA-256 is not that of {path}.json); "
                f"make it again with {PROG} --out {path} --overwrite"
            )
        return path
    path = kept_file()
    if intact(path) is None:
        if not places.writable(path.parent):
            raise InputError(
                f"model.small_weights: {path.parent} cannot be written to keep them in; write them with "
                f"{PROG} --out FILE, and give --model.small_weights FILE"
            )
        with locked(path.with_name(f"{path.name}.lock"), lambda who: say(f"waiting for {path}: {who} makes it"), say):
            if intact(path) is None:  # another process may have made it meanwhile
                say(f"pretraining the small networks, about a minute: {path}")
                pretrain(path, 0, say)
    return path


def intact(path: Path) -> dict | None:
    """What FILE.json says if the file is whole; None if one of them is missing, or they do not fit."""
    try:
        facts = json.loads(_facts_of(path).read_bytes())
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
        return facts if same and facts["version"] == VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _facts_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def pretrain(path: Path, seed: int, say: Callable[[str], None]) -> dict:
    """Train both networks and write FILE and FILE.json.

    The weights follow from the seed, on one machine with one number of threads.

    Returns:
        What FILE.json holds.
    """
    import io

    import numpy as np
    import torch

    from essl_fast import kernels
    from essl_fast.common.files import atomic_file, write_json
    from essl_fast.data.synthetic import singles
    from essl_fast.models import SmallAudioNet, SmallTrunk

    began = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shown, of_pictures = singles.pictures(PICTURES, SIDE, np.random.default_rng([seed, 0]))
        heard, of_sounds = singles.sounds(SOUNDS, np.random.default_rng([seed, 1]))
        trunk, audio = SmallTrunk(CHANNELS), SmallAudioNet(CHANNELS)
        seen = classify(
            trunk, lambda images: trunk(images).relu().mean(dim=(2, 3)), of_pixels(shown), of_pictures, PICTURE_EPOCHS
        )
        say(f"small trunk: {100 * seen:.1f}% of new pictures recognised")
        mels = kernels.log_mel(torch.from_numpy(heard))
        known = classify(audio, lambda mel: audio.examples(mel).mean(dim=1), mels, of_sounds, SOUND_EPOCHS)
        say(f"small audio network: {100 * known:.1f}% of new sounds recognised")
    held = io.BytesIO()
    sound = {key: value for key, value in audio.state_dict().items() if not key.startswith("fc.")}
    torch.save({"trunk": trunk.state_dict(), "audio": sound}, held)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(held.getvalue())
    facts = {
        "version": VERSION,
        "seed": seed,
        "sha256": hashlib.sha256(held.getvalue()).hexdigest(),
        "picture_accuracy": seen,
        "sound_accuracy": known,
        "seconds": time.monotonic() - began,
    }
    write_json(_facts_of(path), facts)
    return facts


def of_pixels(pictures: np.ndarray) -> Tensor:
    """Pictures uint8 (N, S, S, 3) as views are: float32 (N, 3, S, S), normalised."""
    import torch

    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def classify(
    network: nn.Module, features: Callable[[Tensor], Tensor], inputs: Tensor, kinds: np.ndarray, epochs: int
) -> float:
    """Train a network to tell classes apart by a linear layer on its pooled features.

    Args:
        network: is trained, and left in evaluation mode.
        features: inputs (B, ...) -> (B, C) through the network.
        inputs: (N, ...), of which every HELD_OUT-th is only tested on.
        kinds: (N,) int64 classes.
        epochs: passes over the others.

    Returns:
        The share of the held-out inputs that is recognised.
    """
    import torch
    import torch.nn.functional as F

    labels = torch.from_numpy(kinds)
    held_out = torch.arange(len(inputs)) % HELD_OUT == 0
    own = (~held_out).nonzero()[:, 0]
    layer = torch.nn.Linear(features(inputs[:2]).shape[1], int(labels.max()) + 1)
    parameters = [*network.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
    steps = epochs * (len(own) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in own[torch.randperm(len(own))].split(BATCH)[: len(own) // BATCH]:
            batch = inputs[chosen]
            if batch.shape[1] == 3 and batch.shape[-1] == SIDE and torch.rand(()) < 0.5:
                batch = batch.flip(-1)
            loss = F.cross_entropy(layer(features(batch)), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        found = torch.cat([layer(features(part)).argmax(dim=1) for part in inputs[held_out].split(64)])
    return float((found == labels[held_out]).double().mean())


if __name__ == "__main__":
    sys.exit(command(main, PROG))
