"""Builds csrc/ into the module _essl_fast_native; pyproject.toml holds the metadata.

ESSL_CUDA chooses what is built:

    auto (or unset)   the host part, and the CUDA part if an nvcc works; without a C++ compiler nothing (it says so)
    0                 the host part alone
    1                 both; anything missing is an error

nvcc is the system's (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda) if it is 12.8 or newer and works with this machine's
C++ compiler and C library, or else the one that pip puts into the build environment. torch is not needed to build, and
neither a GPU nor its driver to build or to import.

pip hides what a build prints. So a part that was left out is also said in a file of the package, NOTES, which doctor
and training read.
"""

import atexit
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
MODULE = "_essl_fast_native"
NOTES = "essl_fast/kernels/left_out.txt"  # why a part of csrc was not built; essl_fast/kernels/native.py reads it
ARCHS = ("80", "86", "89", "90", "100", "120")  # GPU generations; the last one is also kept as PTX for those to come
OLDEST_NVCC = (12, 8)  # the first that knows sm_100 and sm_120
SYSTEM_CUDA = "/usr/local/cuda"

# No fused multiply-add behind our back: host and GPU results are compared bit by bit.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra"]
# --exclude-libs: torch loads another CUDA runtime; ours must bind to its own symbols.
LINK_FLAGS = ["-shared", "-pthread", "-Wl,--exclude-libs,ALL"]


