"""Who imports what: the package's files, parsed, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = "essl_fast"
KEPT = (ast.Import, ast.ImportFrom, ast.Attribute, ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Use(NamedTuple):
    """A file uses a module of ours, or a name out of one; wherever in the file the import stands."""

    file: str  # the user: "essl_fast/train/loop.py"
    line: int
    module: str  # the used: "essl_fast.data.shards"
    name: str  # out of it, "" for the module itself


def module_of(file: str) -> str:
    """ "essl_fast/train/loop.py" -> "essl_fast.train.loop"; a package's `__init__.py` -> the package."""
    parts = Path(file).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str, rooms: Iterable[str]) -> str:
    """The room, such as "data.shards", that a module belongs to; "" if none of these."""
    inner = module.removeprefix(PACKAGE).removeprefix(".")
    return max((room for room in rooms if room and f"{inner}.".startswith(f"{room}.")), key=len, default="")


def nodes_of(tree: ast.AST) -> list[ast.AST]:
    """The nodes of a tree that are of the kinds KEPT, outer ones first; `ast.walk` takes several times as long."""
    found, level = [], [tree]
    while level:
        below = []
        for node in level:
            if isinstance(node, KEPT):
                found.append(node)
            for value in node.__dict__.values():
                if isinstance(value, ast.AST):
                    if value.__dict__:  # the others are markers such as ast.Load
                        below.append(value)
                elif type(value) is list:
                    below += [each for each in value if isinstance(each, ast.AST)]
        level = below
    return found


class Code:
    """Python files by their path from the root, each parsed and walked once."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.sources = dict(sources)
        self.trees = {file: ast.parse(text, file) for file, text in sources.items()}
        self.nodes = {file: nodes_of(tree) for file, tree in self.trees.items()}
        self.modules = {module_of(file): file for file in sources}
        self._exports: dict[str, dict[str, str]] = {}
        self.uses = {file: list(self._uses(file, nodes)) for file, nodes in self.nodes.items()}

    @classmethod
    def read(cls, root: Path, folders: Iterable[str]) -> Code:
        """All Python files of these folders of the repository."""
        files = sorted(file for folder in folders for file in (root / folder).rglob("*.py"))
        return cls({file.relative_to(root).as_posix(): file.read_text(encoding="utf-8") for file in files})

    def exports(self, package: str) -> dict[str, str]:
        """`__all__` of a package: name -> the module that has it (itself, where the name is a module); "" if unsaid."""
        if package not in self._exports:
            self._exports[package] = self._read_exports(package)
        return self._exports[package]

    def _read_exports(self, package: str) -> dict[str, str]:
        tree = self.trees.get(self.modules.get(package, ""), ast.Module([], []))
        found: dict[str, str] = {}
        for node in tree.body:
            if not isinstance(node, ast.Assign):
                continue
            if isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "lazy_exports":
                for name, place in ast.literal_eval(node.value.args[1]).items():
                    found[name] = f"{package}.{place or name}"
            elif getattr(node.targets[0], "id", "") == "__all__":
                found |= dict.fromkeys(ast.literal_eval(node.value), "")
        return {name: self._known(f"{package}.{name}") or place for name, place in found.items()}

    def file_of(self, use: Use) -> str:
        """The file that a use leads to: where the name is defined, also if a package hands it on."""
        module, name = use.module, use.name
        for _ in range(5):  # handed on from package to package
            file = self.modules.get(module, "")
            if not name or not file.endswith("__init__.py"):
                break
            handed = {one.name: one.module for one in self.uses.get(file, []) if one.name}
            place = self.exports(module).get(name) or handed.get(name)
            if not place or place == module:
                break
            module = place
        return self.modules.get(module, "")

    def _known(self, module: str) -> str:
        return module if module in self.modules else ""

    def _uses(self, file: str, nodes: list[ast.AST]) -> Iterator[Use]:
        names: dict[str, str] = {}  # in this file -> the module of ours that it means
        for node in nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == PACKAGE:
                        names[alias.asname or PACKAGE] = alias.name if alias.asname else PACKAGE
                        yield Use(file, node.lineno, alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                if node.level or module.split(".")[0] == PACKAGE:
                    for alias in node.names:
                        if inner := self._known(f"{module}.{alias.name}"):
                            names[alias.asname or alias.name] = inner
                            yield Use(file, node.lineno, inner, "")
                        else:
                            yield Use(file, node.lineno, module, alias.name)
        for node in nodes if names else ():  # module.name
            if isinstance(node, ast.Attribute) and (module := self._meant(node.value, names)):
                inner = self._known(f"{module}.{node.attr}")
                yield Use(file, node.lineno, inner or module, "" if inner else node.attr)

    def _meant(self, node: ast.AST, names: dict[str, str]) -> str:
        """The module of ours that an expression names, "" if none."""
        if isinstance(node, ast.Name):
            return names.get(node.id, "")
        if isinstance(node, ast.Attribute) and (outer := self._meant(node.value, names)):
            return self._known(f"{outer}.{node.attr}")
        return ""


def circles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Groups of nodes that lead to one another (Tarjan's strongly connected components of more than one node)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return found
