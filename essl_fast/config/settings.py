"""The settings of training and evaluation: one dataclass per topic.

A YAML file (a name from configs/ or a path) replaces defaults, and the command line (``--a.b value``) replaces both. An
unknown key or an impossible value is an error that names it. The docstrings are the text of --help.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from essl_fast.common.errors import InputError, any_of, short

SIZE = 224  # side of a view and of the grid that boxes live on
STORED_SIDE = int(SIZE * 1.1)  # side of a stored training frame; views are cropped from it


@dataclass
class ModelConfig:
    """The network.

    Args:
        trunk: visual trunk; vgg16 is the paper's (frozen, 512 channels), small is trained from scratch, small_frozen is
            the small one as `python -m essl_fast.pretrain` trained it, and frozen.
        audio: audio network; vggish is the paper's (frozen up to its projection), small is trained from scratch,
            small_frozen is pretrained like the trunk, and frozen up to its projection.
        pcm: put the predictive coding module between trunk and attention.
        pcm_cycles: cycles of the predictive coding module.
        pcm_checkpoint: keep no activations of the PCM's cycles for the backward pass, but compute each cycle again
            there: less memory, more time, the same gradients.
        trunk_fp8: an experiment, not proven to be faster: the frozen VGG-16 computes in 8 bits (e4m3). On a GPU it
            needs sm_89 or later and precision bf16; a CPU emulates the rounding.
        out_dim: channels that attention and head see (512 with vgg16).
        head: simsiam for sspl, semipl and supervised; lss for lss and lss_semi; classes for multisource. It decides the
            attention, too: min-max scaled for simsiam, softmax for lss, min-max scaled class by class for classes.
        classes: for head classes: how many classes the data has.
        head_dim: width of simsiam's projector and of the predictor's output; the predictor's inner layer has a quarter
            of it. The recipe has 2048 and 512; networks of 128 channels do with 512.
        vgg16_weights: auto (torch.hub's cache, else a download), none (random, with a warning), or a file.
        vggish_weights: the same for VGGish.
        small_weights: for small_frozen: auto (made on the spot in about a minute and kept in the user's cache), none
            (random), or a file that `python -m essl_fast.pretrain` wrote.
    """

    trunk: str = "vgg16"
    audio: str = "vggish"
    pcm: bool = False
    pcm_cycles: int = 4
    pcm_checkpoint: bool = False
    trunk_fp8: bool = False
    out_dim: int = 512
    head: str = "simsiam"
    classes: int = 0
    head_dim: int = 2048
    vgg16_weights: str = "auto"
    vggish_weights: str = "auto"
    small_weights: str = "auto"


@dataclass
class ObjectiveConfig:
    """What training minimises.

    Args:
        method: sspl (L_U), semipl (L_U + supervised_weight * L_S) or supervised (L_S alone: with every pair labelled,
            the fully supervised setting; all boxes of a frame count); lss (triplet loss) or lss_semi (triplet loss +
            supervised_weight * cross-entropy of the attention with the boxes), both with model.head lss; multisource
            (a map for each class that sounds, from its boxes, and which classes sound), with model.head classes.
        supervised_weight: the paper's lambda.
        supervised_map: the map that L_S of semipl and supervised compares with the boxes: minmax, the attention map,
            or sigmoid, 1 / (1 + exp(-supervised_scale * similarity)), which can also answer "nowhere".
        supervised_scale: that scale; the similarity is a cosine, from -1 to 1.
        consensus: annotators that must agree for a pixel to count fully; 0 is the data set's own number (1 Chaotic
            World, VGG-SS; 2 Flickr-SoundNet).
    """

    method: str = "semipl"
    supervised_weight: float = 1.0
    supervised_map: Literal["minmax", "sigmoid"] = "minmax"
    supervised_scale: float = 10.0
    consensus: int = 0


@dataclass
class OptimConfig:
    """AdamW (betas 0.9, 0.999, eps 1e-8).

    Args:
        lr_sound: learning rate of the audio network's trained part.
        lr_pcm: learning rate of the predictive coding module.
        lr_head: learning rate of projector and predictor.
        lr_trunk: learning rate of a trunk that is trained (small).
        weight_decay: decoupled decay of everything but the PCM's step sizes.
        schedule: constant (the recipe) or cosine (up over the warm-up, then down to 0).
        warmup: epochs over which cosine's rates rise.
        clip_norm: largest gradient norm; 0 does not clip (the recipe).
        accumulate: batches whose gradients are added up before the weights are updated; 1 updates after each (the
            recipe), or with data.global_batch, after as many as that needs.
        ema: decay of the exponential moving average of the weights, such as 0.999, which is evaluated beside the
            weights and kept as best-ema.pt; 0 keeps none (the recipe).
        exchange: the numbers in which several processes add up their gradients: own (the weights'), or bf16, half the
            bytes, for which each process rounds its gradients to 8 bits.
    """

    lr_sound: float = 5e-4
    lr_pcm: float = 2e-5
    lr_head: float = 2e-3
    lr_trunk: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 1.0
    clip_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    exchange: Literal["own", "bf16"] = "own"


@dataclass
class DataConfig:
    """Where pairs come from and how they are batched.

    Args:
        root: folder that `python -m essl_fast.prepare` wrote, its URL (s3://, gs://, hf://, https://), or demo: the
            synthetic world is made and prepared. A recipe needs one of them.
        cache: folder for the shards of a URL, which all processes of a host share; empty means essl_fast/shards in the
            user's cache folder.
        cache_gb: most that it may hold, in 10^9 bytes; 0 is what it has, and 80% of what is free on its disk.
        batch_size: pairs per step, on each GPU; with global_batch, the most that a GPU takes at once.
        global_batch: pairs per step over all GPUs, whatever their number, which may then change when a run goes on:
            each takes its part. A run that begins cuts them into batches of at most batch_size, whose number is then
            optim.accumulate; up to as many GPUs take these by turns. 0 means that batch_size alone decides.
        last_batch: keep the smaller last batch of an epoch, or drop it as the published code does.
        threads: decoding threads of the loader; 0 is all cores, shared by the processes on a host, at most 8.
        prefetch: batches decoded ahead; 0 is as many as hold 256 pairs, from 2 to 4.
        resident: keep decoded pairs in memory (the GPU's, or a CPU's own), so that each is decoded once: auto keeps
            them if they fit the budget, always keeps them or stops, never streams. Batches are the same either way.
        resident_shared: with several processes, each keeps a share of the pairs, and they exchange rows in every step:
            auto does so if a process cannot keep all of them. Batches are the same either way.
        embeddings: keep the frozen audio network's embeddings of each pair instead of its spectrogram, so that they
            are computed once: auto does so with model.audio vggish, on insists, off computes them in every step.
        resident_budget_gb: memory for resident pairs, in 10^9 bytes; 0 is 60% of the free memory of the GPU, or half of
            the host's.
        on_error: for a frame that does not decode: stop, or skip its pair, which is logged.
        max_errors: largest share of the pairs that on_error skip may lose; above it training stops all the same. Of
            several processes each counts alone, and all together after each epoch and evaluation.
        exclude_quarantined: of the pairs that `prepare --verify` listed, leave out none, the bad ones (corrupt,
            truncated, without sound), or all (also black and silent ones).
        labelled_fraction: share of each class's labelled training pairs that keep their boxes; the others are trained
            on without boxes. The choice depends only on the keys of the pairs, and a larger share contains a smaller
            one. Pairs that are evaluated keep their boxes.
    """

    root: str = ""
    cache: str = ""
    cache_gb: float = 0.0
    batch_size: int = 128
    global_batch: int = 0
    last_batch: Literal["keep", "drop"] = "drop"
    threads: int = 0
    prefetch: int = 0
    resident: Literal["auto", "always", "never"] = "auto"
    resident_shared: Literal["auto", "always", "never"] = "auto"
    embeddings: Literal["auto", "on", "off"] = "auto"
    resident_budget_gb: float = 0.0
    on_error: Literal["stop", "skip"] = "stop"
    max_errors: float = 0.01
    exclude_quarantined: Literal["none", "bad", "all"] = "none"
    labelled_fraction: float = 1.0


@dataclass
class DemoConfig:
    """The synthetic world that `data.root: demo` stands for.

    Args:
        cache: folder that keeps the world between runs; empty means essl_fast/ in the user's cache folder.
        train_videos: training videos, of which a tenth validates.
        test_videos: test videos.
        codec: video codec: h264, hevc, vp9, av1 or mjpeg.
        seed: seed of the world.
        objects: objects in a frame, one of which sounds: one (no other), two (a silent one of another class), or
            several (three to five); or both: two objects, and both of them sound.
    """

    cache: str = ""
    train_videos: int = 320
    test_videos: int = 80
    codec: str = "h264"
    seed: int = 0
    objects: Literal["one", "two", "both", "several"] = "several"


@dataclass
class Config:
    """Everything a training run needs.

    Args:
        out: run directory; empty means runs/NAME-DATE-TIME under the current folder.
        name: name of the run, used in its directory.
        epochs: passes over the training pairs.
        seed: seed of weights, order, and views.
        device: auto (a GPU where there is one), cuda, cuda:N or cpu.
        precision: auto (bf16 on a GPU, fp32 on a CPU), bf16, fp16, fp32, or tf32: fp32, but a GPU rounds the factors of
            products to 10 bits.
        compile: torch.compile: auto (on a GPU), on or off.
        compile_cache: folder that keeps compiled code for the next run; empty means essl_fast/compile in the user's
            cache folder, off means PyTorch's own temporary folder. The variables TORCHINDUCTOR_CACHE_DIR and
            TRITON_CACHE_DIR, if set, win over it.
        cuda_graphs: replay the step as one CUDA graph: auto (on one GPU, except in fp16), on or off. Where
            several processes take whole batches (see data.global_batch), on captures their forward and backward passes.
        eval_every: epochs between evaluations on the selection split; 0 evaluates only at the end.
        patience: end the run at an evaluation that finds no better result in this many epochs; 0 trains all epochs.
        checkpoint_epochs: epochs between writes of last.pt; the last epoch always writes one.
        checkpoint_steps: steps between further writes within an epoch; 0 means none.
        checkpoint_keep: how many last checkpoints to keep: last.pt and, before it, last-1.pt and so on.
        select_on: split that picks best.pt: val (a tenth of the training videos), or test (the published protocol:
            it then trains on all training videos, and says so in its results).
        baselines: also evaluate the untrained model and the priors (centre; with a frozen trunk its object map, which
            does not hear; in the demo the largest object).
        overlays: heatmap overlays to draw from the test split.
        deterministic: deterministic algorithms, for bit-equal reruns.
        tensorboard: also write the epochs for TensorBoard, into the run directory (needs the package tensorboard).
        loggers: loggers by name: tensorboard (tensorboard true is short for it), csv, wandb, mlflow, and those that
            modules of imports register.
        imports: modules to import first, from the current folder or installed, which register networks, objectives,
            data sets or loggers of your own. `--import MODULE` adds one.
        on_nonfinite: for a step whose loss or gradient is infinite or not a number: stop, or skip it, which is counted.
            In both cases it changes no weight, and is kept for `python -m essl_fast.replay`.
        max_nonfinite: largest share of an epoch's steps that on_nonfinite skip may pass over (at least one step); above
            it training stops all the same.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    out: str = ""
    name: str = "run"
    epochs: int = 40
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32", "tf32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    compile_cache: str = ""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    eval_every: int = 1
    patience: int = 0
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0
    checkpoint_keep: int = 2
    select_on: Literal["val", "test"] = "val"
    baselines: bool = True
    overlays: int = 16
    deterministic: bool = False
    tensorboard: bool = False
    loggers: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_nonfinite: float = 0.01


# What some texts are besides texts. A path's `~` is the home folder; where empty has a meaning, so has null.
PATHS = (
    "out",
    "data.root",
    "data.cache",
    "demo.cache",
    "compile_cache",
    "model.vgg16_weights",
    "model.vggish_weights",
    "model.small_weights",
)
MAY_BE_EMPTY = ("out", "data.root", "data.cache", "demo.cache", "compile_cache")
LONGEST_NAME = 200  # bytes; a date and a time are added, and names of files have at most 255


def _at_least(least: float, most: float = math.inf):
    def fault(value: float) -> str | None:
        if most < math.inf:
            bound = f"at least {least}" if value < least else f"at most {most:,}" if value > most else ""
            return bound and f"must be {bound}"
        return None if least <= value < math.inf else f"must be at least {least}, and finite"

    return fault


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must be from 0 to 1"


MOST_PARTS = 4096  # batches of an update
_MOST = 2**31 - 1  # of what counts something
_pairs = _at_least(0, _MOST)
_SEEDS = 2**63 - 1  # kernels take a seed as int64
_CHECKS = {
    "model.pcm_cycles": _at_least(0, 1000),
    "model.out_dim": _at_least(1, 65_536),
    "model.classes": _at_least(0, 65_536),
    "model.head_dim": _at_least(4, 65_536),
    "objective.supervised_weight": _at_least(0),
    "objective.supervised_scale": lambda value: None if 0 < value < math.inf else "must be above 0, and finite",
    "objective.consensus": lambda value: None if 0 <= value <= 1024 else "must be from 0 to 1024",  # what kernels take
    "optim.lr_sound": _at_least(0),
    "optim.lr_pcm": _at_least(0),
    "optim.lr_head": _at_least(0),
    "optim.lr_trunk": _at_least(0),
    "optim.weight_decay": _at_least(0),
    "optim.warmup": _at_least(0),
    "optim.clip_norm": _at_least(0),
    "optim.accumulate": _at_least(1, MOST_PARTS),
    "optim.ema": lambda value: None if 0 <= value < 1 else "must be from 0 to below 1",
    "data.cache_gb": _at_least(0),
    "data.batch_size": _at_least(2, _MOST),  # batch norm needs two
    "data.global_batch": lambda value: "must be 0, or at least 2" if value < 0 or value == 1 else _pairs(value),
    "data.threads": _at_least(0, 1024),
    "data.prefetch": _at_least(0, 1024),
    "data.resident_budget_gb": _at_least(0),
    "data.max_errors": _share,
    "data.labelled_fraction": _share,
    "demo.train_videos": _at_least(10, _MOST),
    "demo.test_videos": _at_least(1, _MOST),
    "demo.seed": _at_least(0, _SEEDS),
    "epochs": _at_least(1, _MOST),
    "seed": _at_least(0, _SEEDS),
    "eval_every": _at_least(0, _MOST),
    "patience": _at_least(0, _MOST),
    "checkpoint_epochs": _at_least(1, _MOST),
    "checkpoint_steps": _at_least(0, _MOST),
    "checkpoint_keep": _at_least(1, _MOST),
    "max_nonfinite": _share,
    "overlays": _at_least(0, _MOST),
}


def leaves(kind: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every setting's type hint by its name, groups opened: {"model.trunk": str, ..., "epochs": int, ...}."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        group = isinstance(hint, type) and is_dataclass(hint)
        found |= leaves(hint, f"{prefix}{name}.") if group else {f"{prefix}{name}": hint}
    return found


def value_of(config: Config, name: str) -> Any:
    """The value of a setting by its name, "data.batch_size"."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def faults(config: Config) -> Iterator[tuple[str, str]]:
    """The settings whose values are impossible: name, and what is wrong."""
    for name, fault in _CHECKS.items():
        if message := fault(value_of(config, name)):
            yield name, f"{message}, got {value_of(config, name)}"
    pairs, parts = config.data.global_batch, config.optim.accumulate
    if pairs % parts or 0 < pairs < 2 * parts:
        yield "data.global_batch", f"must be optim.accumulate ({parts}) batches of one size, 2 or more, got {pairs}"
    if config.patience and not config.eval_every:
        yield "patience", "needs evaluations to wait for: set eval_every above 0, got 0"
    if not _is_device(config.device):
        yield "device", f"must be auto, cpu, cuda or cuda:N, got {config.device!r}"


def check(config: Config) -> Config:
    """The config itself if its values are possible; else InputError that names the setting.

    Whether the networks and the method that it names exist and go together: :func:`essl_fast.models.check`.
    """
    for name, fault in faults(config):
        raise InputError(f"{name}: {fault}")
    return config


def name_fault(name: str) -> str | None:
    """What is wrong with a run's name; None if a folder in runs/ can have it.

    Older versions took any name, so a run that exists keeps the one it has.
    """
    if name in (".", "..") or "/" in name or not name.isprintable() or name != name.strip():
        what = "must be one folder's name, without / and control characters; a place is given with out"
        return f"{what}, got {short(name)}"
    if len(name.encode(errors="surrogateescape")) > LONGEST_NAME:
        return f"must have at most {LONGEST_NAME} bytes, got {short(name)}"
    return None


def _is_device(name: str) -> bool:
    return bool(re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name, re.ASCII))


def check_device(name: str) -> None:
    """InputError unless a device's name is auto, cpu, cuda or cuda:N."""
    if not _is_device(name):
        raise InputError(f"device: must be auto, cpu, cuda or cuda:N, got {name!r}")


def to_dict(config: Config) -> dict:
    """Plain nested dict, as written into checkpoints and logs."""
    return asdict(config)


def from_dict(values: dict) -> Config:
    """The Config of a dict that :func:`to_dict` made.

    Raises:
        InputError: a setting is unknown to this version, has a value of another type, or an impossible one.
    """

    def fill(kind, values, prefix=""):
        if not isinstance(values, dict):
            raise InputError(f"{prefix.rstrip('.') or 'the settings'}: {values!r} is no group of settings")
        known = {f.name: f for f in fields(kind)}
        hints = get_type_hints(kind)
        for key in values:
            if key not in known:
                raise InputError(f"unknown setting {prefix}{key}; it was written by another version of essl_fast")
        nested = {
            k: f.default_factory
            for k, f in known.items()
            if callable(f.default_factory) and is_dataclass(f.default_factory)
        }
        for key in values.keys() - nested.keys():
            if values[key] is None and f"{prefix}{key}" in MAY_BE_EMPTY:  # versions before 0.2 let null through
                values = values | {key: ""}
            if not _is_of(values[key], hints[key]):
                raise InputError(f"{prefix}{key}: {values[key]!r} is not of its kind, {in_words(hints[key])}")
        return kind(**{k: fill(nested[k], v, f"{prefix}{k}.") if k in nested else v for k, v in values.items()})

    return check(fill(Config, values))


def in_words(kind: object) -> str:
    """A setting's type hint in words, for messages: "a whole number", "auto, on or off"."""
    if get_origin(kind) is Literal:
        return any_of([str(known) for known in get_args(kind)])
    if get_origin(kind) is list:
        return "a list of texts, [a, b]"
    plain: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return plain[kind]


def _is_of(value: object, kind: object) -> bool:
    """Whether a value fits a setting's type hint, of the kinds that are used above."""
    if get_origin(kind) is list:
        return type(value) is list and all(_is_of(each, get_args(kind)[0]) for each in value)
    if get_origin(kind) is Literal:
        return any(value == known and type(value) is type(known) for known in get_args(kind))
    return type(value) is kind or (kind is float and type(value) is int)


def difference(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Settings that differ between two dicts, as "a.b: old -> new"."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
