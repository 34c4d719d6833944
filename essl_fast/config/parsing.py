"""Settings from YAML files and command lines."""

from dataclasses import fields
from pathlib import Path

from essl_fast import __version__
from essl_fast.common.errors import InputError
from essl_fast.common.files import PACKAGE
from essl_fast.config.settings import Config, check


def configs_folder() -> Path:
    """The folder of the shipped YAML files: in the installed package, or beside it in a clone.

    Raises:
        InputError: the installation has no such folder.
    """
    for place in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (place / "demo.yaml").is_file():
            return place
    raise InputError(f"the shipped configs are not beside {PACKAGE}; install essl_fast again")


def find_file(name: str) -> Path:
    """The file of a config.

    Args:
        name: a path, or the name of a shipped config ("semipl", "paper/table2_sspl_wo_pcm").

    Raises:
        InputError: there is no such file and no shipped config of this name.
    """
    if Path(name).is_file():
        return Path(name)
    folder = configs_folder()
    shipped = folder / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")))
    raise InputError(f"config {name!r} is neither a file nor one of the shipped configs: {names}")


def load(name: str = "demo", overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of a file or shipped name, with overrides like ["--data.batch_size", "64"] or ["epochs=3"].

    Raises:
        InputError: there is no such file, or a setting is unknown or impossible.
    """
    arguments = [o if o.startswith("-") or "=" not in o else f"--{o}" for o in overrides]
    return parse(["--config", name, *arguments], prog="essl_fast.config.settings")[0]


def parser(prog: str, description: str = ""):
    """The argument parser of Config, with --config and --version; commands add their own options to it."""
    import jsonargparse
    import yaml

    from essl_fast.config.yamls import refuse_bombs

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message, ex=None):
            text = " ".join(str(message).split())
            if 'Parser key "data": Unable to load config' in text:  # doctor, evaluate and reproduce have --data DIR
                text = "--data: is a file of settings here; the prepared folder is --data.root DIR"
            if text == "Unexpected config:":
                text = "--config: the file has no settings in it"
            raise InputError(text if len(text) <= 1000 else f"{text[:1000]} ...")

    plain = jsonargparse.get_loader("yaml")
    jsonargparse.set_loader("settings", lambda text: plain(refuse_bombs(text)), (yaml.YAMLError,))
    parser = Parser(prog=prog, description=description, exit_on_error=True, parser_mode="settings")
    parser.add_argument(
        "--config", action="config", help="YAML file, or the name of a shipped config; before overrides"
    )
    parser.add_argument("--version", action="version", version=f"essl_fast {__version__}", help="print the version")
    parser.add_class_arguments(Config, nested_key=None, fail_untyped=True)
    return parser


def without_imports(argv: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without each `--import MODULE`, and the modules. They add to the setting `imports` of any file."""
    rest, modules = [], []
    words = iter(argv)
    for word in words:
        if word != "--import" and not word.startswith("--import="):
            rest.append(word)
            continue
        name = word.partition("=")[2] if "=" in word else next(words, "")
        if not name or name.startswith("-"):
            raise InputError("--import: give the name of a module, as Python imports it: my_package.part")
        modules.append(name)
    return rest, modules


def parse(
    argv: list[str], prog: str, description: str = "", extra=None, default: str = "demo"
) -> tuple[Config, object]:
    """The Config of a command line.

    Args:
        argv: the arguments, without the program's name.
        prog: the program's name, for help and errors.
        description: for help.
        extra: called with the parser, to add the command's own options.
        default: file or shipped name, used if the arguments have no --config.

    Returns:
        The config, and the namespace that holds the command's own options.

    Raises:
        InputError: an argument is wrong.
    """
    own = parser(prog, description)
    if extra:
        extra(own)
    argv, imports = without_imports(list(argv))
    argv += [f"--imports+={name}" for name in imports]
    named = [i for i, a in enumerate(argv) if a == "--config" or a.startswith("--config=")]
    for i in named:
        if argv[i] == "--config" and i + 1 < len(argv):
            argv[i + 1] = str(find_file(argv[i + 1]))
        elif argv[i] != "--config":
            argv[i] = f"--config={find_file(argv[i].split('=', 1)[1])}"
    if not named:
        argv = ["--config", str(find_file(default)), *argv]
    try:
        space = own.parse_args(argv)
        ready = own.instantiate(space)
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # Text that is no UTF-8, endless numbers, an empty group of settings.
        raise InputError(f"{' '.join(argv)}: not a file or value of settings ({error})") from error
    values = {f.name: getattr(ready, f.name) for f in fields(Config)}
    values["imports"] = list(dict.fromkeys(values["imports"]))
    return check(Config(**values)), ready
