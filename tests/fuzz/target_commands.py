"""Whole command lines with environment variables and a file of settings, as a target of `tests.fuzz.targets`.

An input is what a user gives, line by line: the arguments, then the variables, then the file settings.yaml. A command
goes as far as it reads them; whatever they are, it ends with exit code 0 or 2, and 2 has one line on standard error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

from essl_fast import config
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from tests.fuzz.target import Parts
from tests.tools.doors import door

ENVIRONMENT, SETTINGS = "%%environment", "%%settings"
TORCHRUN = "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29400 TORCHELASTIC_RESTART_COUNT=1"
FILE = (
    "epochs: 3\ndata: {batch_size: 16, root: ~/x, resident: auto}\noptim:\n  lr_head: 1e-4\nout: null\nloggers: [a]\n"
)
LINES = {  # command -> arguments; variables; file
    "train": ("--config settings.yaml --epochs 3 --optim.lr_head 1e-4 --deterministic on --name x", TORCHRUN, FILE),
    "train.demo": ("--out runs --seed=7 --device cpu --compile off --data.threads 2", "COLUMNS=80 HOME=", "{}"),
    "train.help": ("--help-all", "COLUMNS=80", ""),
    "train.resume": ("--resume run --profile 3", "WORLD_SIZE=", FILE),
    "doctor": ("--config settings.yaml --data prepared --json", "XDG_CACHE_HOME=x", FILE),
    "evaluate": ("run --split val --json out.json --device cpu --model.vgg16_weights x.pth", "HOME=x", ""),
    "localize": ("film.mp4 --checkpoint run --rate 5 --opacity .5 --boxes-size 320x180", "TERM=dumb", ""),
    "prepare": ("--out x --videos v --annotations a --validation 0.1 --workers 2 --seed 3", "COLUMNS=1", ""),
    "report": ("run run --out page.html", "LC_ALL=C", ""),
    "reproduce": ("table1 --seeds 0 1 --data x --epochs 3", "LANG=x", ""),
    "export": ("run --to sspl --out files", "", ""),
    "replay": ("nonfinite-1-2.pt --precision fp32", "", ""),
    "all": ("--print-completion bash", "COLUMNS=x", ""),
}
LIBRARIES = ("Parser key", "typing.", "Literal[", "Optional[", "Traceback")  # words that no message has


def command_lines(place: Path) -> Parts:
    from essl_fast import models
    from essl_fast.runtime import devices, distributed

    assert all((models.check, devices.pick_device, distributed.world_of))  # imported now: it takes seconds
    for name in LINES:
        _door(name.partition(".")[0])
    return {
        name: "\n".join([*words.split(), ENVIRONMENT, *variables.split(" "), SETTINGS, text]).encode()
        for name, (words, variables, text) in LINES.items()
    }


def _parts_of(data: bytes) -> tuple[list[str], dict[str, str], bytes]:
    first, _, text = data.partition(SETTINGS.encode())
    words, _, variables = first.partition(ENVIRONMENT.encode())
    # A NUL can be in no argument and no variable. A slash could lead out of the folder, to where commands may write.
    clean = [os.fsdecode(part.replace(b"\0", b"").replace(b"/", b"_")) for part in (words, variables)]
    pairs = (line.partition("=") for line in clean[1].splitlines())
    return clean[0].splitlines(), {name: value for name, _, value in pairs if name}, text.lstrip(b"\n")


def read_command(place: Path, name: str, data: bytes) -> None:
    words, variables, text = _parts_of(data)
    (place / "settings.yaml").write_bytes(text)
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "config.yaml").write_bytes(text)
    before, said, out = os.getcwd(), io.StringIO(), io.StringIO()
    streams = (contextlib.redirect_stderr(said), contextlib.redirect_stdout(out))
    with (
        mock.patch.dict(os.environ, variables),
        mock.patch.object(sys, "stdin", io.StringIO("")),
        streams[0],
        streams[1],
    ):
        os.chdir(place)
        try:
            code = command(lambda: _begun(name.partition(".")[0], words), "prog")
        except SystemExit as ended:  # of argparse
            code = ended.code
        finally:
            os.chdir(before)
    line = said.getvalue()
    assert code in (0, 2), f"exit code {code}"
    assert line.count("\n") == (code == 2) and line.startswith("prog" if code else ""), line
    assert not any(word in line for word in LIBRARIES), line
    if code:
        raise InputError(line)


def _begun(name: str, words: list[str]) -> int:
    """A command up to where its work begins."""
    module = _door(name)
    with mock.patch.object(module, "PROG", "prog"):
        if name == "train":
            return _train(module.parse(words)[0])
        if name == "doctor":
            options, others = module.read_options("prog", "", words)
            return _train(module.read_settings("prog", others)[0])
        if name == "all":
            return 0 if words and words[0] in module.COMMANDS else module.main(words)
        if name == "localize":
            module.options_of.read_options("prog", "first\n\nmore", words)
        elif name == "reproduce":
            _train(config.parse(module.parse(words)[1], "prog")[0])
        else:
            (module.parse if hasattr(module, "parse") else module.parser().parse_args)(words)
    return 0


def _door(name: str) -> ModuleType:
    return door("essl_fast" if name == "all" else f"essl_fast.{name}")


def _train(settings: config.Config) -> int:
    from essl_fast import models
    from essl_fast.runtime import devices, distributed

    assert config.from_dict(json.loads(json.dumps(config.to_dict(settings)))) == settings
    if not settings.imports:  # it would import whatever has the name
        models.check(settings)
    devices.pick_device(distributed.own_device(settings.device, distributed.world_of()))
    return 0
