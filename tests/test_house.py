"""The house keeps its order: who may import whom, and no file grows out of a reader's hands."""

import ast
from pathlib import Path

import pytest

from tests import ROOT

FILES = sorted((ROOT / "essl_fast").rglob("*.py"))
MAY = {  # module prefix -> what of ours it may import
    "essl_fast.kernels": ("essl_fast.kernels",),
    "essl_fast.models": ("essl_fast.models", "essl_fast.kernels"),
    "essl_fast.data": (
        "essl_fast.data",
        "essl_fast.config.settings",
        "essl_fast.common.files",
        "essl_fast.kernels.native",
    ),
    "essl_fast.models.objectives": ("essl_fast.kernels",),
    "essl_fast.evaluate.metrics": ("essl_fast.kernels",),
    "essl_fast.models.audio_input": ("essl_fast.config.settings", "essl_fast.kernels", "essl_fast.models"),
    "essl_fast.config.settings": ("essl_fast.config.yamls",),
    "essl_fast.common.commands": ("essl_fast.config.settings",),
    "essl_fast.config.yamls": (),
    "essl_fast.common.files": (),
    "essl_fast.runtime.distributed": ("essl_fast.config.settings",),
    "essl_fast.runtime.compiling": ("essl_fast.config.settings",),
    "essl_fast.train.graphs": ("essl_fast.config.settings",),
    "essl_fast.profiling.profile": (),
    "essl_fast.localize.drawing": (),
    "essl_fast.train.faults": ("essl_fast.config.settings",),
    "essl_fast.runtime.stopping": ("essl_fast.runtime.distributed",),
    "essl_fast.train.tensorboard": ("essl_fast.config.settings",),
    "essl_fast.report.gallery": ("essl_fast.config.settings", "essl_fast.common.files"),
    "essl_fast.report.paper": (),
    "essl_fast.profiling.gaps": (),
    "essl_fast.profiling.explain": (
        "essl_fast.profiling.floors",
        "essl_fast.profiling.gaps",
        "essl_fast.models.audio_input",
        "essl_fast.runtime.runlog",
    ),
    "essl_fast.profiling.floors": ("essl_fast.config.settings", "essl_fast.models", "essl_fast.models.objectives"),
    "essl_fast.report.charts": (),
    "essl_fast.report.style": (),
    "essl_fast.report.gallery_section": ("essl_fast.config.settings", "essl_fast.report.gallery"),
    "essl_fast.report.runs": ("essl_fast.config.settings", "essl_fast.report.gallery", "essl_fast.runtime.runlog"),
    "essl_fast.report.page": (
        "essl_fast.evaluate.metrics",
        "essl_fast.report.paper",
        "essl_fast.report.charts",
        "essl_fast.report.gallery_section",
        "essl_fast.report.runs",
        "essl_fast.report.style",
    ),
    "essl_fast.checkpoints.saving": (
        "essl_fast.config.settings",
        "essl_fast.common.files",
        "essl_fast.checkpoints.sspl",
    ),
    "essl_fast.checkpoints.sspl": ("essl_fast.config.settings", "essl_fast.common.files"),
    "essl_fast.report.figures": ("essl_fast.evaluate.metrics",),
    "essl_fast.reproduce.page": ("essl_fast.report.style",),
    "essl_fast.reproduce.rows": ("essl_fast.config.settings", "essl_fast.report.paper", "essl_fast.config.yamls"),
    "essl_fast.runtime.runlog": ("essl_fast.kernels", "essl_fast.common.files"),
    "essl_fast.prepare": (
        "essl_fast.common.commands",
        "essl_fast.config.settings",
        "essl_fast.data",
        "essl_fast.common.files",
    ),
}
COMMANDS = (
    "essl_fast.doctor",
    "essl_fast.doctor.checks",
    "essl_fast.doctor.room",
    "essl_fast.evaluate",
    "essl_fast.export",
    "essl_fast.localize.finder",
    "essl_fast.localize",
    "essl_fast.replay",
    "essl_fast.report",
    "essl_fast.reproduce",
    "essl_fast.train",
    "essl_fast.train.trainer",
)


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
    assert imports_of(ROOT / "essl_fast/trainer.py") >= {"essl_fast.data.loading.loader", "essl_fast.models"}


def test_files_stay_readable():
    tracked = [f for folder in ("essl_fast", "csrc", "tests", "benchmarks") for f in (ROOT / folder).rglob("*")]
    long = [
        f"{f.relative_to(ROOT)}: {n}"
        for f in tracked
        if f.suffix in (".py", ".cu", ".cuh", ".cpp", ".h") and (n := len(f.read_text().splitlines())) > 500
    ]
    assert not long
