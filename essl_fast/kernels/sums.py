"""Sums over a table's rows that lie in several warps, without conflicts in shared memory."""

import triton
import triton.language as tl


@triton.jit
def over_rows(x, SPLITS: tl.constexpr):
    """(wide,): the sum of (rows, wide) over the rows, a power of two, SPLITS times by adding one half to the other.

    tl.sum would go through shared memory with a row of warps for each channel (Triton 3.6). A lane has 8 channels of
    16 bits, so lanes would access it 8 times the warps apart, in one bank: 256 bytes for 8 warps, 128 for 4. A split
    needs both halves in one thread. Where they are rows of one thread, it costs nothing. Where they are rows of two
    warps, Triton gets them there by a conversion without such conflicts, and gives a thread many rows of few channels.
    So SPLITS counts the halvings within a thread and one across warps; one too many is free.
    """
    for _ in tl.static_range(SPLITS):
        if x.shape[0] > 1:
            low, high = tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2, x.shape[1])), (1, 2, 0)))
            x = low + high
    return tl.sum(x, axis=0)
