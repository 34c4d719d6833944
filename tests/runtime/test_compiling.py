"""What is compiled is kept for the next process; the settings of the compiler."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from essl_fast.common.errors import InputError
from essl_fast.runtime import compiling
from tests import ROOT

COMPILE = """
import json, sys, torch
from essl_fast.runtime import compiling
folder = compiling.keep_cache(sys.argv[1])
step = torch.compile(lambda x: x @ x.T, fullgraph=True)  # nothing that a C++ compiler would have to see
x = torch.randn(8, 8, requires_grad=True)
step(x).backward(torch.ones(8, 8))
print(json.dumps({"folder": str(folder), **compiling.cache_counts()}))
"""


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_one_compiled(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in (compiling.INDUCTOR, compiling.TRITON)}
    environment |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.getcwd()}
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, ""], capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0]["folder"] == str(tmp_path / "essl_fast/compile")
    assert found[0]["hits"] == 0 and found[0]["misses"] > 0
    assert found[1]["hits"] > 0 and found[1]["misses"] == 0
    assert any((tmp_path / "essl_fast/compile/inductor").iterdir())


def test_what_the_user_has_set_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(compiling.INDUCTOR, "/theirs")
    monkeypatch.delenv(compiling.TRITON, raising=False)
    assert compiling.keep_cache(str(tmp_path / "ours")) == tmp_path / "ours"
    assert os.environ[compiling.INDUCTOR] == "/theirs"
    assert os.environ[compiling.TRITON] == str(tmp_path / "ours/triton")
    assert compiling.keep_cache(str(tmp_path / "others")) is None  # both are set by now
    monkeypatch.delenv(compiling.TRITON)
    assert compiling.keep_cache("off") is None and compiling.TRITON not in os.environ


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    for name in (compiling.INDUCTOR, compiling.TRITON):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="compile_cache: .*file/cache cannot be written; give another folder, or off"):
        compiling.keep_cache(str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiling.keep_cache("") is None and compiling.INDUCTOR not in os.environ  # a run goes on without


def test_compiled_for_training_alone():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
    seen = []
    compile_it = torch.compile

    def watched(function, **options):
        assert options == {"fullgraph": True, "dynamic": False}

        def counted(*inputs):
            seen.append(len(inputs[0]))
            return compiled(*inputs)

        compiled = compile_it(function, backend="eager", **options)
        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", watched)
        compiling.compile_training(module)
    x = torch.randn(5, 3)
    trained = module.train()(x)
    assert torch.equal(module.eval()(x), trained) and seen == [5]


def test_the_pass_that_crashes_on_gpus_is_off():
    """Before anything is compiled; and the package has no other way to a compiler."""
    from torch._inductor import config as inductor

    with inductor.patch({"triton.mix_order_reduction": True}):
        compiling.compile_graph(lambda x: x)
        assert not inductor.triton.mix_order_reduction
    used = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "essl_fast").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.compile"
    }
    assert used == {"essl_fast/runtime/compiling.py"}


@pytest.mark.parametrize("own, limit", [(4, 3), (1, 1)])
def test_a_pool_of_four_places_is_stored_where_it_is_used_twice(own, limit):
    """What that saves is held by tests/phantom/budgets.json. Somebody's own, lower limit stays."""
    from torch._inductor import config as inductor

    with inductor.patch({"realize_reads_threshold": own}):
        compiling.compile_graph(lambda x: x)
        assert inductor.realize_reads_threshold == limit


def test_the_reason_is_that_of_the_first_error():
    try:
        try:
            raise AssertionError
        except AssertionError as error:
            raise BackendCompilerFailed(lambda: None, error, None) from ValueError("another")
    except BackendCompilerFailed as error:
        assert compiling.root_reason(error) == "AssertionError"
    assert compiling.root_reason(RuntimeError("\n  one\ntwo")) == "RuntimeError: one"
