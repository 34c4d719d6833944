"""The options of the doctor and of train, whose settings it examines."""

import argparse

from essl_fast.common.commands import Options
from essl_fast.common.values import a_place
from essl_fast.doctor.findings import INSTALL, NOTE, OK, STOPS, Finding


def read_options(prog: str, description: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The doctor's own options, and the command line of train that it examines."""
    own = parser(prog)
    try:
        from essl_fast import config

        options, others = own.parse_own(argv, config.parser(prog))
    except ImportError:  # a package is missing: the doctor's business, which read_settings reports
        options, others = own.parse_known_args(argv)
    if options.help:
        print(description)
        own.print_help()
        print("\nand the options of train, which `python -m essl_fast.train --help` explains")
        raise SystemExit(0)
    return options, [*others, *(["--data.root", str(options.data)] if options.data else [])]


def parser(prog: str) -> Options:
    """The doctor's own options."""
    own = Options(prog=prog, add_help=False)
    own.add_argument("--data", type=a_place, metavar="DIR", help="prepared folder or its URL, short for --data.root")
    own.add_argument("--json", action="store_true", help="print JSON")
    own.add_argument("--probe", action="store_true", help="measure training itself, for some seconds, on --data")
    own.add_argument("-h", "--help", action="store_true", help="show this help")
    return own


def read_settings(prog: str, arguments: list[str]) -> tuple[object, list[Finding]]:
    """The config.Config of a command line of train, and a finding about it.

    If the parser cannot be imported, the default settings. Raises InputError if an option is wrong.
    """
    from essl_fast import config

    try:
        settings = config.parse(arguments, prog)[0]
    except ImportError as error:
        what = f"the options cannot be read ({error}); what follows is of the defaults"
        return config.Config(), [Finding("settings", STOPS, what, INSTALL)]
    if settings.data.root not in ("", "demo") and not any(word.split("=")[0] == "--config" for word in arguments):
        what = "no recipe was named: the demo's small networks are examined, and train asks for a recipe on this data"
        return settings, [Finding("settings", NOTE, what, f"give --config NAME: {', '.join(config.shipped_names())}")]
    size = settings.data.global_batch or settings.data.batch_size
    method = f"{settings.objective.method} of {settings.epochs} epochs, batches of {size}"
    method += " over all processes" * bool(settings.data.global_batch)
    found = [Finding("settings", OK, f"{settings.name}: {method}")]
    settings.optim.accumulate = config.update_batches(settings)  # as train begins
    whole, own = config.shared_batch(settings), settings.data.batch_size
    if whole > own:
        what = f"{whole} pairs at once are for {-(-whole // own)} processes or more, each of which takes {own}"
        remedy = (
            "on fewer, give a larger --data.batch_size or --optim.accumulate: train refuses what a process may not take"
        )
        found.append(Finding("settings", NOTE, what, remedy))
    return settings, found
