"""What setup.py decides: ESSL_CUDA, compilers that are missing or broken, and what lands in the package."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import ROOT


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module; importing it must not run setup()."""
    pytest.importorskip("setuptools", reason="setup.py needs setuptools: pip install setuptools")
    spec = importlib.util.spec_from_file_location("essl_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["essl_setup"] = module
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_nvcc(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment with this machine's C++ compiler and no nvcc anywhere."""
    cxx, why_not = build.find_cxx(os.environ)
    if cxx is None:
        pytest.skip(f"needs a C++ compiler: {why_not}")
    monkeypatch.setattr(build, "SYSTEM_CUDA", str(tmp_path / "none"))
    return {"CXX": cxx, "PATH": "/usr/bin:/bin" if not Path("/usr/bin/nvcc").exists() else "/bin"}


@pytest.mark.parametrize("value", ["yes", "", "2", "AUTO", "01"])
def test_a_wrong_value_is_an_error_that_names_the_variable(build: ModuleType, value: str) -> None:
    with pytest.raises(build.BuildError, match=f"ESSL_CUDA='{value}'.*auto.*0.*1"):
        build.make_plan({"ESSL_CUDA": value, "PATH": os.environ["PATH"]}, [])


def test_a_wrong_value_stops_setup_py_itself() -> None:
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "ESSL_CUDA": "maybe"}, capture_output=True, text=True)
    assert done.returncode != 0 and "ESSL_CUDA='maybe'" in done.stderr


def test_unset_means_auto(build: ModuleType) -> None:
    assert build.cuda_mode({}) == "auto"
    assert [build.cuda_mode({"ESSL_CUDA": mode}) for mode in ("auto", "0", "1")] == ["auto", "0", "1"]


def test_no_compiler_installs_without_compiled_code_and_says_so(build: ModuleType, tmp_path: Path) -> None:
    for mode in ("auto", "0"):
        plan = build.make_plan({"ESSL_CUDA": mode, "PATH": str(tmp_path)}, [])
        assert plan.cxx is None and plan.nvcc is None
        assert "no C++ compiler works" in plan.notes[0] and "g++: not found" in plan.notes[0]
        assert "PyTorch alone" in plan.notes[0]


def test_a_compiler_that_was_asked_for_and_does_not_work_is_an_error(build: ModuleType) -> None:
    with pytest.raises(build.BuildError, match="CXX='ccache g[+][+]' does not work.*one C[+][+]17 compiler"):
        build.make_plan({"CXX": "ccache g++", "PATH": "/usr/bin:/bin"}, [])


def test_no_compiler_is_an_error_if_cuda_is_asked_for(build: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="ESSL_CUDA=1, but no C.. compiler works .*not found.*install g"):
        build.make_plan({"ESSL_CUDA": "1", "PATH": str(tmp_path)}, [])


def test_a_broken_compiler_is_none_and_its_words_are_passed_on(build: ModuleType, tmp_path: Path) -> None:
    script(tmp_path / "g++", "echo 'fatal error: the disk is full' >&2; exit 1")
    cxx, why_not = build.find_cxx({"PATH": f"{tmp_path}:/usr/bin:/bin", "CXX": "g++"})
    assert cxx is None and "the disk is full" in why_not
    script(tmp_path / "g++", "echo 'probe.cpp:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1")
    cxx, why_not = build.find_cxx({"PATH": f"{tmp_path}:/usr/bin:/bin", "CXX": "g++"})
    assert cxx is None and "install python3-dev" in why_not


def test_no_nvcc_builds_the_host_part_and_says_so(build: ModuleType, no_nvcc: dict[str, str]) -> None:
    plan = build.make_plan(no_nvcc, [])
    assert plan.cxx == no_nvcc["CXX"] and plan.nvcc is None
    assert "no nvcc works (none was found)" in plan.notes[0] and "12.8" in plan.notes[0]


def test_no_nvcc_is_an_error_if_cuda_is_asked_for(build: ModuleType, no_nvcc: dict[str, str]) -> None:
    with pytest.raises(build.BuildError, match="ESSL_CUDA=1, but no nvcc works .none was found.: install the CUDA"):
        build.make_plan({**no_nvcc, "ESSL_CUDA": "1"}, [])


def test_zero_looks_for_no_nvcc(build: ModuleType, no_nvcc: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> list[str]:
        raise AssertionError("looked for nvcc")

    monkeypatch.setattr(build, "nvcc_candidates", never)
    plan = build.make_plan({**no_nvcc, "ESSL_CUDA": "0"}, [])
    assert plan.cxx and plan.nvcc is None and "ESSL_CUDA=0" in plan.notes[0]


def test_every_nvcc_is_tried_and_each_refusal_is_told(
    build: ModuleType, no_nvcc: dict[str, str], tmp_path: Path
) -> None:
    old = script(tmp_path / "old" / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.4, V12.4.1'")
    mute = script(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc", "exit 3")
    env = {**no_nvcc, "CUDA_HOME": str(tmp_path / "old")}
    assert build.nvcc_candidates(env, [str(tmp_path / "site")]) == [str(old), str(mute)]
    (note,) = build.make_plan(env, [str(tmp_path / "site")]).notes
    assert f"{old}: version 12.4 is older than 12.8" in note and f"{mute}: does not say its version" in note


def test_the_ninja_file_covers_every_source_and_survives_odd_paths(build: ModuleType, no_nvcc: dict[str, str]) -> None:
    pytest.importorskip("pybind11", reason="needs pybind11 to build")
    nvcc = build.Nvcc("/opt/my cuda/bin/nvcc", "13.0", build.ARCHS, "/opt/my cuda/lib/libcudart_static.a")
    sources = [ROOT / source for source in build.csrc_sources()]
    text = build.ninja_file(build.Plan(no_nvcc["CXX"], nvcc, ()), sources, Path("/tmp/a b"), Path("/tmp/x$y.so"))
    for source in sources:
        assert f"build /tmp/a$ b/{source.name}.o: {'nvcc' if source.suffix == '.cu' else 'cxx'} " in text
    assert "build /tmp/x$$y.so: link " in text and "'/opt/my cuda/bin/nvcc'" in text
    for arch in build.ARCHS:
        assert f"-gencode=arch=compute_{arch},code=sm_{arch}" in text
    assert f"code=compute_{build.ARCHS[-1]}" in text
    host = build.ninja_file(build.Plan(no_nvcc["CXX"], None, ()), sources[:1], Path("/tmp/t"), Path("/tmp/t.so"))
    assert "nvcc" not in host and "ESSL_WITH_CUDA" not in host and "ESSL_WITH_CUDA" in text


def test_every_config_goes_into_the_package(build: ModuleType) -> None:
    packages = build.config_packages()
    assert packages["essl_fast.configs"] == "configs"
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.parent.relative_to(ROOT).as_posix() in packages.values()


def test_every_folder_of_the_package_is_a_package() -> None:
    """A folder without __init__.py would work in a clone and be missing once installed."""
    for path in (ROOT / "essl_fast").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent} needs an __init__.py"
