"""What `benchmarks.compare` times: a program that runs one subject with whichever essl_fast is in PYTHONPATH.

    python -P benchmarks/compared.py NAME DATA        DATA: a folder with the demo world

It prints a line of JSON when it is ready, with the file of its results, and one for each line "COUNT" that it reads:
the seconds of so many runs. It is always this file, so that both sides are timed alike; so it imports only names that
earlier versions have, too.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], dict[str, Any]]  # does the work; its results by name: arrays, tensors or text
BATCH = 16


def _random():
    import torch

    return torch.Generator().manual_seed(0)


def views(data: Path) -> Run:
    """Two views of each of 16 pairs."""
    import torch

    from essl_fast import kernels

    frames = torch.randint(0, 256, (BATCH, 246, 246, 3), dtype=torch.uint8, generator=_random())
    windows = kernels.view_params(0, 0, torch.arange(BATCH), 22)
    return lambda: {"views": kernels.two_views(frames, torch.arange(BATCH), *windows)}


def log_mel(data: Path) -> Run:
    """The log-mel of 16 pairs' sounds."""
    import torch

    from essl_fast import kernels

    pcm = torch.randint(-20_000, 20_000, (BATCH, 48_000), dtype=torch.int16, generator=_random())
    return lambda: {"log_mel": kernels.log_mel(pcm)}


def counts(data: Path) -> Run:
    """The cIoU's counts of 256 maps."""
    import torch

    from essl_fast import kernels

    maps = torch.rand(256, 14, 14, generator=_random())
    boxes = torch.tensor([[20, 30, 120, 150], [100, 90, 200, 210]], dtype=torch.int32).expand(256, -1, -1).contiguous()

    def run() -> dict[str, Any]:
        intersection, union = kernels.localization_counts(maps, boxes)
        return {"intersection": intersection, "union": union}

    return run


def step(data: Path) -> Run:
    """SemiPL's losses and gradients with the demo's networks, 16 pairs."""
    import torch

    from essl_fast import config, models
    from essl_fast.models import objectives

    torch.manual_seed(0)
    settings = config.load("demo", ["--data.root", "."])
    model, objective = models.build(settings.model).train(), objectives.build(settings.objective)
    views = torch.randn(2, BATCH, 3, 224, 224, generator=_random()).to(memory_format=torch.preserve_format)
    sound = torch.randn(BATCH, 3, 96, 64, generator=_random())
    boxes = torch.tensor([[30, 40, 150, 170]], dtype=torch.int32).expand(2, BATCH, 1, 4).contiguous()

    def run() -> dict[str, Any]:
        model.zero_grad()
        losses = objective(model(views, sound), boxes, torch.ones(BATCH, dtype=torch.bool))
        losses["loss"].backward()
        size = sum(float(each.grad.square().sum()) for each in model.parameters() if each.grad is not None)
        return {name: value.detach() for name, value in losses.items()} | {"gradients": np.array(size)}

    return run


def loader(data: Path) -> Run:
    """An epoch of streamed batches of the demo world."""
    from essl_fast.data.loading import Loader

    def run() -> dict[str, Any]:
        seen = hashlib.sha256()
        with Loader(data / "prepared", "train", batch_size=8, threads=1, epochs=1) as batches:
            for batch in batches:
                for each in (batch.index, batch.frames[batch.rows], batch.sound):
                    seen.update(each.numpy().tobytes())
        return {"batches": seen.hexdigest()}

    return run


def epoch(data: Path) -> Run:
    """An epoch of training with its evaluation, all pairs in memory, with the demo's networks, 8 pairs a step."""
    import torch

    from essl_fast import config
    from essl_fast.data.shards import Manifest
    from essl_fast.train import Trainer, train_epoch

    words = ["--data.root", str(data / "prepared"), "--data.batch_size", "8", "--epochs", "1000000"]
    settings = config.load("demo", words)  # so many epochs that the learning rates hardly change from one to the next
    trainer = Trainer(settings, Manifest.load(data / "prepared"), torch.device("cpu"))

    def run() -> dict[str, Any]:
        trained, found = train_epoch(trainer), trainer.evaluate("test")
        return {"loss": np.array(trained["losses"]["loss"]), "score": np.array(found.result(trainer.manifest)["auc"])}

    return run


def prepare(data: Path) -> Run:
    """Shards of the demo world's videos."""
    from essl_fast.prepare import prepare as make

    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as place:
            make(data / "videos", data / "annotations", Path(place) / "out", visual="jpeg", workers=1, progress=False)
            shards = sorted(Path(place).glob("out/*.tar"))
            return {shard.name: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards}

    return run


SUBJECTS: dict[str, Callable[[Path], Run]] = {
    made.__name__: made for made in (views, log_mel, counts, step, epoch, loader, prepare)
}


def as_array(value: Any) -> np.ndarray:
    """A result as NumPy has it."""
    return np.array(value) if isinstance(value, str | np.ndarray) else value.detach().contiguous().numpy()


def serve(run: Run, facts: dict[str, Any]) -> None:
    """Keep the results, then answer each number of runs with their seconds, until the input ends."""
    with tempfile.TemporaryDirectory() as place:
        results = Path(place) / "results.npz"
        np.savez(results, **{name: as_array(value) for name, value in run().items()})
        print(json.dumps(facts | {"results": str(results)}), flush=True)
        for line in sys.stdin:
            begin = time.perf_counter()
            for _ in range(int(line)):
                run()
            print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


def refuse_another_module(folder: Path) -> None:
    """SystemExit if the compiled module is not the folder's own: an installed one takes its place where it has none."""
    file = getattr(sys.modules.get("_essl_fast_native"), "__file__", None)
    if file and Path(file).resolve().parent != folder.resolve():
        sys.exit(f"this version has no compiled module, and {file}, which Python finds, is of another one")


def main() -> None:
    import torch

    from essl_fast.kernels import native

    refuse_another_module(Path.cwd())
    torch.set_num_threads(1)
    name, data = sys.argv[1:]
    serve(SUBJECTS[name](Path(data)), {"compiled": native.available()})


if __name__ == "__main__":
    main()
