"""How the tests run, and fixtures that several test files share."""

import os
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started with & by a script; tests of Ctrl-C pass it on
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest. They begin first, so that no core is left alone with one of them at the end.
LONGEST = (
    "tests/test_extending.py",
    "tests/golden/test_e2e_golden.py",
    "tests/train/test_global_batch.py",
    "tests/faults/test_faults.py",
    "tests/train/test_train.py",
    "tests/kernels/test_attention.py",
    "tests/kernels/test_aot.py",
    "tests/benchmarks/test_step.py",
    "tests/reproduce/test_reproduce.py",
    "tests/prepare/test_assembly.py",
)


# What a shell, a terminal, a scheduler or a proxy may have set, and what changes what programs print, or whom they ask.
FOREIGN = (
    *("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "CLICOLOR_FORCE", "PYTHON_COLORS", "TTY_COMPATIBLE"),
    *("TTY_INTERACTIVE", "RAY_ADDRESS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
)
FOREIGN_KINDS = "SLURM_", "TORCHELASTIC_", "WANDB_", "MLFLOW_", "AWS_"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """All tests run in a process for each core; some that were named, in this one: workers take seconds to start."""
    chosen = any(word.startswith(("-n", "--numprocesses")) for word in config.invocation_params.args)
    named = config.args_source == pytest.Config.ArgsSource.ARGS
    return 0 if named and not chosen else None  # None: xdist counts the cores


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each core, in whatever process; Triton's interpreter where there is no GPU; nothing foreign."""
    for name in [name for name in os.environ if name in FOREIGN or name.startswith(FOREIGN_KINDS)]:
        del os.environ[name]
    if workers := len(config.getoption("tx", None) or ()):  # this process only hands tests to others
        each = max(1, len(os.sched_getaffinity(0)) // workers)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(each))
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined: it then runs on the CPU


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random numbers that a test takes without a seed of its own are the same in every run, and in every order."""
    import torch

    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    places = {file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.nodeid.split("::")[0], len(places)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small demo world, made and prepared: (world, prepared folder)."""
    from essl_fast.data.synthetic import make_world
    from essl_fast.prepare import prepare

    place = tmp_path_factory.mktemp("tiny")
    world = make_world(place / "world", train_videos=14, test_videos=5, seed=3, workers=1, progress=False)
    prepare(world.videos, world.annotations, place / "prepared", validation=0.15, workers=1, progress=False)
    return world, place / "prepared"


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Real videos with annotations (see `make_world`); tests may touch a file's time, nothing else."""
    from tests.tools.prepare import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def reference(world, tmp_path_factory):
    """`world` prepared in one go, by one process: 12 training pairs in 3 shards, 3 for validation in one, 6 in 2."""
    from tests.tools.prepare import run

    out = tmp_path_factory.mktemp("reference") / "out"
    run(world, out)
    return out


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """The Triton kernels take CPU tensors, in Triton's interpreter."""
    from essl_fast.kernels import tuning

    if not tuning.INTERPRETED:
        pytest.skip("there is a GPU: its tests run the compiled kernels")
    monkeypatch.setattr(tuning, "CPU_TOO", True)


@pytest.fixture
def one_thread():
    """Sums in one order, so that two runs agree to the bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
