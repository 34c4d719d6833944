"""Every place of the package that behaves otherwise on a GPU, and the check that goes there.

A place is a function (or the module's own level) that compares with "cuda" or "cpu", asks a tensor `is_cuda`, or uses
`torch.cuda`. branches.json lists them with the number of such expressions, and what enters them:

    phantom        the pretended GPU: python -m tests.phantom sees the function called, or says that it was not
    tests/...::... a test that stands for the GPU with something of its own, or needs none for this place
    GPU: ...       only a GPU can go there; the reason, and what a machine without one shows instead

`test_branches.py` holds the table against the source, so that a new place cannot be forgotten.
"""

import ast
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).with_name("branches.json")
TABLE: dict[str, list] = json.loads(FILE.read_text())  # place: [expressions, what enters it]
PHANTOM = "phantom"
DEVICES = ("cuda", "cpu")


def asks(node: ast.AST) -> bool:
    """Whether an expression depends on the kind of device."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        texts = [s.value for s in sides if isinstance(s, ast.Constant)]
        texts += [e.value for s in sides if isinstance(s, ast.Tuple) for e in s.elts if isinstance(e, ast.Constant)]
        return any(text in DEVICES for text in texts if isinstance(text, str))
    if isinstance(node, ast.Attribute):
        return node.attr == "is_cuda" or (node.attr == "cuda" and ast.unparse(node) == "torch.cuda")
    return False


def annotations(tree: ast.AST) -> set[int]:
    """The nodes that are only types: `torch.cuda.Event | None`."""
    found: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign | ast.arg):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
    return {id(part) for each in found if each is not None for part in ast.walk(each)}


def places(source: str) -> Counter[str]:
    """How many expressions of each function depend on the kind of device, by its qualified name."""
    tree, found = ast.parse(source), Counter()
    types = annotations(tree)

    def visit(node: ast.AST, name: str, inside: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = f"{name}.<locals>.{node.name}" if inside else f"{name}.{node.name}".lstrip(".")
            inside = isinstance(node, ast.FunctionDef)
        if asks(node) and id(node) not in types:
            found[name or "<module>"] += 1
        for child in ast.iter_child_nodes(node):
            visit(child, name, inside)

    visit(tree, "", False)
    return found


def in_package(root: Path) -> Iterator[tuple[str, int]]:
    """("essl_fast/file.py::function", expressions) of every place."""
    for file in sorted((root / "essl_fast").rglob("*.py")):
        for name, count in places(file.read_text()).items():
            yield f"{file.relative_to(root)}::{name}", count
