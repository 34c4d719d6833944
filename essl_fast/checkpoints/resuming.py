"""Which settings a run may change when it resumes a checkpoint."""

# Settings that may differ between a checkpoint and the run that resumes it: where things are, how often to look, how
# long to train. The data may have moved; that it is the same is checked by its manifest. Another device is another GPU,
# or the same one by another name: that it is of the same kind is checked by what the run runs on.
FREE = (
    "out",
    "name",
    "device",
    "overlays",
    "tensorboard",
    "loggers",
    "imports",
    "checkpoint_",
    "eval_every",
    "patience",
    "data.root",
    "data.cache",
    "data.threads",
    "data.prefetch",
    "epochs",
    "data.resident",
    "data.on_error",
    "data.max_errors",
    "demo.cache",
    "on_nonfinite",
    "max_nonfinite",
    "compile_cache",
    "cuda_graphs",
    "model.pcm_checkpoint",
)


def forbidden(changed: list[str]) -> list[str]:
    """Those lines of :func:`config.difference` that a resumed run may not have."""
    hard = [line for line in changed if not line.startswith(FREE)]
    # A weight file may have moved; its content is checked by its hash. To "none" or from it is another network.
    return [line for line in hard if "_weights: " not in line or "none" in line.split()]
