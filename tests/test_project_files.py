"""The files around the code parse, and the commands, paths and versions in them exist."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
YAMLS = [".pre-commit-config.yaml", "CITATION.cff", *(str(p.relative_to(ROOT)) for p in ROOT.glob(".github/**/*.yml"))]
TEXTS = [
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob(".github/*.md")),
]
SCRIPTS = [".ci/run", ".ci/weekly", ".ci/lint", ".ci/independent", "examples/slurm.sh"]
# Made by a command, or a kind of file: not in the repository.
ELSEWHERE = re.compile(r"^(\.venv/.*|runs/.*|data|dist/.*|docs/|wheelhouse/.*|/.*|~.*|.*\$.*)$")
NAMED = re.compile(r"(?<![\w./-])((?:\.ci|\.github|benchmarks|csrc|docs|essl_fast|examples|tests)/[\w./-]*\w/?)")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def requirements() -> list[str]:
    """Every requirement of pyproject.toml."""
    project = PROJECT["project"]
    extras = [one for group in project["optional-dependencies"].values() for one in group]
    return [*PROJECT["build-system"]["requires"], *project["dependencies"], *extras]


def tools() -> list[str]:
    """The requirements of CI's tools."""
    return [line for line in read(".ci/tools.txt").splitlines() if not line.startswith("#")]


def unbounded(found: list[str]) -> list[str]:
    """The requirements without a lower, or without an upper bound."""
    bounds = [(one, one.partition(";")[0]) for one in found]
    return [one for one, text in bounds if not ("==" in text or (">=" in text and "<" in text))]


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    assert unbounded([*requirements(), *tools()]) == []
    assert unbounded(["a>=1", "b<2", "c>=1,<2", "d==3.*; python_version < '3'"]) == ["a>=1", "b<2"]


def test_the_constraints_are_exact_and_cover_what_is_required() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    held = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line.partition("==")[2] for line in lines}
    build = {re.match(r"[\w.-]+", one)[0] for one in PROJECT["build-system"]["requires"]}
    for one in set(requirements()) - set(PROJECT["build-system"]["requires"]):
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", one)[0]).lower()
        assert name in held, f"constraints.txt lacks {name}"
        if name not in build:
            assert admitted(held[name], one), f"constraints.txt has {name} {held[name]}, pyproject.toml asks {one}"
    assert admitted("2.0", "a>=1,<3") and not admitted("3.0.1", "a>=1,<3") and not admitted("0.9", "a>=1,<3")


def admitted(version: str, requirement: str) -> bool:
    """Whether a version is within a requirement's bounds."""
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(version)


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_parses(name: str) -> None:
    assert isinstance(yaml.safe_load(read(name)), dict)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / name], check=True)
    assert (ROOT / name).stat().st_mode & 0o111 or name.endswith(".sh")
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", ROOT / name], check=True)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of ours: `python -m NAME …`, `python FILE …`, `bash FILE …`, `pytest FILES …`."""
    for command in re.findall(r"(?:python3? -m |python3? \.?\w|bash \.?\w)[^\n`\"']*", text):
        yield re.split(r"[\s;|)]+", command.strip())


@pytest.mark.parametrize("name", [*TEXTS, *YAMLS, *SCRIPTS, "Dockerfile", ".ci/stacks.py"])
def test_paths_and_modules_exist(name: str) -> None:
    """Every path of ours that the file names, and every module that a command in it runs."""
    text = read(name)
    found = [path.rstrip(".") for path in NAMED.findall(text)]
    missing = [path for path in found if not ELSEWHERE.match(path) and not (ROOT / path).exists()]
    assert missing == []
    for words in commands(text):
        if words[1:2] == ["-m"] and len(words) > 2 and words[2].split(".")[0] in ("essl_fast", "benchmarks", "tests"):
            module = ROOT.joinpath(*words[2].split("."))
            named = "$" in words[2] or words[2].rpartition(".")[2].isupper()  # essl_fast.NAME: whichever
            assert named or (module / "__main__.py").exists() or module.with_suffix(".py").exists(), words


def test_the_workflows_run_what_this_repository_has() -> None:
    jobs = {}
    for path in ROOT.glob(".github/workflows/*.yml"):
        jobs[path.stem] = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"permissions", "jobs"} <= jobs[path.stem].keys() and True in jobs[path.stem], "`on` is YAML's true"
        for job in jobs[path.stem]["jobs"].values():
            assert job["steps"] and job.get("timeout-minutes", 10) <= 240
    steps = {name: str(job) for name, job in jobs.items()}
    assert "bash .ci/run" in steps["ci"] and "bash .ci/weekly" in steps["weekly"]
    assert "pypa/cibuildwheel" in steps["wheels"] and "tests/test_docs.py" in steps["docs"]
    for name in ("ci", "weekly"):
        assert all(python in steps[name] for python in PYTHONS)
    wheels = PROJECT["tool"]["cibuildwheel"]
    assert wheels["build"] == [f"cp{python.replace('.', '')}-manylinux_*" for python in PYTHONS]


def test_the_citation_and_the_changelog_know_this_version() -> None:
    import essl_fast

    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == essl_fast.__version__ and {"cff-version", "title", "authors"} <= citation.keys()
    assert f"\n## {essl_fast.__version__}\n" in read("CHANGELOG.md")


def test_the_pre_commit_hooks_are_commands_that_pass_here() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    for hook in hooks:
        words = hook["entry"].split()
        assert words[0] in ("ruff", "python"), hook
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).is_file(), hook


def test_the_dockerfile_copies_what_the_build_needs() -> None:
    left_out = {line.rstrip("/") for line in read(".dockerignore").split()}
    for needed in (
        "setup.py",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "csrc",
        "configs",
        "essl_fast",
    ):
        assert needed not in left_out and (ROOT / needed).exists()
    text = read("Dockerfile")
    user, door = text.rindex("\nUSER "), text.rindex("\nENTRYPOINT ")
    assert user < door and not re.search(r"\nUSER (root|0)\b", text) and "essl_fast.doctor" in text
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", ROOT / "Dockerfile"], check=True)


def test_the_tests_that_stacks_leaves_out_exist() -> None:
    names = re.findall(r'"(tests/[\w/]+\.py)::(\w+)"', read(".ci/stacks.py"))
    assert names and all(f"\ndef {test}(" in read(file) for file, test in names)


def test_stacks_says_what_it_cannot_try_and_fails_where_something_is_wrong(tmp_path: Path) -> None:
    """Without uv's registry a line, and no failure; a job that does not exist is an error."""
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'error: Failed to fetch: https://pypi.org/simple' >&2\nexit 2\n")
    uv.chmod(0o755)
    command = [sys.executable, ROOT / ".ci" / "stacks.py", "--uv", uv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "nothing could be tried: no network" in done.stdout
    uv.write_text("#!/bin/sh\necho 'error: the build failed' >&2\nexit 1\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "the build failed" in done.stdout
    done = subprocess.run([*command, "3.12:oldest"], capture_output=True, text=True)
    assert done.returncode == 2 and "'3.12:oldest' is no job" in done.stderr
