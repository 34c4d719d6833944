"""The house keeps its order: one rule a room, faces, no circle, and nothing that grows out of a reader's hands.

Files are parsed, never run. Each rule is a function from `Code` to complaints; a test applies it to the repository, and
another shows on a few made-up lines that it bites.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests import ROOT
from tests.tools.imports import Code, Use, circles, module_of, room_of

LOWEST = ("common", "config", "kernels")
DATA = ("data.datasets", "data.loading", "data.media", "data.remote", "data.shards")
BELOW = (*LOWEST, "models", "runtime", *DATA, "checkpoints", "profiling")  # what all commands share
MAY = {  # room -> rooms that it may import, from the lower line to the upper one never
    "common": (),
    "config": ("common",),
    "kernels": ("common",),
    "models": LOWEST,
    "runtime": LOWEST,
    "data": (),
    "data.media": ("common", "config", "kernels"),
    "data.remote": ("common",),
    "data.shards": ("common", "config", "data.media", "data.remote"),
    "data.datasets": ("common", "config", "data.media", "data.shards"),
    "data.loading": (*LOWEST, "data.media", "data.shards"),
    "data.synthetic": ("common", "config"),
    "checkpoints": (*LOWEST, "models", "runtime"),
    "profiling": (*LOWEST, "models", "runtime"),
    "evaluate": BELOW,
    "prepare": BELOW,
    "localize": (*BELOW, "evaluate"),
    "app": (*BELOW, "localize"),
    "report": (*BELOW, "evaluate"),
    "reproduce": (*BELOW, "evaluate", "report"),
    "pretrain": (*BELOW, "data.synthetic"),
    "train": (*BELOW, "evaluate", "report", "prepare", "data.synthetic", "pretrain"),
    "doctor": (*BELOW, "evaluate", "train", "pretrain"),
    "replay": (*BELOW, "evaluate", "train"),
    "export": BELOW,
    "": (*BELOW, "evaluate", "localize", "train"),  # what `import essl_fast` hands on
}
OUTSIDE = ("benchmarks", "examples", ".ci", "docs")  # may use every room, by its face
LONGEST_FILE, LONGEST_DOOR, LONGEST_LOOP, LONGEST_FUNCTION, LONGEST_CLASS = 500, 150, 150, 60, 200
REASON = re.compile(
    r"\bone (function|class|kernel|launch|pass|loop|table)\b[^.]*?(:|\b(because|since|so|as|for)\b)", re.I
)


def room(module: str) -> str:
    """The room that a module belongs to; "" for the files of the package itself, such as `essl_fast/metrics.py`."""
    return room_of(module, MAY)


def uses(code: Code, *, of: tuple[str, ...] = ("essl_fast", *OUTSIDE)) -> Iterator[tuple[str, str, Use]]:
    """(user's room, used room, use) of all files in these folders; the user's room is "outside" in the others' case."""
    for file, found in code.uses.items():
        if file.split("/")[0] in of:
            mine = room(module_of(file)) if file.startswith("essl_fast/") else "outside"
            for use in found:
                yield mine, room(use.module), use


def at(use: Use) -> str:
    return f"{use.file}:{use.line}: {use.module}{use.name and '.'}{use.name}"


# ---------------------------------------------------------------- rules


def direction(code: Code) -> list[str]:
    """A room imports only the rooms that its rule allows."""
    return [
        f"{at(use)}: {mine or 'the package'} may not import {other or 'the package itself'}"
        for mine, other, use in uses(code, of=("essl_fast",))
        if mine != other
        and other not in MAY[mine]
        and not (use.module == "essl_fast" and use.name in ("", "__version__"))
    ]


def faces(code: Code) -> list[str]:
    """Out of another room comes only what its `__init__.py` lists: names, or files."""
    found = []
    for mine, other, use in uses(code):
        package = f"essl_fast.{other}" if other else "essl_fast"
        one_file = not code.modules.get(package, "").endswith("__init__.py")
        file = use.module.removeprefix(package).strip(".").split(".")[0]
        name = file or use.name  # what is taken out of the package
        if mine == other or one_file or not name or name.startswith("__") or room(f"{package}.{name}") != other:
            continue
        if name not in code.exports(package):
            found.append(f"{at(use)}: {package}'s __init__.py does not list {name}")
    return found


def typed_faces(code: Code) -> list[str]:
    """What a package exports lazily is named for type checkers, too: else it is Any to them, and nothing is checked."""
    found = []
    for package, file in code.modules.items():
        imports = [node for node in code.nodes[file] if isinstance(node, ast.ImportFrom)]
        named = {a.name: node.module for node in imports for a in node.names if a.name == a.asname}
        for name, place in code.exports(package).items():
            known = (place.rpartition(".")[0], place) if place == f"{package}.{name}" else (place,)
            if place and named.get(name) not in known:
                found.append(f"{file}: under `if TYPE_CHECKING:` write `from {known[0]} import {name} as {name}`")
    return found


def one_name_one_thing(code: Code) -> list[str]:
    """No package hands on a name under which it has a file: who imports the file first would get that for the name."""
    return [
        f"{file}: {alias.name} is handed on, and {node.module} is a file: give the file another name"
        for package, file in code.modules.items()
        if file.endswith("__init__.py")
        for node in code.nodes[file]
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module == f"{package}.{alias.name}" and node.module in code.modules
    ]


def hands_on(code: Code, use: Use) -> bool:
    """Whether a package names for type checkers what it exports: it imports that when it is used, not before."""
    exported = code.exports(module_of(use.file)) if use.file.endswith("__init__.py") else {}
    return use.module in exported.values()


def no_circles(code: Code) -> list[str]:
    """No files import one another in a circle, imports inside functions included."""
    edges = {
        file: sorted({code.file_of(use) for use in found if not hands_on(code, use)} - {file, ""})
        for file, found in code.uses.items()
        if file.startswith("essl_fast/")
    }
    return [f"these import one another: {', '.join(group)}" for group in circles(edges)]


def doors(code: Code) -> list[str]:
    """A `__main__.py` is short, and nobody but tests imports it."""
    long = [
        f"{file}: {count} lines"
        for file, text in code.sources.items()
        if file.startswith("essl_fast/")
        and file.endswith("__main__.py")
        and (count := len(text.splitlines())) >= LONGEST_DOOR
    ]
    return long + [at(use) for _, _, use in uses(code) if "__main__" in (use.module.split(".")[-1], use.name)]


def private_names(code: Code) -> list[str]:
    """A name with a leading underscore stays in its file."""
    return [
        at(use)
        for _, _, use in uses(code)
        if any(part.startswith("_") and not part.startswith("__") for part in (*use.module.split("."), use.name))
        and code.file_of(use) != use.file
    ]


def relative_imports(code: Code) -> list[str]:
    """Imports are absolute."""
    return [at(use) for found in code.uses.values() for use in found if use.module.startswith(".")]


def long_files(sources: dict[str, str]) -> list[str]:
    """A file has one job, and a reader's patience has an end; the loop is read on two screens."""
    return [
        f"{file}: {count} lines"
        for file, text in sources.items()
        if (count := len(text.splitlines())) > (LONGEST_LOOP if file == "essl_fast/train/loop.py" else LONGEST_FILE)
    ]


def long_definitions(code: Code) -> list[str]:
    """A long function or class says in its docstring why it is one."""
    found = []
    for file, nodes in code.nodes.items():
        for node in nodes:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            most = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            lines = node.end_lineno - node.lineno + 1
            if lines > most and not REASON.search(" ".join((ast.get_docstring(node) or "").split())):
                found.append(
                    f"{file}:{node.lineno}: {node.name} has {lines} lines, over {most}: split it by job, or say why "
                    'not in its docstring, in a sentence with "One function", "One class" or "One launch" and a '
                    "reason behind because, since, so, for or a colon"
                )
    return found


def hand_layout(sources: dict[str, str]) -> list[str]:
    """The formatter's layout is the layout."""
    return [file for file, text in sources.items() if re.search(r"#\s*(fmt|yapf):\s*" + "(skip|off)", text)]


def bare_ignores(sources: dict[str, str]) -> list[str]:
    """What the type checker is told to pass over has a code and a reason: `# type: ignore[code]  # why`."""
    return [
        f"{file}:{number}: {line.strip()}"
        for file, text in sources.items()
        if file.startswith("essl_fast/")
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(r"type:\s*ignore(?!\[[a-z, -]+\]  # \S)", line)
    ]


def patched_paths(code: Code) -> list[str]:
    """Tests patch objects, not dotted paths in strings."""
    found = []
    for file, nodes in code.nodes.items():
        for node in nodes:
            if not (file.startswith("tests/") and isinstance(node, ast.Call) and node.args):
                continue
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = getattr(node.args[0], "value", None)
            if called in ("setattr", "delattr", "patch") and isinstance(first, str) and re.match(r"\w+\.", first):
                found.append(f"{file}:{node.lineno}: {first}")
    return found


def texts() -> dict[str, str]:
    """Every source file, C++ and CUDA too."""
    kinds = (".py", ".cu", ".cuh", ".cpp", ".h")
    folders = ("essl_fast", "csrc", "tests", "benchmarks", "examples", "docs", ".ci")
    files = (file for folder in folders for file in sorted((ROOT / folder).rglob("*")) if file.suffix in kinds)
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


# ---------------------------------------------------------------- the repository keeps them


@pytest.fixture(scope="module")
def repository():
    """Read when the first test asks for it, so that a process which runs other tests does not wait for it."""
    return Code.read(ROOT, ("essl_fast", "tests", *OUTSIDE))


def test_every_folder_is_a_room(repository):
    folders = {
        module_of(file) for file in repository.sources if file.startswith("essl_fast/") and file.endswith("__init__.py")
    }
    assert {folder.removeprefix("essl_fast").removeprefix(".") for folder in folders} <= MAY.keys()
    assert not [each for each in MAY if f"essl_fast.{each}".rstrip(".") not in repository.modules]
    files = {file.rpartition("/")[0] for file in repository.sources if file.startswith("essl_fast/")}
    assert {folder.replace("/", ".") for folder in files} == folders  # the others are in no wheel
    assert not [folder for folder in folders if not ast.get_docstring(repository.trees[repository.modules[folder]])]


def test_the_rules_themselves_have_no_circle():
    assert not circles(MAY)


RULES = [
    direction,
    faces,
    typed_faces,
    one_name_one_thing,
    no_circles,
    doors,
    private_names,
    relative_imports,
    long_definitions,
    patched_paths,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps(repository, rule):
    found = rule(repository)
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


@pytest.mark.parametrize("rule", [long_files, hand_layout, bare_ignores], ids=lambda rule: rule.__name__)
def test_the_sources_keep(rule):
    found = rule(texts() | {"setup.py": (ROOT / "setup.py").read_text(encoding="utf-8")})
    assert not found, f"{rule.__doc__}\n" + "\n".join(found)


# ---------------------------------------------------------------- the rules bite

LAZY = """
if TYPE_CHECKING:
    from essl_fast.data.shards import tars as tars
    from essl_fast.data.shards.manifest import Manifest as Manifest
__getattr__, __dir__, __all__ = lazy_exports(__name__, {"Manifest": "manifest", "tars": ""})
"""
SHARDS = {
    "essl_fast/__init__.py": "",
    "essl_fast/data/__init__.py": "",
    "essl_fast/data/shards/__init__.py": LAZY,
    "essl_fast/data/shards/manifest.py": "class Manifest: ...\n_hidden = secret = 1",
    "essl_fast/data/shards/tars.py": "SPLITS = ()",
}


def long(head: str, lines: int, docstring: str) -> str:
    return f'{head}:\n    """{docstring}"""\n' + "    pass\n" * (lines - 2)


BAD = [  # rule, file, what it says
    (direction, "essl_fast/kernels/bad.py", "from essl_fast.data.shards import Manifest"),
    (direction, "essl_fast/common/bad.py", "def late():\n    import essl_fast.data.shards.tars"),
    (direction, "essl_fast/models/bad.py", "from essl_fast import data\nx = data.shards"),
    (direction, "essl_fast/train/bad.py", "from essl_fast.metrics import summarize"),
    (faces, "essl_fast/train/bad.py", "from essl_fast.data.shards.manifest import Manifest"),
    (faces, "essl_fast/train/bad.py", "from essl_fast.data.shards import secret"),
    (faces, "benchmarks/bad.py", "from essl_fast.data import shards\nshards.secret"),
    (faces, "benchmarks/bad.py", "import essl_fast.data.shards.manifest"),
    (typed_faces, "essl_fast/data/shards/__init__.py", LAZY.replace("Manifest as Manifest", "secret as Manifest")),
    (
        typed_faces,
        "essl_fast/data/shards/__init__.py",
        LAZY.replace("shards import tars as tars", "shards import tars"),
    ),
    (typed_faces, "essl_fast/data/shards/__init__.py", LAZY.replace("shards.manifest import", "shards.tars import")),
    (
        one_name_one_thing,
        "essl_fast/data/shards/__init__.py",
        LAZY.replace("shards import tars as tars", "shards.tars import tars as tars"),
    ),
    (no_circles, "essl_fast/data/shards/tars.py", "from essl_fast.data.shards import bad"),
    (doors, "essl_fast/train/bad.py", "from essl_fast.evaluate import __main__"),
    (doors, "essl_fast/train/bad.py", "from essl_fast.evaluate.__main__ import main"),
    (doors, "essl_fast/train/__main__.py", "pass\n" * 150),
    (private_names, "essl_fast/data/shards/bad.py", "from essl_fast.data.shards.manifest import _hidden"),
    (private_names, "essl_fast/data/shards/bad.py", "from essl_fast.data.shards import manifest\nmanifest._hidden"),
    (relative_imports, "essl_fast/data/shards/bad.py", "from .manifest import Manifest"),
    (long_definitions, "essl_fast/train/bad.py", long("def f()", 61, "It is long.")),
    (long_definitions, "essl_fast/train/bad.py", long("class C", 201, "One class of many.")),
    (patched_paths, "tests/bad.py", 'monkeypatch.setattr("essl_fast.train.fit", None)'),
    (patched_paths, "tests/bad.py", 'with mock.patch("essl_fast.train.fit"): ...'),
]


@pytest.mark.parametrize("rule, file, text", BAD)
def test_a_rule_bites(rule, file, text):
    circle = {"essl_fast/data/shards/bad.py": "def late():\n    from essl_fast.data.shards.tars import SPLITS"}
    assert rule(Code({**SHARDS, **(circle if rule is no_circles else {}), file: text}))


GOOD = {
    "essl_fast/train/good.py": "from essl_fast.data import shards\nfrom essl_fast.data.shards import Manifest, tars\n"
    "shards.Manifest, tars.SPLITS\n" + long("def f()", 61, "One function, since nobody could follow its halves."),
    "essl_fast/data/shards/good.py": "from essl_fast.data.shards.manifest import secret\n_mine = 1",
    "essl_fast/train/__main__.py": "pass\n" * 149,
    "benchmarks/good.py": "from essl_fast.data.shards.tars import SPLITS",
    "tests/good.py": 'from essl_fast.train import __main__\nmonkeypatch.setattr(__main__, "main", None)',
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_lets_good_code_pass(rule):
    assert not rule(Code(SHARDS | GOOD))


def test_the_rules_of_texts_bite():
    assert long_files({"essl_fast/train/loop.py": "\n" * 151}) and not long_files(
        {"essl_fast/train/step.py": "\n" * 500}
    )
    assert long_files({"csrc/log_mel.cu": "\n" * 501}) and not long_files({"essl_fast/train/loop.py": "\n" * 150})
    assert hand_layout({"a.py": "x = 1  # fmt: " + "skip"}) and hand_layout({"a.py": "# fmt: " + "off\n"})
    assert not hand_layout({"a.py": "x = 1  # a format"})
    for text in ("x = 1  # type: " + "ignore", "x = 1  # type: " + "ignore[misc]", "# type:" + "ignore[misc] # near"):
        assert bare_ignores({"essl_fast/a.py": text})
    assert not bare_ignores({"essl_fast/a.py": "x = 1  # type: " + "ignore[misc]  # the stub lacks it"})
