"""Runs a function in several processes that form a gloo group, and gives back what each returned."""

import os
import pickle
import sys
import traceback

import torch
import torch.multiprocessing as mp

from tests.tools.ports import free_port


def _enter(rank, sizes, ports, function, arguments, results):
    """A process: it is in each group that is larger than its rank, one after another."""
    torch.set_num_threads(1)
    from essl_fast.runtime import distributed

    try:
        found = []
        for size, port in zip(sizes, ports, strict=True):
            if rank >= size:
                continue
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
            world = distributed.world_of()
            with distributed.joined(world, torch.device("cpu"), minutes=2):
                found.append(function(world, *arguments))
        results.put((rank, None, pickle.dumps(found)))  # whole: a tensor's shared memory ends with its process
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        sys.exit(1)


def run_worlds(sizes, function, *arguments):
    """For each size, one after another: [function(world, *arguments) of rank 0, 1, ...] in a group of so many ranks.

    The processes are started once, since that takes seconds. The function and what it returns are picklable.
    """
    ports = [free_port() for _ in sizes]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    jobs = [
        context.Process(target=_enter, args=(rank, sizes, ports, function, arguments, results))
        for rank in range(max(sizes))
    ]
    for job in jobs:
        job.start()
    found = {}
    for _ in jobs:
        rank, error, value = results.get()
        assert error is None, f"rank {rank}:\n{error}"
        found[rank] = iter(pickle.loads(value))
    for job in jobs:
        job.join()
    return [[next(found[rank]) for rank in range(size)] for size in sizes]


def run_ranks(size, function, *arguments):
    """[function(world, *arguments) of rank 0, 1, ...]; the function and what it returns are picklable."""
    return run_worlds([size], function, *arguments)[0]
