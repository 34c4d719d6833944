"""The compiled step through Inductor's CUDA back end: graph breaks, kernels, launches, library calls and bytes.

Cases have the recipes' sizes, since Inductor decides by them: a step of two pairs shows nothing of one with 128.
"""

import contextlib
import gc
import io
import types
import warnings
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

import torch
from torch._dynamo.utils import counters

from essl_fast.evaluate import centre_view, metrics
from essl_fast.runtime import stages
from tests.phantom.chip import pretend
from tests.phantom.chips import CHIPS
from tests.phantom.eager import ODD
from tests.phantom.launches import Calls, Launch, Log, counts_too_far, kept
from tests.phantom.training import batch_for, fused_convolutions, make_trainer, ranks


class Case(NamedTuple):
    """A compiled step."""

    chip: str
    config: str
    size: int = 128  # pairs
    overrides: str = ""
    precision: str = "bf16"
    ranks: int = 1
    evaluation: bool = False  # of a batch, instead of a step: nothing of it is compiled

    @property
    def name(self) -> str:
        more = [self.overrides.replace("--", "")] if self.overrides else []
        more += [f"{self.ranks} ranks"] if self.ranks > 1 else []
        more += ["evaluation"] if self.evaluation else []
        return ", ".join([f"{self.chip} {self.config} {self.precision} {self.size}", *more])


class Step(NamedTuple):
    """What one step of a case does, once compiled, or the evaluation of a batch."""

    case: Case
    log: Log
    breaks: int  # of the graph
    graphs: int

    @property
    def calls(self) -> list[Launch]:
        return [each for each in self.log.launches if each.kind == "call"]

    @property
    def bytes(self) -> float:
        return sum(each.bytes for each in self.log.launches)

    def budget(self) -> dict[str, float | int]:
        """The numbers that budgets.json keeps."""
        return {
            "graphs": self.graphs,
            "kernels": len(self.log.kernels),
            "launches": len(self.log.launches) - len(self.calls),
            "calls": len(self.calls),
            "gigabytes": round(self.bytes / 1e9, 3),
            "atomics": len(self.log.atomics),
            "relayouts": len(self.log.relayouts),
        }


CYCLE = "--model.pcm_cycles 1"  # one cycle of the PCM finds what four find, in a third of the time
# The first is the one that PyTorch 2.11 crashes on if mix_order_reduction is on: 128 pairs, 132 multiprocessors.
QUICK = (
    Case("h200", "semipl", overrides=CYCLE),
    Case("h200", "lss_semi"),
    Case("h200", "sspl", ranks=2),
    Case("h200", "semipl", evaluation=True),
)
CONFIGS = ("sspl", "sspl_pcm", "semipl", "lss", "lss_semi")
FULL = (
    *(Case(chip, name) for name in CONFIGS for chip in ("h200", "a100", "b200")),
    Case("h200", "semipl", ODD, CYCLE),
    Case("h200", "semipl", 128, CYCLE, "fp16"),
    Case("h200", "semipl", 128, CYCLE, "fp32"),
    Case("h200", "semipl", 128, f"{CYCLE} --model.pcm_checkpoint true"),
    Case("h200", "semipl", 128, CYCLE, ranks=2),
    Case("h200", "sspl", 512),  # VGG-16's first maps have more elements than 32 bits count
    Case("h200", "demo"),
)


def wide_faults(chip: str = "h200") -> list[str]:
    """Inductor's kernels for a tensor past 2^31 elements count with 64 bits, and one that did not would be seen."""
    log = Log()
    torch.compiler.reset()
    with pretend(CHIPS[chip]), kept(log), contextlib.redirect_stdout(io.StringIO()):
        torch.compile(lambda x: x * 2 + 1)(torch.empty(2**31 + 64, dtype=torch.bfloat16, device="cuda"))
        seen = [] if log.kernels else ["no kernel was generated for 2^31 elements"]
        for name, kernel in log.kernels.items():
            source = kernel.fn.src.replace(".to(tl.int64)", "")
            short = types.SimpleNamespace(fn=types.SimpleNamespace(src=source))
            if not counts_too_far(short, (torch.empty(2**31 + 64, device="cuda"),)):
                seen.append(f"{name} with 32 bits is not seen")
    return seen + [f"{name} counts 2^31 elements with 32 bits" for name in log.narrow]


def evaluate_batch(case: Case) -> Step:
    """Views, maps and counts of a batch, with the pairs' embeddings at hand, as `evaluate` runs them.

    Without gradients instead of in inference mode, in which ops that consist of others would be kept as one.
    """
    log, device = Log(), CHIPS[case.chip]
    with pretend(device), fused_convolutions(), kept(log):
        words = f"--compile off --cuda_graphs off {case.overrides}".split()
        trainer = make_trainer(case.config, case.precision, *words)
        model, dtype = trainer.model.eval(), trainer.dtype
        model.prepare(dtype)
        batch = batch_for(trainer, case.size)
        boxes = trainer.data.labels.boxes
        with Calls(log), torch.no_grad():
            log.stage = "views"
            views = centre_view(batch.frames, dtype, batch.rows)
            with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                log.stage = "trunk"
                maps = model.frame_maps(views)
                log.stage = "attention"
                similarity = model.attend_maps(maps, batch.sound)[0].similarity[0]
            log.stage = "counts"
            metrics.ciou(similarity, boxes[batch.index], 1)
    return Step(case, log, 0, 0)


def compile_step(case: Case) -> Step:
    """Compile the step of a case, and keep what one step launches; or what the evaluation of a batch does.

    Raises:
        InputError: it does not compile; the cause says why.
    """
    if case.evaluation:
        return evaluate_batch(case)
    log = Log()

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        before, log.stage = log.stage, name
        yield
        log.stage = before

    torch.compiler.reset()
    counters.clear()
    gc.collect()
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        world = enter(ranks(case.ranks))
        enter(pretend(CHIPS[case.chip]))
        enter(kept(log))
        enter(mock.patch.object(stages, "stage", stage))
        words = f"--data.batch_size {case.size} --compile on --cuda_graphs off {case.overrides}".split()
        trainer = make_trainer(case.config, case.precision, *words, world=world)
        batch = batch_for(trainer, case.size)
        enter(contextlib.redirect_stdout(io.StringIO()))
        trainer.train_step(batch)  # compiles
        log.launches.clear()
        log.relayouts.clear()
        with Calls(log):
            trainer.train_step(batch)
    return Step(case, log, sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"])