class BuildError(RuntimeError):
    """The build cannot go on. The message says what is missing and what to do."""


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler that was seen to work."""

    path: str
    version: str
    archs: tuple[str, ...]  # those of ARCHS that it knows
    runtime: str  # libcudart_static.a


@dataclass(frozen=True)
class Plan:
    """What to build. `cxx` None: nothing. `nvcc` None: the host part alone. `notes`: lines for the user.

    `left_out`: why `cxx` or `nvcc` is None, in a few words; "" if both are there.
    """

    cxx: str | None
    nvcc: Nvcc | None
    notes: tuple[str, ...]
    left_out: str = ""


def cuda_mode(env: Mapping[str, str]) -> str:
    """ESSL_CUDA's value: "auto", "0" or "1"."""
    mode = env.get("ESSL_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise BuildError(f"ESSL_CUDA={mode!r}: use auto (CUDA if an nvcc works), 0 (no CUDA) or 1 (CUDA or fail)")
    return mode


def attempt(command: list[str], env: Mapping[str, str]) -> str | None:
    """Runs a command; None if it succeeded, or else why not, in a few words."""
    try:
        done = subprocess.run(command, env=dict(env), capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    return telling[0] if telling else f"exit status {done.returncode}"


def find_cxx(env: Mapping[str, str]) -> tuple[str | None, str]:
    """A C++17 compiler that can build Python modules: (path, "") or (None, why not). CXX, if set, is the one choice."""
    named = env.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    reasons = []
    for name in candidates:
        path = shutil.which(name, path=env.get("PATH", ""))
        if path is None:
            reasons.append(f"{name}: not found")
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.cpp")
            source.write_text("#include <Python.h>\n#include <optional>\nstd::optional<int> probe() { return 1; }\n")
            include = f"-I{sysconfig.get_paths()['include']}"
            out = str(Path(folder, "probe.so"))
            why_not = attempt([path, *CXX_FLAGS, include, str(source), *LINK_FLAGS, "-o", out], env)
        if why_not is None:
            return path, ""
        if "Python.h" in why_not:
            why_not += " (Python's headers are missing: install python3-dev or your system's like)"
        reasons.append(f"{name}: {why_not}")
    return None, "; ".join(reasons)


def nvcc_candidates(env: Mapping[str, str], search: list[str]) -> list[str]:
    """Paths of every nvcc to try, the system's before those of Python packages found in the folders of `search`."""
    found = []
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if env.get(variable):
            found.append(Path(env[variable], "bin", "nvcc"))
    on_path = shutil.which("nvcc", path=env.get("PATH", ""))
    if on_path:
        found.append(Path(on_path))
    found.append(Path(SYSTEM_CUDA, "bin", "nvcc"))
    for folder in search:
        found.extend(sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"), reverse=True))
    return list(dict.fromkeys(str(path) for path in found if path.is_file()))


def probe_nvcc(path: str, cxx: str, env: Mapping[str, str]) -> tuple[Nvcc | None, str]:
    """Compiles and links a kernel with this nvcc: (Nvcc, "") or (None, why it will not do)."""

    def ask(*words: str) -> str:
        done = subprocess.run([path, *words], env=dict(env), capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    try:
        release = re.search(r"release (\d+)\.(\d+)", ask("--version"))
    except OSError as error:
        return None, f"{path}: {error}"
    if not release:
        return None, f"{path}: does not say its version"
    version = (int(release[1]), int(release[2]))
    if version < OLDEST_NVCC:
        return None, f"{path}: version {version[0]}.{version[1]} is older than {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]}"
    known = ask("--list-gpu-arch").split()
    archs = tuple(arch for arch in ARCHS if f"compute_{arch}" in known)
    if not archs:
        return None, f"{path}: knows none of sm_{', sm_'.join(ARCHS)}"
    # Where the toolkit is, nvcc knows best: `path` may be a link, or a script that calls it.
    top = re.search(r"^#\$ TOP=(.*)$", ask("--dryrun", "probe.cu"), re.MULTILINE)
    toolkit = Path(top[1].strip()) if top else Path(path).parent.parent
    folders = ("lib64", "lib", "targets/*/lib")
    runtimes = [library for folder in folders for library in toolkit.glob(f"{folder}/libcudart_static.a")]
    if not runtimes:
        return None, f"{path}: libcudart_static.a is missing from {toolkit.resolve()}"
    nvcc = Nvcc(path, f"{version[0]}.{version[1]}", archs, str(runtimes[0].resolve()))
    with tempfile.TemporaryDirectory() as folder:
        source, obj, out = (str(Path(folder, name)) for name in ("probe.cu", "probe.o", "probe.so"))
        Path(source).write_text("#include <cuda_bf16.h>\n__global__ void probe(__nv_bfloat16* x) { x[0] = 1.0f; }\n")
        why_not = attempt([path, *NVCC_FLAGS, "-ccbin", cxx, f"-arch=sm_{archs[-1]}", "-c", source, "-o", obj], env)
        why_not = why_not or attempt([cxx, *LINK_FLAGS, obj, *runtime_flags(nvcc), "-o", out], env)
    return (nvcc, "") if why_not is None else (None, f"{path}: {why_not}")


def runtime_flags(nvcc: Nvcc) -> list[str]:
    """Link flags of the static CUDA runtime."""
    return [nvcc.runtime, "-ldl", "-lrt"]


def gencode(archs: tuple[str, ...]) -> list[str]:
    """nvcc flags for machine code of each arch, and PTX of the newest."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    return [*flags, f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]


def make_plan(env: Mapping[str, str], search: list[str]) -> Plan:
    """Decides what is built. Raises BuildError if ESSL_CUDA is wrong, or it or CXX asks for what is not there."""
    mode = cuda_mode(env)
    cxx, why_not = find_cxx(env)
    if cxx is None:
        if env.get("CXX"):  # asked for: going on without it would hide a misspelt name behind a slow program
            raise BuildError(
                f"CXX={env['CXX']!r} does not work ({why_not}): name one C++17 compiler, without launcher or flags, "
                "or unset CXX"
            )
        if mode == "1":
            raise BuildError(f"ESSL_CUDA=1, but no C++ compiler works ({why_not}): install g++, or unset ESSL_CUDA")
        note = f"no C++ compiler works ({why_not}): installing without compiled code, everything runs on PyTorch alone"
        return Plan(None, None, (note,), f"no C++ compiler works ({why_not})")
    if mode == "0":
        return Plan(cxx, None, ("ESSL_CUDA=0: building the host part alone",), "it was built with ESSL_CUDA=0")
    reasons = []
    for path in nvcc_candidates(env, search):
        nvcc, why_not = probe_nvcc(path, cxx, env)
        if nvcc is not None:
            left_out = [arch for arch in ARCHS if arch not in nvcc.archs]
            notes = [f"building with nvcc {nvcc.version} ({path}) for sm_{', sm_'.join(nvcc.archs)}"]
            notes += [f"this nvcc does not know sm_{', sm_'.join(left_out)}"] if left_out else []
            return Plan(cxx, nvcc, tuple(notes))
        reasons.append(why_not)
    why_not = "; ".join(reasons) or "none was found"
    remedy = "install the CUDA toolkit 12.8 or newer, or the package nvidia-cuda-nvcc"
    if mode == "1":
        raise BuildError(f"ESSL_CUDA=1, but no nvcc works ({why_not}): {remedy}, or unset ESSL_CUDA")
    return Plan(
        cxx,
        None,
        (f"no nvcc works ({why_not}): building the host part alone. For CUDA {remedy}",),
        f"no nvcc works ({why_not})",
    )


def ninja_command(env: Mapping[str, str]) -> list[str]:
    """ninja from its Python package, or else from PATH."""
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    path = shutil.which("ninja", path=env.get("PATH", ""))
    if path is None:
        raise BuildError("ninja is missing: pip install ninja, or build with `pip install .`, which fetches it")
    return [path]


def pybind11_include() -> str:
    """The folder of pybind11's headers."""
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError("pybind11 is missing: pip install pybind11, or build with `pip install .`, which fetches it")
    import pybind11

    return pybind11.get_include()


def host_flags(plan: Plan) -> list[str]:
    """Flags for the .cpp files of csrc."""
    includes = [f"-I{CSRC}", f"-isystem{pybind11_include()}", f"-isystem{sysconfig.get_paths()['include']}"]
    said = subprocess.run([str(plan.cxx), "--version"], capture_output=True, text=True, check=True).stdout
    texts = {"ESSL_COMPILER": said.splitlines()[0]}
    if plan.nvcc:
        texts["ESSL_CUDA_VERSION"] = plan.nvcc.version
        texts["ESSL_CUDA_ARCHS"] = " ".join(f"sm_{arch}" for arch in plan.nvcc.archs)
    defines = ['-D{}="{}"'.format(name, re.sub(r"[^\w .,:()+~-]", "", text)) for name, text in texts.items()]
    return [*CXX_FLAGS, *includes, *defines, *(["-DESSL_WITH_CUDA"] if plan.nvcc else [])]


def ninja_file(plan: Plan, sources: list[Path], objects: Path, out: Path) -> str:
    """The build as ninja reads it: every source to an object in `objects`, all of them to the module `out`."""

    def path(p: Path | str) -> str:
        return re.sub(r"([$ :])", r"$\1", str(p))

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    cxx = str(plan.cxx)
    link_end = runtime_flags(plan.nvcc) if plan.nvcc else []
    lines = ["ninja_required_version = 1.8", ""]
    lines += ["rule cxx", f"  command = {command([cxx, *host_flags(plan)])} -MMD -MF $out.d -c $in -o $out"]
    lines += ["  depfile = $out.d", "  deps = gcc", "  description = c++ $in", ""]
    if plan.nvcc:
        flags = [*NVCC_FLAGS, "-ccbin", cxx, "--threads", "2", f"-I{CSRC}", *gencode(plan.nvcc.archs)]
        lines += ["rule nvcc", f"  command = {command([plan.nvcc.path, *flags])} -MD -MF $out.d -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc", "  description = nvcc $in", ""]
    lines += ["rule link", f"  command = {command([cxx, *LINK_FLAGS])} $in {command(link_end)} -o $out"]
    lines += ["  description = link $out", ""]
    made = []
    for source in sources:
        made.append(objects / f"{source.name}.o")
        lines.append(f"build {path(made[-1])}: {'nvcc' if source.suffix == '.cu' else 'cxx'} {path(source)}")
    lines.append(f"build {path(out)}: link {' '.join(path(o) for o in made)}")
    return "\n".join([*lines, f"default {path(out)}", ""])


class NativeBuild(build_ext):
    """Builds csrc through ninja, or goes on without it where the plan says so."""

    def run(self) -> None:
        self.plan = make_plan(os.environ, sys.path)
        for note in self.plan.notes:
            print(f"essl_fast: {note}", file=sys.stderr, flush=True)
        if self.plan.cxx is None:
            for extension in self.extensions:  # nothing compiled earlier may slip in
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = []
        super().run()
        notes = Path(ROOT if self.inplace else self.build_lib, NOTES)
        notes.unlink(missing_ok=True)
        if self.plan.left_out:
            notes.parent.mkdir(parents=True, exist_ok=True)
            notes.write_text(self.plan.left_out + "\n", encoding="utf-8")

    def build_extension(self, ext: Extension) -> None:
        suffixes = (".cpp", ".cu") if self.plan.nvcc else (".cpp",)
        sources = [ROOT / source for source in ext.sources if Path(source).suffix in suffixes]
        objects = Path(self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        out = Path(self.get_ext_fullpath(ext.name)).resolve()
        out.parent.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(self.plan, sources, objects, out), encoding="utf-8")
        jobs = ["-j", str(self.parallel)] if self.parallel else []
        done = subprocess.run([*ninja_command(os.environ), "-C", str(objects), "--quiet", *jobs], check=False)
        if done.returncode != 0:
            raise BuildError(f"compiling csrc failed (exit status {done.returncode}); the messages are above")


class PythonBuild(build_py):
    """Copies the Python files into an empty folder: a file that an earlier version had must not be installed again."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "essl_fast"), ignore_errors=True)
        super().run()


def may_write(folder: Path) -> bool:
    """Whether files can be made in a folder, whatever would hinder it: its mode, its owner, its file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def build_options(root: Path) -> dict[str, dict[str, str]]:
    """Options of setuptools: {}, or where `root`, or what a build left in it, is read-only, a temporary folder's."""
    left = [root, *root.glob("build"), *root.glob("build/*/"), *root.glob("*.egg-info")]
    if all(may_write(folder) for folder in left):
        return {}
    folder = tempfile.mkdtemp(prefix="essl_fast-build-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    print(f"essl_fast: {root} is read-only: building in {folder}", file=sys.stderr, flush=True)
    return {"build": {"build_base": folder}, "egg_info": {"egg_base": folder}}


def csrc_sources() -> list[str]:
    """Every source of the module, relative to this file, in a fixed order."""
    return sorted(path.relative_to(ROOT).as_posix() for path in CSRC.iterdir() if path.suffix in (".cpp", ".cu"))


def config_packages() -> dict[str, str]:
    """configs/ and its folders as packages of data: {"essl_fast.configs": "configs", ...}."""
    folders = sorted({path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")})
    return {".".join(["essl_fast", *folder.parts]): folder.as_posix() for folder in folders}


if __name__ == "__main__":
    cuda_mode(os.environ)  # a wrong value is worth an error whatever the command
    configs = config_packages()
    setup(
        # Here and not in pyproject.toml, where no one spelling of these suits both old and new setuptools.
        license="Apache-2.0",
        license_files=["LICENSE"],
        packages=[*find_packages(include=["essl_fast", "essl_fast.*"]), *configs],
        package_dir=configs,
        package_data={
            "essl_fast": ["py.typed"],
            **{name: ["*.yaml"] for name in configs},
            "essl_fast.kernels": ["pinned.json"],
        },
        ext_modules=[Extension(MODULE, csrc_sources())],
        cmdclass={"build_ext": NativeBuild, "build_py": PythonBuild},
        options=build_options(ROOT),
    )
