"""The check of the weight files that the frozen networks need."""

from __future__ import annotations

import importlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.doctor.findings import NOTE, OK, STOPS, Case, Finding


def check_weights(case: Case) -> Iterator[Finding]:
    """The published weight files that the settings need: there, with the right hash, or downloadable."""
    from essl_fast import models
    from essl_fast.models import weights

    model = case.settings.model
    for name in (models.trunk_facts(model.trunk).weights, models.audio_facts(model.audio).weights):
        if not name:
            continue
        given = getattr(model, f"{name}_weights")
        if given == "none":
            yield Finding("weights", NOTE, f"{name} keeps random weights, by the settings: no published result does")
            continue
        place = cached_file(name)
        if given == "auto" and not place.is_file():
            yield downloadable(name, weights.SOURCES[name], place)
            continue
        try:
            path = weights.find(name, given)
        except weights.WeightsError as error:
            yield Finding("weights", STOPS, str(error))
            continue
        yield Finding("weights", OK, f"{name} from {path}, its hash is right", "", {name: str(path)})
    if models.made_parts(model):
        yield made(model.small_weights)


def made(setting: str) -> Finding:
    """What ``model.small_weights`` means here. Nothing is made."""
    from essl_fast import pretrain

    if setting == "none":
        return Finding("weights", NOTE, "the small frozen networks keep random weights, by the settings")
    try:
        path = pretrain.kept_file() if setting == "auto" else pretrain.small_weights(setting, print)
    except InputError as error:
        return Finding("weights", STOPS, str(error))
    assert path is not None  # it is for "none" alone
    if pretrain.intact(path) is None:
        return Finding("weights", NOTE, f"{path} is not there; train will make it, in about a minute on a CPU")
    return Finding("weights", OK, f"the small networks from {path}, its hash is right")


def cached_file(name: str) -> Path:
    """Where `auto` looks for the weight file of a network."""
    torch = importlib.import_module("torch")
    from essl_fast.models import weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.SOURCES[name]).name


def downloadable(name: str, source: str, place: Path) -> Finding:
    """Whether a file that is not there could be downloaded. It is not downloaded."""
    remedy = f"put the file there, or give --model.{name}_weights PATH"
    try:
        with urllib.request.urlopen(urllib.request.Request(source, method="HEAD"), timeout=10) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return Finding("weights", STOPS, f"{name} is not at {place}, and {source} does not answer ({error})", remedy)
    text = f"{name} is not at {place}; train will fetch it from {source} ({size / 1e6:.0f} MB)"
    return Finding("weights", NOTE, text, "", {"bytes": size})
