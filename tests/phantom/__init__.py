"""A pretended GPU: the training step is taken as far as the launch on a machine without one.

    python -m tests.phantom              what continuous integration runs: under 4 minutes of one core
    python -m tests.phantom --all        every method, precision, chip and size: 14 minutes of one core
    python -m tests.phantom --update     writes the budgets of what was run into budgets.json

Tensors are PyTorch's fake ones: they have shapes, dtypes, strides and a device, and no contents. PyTorch, Inductor and
Triton believe in an A100, H200 or B200 (`chip.py`). So everything of a step happens but the computing: Python runs,
shapes meet, graphs are captured, Inductor generates kernels, Triton and ptxas compile them.

    selftest.py   the pretence holds with this PyTorch; if not, nothing else is believed
    eager.py      every method and precision through Trainer's own step: no wait for the GPU, no tensor on the wrong
                  device, dtype or layout; captured; evaluation
    compiled.py   the compiled step: no graph break, kernels, launches, library calls and bytes against budgets.json
    cubins.py     each generated kernel to machine code: no spill above a bound
    branches.py   every branch of the package that only a GPU takes, with the check that enters it

What it cannot see: wrong values, illegal addresses, the time that anything takes. It patches PyTorch in many places, so
it runs in a process of its own; `test_phantom.py` starts it.
"""
