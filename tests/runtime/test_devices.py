"""Which of cuDNN's engines convolutions take."""

import pytest
import torch

from essl_fast.runtime.devices import timed_engines


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_engines_are_timed_where_shapes_stay_and_bits_may_differ(before, deterministic, wanted):
    """What the user has switched on stays on, but for deterministic runs; afterwards all is as it was."""
    found = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    try:
        torch.backends.cudnn.benchmark = before
        torch.use_deterministic_algorithms(deterministic)
        with pytest.raises(KeyError), timed_engines(wanted):
            assert torch.backends.cudnn.benchmark == (not deterministic and (before or wanted))
            raise KeyError
        assert torch.backends.cudnn.benchmark == before
    finally:
        torch.backends.cudnn.benchmark = found[0]
        torch.use_deterministic_algorithms(found[1])
