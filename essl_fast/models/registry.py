"""The networks and objectives that settings may name, and how to add your own.

A module of your own registers a part, and the settings name it:

    # my_parts.py
    from essl_fast import register_trunk

    @register_trunk("tiny")
    def tiny(config):
        return TinyTrunk(config.out_dim)

    python -m essl_fast.train --import my_parts --model.trunk tiny

Our own parts are registered in the same way, in trunks.py, vggish.py, heads.py and objectives.py. This file does not
import PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from essl_fast.common.errors import InputError
from essl_fast.common.registry import Registry, import_modules

if TYPE_CHECKING:
    from essl_fast.config import Config, ModelConfig

Factory = TypeVar("Factory", bound=Callable)

TRUNKS = Registry("trunk", "model.trunk", own=("essl_fast.models.trunks",))
AUDIO = Registry("audio network", "model.audio", own=("essl_fast.models.vggish",))
HEADS = Registry("head", "model.head", own=("essl_fast.models.heads",))
OBJECTIVES = Registry("method", "objective.method", own=("essl_fast.models.objectives",))


@dataclass(frozen=True)
class TrunkFacts:
    """What is known of a trunk before it is built; see :func:`register_trunk`."""

    frozen: bool = False
    channels: int = 0
    fp8: bool = False
    weights: str = ""
    made: bool = False


@dataclass(frozen=True)
class AudioFacts:
    """What is known of an audio network before it is built; see :func:`register_audio`."""

    frozen_front: bool = False
    weights: str = ""
    made: bool = False


@dataclass(frozen=True)
class ObjectiveFacts:
    """What is known of an objective; see :func:`register_objective`."""

    head: str = "simsiam"
    compares_views: bool = False
    compares_pairs: bool = False
    trains_head: bool = True
    needs_labels: bool = False
    uses_boxes: bool = False
    supervised_map: bool = False
    per_class: bool = False


def register_trunk(
    name: str,
    *,
    frozen: bool = False,
    channels: int = 0,
    fp8: bool = False,
    weights: str = "",
    made: bool = False,
) -> Callable[[Factory], Factory]:
    """Register a factory of visual trunks: ``factory(config: ModelConfig) -> torch.nn.Module``.

    The module has

    * ``forward(images, views)``: images (V * B, 3, H, W), view after view, with V = ``views`` -> maps (V * B, C, h, w).
      The predictive coding module needs h = w = 14 for images of 224 x 224. Batch norms should take their statistics
      of each view by itself: :class:`essl_fast.models.norm.ViewBatchNorm` does, and it knows several processes.
    * ``channels``: C.
    * ``prepare(dtype)``, optional: called before inference on images of ``dtype``, and again when weights have changed.

    Args:
        name: the value of the setting ``model.trunk``.
        frozen: the trunk runs without gradient and is in no optimizer group.
        channels: C, where it does not depend on the settings; ``model.out_dim`` must then be the same without a
            predictive coding module.
        fp8: ``model.trunk_fp8`` may be on.
        weights: "vgg16" if the published VGG-16 file is to be loaded into the module (strictly, all entries).
        made: its weights are those of the trunk that `python -m essl_fast.pretrain` trains (``model.small_weights``).
    """
    return TRUNKS.register(name, frozen=frozen, channels=channels, fp8=fp8, weights=weights, made=made)


def register_audio(
    name: str, *, frozen_front: bool = False, weights: str = "", made: bool = False
) -> Callable[[Factory], Factory]:
    """Register a factory of audio networks: ``factory(config: ModelConfig, channels: int) -> torch.nn.Module``.

    The module has

    * ``forward(log_mel)``: (B, 3, 96, 64) -> embedding (B, E) and projection (B, channels). The projection meets the
      visual maps; the embedding goes to the predictive coding module and to LSS's loss.
    * ``embedding_dim``: E.
    * ``embed(log_mel)``, if the front is frozen: (B, 3, 96, 64) -> (B, 3, E) without gradient, each example by itself.
      Loaders then keep that in place of the log-mel, and ``forward`` takes either.

    Args:
        name: the value of the setting ``model.audio``.
        frozen_front: the module has ``embed``; its frozen parameters do not require gradients.
        weights: "vggish" if the published VGGish file is to be loaded into the module (all entries but ``fc.*``).
        made: as for :func:`register_trunk`, of the audio network that is trained there (all entries but ``fc.*``).
    """
    return AUDIO.register(name, frozen_front=frozen_front, weights=weights, made=made)


def register_head(name: str) -> Callable[[Factory], Factory]:
    """Register a factory of heads: ``factory(config: ModelConfig, channels: int, embedding_dim: int) -> Module``.

    The module has

    * ``compare(pooled, embedding)``: pooled features (V, B, channels) and the sound's embedding (B, E) -> p, z, which
      the objective compares.
    * ``attention``: "minmax" (similarity scaled to 0..1), "softmax" (of the rectified similarity), or "classes": the
      module then also has ``attend(maps, embedding, projection)``, as :class:`essl_fast.models.heads.ClassesHead`.

    Args:
        name: the value of the setting ``model.head``.
    """
    return HEADS.register(name)


def register_objective(
    name: str,
    *,
    head: str = "simsiam",
    compares_views: bool = False,
    compares_pairs: bool = False,
    trains_head: bool = True,
    needs_labels: bool = False,
    uses_boxes: bool = False,
    supervised_map: bool = False,
    per_class: bool = False,
) -> Callable[[Factory], Factory]:
    """Register a factory of objectives: ``factory(config: ObjectiveConfig) -> objective``.

    ``objective(forward, boxes, labelled, shares)`` gives a dict of 0-d tensors: "loss", which is minimised, and any
    parts of it to log. See essl_fast/models/objectives.py for the arguments.

    Args:
        name: the value of the setting ``objective.method``.
        head: the ``model.head`` whose output it compares.
        compares_views: it compares the projections of two views, which may collapse: their spread is watched.
        compares_pairs: the loss of a pair depends on the other pairs of its batch.
        trains_head: the head gets gradients; otherwise its parameters are left out of training.
        needs_labels: the loss is 0 without labelled pairs: training refuses data without any.
        uses_boxes: the loss depends on the boxes.
        supervised_map: ``objective.supervised_map`` applies to it.
        per_class: its boxes (B, K * M, 4) are those of class 0, then of class 1 and so on, M for each of K =
            ``model.classes`` classes, padded with empty boxes; training refuses data with another number of classes.
    """
    return OBJECTIVES.register(
        name,
        head=head,
        compares_views=compares_views,
        compares_pairs=compares_pairs,
        trains_head=trains_head,
        needs_labels=needs_labels,
        uses_boxes=uses_boxes,
        supervised_map=supervised_map,
        per_class=per_class,
    )


def trunk_facts(name: str) -> TrunkFacts:
    """The facts of a registered trunk. InputError if the name is unknown."""
    return TrunkFacts(**TRUNKS.facts(name))


def audio_facts(name: str) -> AudioFacts:
    """The facts of a registered audio network. InputError if the name is unknown."""
    return AudioFacts(**AUDIO.facts(name))


def objective_facts(name: str) -> ObjectiveFacts:
    """The facts of a registered objective. InputError if the name is unknown."""
    return ObjectiveFacts(**OBJECTIVES.facts(name))


def check(settings: Config) -> Config:
    """The settings themselves, if the parts that they name exist and go together. Call it before any slow work.

    Modules in ``settings.imports`` are imported first.

    Raises:
        InputError: a module cannot be imported, a name is unknown, or parts do not go together.
    """
    import_modules(settings.imports)
    model, method = settings.model, settings.objective.method
    trunk, audio, objective = trunk_facts(model.trunk), audio_facts(model.audio), objective_facts(method)
    HEADS.get(model.head)
    if model.trunk_fp8 and not trunk.fp8:
        able = " or ".join(name for name in TRUNKS.names() if trunk_facts(name).fp8)
        raise InputError(f"model.trunk_fp8: needs the frozen trunk {able}, got {model.trunk}")
    if trunk.channels and not model.pcm and model.out_dim != trunk.channels:
        raise InputError(f"model.out_dim: {model.trunk} has {trunk.channels} channels, got {model.out_dim}")
    if model.head != objective.head:
        raise InputError(
            f"model.head: {model.head} does not go with objective.method {method}; give "
            f"--model.head {objective.head}, or another method"
        )
    if (model.head == "classes") != bool(model.classes):
        remedy = "give the number of the data's classes" if model.head == "classes" else "leave it at 0"
        raise InputError(f"model.classes: {model.classes} does not go with model.head {model.head}; {remedy}")
    if settings.objective.supervised_map != "minmax" and not objective.supervised_map:
        able = " and ".join(name for name in OBJECTIVES.names() if objective_facts(name).supervised_map)
        raise InputError(f"objective.supervised_map: is for {able}, got it with method {method}")
    if settings.data.embeddings == "on" and not audio.frozen_front:
        able = " or ".join(name for name in AUDIO.names() if audio_facts(name).frozen_front)
        raise InputError(f"data.embeddings: on needs a frozen audio network, model.audio {able}, not {model.audio}")
    return settings


def keeps_embeddings(settings: Config) -> bool:
    """Whether loaders keep the audio network's embeddings in place of the log-mel."""
    return settings.data.embeddings != "off" and audio_facts(settings.model.audio).frozen_front


def made_parts(config: ModelConfig) -> list[str]:
    """Which parts take their weights from the file ``model.small_weights``: "trunk", "audio", both or none."""
    facts = {"trunk": trunk_facts(config.trunk).made, "audio": audio_facts(config.audio).made}
    return [part for part, made in facts.items() if made]


def unpublished_parts(config: ModelConfig) -> list[str]:
    """Which parts have frozen weights that no published file holds: a checkpoint has to keep these.

    Returns:
        Beginnings of their names in the state dict of a Localizer: "trunk.", "audio.".
    """
    facts = {"trunk.": trunk_facts(config.trunk).weights, "audio.": audio_facts(config.audio).weights}
    return [part for part, file in facts.items() if not file or getattr(config, f"{file}_weights") == "none"]
