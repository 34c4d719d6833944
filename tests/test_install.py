"""Every way to install works, or says in a line what is missing.

The builds are real, of a copy of the sources in which one small file stands for csrc, whose own build takes a minute.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

pytest.importorskip("setuptools", reason="needs setuptools to build: pip install setuptools")
pytest.importorskip("pybind11", reason="needs pybind11 to build: pip install pybind11")
pytest.importorskip("pip", reason="needs pip")

SMALL = """#include <Python.h>
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_essl_fast_native", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__essl_fast_native(void) { return PyModule_Create(&module); }
"""
LEFT_OUT = "essl_fast/kernels/left_out.txt"
PIP = (sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check")
NO_FETCHING = ("--no-deps", "--no-build-isolation", "--no-index")


def run(*command: object, cwd: Path, **more: str) -> str:
    """What a command printed; the test fails, with that, if the command does."""
    environment = {**os.environ, "ESSL_CUDA": "0", "PYTHONPATH": "", **more}
    environment.pop("CXX", None)
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def sources() -> list[str]:
    """The files of the repository, or of the sdist that these tests lie in."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        if listed.returncode == 0:
            return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    skip = {"build", "dist", "runs", "__pycache__"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(path) for path in files if not skip & set(path.parts) and path.suffix not in (".so", ".pyc")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources without git, in a folder with spaces and letters beyond ASCII, with a small csrc."""
    folder = tmp_path_factory.mktemp("source") / "my söurce, 音 copy"
    for name in sources():
        if name.split("/")[0] not in ("tests", "docs", "benchmarks", "csrc", "examples"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "csrc").mkdir()
    (folder / "csrc" / "bindings.cpp").write_text(SMALL)
    return folder


def copied(source: Path, to: Path) -> Path:
    """A fresh copy of `source` in a folder named as it."""
    return shutil.copytree(source, to / source.name)


def build(what: str, folder: Path, out: Path, *prefix: str, **more: str) -> Path:
    """The "wheel" or "sdist" of a source folder, as pip has it built: by the build backend in a process of its own."""
    hooks = (
        f"import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel({str(out)!r}); "
    )
    hooks += f"print(build_meta.build_{what}({str(out)!r}))"
    return out / run(*prefix, sys.executable, "-c", hooks, cwd=folder, **more).split("\n")[-2]


def installed(site: Path) -> set[str]:
    """The files below a folder, relative, without Python's caches."""
    return {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def modules(files: set[str]) -> list[str]:
    """The compiled modules among files."""
    return [name for name in files if name.startswith("_essl_fast_native")]


@pytest.mark.slow
def test_pip_install_from_a_folder_with_an_odd_name_and_without_git(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    site = tmp_path / "sïte packages"
    run(*PIP, "install", *NO_FETCHING, "--target", site, folder, cwd=tmp_path)
    files = installed(site)
    assert len(modules(files)) == 1 and {"essl_fast/py.typed", "essl_fast/configs/demo.yaml"} <= files
    assert "ESSL_CUDA=0" in (site / LEFT_OUT).read_text()


@pytest.mark.slow
def test_pip_install_from_the_address_of_a_repository(source: Path, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is missing")
    folder, site = copied(source, tmp_path), tmp_path / "site"
    names = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "--quiet"), ("add", "--all"), (*names, "commit", "--quiet", "--message", "all")):
        run("git", *words, cwd=folder)
    run(*PIP, "install", *NO_FETCHING, "--target", site, f"git+{folder.as_uri()}", cwd=tmp_path)
    files = installed(site)
    assert len(modules(files)) == 1 and {LEFT_OUT, "essl_fast/py.typed", "essl_fast/configs/demo.yaml"} <= files


@pytest.mark.slow
def test_a_second_build_takes_over_nothing_that_is_gone(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    (folder / "essl_fast" / "common" / "gone.py").write_text("")
    assert "essl_fast/common/gone.py" in names(build("wheel", folder, tmp_path))
    (folder / "essl_fast" / "common" / "gone.py").unlink()
    assert "essl_fast/common/gone.py" not in names(build("wheel", folder, tmp_path))


def names(wheel: Path) -> set[str]:
    """The files in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


@pytest.mark.slow
def test_without_a_compiler_the_package_says_what_is_missing(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    build("wheel", folder, tmp_path)
    assert list(folder.rglob("_essl_fast_native*.so")), "nothing compiled earlier lies there that could slip in"
    wheel = build("wheel", folder, tmp_path, PATH=str(tmp_path))
    assert not modules(names(wheel))
    with zipfile.ZipFile(wheel) as file:
        why = file.read(LEFT_OUT).decode()
    assert "no C++ compiler works" in why and "g++: not found" in why


def test_a_compile_error_in_our_sources_fails_the_build(source: Path, tmp_path: Path) -> None:
    folder = copied(source, tmp_path)
    (folder / "csrc" / "bindings.cpp").write_text("int broken( {\n")
    with pytest.raises(AssertionError, match=r"(?s)bindings\.cpp:1:.*error.*BuildError: compiling csrc failed"):
        build("wheel", folder, tmp_path)


@pytest.mark.slow
def test_sdist_to_wheel(source: Path, tmp_path: Path) -> None:
    archive = build("sdist", copied(source, tmp_path), tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    wheel = build("wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)
    assert "linux" in wheel.name and f"cp{sys.version_info[0]}{sys.version_info[1]}" in wheel.name
    assert modules(names(wheel)) and {LEFT_OUT, "essl_fast/kernels/ops.py"} <= names(wheel)
    assert not any(name.startswith(("tests", "build", "csrc")) for name in names(wheel))


@pytest.mark.slow
def test_the_sdist_holds_every_file_of_the_repository(tmp_path: Path) -> None:
    """So its tests can run, and whoever packages it misses nothing."""
    folder = tmp_path / "copy"
    for name in sources():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    with tarfile.open(build("sdist", folder, tmp_path)) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert set(sources()) - held == set()


@pytest.mark.slow
def test_editable(source: Path, tmp_path: Path) -> None:
    """`pip install -e .`: the sources are used where they lie, and the compiled module lies beside them."""
    folder = copied(source, tmp_path)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    here = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))}
    run(python, *PIP[1:], "install", *NO_FETCHING, "-e", folder, cwd=tmp_path, **here)
    assert len(list(folder.glob("_essl_fast_native*.so"))) == 1 and (folder / LEFT_OUT).is_file()
    said = run(python, "-c", "import essl_fast, _essl_fast_native; print(essl_fast.__path__[0])", cwd=tmp_path)
    assert said.strip() == str(folder / "essl_fast")


@pytest.mark.slow
@pytest.mark.parametrize("left_over", [False, True], ids=["read-only", "build folder of another user"])
def test_a_source_folder_that_the_user_may_not_write_into(source: Path, tmp_path: Path, left_over: bool) -> None:
    """As a user who is not root: root itself may write everywhere, so it gives up that right."""
    as_user = []
    if os.geteuid() == 0:
        as_user = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner"]
        if shutil.which("setpriv") is None or subprocess.run([*as_user, "true"], capture_output=True).returncode:
            pytest.skip("setpriv is missing, or may not give up rights here")
    folder, temporary = copied(source, tmp_path), tmp_path / "temporary"
    temporary.mkdir()
    if left_over:
        (folder / "build").mkdir()
    read_only = folder / "build" if left_over else folder
    read_only.chmod(0o555)
    try:
        wheel = build("wheel", folder, tmp_path, *as_user, TMPDIR=str(temporary))
    finally:
        read_only.chmod(0o755)
    assert modules(names(wheel)) and LEFT_OUT in names(wheel)
    assert not installed(folder / "build") and not list(temporary.iterdir()), "something stayed behind"
