"""One door of values: a text means the same in a file of settings and on a command line, or is refused in one line."""

import sys

import pytest

from essl_fast import config
from essl_fast.common.errors import InputError


class REFUSED:
    """In place of a value: the text is an error. A class, whose name is the same in each process of the tests."""


HOME = "/home/someone"
VALUES = [  # setting, text as it stands in a file and after an option, value
    # whole numbers
    ("epochs", "3", 3),
    ("epochs", "+3", 3),
    ("epochs", "1_000", 1000),
    ("epochs", "0x10", 16),
    ("epochs", "0o17", 15),
    ("epochs", "0b101", 5),
    ("epochs", "010", REFUSED),
    ("epochs", "08", REFUSED),
    ("epochs", "0_1", REFUSED),
    ("epochs", "3.0", REFUSED),
    ("epochs", "1e3", REFUSED),
    ("epochs", "12:30", REFUSED),
    ("epochs", "true", REFUSED),
    ("epochs", "off", REFUSED),
    ("epochs", "٣", REFUSED),
    ("epochs", "1__0", REFUSED),
    ("epochs", "9" * 5000, REFUSED),
    ("epochs", ".nan", REFUSED),
    ("epochs", ".inf", REFUSED),
    ("epochs", "0", REFUSED),
    ("epochs", "-1", REFUSED),
    ("epochs", "2147483648", REFUSED),
    ("epochs", "2026-01-01", REFUSED),
    ("seed", "9223372036854775807", 2**63 - 1),
    ("seed", "18446744073709551616", REFUSED),
    ("seed", "-1", REFUSED),
    ("data.threads", "100000", REFUSED),
    ("data.batch_size", "1", REFUSED),
    # numbers
    ("optim.lr_head", "1e-4", 1e-4),
    ("optim.lr_head", "1E-4", 1e-4),
    ("optim.lr_head", "1.e-4", 1e-4),
    ("optim.lr_head", ".5", 0.5),
    ("optim.lr_head", "5", 5.0),
    ("optim.lr_head", "1_0.5", 10.5),
    ("optim.lr_head", "010", REFUSED),
    ("optim.lr_head", "1:30.5", REFUSED),
    ("optim.lr_head", "nan", REFUSED),
    ("optim.lr_head", "-.inf", REFUSED),
    ("optim.lr_head", "1e999", REFUSED),
    ("optim.lr_head", "-1e-4", REFUSED),
    ("optim.lr_head", "1,5", REFUSED),
    ("optim.lr_head", "yes", REFUSED),
    ("data.labelled_fraction", "1.1", REFUSED),
    ("max_nonfinite", ".nan", REFUSED),
    # true and false
    ("deterministic", "true", True),
    ("deterministic", "yes", True),
    ("deterministic", "On", True),
    ("baselines", "off", False),
    ("baselines", "NO", False),
    ("deterministic", "1", REFUSED),
    ("deterministic", "y", REFUSED),
    ("deterministic", "12:30", REFUSED),
    # one of several
    ("compile", "off", "off"),
    ("compile", "on", "on"),
    ("data.embeddings", "off", "off"),
    ("data.exclude_quarantined", "none", "none"),
    ("compile", "Off", REFUSED),
    ("compile", "false", REFUSED),
    ("compile", "no", REFUSED),
    ("data.resident", "12:30", REFUSED),
    # texts
    ("name", "010", "010"),
    ("name", "off", "off"),
    ("name", "1e-4", "1e-4"),
    ("name", "12:30", "12:30"),
    ("name", "2026-01-01", "2026-01-01"),
    ("name", "-x", "-x"),
    ("name", "..", REFUSED),
    ("name", ".", REFUSED),
    ("name", "../x", REFUSED),
    ("name", "a/b", REFUSED),
    ("name", "/x", REFUSED),
    ("name", "x" * 201, REFUSED),
    ("name", "\u202e", REFUSED),
    # paths
    ("out", "~/runs/x", f"{HOME}/runs/x"),
    ("data.root", "~/x", f"{HOME}/x"),
    ("demo.cache", "~/x", f"{HOME}/x"),
    ("compile_cache", "~/x", f"{HOME}/x"),
    ("model.vgg16_weights", "~/x.pth", f"{HOME}/x.pth"),
    ("model.vggish_weights", "~/x.pth", f"{HOME}/x.pth"),
    ("out", "./~/x", "./~/x"),
    ("out", "~nobody-of-this-name/x", REFUSED),
    # null
    ("out", "null", ""),
    ("out", "~", ""),
    ("out", "", ""),
    ("compile_cache", "Null", ""),
    ("demo.cache", "NULL", ""),
    ("loggers", "null", []),
    *((name, "null", REFUSED) for name in ("epochs", "seed", "optim.lr_sound", "deterministic", "compile", "name")),
    *((name, "~", REFUSED) for name in ("data.batch_size", "data.resident", "model.trunk", "device")),
    *((name, "", REFUSED) for name in ("epochs", "name", "objective.method", "select_on")),
    # lists
    ("loggers", "tensorboard", ["tensorboard"]),
    ("loggers", "[a, 'b', 010]", ["a", "b", "010"]),
    ("loggers", "[]", []),
    ("imports", "[a, null]", REFUSED),
    ("imports", "[[a]]", REFUSED),
    ("imports", "[a", REFUSED),
]


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", HOME)


