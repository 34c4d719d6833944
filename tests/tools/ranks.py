"""Runs a function in several processes that form a gloo group, and gives back what each returned."""

import os
import socket
import sys
import traceback

import torch
import torch.multiprocessing as mp


def _enter(rank, size, port, function, arguments, results):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    from essl_fast.runtime import distributed

    try:
        world = distributed.world_of()
        with distributed.joined(world, torch.device("cpu"), minutes=2):
            results.put((rank, None, function(world, *arguments)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        sys.exit(1)


def run_ranks(size, function, *arguments):
    """[function(world, *arguments) of rank 0, 1, ...]; the function and what it returns are picklable."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    jobs = [
        context.Process(target=_enter, args=(rank, size, port, function, arguments, results)) for rank in range(size)
    ]
    for job in jobs:
        job.start()
    found = {}
    for _ in jobs:
        rank, error, value = results.get()
        assert error is None, f"rank {rank}:\n{error}"
        found[rank] = value
    for job in jobs:
        job.join()
    return [found[rank] for rank in range(size)]
