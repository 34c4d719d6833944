"""Settings of the training and evaluation commands: one dataclass a topic, YAML files, and ``--a.b value`` overrides.

A YAML file (a name from configs/ or a path) is read over the defaults below, the command line over the file. An
unknown key or an impossible value is an error that names it.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Literal

SIZE = 224  # side of a view and of the grid that boxes live on
STORED_SIDE = int(SIZE * 1.1)  # side of a stored training frame, from which views are cropped


class InputError(ValueError):
    """Something the user gave is wrong. The message says what, in which file, and what to do next."""


@dataclass
class ModelConfig:
    """The network.

    Args:
        trunk: visual trunk; vgg16 is the paper's (frozen, 512 channels), small is trained from scratch.
        audio: audio network; vggish is the paper's (frozen up to its projection), small is trained from scratch.
        pcm: put the predictive coding module between trunk and attention (needs trunk vgg16 and audio vggish).
        pcm_cycles: cycles of the predictive coding module.
        out_dim: channels that attention and head see (512 with vgg16).
        vgg16_weights: auto (torch.hub's cache, else a download), none (random, with a warning), or a file.
        vggish_weights: the same for VGGish.
    """

    trunk: Literal["vgg16", "small"] = "vgg16"
    audio: Literal["vggish", "small"] = "vggish"
    pcm: bool = False
    pcm_cycles: int = 4
    out_dim: int = 512
    vgg16_weights: str = "auto"
    vggish_weights: str = "auto"


@dataclass
class ObjectiveConfig:
    """What training minimises.

    Args:
        method: sspl (L_U), semipl (L_U + supervised_weight * L_S), or supervised (L_S alone).
        supervised_weight: the paper's lambda.
        consensus: annotators that must agree for a pixel to count fully (1 Chaotic World, VGG-SS; 2 Flickr-SoundNet).
    """

    method: Literal["sspl", "semipl", "supervised"] = "semipl"
    supervised_weight: float = 1.0
    consensus: int = 1


@dataclass
class OptimConfig:
    """AdamW (betas 0.9, 0.999, eps 1e-8).

    Args:
        lr_sound: learning rate of the audio network's trained part.
        lr_pcm: learning rate of the predictive coding module.
        lr_head: learning rate of projector and predictor.
        lr_trunk: learning rate of a trained trunk (small).
        weight_decay: decoupled decay of everything but the PCM's step sizes.
        schedule: constant (the recipe) or cosine (up over the warm-up, then down to 0).
        warmup: epochs over which cosine's rates rise.
        clip_norm: largest gradient norm; 0 does not clip (the recipe).
    """

    lr_sound: float = 5e-4
    lr_pcm: float = 2e-5
    lr_head: float = 2e-3
    lr_trunk: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 1.0
    clip_norm: float = 0.0


@dataclass
class DataConfig:
    """Where pairs come from and how they are batched.

    Args:
        root: folder that `python -m essl_fast.prepare` wrote, or demo: the synthetic world is made and prepared.
        batch_size: pairs a step, on each GPU.
        last_batch: keep the smaller last batch of an epoch, or drop it as the published code does.
        threads: decoding threads of the loader; 0 is all cores, shared by the processes on a host, 8 at most.
        prefetch: batches decoded ahead; 0 is as many as hold 256 pairs, 2 to 4.
        resident: keep decoded pairs in memory (the GPU's, or a CPU's own), so that each is decoded once: auto does so
            where they fit the budget, always insists, never streams. Batches are the same either way.
        resident_budget_gb: memory for that, in 10^9 bytes; 0 is 60% of what is free on the GPU, or half of the host's.
        on_error: a frame that does not decode: stop, or skip its pair, which is logged.
        max_errors: share of the pairs that on_error skip may lose before it stops all the same.
        exclude_quarantined: of the pairs that `prepare --verify` listed, leave out none, bad ones (corrupt, truncated,
            without sound), or all (black and silent ones, too).
    """

    root: str = "demo"
    batch_size: int = 128
    last_batch: Literal["keep", "drop"] = "drop"
    threads: int = 0
    prefetch: int = 0
    resident: Literal["auto", "always", "never"] = "auto"
    resident_budget_gb: float = 0.0
    on_error: Literal["stop", "skip"] = "stop"
    max_errors: float = 0.01
    exclude_quarantined: Literal["none", "bad", "all"] = "none"


@dataclass
class DemoConfig:
    """The synthetic world that `data.root: demo` stands for.

    Args:
        cache: folder that keeps the world between runs; empty means essl_fast/ in the user's cache folder.
        train_videos: training videos, of which a tenth validates.
        test_videos: test videos.
        codec: video codec: h264, hevc, vp9, av1 or mjpeg.
        seed: seed of the world.
    """

    cache: str = ""
    train_videos: int = 320
    test_videos: int = 80
    codec: str = "h264"
    seed: int = 0


@dataclass
class Config:
    """Everything a training run needs.

    Args:
        out: run directory; empty means runs/NAME-DATE-TIME under the current folder.
        name: name of the run, used in its directory.
        epochs: passes over the training pairs.
        seed: seed of weights, order, and views.
        device: auto (a GPU where there is one), cuda, cuda:N or cpu.
        precision: auto (bf16 on a GPU, fp32 on a CPU), bf16, fp16 or fp32.
        compile: torch.compile: auto (on a GPU), on or off.
        eval_every: epochs between evaluations on the selection split; 0 evaluates at the end alone.
        checkpoint_epochs: epochs between writes of last.pt; the last epoch always writes one.
        checkpoint_steps: steps between further writes within an epoch; 0 for none.
        select_on: split that picks best.pt: val (a tenth of the training videos), or test (the published protocol:
            it then trains on all training videos, and says so in its results).
        baselines: also evaluate the untrained model and the priors (centre; largest object in the demo).
        overlays: heatmap overlays to draw from the test split.
        deterministic: deterministic algorithms, for bit-equal reruns.
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
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    eval_every: int = 1
    checkpoint_epochs: int = 1
    checkpoint_steps: int = 0
    select_on: Literal["val", "test"] = "val"
    baselines: bool = True
    overlays: int = 16
    deterministic: bool = False


def _at_least(least: float):
    return lambda value: None if least <= value < math.inf else f"must be at least {least}, and finite"


def _share(value: float) -> str | None:
    return None if 0 <= value <= 1 else "must be from 0 to 1"


_CHECKS = {
    "model.pcm_cycles": _at_least(0),
    "model.out_dim": _at_least(1),
    "objective.supervised_weight": _at_least(0),
    "objective.consensus": _at_least(1),
    "optim.lr_sound": _at_least(0),
    "optim.lr_pcm": _at_least(0),
    "optim.lr_head": _at_least(0),
    "optim.lr_trunk": _at_least(0),
    "optim.weight_decay": _at_least(0),
    "optim.warmup": _at_least(0),
    "optim.clip_norm": _at_least(0),
    "data.batch_size": _at_least(2),  # batch norm needs two
    "data.threads": _at_least(0),
    "data.prefetch": _at_least(0),
    "data.resident_budget_gb": _at_least(0),
    "data.max_errors": _share,
    "demo.train_videos": _at_least(10),
    "demo.test_videos": _at_least(1),
    "demo.seed": _at_least(0),
    "epochs": _at_least(1),
    "seed": _at_least(0),
    "eval_every": _at_least(0),
    "checkpoint_epochs": _at_least(1),
    "checkpoint_steps": _at_least(0),
    "overlays": _at_least(0),
}


def check(config: Config) -> Config:
    """The config itself if its values are possible together; else InputError that names the setting."""
    for name, fault in _CHECKS.items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if message := fault(value):
            raise InputError(f"{name}: {message}, got {value}")
    model = config.model
    if model.pcm and (model.trunk, model.audio) != ("vgg16", "vggish"):
        raise InputError("model.pcm: needs model.trunk vgg16 and model.audio vggish")
    if model.trunk == "vgg16" and not model.pcm and model.out_dim != 512:
        raise InputError(f"model.out_dim: vgg16 has 512 channels, got {model.out_dim}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise InputError(f"device: must be auto, cpu, cuda or cuda:N, got {config.device!r}")
    return config


def configs_folder() -> Path:
    """Where the shipped YAML files are: in the installed package, or beside it in a clone."""
    here = Path(__file__).resolve().parent
    for place in (here / "configs", here.parent / "configs"):
        if (place / "demo.yaml").is_file():
            return place
    raise InputError(f"the shipped configs are not beside {here}; install essl_fast again")


def find_file(name: str) -> Path:
    """A config by path, or by the name of a shipped one ("semipl", "paper/row1")."""
    if Path(name).is_file():
        return Path(name)
    folder = configs_folder()
    shipped = folder / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")))
    raise InputError(f"config {name!r} is neither a file nor one of the shipped configs: {names}")


def load(name: str = "demo", overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a file or shipped name, with ``overrides`` like ["--data.batch_size", "64"] or "epochs=3"."""
    arguments = [o if o.startswith("-") or "=" not in o else f"--{o}" for o in overrides]
    return parse(["--config", name, *arguments], prog="essl_fast.config")[0]


def parser(prog: str, description: str = ""):
    """The argument parser of Config, with --config; commands add their own options to it."""
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message, ex=None):
            raise InputError(" ".join(str(message).split()))

    parser = Parser(prog=prog, description=description, exit_on_error=True)
    parser.add_argument(
        "--config", action="config", help="YAML file, or the name of a shipped config; before overrides"
    )
    parser.add_class_arguments(Config, nested_key=None, fail_untyped=True)
    return parser


def parse(
    argv: list[str], prog: str, description: str = "", extra=None, default: str = "demo"
) -> tuple[Config, object]:
    """Config, and the namespace with the ``extra(parser)`` options, from a command line without the program's name."""
    own = parser(prog, description)
    if extra:
        extra(own)
    argv = list(argv)
    named = [i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config=")]
    for i in named:
        if argv[i] == "--config" and i + 1 < len(argv):
            argv[i + 1] = str(find_file(argv[i + 1]))
        elif argv[i] != "--config":
            argv[i] = f"--config={find_file(argv[i].split('=', 1)[1])}"
    if not named:
        argv = ["--config", str(find_file(default)), *argv]
    space = own.parse_args(argv)
    ready = own.instantiate(space)
    values = {f.name: getattr(ready, f.name) for f in fields(Config)}
    return check(Config(**values)), ready


def to_dict(config: Config) -> dict:
    """Plain nested dict, as written into checkpoints and logs."""
    return asdict(config)


def from_dict(values: dict) -> Config:
    """The Config of :func:`to_dict`'s dict; InputError for a key this version does not know."""

    def fill(kind, values, prefix=""):
        known = {f.name: f for f in fields(kind)}
        for key in values:
            if key not in known:
                raise InputError(f"unknown setting {prefix}{key}; it was written by another version of essl_fast")
        nested = {
            k: f.default_factory
            for k, f in known.items()
            if callable(f.default_factory) and is_dataclass(f.default_factory)
        }
        return kind(**{k: fill(nested[k], v, f"{prefix}{k}.") if k in nested else v for k, v in values.items()})

    return check(fill(Config, values))


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
