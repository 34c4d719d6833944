"""Settings: files, overrides, and errors that name the setting."""

import re

import pytest

import essl_fast
from essl_fast import config
from essl_fast.common import commands
from essl_fast.common.errors import InputError, in_shell


@pytest.mark.parametrize("name", ["demo", "sspl", "sspl_pcm", "semipl", "full", "lss", "lss_semi"])
def test_shipped_configs_load(name):
    settings = config.load(name)
    assert settings.name == name
    assert config.from_dict(config.to_dict(settings)) == settings


def test_the_recipe():
    with_pcm, without = config.load("sspl_pcm"), config.load("sspl")
    assert (with_pcm.optim.lr_sound, with_pcm.optim.lr_pcm, with_pcm.optim.lr_head) == (2e-5, 2e-5, 5e-5)
    assert (with_pcm.epochs, with_pcm.data.batch_size, with_pcm.model.pcm) == (350, 64, True)
    assert (without.optim.lr_sound, without.optim.lr_head) == (5e-4, 2e-3)
    assert (without.epochs, without.data.batch_size, without.model.pcm) == (40, 128, False)
    assert {with_pcm.optim.weight_decay, without.optim.weight_decay} == {1e-4}


def test_overrides_win():
    settings = config.load("demo", ["--data.batch_size", "7", "epochs=3", "--model.pcm_cycles=2"])
    assert (settings.data.batch_size, settings.epochs, settings.model.pcm_cycles) == (7, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data.batchsize", "3"], "--data.batchsize"),
        (["--data.batch_size", "1"], "data.batch_size: must be at least 2"),
        (["--data.batch_size", "many"], "data.batch_size"),
        (["--optim.lr_head", ".nan"], "optim.lr_head: must be at least 0"),
        (["--optim.lr_head", ".inf"], "optim.lr_head: must be at least 0, and finite"),
        (["--objective.consensus", "1025"], "objective.consensus: must be from 0 to 1024"),
        (["--data.max_errors", "1.5"], "data.max_errors: must be from 0 to 1"),
        (["--data.resident_budget_gb", "-1"], "data.resident_budget_gb: must be at least 0"),
        (["--data.resident", "sometimes"], "data.resident"),
        (["--device", "gpu"], "device: must be"),
        (["--device", "cudafoo"], "device: must be"),
        (["--epochs", "0"], "epochs: must be at least 1"),
        (["--out", "a\udcff"], "out: must be a path in UTF-8"),
    ],
)
def test_a_wrong_setting_is_named(arguments, named):
    with pytest.raises(InputError, match=named):
        config.load("demo", arguments)


def test_a_wrong_key_in_a_file_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {bach_size: 3}\n")
    with pytest.raises(InputError, match="bach_size"):
        config.load(str(file))


def test_an_unknown_config_lists_the_shipped_ones():
    with pytest.raises(InputError, match="demo, full, lss, lss_semi, .*semipl, sspl, sspl_pcm"):
        config.load("imagenet")


def test_difference_names_what_differs():
    a = config.to_dict(config.load("demo"))
    b = config.to_dict(config.load("demo", ["--epochs", "2", "--optim.lr_head", "0.5"]))
    lines = config.difference(a, b)
    assert len(lines) == 2 and lines[0].startswith("epochs: ") and lines[1].endswith("-> 0.5")


def test_a_setting_of_another_version_is_refused():
    values = config.to_dict(config.load("demo"))
    values["data"]["teleport"] = 1
    with pytest.raises(InputError, match="data.teleport"):
        config.from_dict(values)


def test_a_folder_for_data_and_a_file_without_settings_are_explained(tmp_path):
    with pytest.raises(InputError, match="the prepared folder is --data.root DIR"):
        config.parse(["--data", str(tmp_path)], "train")
    (tmp_path / "empty.yaml").touch()
    with pytest.raises(InputError, match="the file has no settings in it"):
        config.parse(["--config", str(tmp_path / "empty.yaml")], "train")


def test_a_run_directory_is_no_config(tmp_path):
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    says = f"is a run directory; give {tmp_path}/config.yaml, or --resume {in_shell(tmp_path)}"
    with pytest.raises(InputError, match=f"{re.escape(says)}$"):
        config.load(str(tmp_path))
    for name in ("x" * 5000, "a\0b"):  # no path at all
        with pytest.raises(InputError, match="is neither a file nor one of the shipped configs"):
            config.load(name)


def test_a_package_without_its_configs_is_told(monkeypatch, tmp_path):
    from essl_fast.config import parsing

    monkeypatch.setattr(parsing, "PACKAGE", tmp_path / "essl_fast")
    with pytest.raises(InputError, match="the shipped configs are not beside .*; install essl_fast again"):
        config.load("demo")


def test_settings_that_were_made_by_hand_are_checked():
    settings = config.Config(device="gpu")
    with pytest.raises(InputError, match="^device: must be auto, cpu, cuda or cuda:N, got 'gpu'$"):
        config.check(settings)


def test_a_wrong_option_is_one_line(capsys):
    options = commands.Options(prog="program")
    options.add_argument("--number", type=int)
    with pytest.raises(SystemExit) as ended:
        options.parse_args(["--number", "x"])
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cudafoo", ""])
def test_a_device_that_is_none_is_named(name):
    from essl_fast.runtime.devices import pick_device

    with pytest.raises(InputError, match="device: must be auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_import_may_stand_anywhere_and_be_repeated(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("imports: [first]\nloggers: [mine]\n")
    for arguments in (
        ["--import", "second", "--config", str(file), "--import=third", "--import", "first"],
        ["--config", str(file), "--import", "second", "--import", "third"],
    ):
        settings = config.parse(arguments, "train")[0]
        assert settings.imports == ["first", "second", "third"] and settings.loggers == ["mine"]
    assert config.from_dict(config.to_dict(settings)) == settings
    file.write_text("import: [first]\n")  # in a file the name is imports
    with pytest.raises(InputError, match="import is no setting"):
        config.load(str(file))


@pytest.mark.parametrize("more", [[], ["--import", "json", "--import=math"]])
def test_printed_settings_are_read_again(tmp_path, capsys, more):
    printed = []
    for arguments in ([*more, "--config", "full"], ["--config", str(tmp_path / "full.yaml")]):
        with pytest.raises(SystemExit):
            config.parse([*arguments, "--print_config"], "train")
        printed.append(capsys.readouterr().out)
        (tmp_path / "full.yaml").write_text(printed[-1])
    assert printed[0] == printed[1]
    assert config.load(str(tmp_path / "full.yaml")).imports == more[1:2] + [word[9:] for word in more[2:]]


@pytest.mark.parametrize("arguments", [["--import"], ["--import="], ["--import", "--epochs", "1"]])
def test_import_without_a_name_is_told(arguments):
    with pytest.raises(InputError, match="--import: give the name of a module"):
        config.parse(arguments, "train")


def test_settings_from_before_imports_and_loggers_have_their_defaults():
    before = config.to_dict(config.load("demo"))
    del before["imports"], before["loggers"]
    settings = config.from_dict(before)
    assert settings.imports == [] and config.difference(config.to_dict(settings), config.to_dict(config.load())) == []
    for wrong in ("my_module", [3], {"a": 1}):
        with pytest.raises(InputError, match="imports: .* is not of its kind"):
            config.from_dict(before | {"imports": wrong})


def test_the_version_is_printed(capsys):
    for main in (lambda: config.parse(["--version"], "train"), lambda: commands.Options().parse_args(["--version"])):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0 and capsys.readouterr().out == f"essl_fast {essl_fast.__version__}\n"