def read(arguments):
    """The settings, or REFUSED if they are refused in one line."""
    try:
        return config.parse(arguments, "train")[0]
    except InputError as error:
        assert "\n" not in str(error) and "Literal" not in str(error) and "Optional" not in str(error)
        return REFUSED


def of(settings, name):
    for part in name.split("."):
        settings = settings if settings is REFUSED else getattr(settings, part)
    return settings


@pytest.mark.parametrize(("name", "text", "value"), VALUES, ids=lambda part: str(part)[:24])
def test_a_text_means_the_same_in_a_file_and_on_the_command_line(tmp_path, name, text, value):
    (tmp_path / "mine.yaml").write_text(f"{name}: {text}\n")
    found = [
        of(read(["--config", str(tmp_path / "mine.yaml")]), name),
        of(read([f"--{name}={text}"]), name),
        of(read([f"--{name}", text]), name),
    ]
    assert [(type(each), each) for each in found] == [(type(value), value)] * 3


NUMBERS = [name for name, kind in config.leaves().items() if kind in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds(name):
    for text in (".inf", ".nan", "-1", "1e999", *([str(10**29)] if config.leaves()[name] is int else [])):
        assert read([f"--{name}={text}"]) is REFUSED, text


FILES = [  # what a file holds, what the message says
    ("", "the file has no settings in it"),
    ("null\n", "the file has no settings in it"),
    ("[1]\n", "it holds no names with values"),
    ("epochs\n", "it holds no names with values"),
    ("epochs: 3\nepochs: 3\n", "epochs is there twice"),
    ("data: {threads: 1}\ndata.threads: 1\n", "data.threads is there twice"),
    ("data: {bach_size: 3}\n", "there is no setting data.bach_size; did you mean data.batch_size?"),
    ("lr: 1\n", "did you mean optim.lr_"),
    ("data: 3\n", "'3' is no group of settings"),
    ("epochs: {a: 1}\n", "must be a whole number, got a group of settings"),
    ("epochs: [1]\n", "must be a whole number, got a list"),
    ("compile: [on]\n", "must be auto, on or off, got a list"),
    ("? [1]\n: 2\n", "unhashable key"),
    ("epochs: !!python/name:os.system 3\n", "could not determine a constructor"),
    ("epochs: [\n", "line 2"),
    ('name: "a\\0b"\n', "without control characters"),
    ('out: "a\\0b"\n', "without control characters"),
    ("name: ''\n", "must not be empty"),
    ("config: demo\n", "config is no setting"),
    ("\xff\xfe", "cannot be read as settings"),
    ("epochs: 7\0\n", "control characters are not allowed"),
    ("data:\n\tthreads: 1\n", "cannot start any token in line 2"),
    ("epochs: 3\n---\nepochs: 4\n", "expected a single document"),
    ("x: &x {threads: 3}\ndata: {<<: *x}\n", "there is no setting x"),
    ("data: &d {threads: *d}\n", "&d contains itself"),
    ("#" * 2**21, "at most 1,048,576 are read"),
    ("1: 2\n", "there is no setting 1"),
    ("loggers: {a: b}\n", "loggers: must be "),
    ("~: 2\n", "there is no setting ~"),
    (".: 2\n", "there is no setting ."),
    ("data.: 2\n", "there is no setting data.; did you mean data.root or data.cache?"),
    ("data.threads.x: 2\n", "did you mean data.threads?"),
    ("name: !!binary aGVsbG8=\n", "could not determine a constructor"),
    ("loggers: !!set {a, b}\n", "could not determine a constructor"),
]

TAKEN = [  # what a file holds that others' editors and systems write -> epochs
    (b"\xef\xbb\xbfepochs: 7\n", 7),  # a byte order mark
    (b"epochs: 7\r\nname: x\r\n", 7),
    (b"epochs: 7\rname: x\r", 7),
    (b"\n\n# only this\nepochs: 7", 7),
    (b"---\nepochs: 7\n...\n", 7),
    (b"%YAML 1.1\n---\nepochs: 7\n", 7),
    (b'{"epochs": 7, "data": {"threads": 1}}', 7),  # JSON
    (b"data: {<<: {threads: 3}, batch_size: 4}\nepochs: 7\n", 7),
]


@pytest.mark.parametrize(("data", "epochs"), TAKEN, ids=lambda value: str(value)[:24])
def test_a_file_is_read_whatever_wrote_it(tmp_path, data, epochs):
    (tmp_path / "mine.yaml").write_bytes(data)
    assert config.load(str(tmp_path / "mine.yaml")).epochs == epochs


@pytest.mark.parametrize(("text", "message"), FILES, ids=lambda value: repr(value)[:40])
def test_a_file_that_is_refused_is_named(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as refused:
        config.parse(["--config", str(file)], "train")
    assert message in str(refused.value) and str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_is_nested_too_deep_is_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("[" * 20_000)
    words = "maximum nesting depth|nested too deep|lists in lists 20 deep"  # a newer PyYAML counts
    with pytest.raises(InputError, match=f"mine.yaml: .*({words})") as refused:
        config.parse(["--config", str(file)], "train")
    assert "\n" not in str(refused.value)


def test_a_quoted_null_is_a_text_and_an_empty_group_is_none(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: 'null'\nout: \"~\"\nepochs: '3'\ndata:\noptim: {}\n")
    settings = config.load(str(tmp_path / "mine.yaml"))
    assert (settings.name, settings.epochs, settings.data) == ("null", 3, config.DataConfig())
    assert settings.out == HOME  # the folder ~, written as a text


ORDERS = [
    (["--epochs", "3", "--config", "semipl"], 3, "semipl"),
    (["--config", "semipl", "--epochs", "3"], 3, "semipl"),
    (["--epochs=3", "--config=semipl", "--config", "lss"], 3, "lss"),
    (["--config", "semipl", "--epochs", "3", "--config", "lss"], 3, "lss"),
    (["--epochs", "2", "--config", "lss", "--epochs", "3"], 3, "lss"),
    (["--config", "lss", "--config", "semipl"], 350, "semipl"),
]


@pytest.mark.parametrize(("arguments", "epochs", "name"), ORDERS)
def test_options_win_wherever_they_stand_and_later_files_over_earlier_ones(arguments, epochs, name):
    settings = config.parse(arguments, "train")[0]
    assert (settings.epochs, settings.name) == (epochs, name)


UNKNOWN = [
    ("--epoch", "--epochs"),
    ("--ep", ""),  # no abbreviation
    ("--lr", "--optim.lr_head"),
    ("--learning-rate", "--optim.lr_head"),
    ("--batch_size", "--data.batch_size"),
    ("--batch-size", "--data.batch_size"),
    ("--data.batch-size", "--data.batch_size"),
    ("--num_workers", "--data.threads"),
    ("--max_epochs", "--epochs"),
    ("--optim.lr_haed", "--optim.lr_head"),
    ("--confg", "--config"),
    ("--data", "--data.root DIR"),
    ("--optim", "--optim.lr_head"),
    ("--" + "epochs_" * 100_000, ""),  # comparing it with every option took minutes
]


@pytest.mark.parametrize(("option", "near"), UNKNOWN)
def test_an_unknown_option_is_answered_with_the_nearest_ones(option, near):
    for arguments in ([option, "1"], [f"{option}=1"], ["--seed", "1", option, "1", "--config", "demo"]):
        with pytest.raises(InputError) as refused:
            config.parse(arguments, "train")
        assert near in str(refused.value) and option[:40] in str(refused.value) and len(str(refused.value)) < 1000


def test_a_wrong_choice_and_a_wrong_config_are_answered_with_the_nearest_one():
    for arguments, near in (
        (["--compile", "of"], "did you mean off?"),
        (["--config", "semipi"], "did you mean semipl"),
    ):
        with pytest.raises(InputError, match=near.replace("?", r"\?")):
            config.parse(arguments, "train")


def test_settings_may_come_through_a_pipe(tmp_path):
    import os
    import threading

    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("epochs: 7\n",))
    writer.start()
    assert config.load(str(tmp_path / "pipe")).epochs == 7
    writer.join()


@pytest.mark.parametrize(("data", "epochs"), [*TAKEN[:2], (b"\xff\xfe", None)], ids=repr)
def test_standard_input_is_read_as_a_file(tmp_path, monkeypatch, data, epochs):
    (tmp_path / "mine.yaml").write_bytes(data)
    with open(tmp_path / "mine.yaml", encoding="ascii", errors="surrogateescape") as given:  # as Python opens it
        monkeypatch.setattr(sys, "stdin", given)
        if epochs is None:
            with pytest.raises(InputError, match="^--config: standard input cannot be read as settings .*utf-8"):
                config.parse(["--config", "-"], "train")
        else:
            assert config.parse(["--config", "-"], "train")[0].epochs == epochs


def test_a_run_keeps_the_name_that_an_older_version_took(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("name: a/b\n")
    with pytest.raises(InputError, match="name: must be one folder's name"):
        config.load(str(file))
    (tmp_path / "log.jsonl").touch()  # it is a run's
    assert config.parse([], "train", default=str(file))[0].name == config.load(str(file)).name == "a/b"
    with pytest.raises(InputError, match="--name: must be one folder's name"):
        config.parse(["--name", "a/b"], "train", default=str(file))


def test_a_checkpoint_whose_folders_were_null_is_read():
    """Versions that took null wrote it into their checkpoints."""
    values = config.to_dict(config.Config())
    values["out"] = values["compile_cache"] = values["demo"]["cache"] = None
    assert config.from_dict(values) == config.Config()
    with pytest.raises(InputError, match="seed: None is not of its kind, a whole number"):
        config.from_dict(values | {"seed": None})
