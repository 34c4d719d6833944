"""How many pairs a batch has, over all processes and on one of them (`data.batch_size`, `data.global_batch`)."""

from essl_fast.config.settings import Config


def shared_batch(settings: Config) -> int:
    """Pairs of a batch over all processes, whatever their number; 0 if each has a batch of its own."""
    return settings.data.global_batch // settings.optim.accumulate


def own_batch(settings: Config, ranks: int = 1) -> int:
    """Pairs of a batch on one of ``ranks`` processes, at most."""
    whole = shared_batch(settings)
    return -(-whole // ranks) if whole else settings.data.batch_size


def update_pairs(settings: Config, ranks: int) -> int:
    """Pairs of an update over all of ``ranks`` processes."""
    return settings.data.global_batch or settings.data.batch_size * settings.optim.accumulate * ranks
