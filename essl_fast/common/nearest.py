"""What someone may have meant: the known names that are nearest to a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST = 4  # names in an answer
_LONGEST = 100  # characters of a word that is compared; no name is as long
_ALIKE = 0.65  # of difflib's ratio, from 0 (nothing in common) to 1 (equal)
_OTHER_WORDS = {  # words of other trainers -> words of ours
    "bs": "batch_size",
    "iterations": "epochs",
    "learning_rate": "lr",
    "nthreads": "threads",
    "num_workers": "threads",
    "output": "out",
    "output_dir": "out",
    "save_dir": "out",
    "wd": "weight_decay",
    "amp": "precision",
    "dtype": "precision",
    "gpu": "device",
    "checkpoint_path": "resume",
    "ckpt_path": "resume",
    "val_every": "eval_every",
    "clip_grad_norm": "clip_norm",
    "lambda": "supervised_weight",
    "workers": "threads",
    "dataset": "root",
    "data_dir": "root",
    "data_path": "root",
}


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """At most four of the known names, the best first.

    Names are compared without leading dashes, "-" as "_", and by their last part, too: `lr` finds `optim.lr_head`.
    """
    known = list(known)
    plain = _plain(word)
    if len(plain) > _LONGEST:  # comparing takes time that grows with the lengths
        return []
    last = plain.rpartition(".")[2]
    for wanted in dict.fromkeys((last, _OTHER_WORDS.get(last, last))):
        exact = [name for name in known if wanted == _plain(name).rpartition(".")[2]]
        begun = [name for name in known if _begins(_plain(name).rpartition(".")[2], wanted)]
        if found := exact or begun:
            return sorted(found, key=lambda name: -_ratio(plain, name))[:_MOST]
    rated = [(max(_ratio(plain, name), _ratio(last, _plain(name).rpartition(".")[2])), name) for name in known]
    best = max((ratio for ratio, _ in rated), default=0.0)
    close = [(ratio, name) for ratio, name in rated if ratio >= max(_ALIKE, best - 0.1)]
    return [name for _, name in sorted(close, key=lambda pair: -pair[0])[:_MOST]]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean A or B?" for a message; "" if nothing is near."""
    found = nearest(word, known)
    return f"; did you mean {' or '.join([', '.join(found[:-1]), found[-1]] if found[1:] else found)}?" if found else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _begins(name: str, wanted: str) -> bool:
    """Whether a name of several words begins with those wanted: lr_head with lr, but warmup not with warm."""
    return bool(wanted) and name.startswith(f"{wanted}_")


def _ratio(word: str, name: str) -> float:
    return difflib.SequenceMatcher(None, word, _plain(name)).ratio()
