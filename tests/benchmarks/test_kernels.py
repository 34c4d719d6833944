"""The benchmark of the Triton kernels: its check can fail, its bytes are right, and it runs without a GPU."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import kernels

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("triton_on_cpu")
def test_each_subject_is_right_and_a_wrong_kernel_is_found():
    for subject in kernels.subjects(CPU):
        assert kernels.fault_of(subject) == ""

        def wrong(*inputs, ours=subject.ours):
            first, *rest = kernels._parts(ours(*inputs))
            return first * 1.001, *rest

        assert kernels.fault_of(replace(subject, ours=wrong)).startswith("WRONG: result 0")


def test_bytes_that_cannot_be_avoided():
    subject = kernels.attention_subject(2, 32, 4, torch.bfloat16, CPU)
    features, audio, out = 2 * 2 * 32 * 16, 2 * 2 * 32, 4 * 2 * (32 + 2 * 16)
    assert subject.forward_bytes == features + audio + out
    assert subject.both_bytes == 3 * (features + audio) + 2 * out
    cosine = kernels.cosine_subject(3, 40, torch.float32, CPU)
    assert (cosine.forward_bytes, cosine.both_bytes) == (4 * 3 * 40 * 4, 6 * 3 * 40 * 4)


@pytest.mark.nightly  # the whole benchmark, which compiles its rivals
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the benchmark itself runs there")
def test_without_a_gpu_it_checks_ours_and_times_the_others(tmp_path, capsys, triton_on_cpu):
    file = tmp_path / "kernels.json"
    assert kernels.main(["--ops", "cosine", "--repeats", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    notes = {row["way"]: row["note"] for row in found["rows"]}
    assert notes["ours"].startswith("right") and notes["eager"] == notes["compiled"] == ""
    assert all(len(row["each"]) == 2 for row in found["rows"] if row["way"] != "ours")
    with pytest.raises(SystemExit, match="need a GPU"):
        kernels.main(["--tune"])
    with pytest.raises(SystemExit, match="nonsense is none of"):
        kernels.main(["--ops", "nonsense"])
