"""The house keeps its order: who may import whom, and no file grows out of a reader's hands."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "essl_fast").rglob("*.py"))
MAY = {  # module prefix -> what of ours it may import
    "essl_fast.kernels": ("essl_fast.kernels",),
    "essl_fast.models": ("essl_fast.models", "essl_fast.kernels"),
    "essl_fast.data": ("essl_fast.data", "essl_fast.config", "essl_fast.files", "essl_fast.kernels.native"),
    "essl_fast.objectives": ("essl_fast.kernels",),
    "essl_fast.metrics": ("essl_fast.kernels",),
    "essl_fast.hearing": ("essl_fast.config", "essl_fast.kernels", "essl_fast.models"),
    "essl_fast.config": ("essl_fast.yamls",),
    "essl_fast.commands": ("essl_fast.config",),
    "essl_fast.yamls": (),
    "essl_fast.files": (),
    "essl_fast.distributed": ("essl_fast.config",),
    "essl_fast.compiling": ("essl_fast.config",),
    "essl_fast.stepping": ("essl_fast.config",),
    "essl_fast.profiling": (),
    "essl_fast.rendering": (),
    "essl_fast.safety": ("essl_fast.config",),
    "essl_fast.stopping": ("essl_fast.distributed",),
    "essl_fast.tensorboard_log": ("essl_fast.config",),
    "essl_fast.gallery": ("essl_fast.config", "essl_fast.files"),
    "essl_fast.paper": (),
    "essl_fast.gaps": (),
    "essl_fast.explain": ("essl_fast.floors", "essl_fast.gaps", "essl_fast.hearing", "essl_fast.runlog"),
    "essl_fast.floors": ("essl_fast.config", "essl_fast.models", "essl_fast.objectives"),
    "essl_fast.report_charts": (),
    "essl_fast.report_style": (),
    "essl_fast.report_gallery": ("essl_fast.config", "essl_fast.gallery"),
    "essl_fast.report_runs": ("essl_fast.config", "essl_fast.gallery", "essl_fast.runlog"),
    "essl_fast.report_page": ("essl_fast.metrics", "essl_fast.paper", "essl_fast.report_charts",
                              "essl_fast.report_gallery", "essl_fast.report_runs", "essl_fast.report_style"),
    "essl_fast.checkpoint": ("essl_fast.config", "essl_fast.files", "essl_fast.sspl"),
    "essl_fast.sspl": ("essl_fast.config", "essl_fast.files"),
    "essl_fast.figures": ("essl_fast.metrics",),
    "essl_fast.reproduce_page": ("essl_fast.report_style",),
    "essl_fast.reproduce_rows": ("essl_fast.config", "essl_fast.paper", "essl_fast.yamls"),
    "essl_fast.runlog": ("essl_fast.kernels", "essl_fast.files"),
    "essl_fast.prepare": ("essl_fast.commands", "essl_fast.config", "essl_fast.data", "essl_fast.files"),
}  # fmt: skip
COMMANDS = (
    "essl_fast.doctor", "essl_fast.doctor_checks", "essl_fast.doctor_room", "essl_fast.evaluate",
    "essl_fast.export", "essl_fast.finder", "essl_fast.localize", "essl_fast.replay", "essl_fast.report",
    "essl_fast.reproduce", "essl_fast.train", "essl_fast.trainer",
)  # fmt: skip


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path) -> set[str]:
    """Modules of ours that a file imports, wherever in it; names imported from a package count as its modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            for alias in node.names:
                inner = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return {name for name in found if name.split(".")[0] == "essl_fast"}


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_keep_the_direction(file):
    module = module_of(file)
    if module in COMMANDS or module == "essl_fast":
        return
    rule = next((prefix for prefix in MAY if within(module, prefix)), None)
    assert rule, f"{module} has no place in the house: give it a rule here"
    wrong = [name for name in imports_of(file) if not any(within(name, allowed) for allowed in MAY[rule])]
    assert not wrong, f"{module} may not import {', '.join(wrong)}"


def test_the_rule_bites():
    assert imports_of(ROOT / "essl_fast/trainer.py") >= {"essl_fast.data.loader", "essl_fast.models"}


def test_files_stay_readable():
    tracked = [f for folder in ("essl_fast", "csrc", "tests", "benchmarks") for f in (ROOT / folder).rglob("*")]
    long = [
        f"{f.relative_to(ROOT)}: {n}" for f in tracked
        if f.suffix in (".py", ".cu", ".cuh", ".cpp", ".h") and (n := len(f.read_text().splitlines())) > 500
    ]  # fmt: skip
    assert not long
