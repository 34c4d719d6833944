"""The CPU time that training takes up to its first step, and what it imports for it."""

import subprocess
import sys

import pytest

from benchmarks import first_step
from essl_fast.common.files import PACKAGE
from essl_fast.train import Trainer


def test_it_ends_with_the_first_step(tiny, capsys):
    options = ["--data.root", str(tiny[1]), "--data.batch_size", "5", "--device", "cpu", "--baselines", "false"]
    plain = Trainer.take_step
    assert first_step.main(["--most", "0.001", *options]) == 1
    said = capsys.readouterr().out
    assert "s of CPU time up to the first step (imports" in said and "epoch 1" not in said
    assert Trainer.take_step is plain


@pytest.mark.slow  # PyTorch in a process of its own
def test_training_imports_nothing_that_can_come_later():
    """Each of these takes 0.1 to 4 s of CPU time. (torch._dynamo comes with PyTorch's optimizers, not with ours.)"""
    later = "matplotlib", "torch._dynamo", "torch._inductor", "torch.utils.flop_counter", "torch.utils.tensorboard"
    code = f"import sys, essl_fast.train.run; print([name for name in {later} if name in sys.modules])"
    environment = {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
