"""How many pairs a batch has, over all processes and on one of them (`data.batch_size`, `data.global_batch`)."""

from essl_fast.config.settings import MOST_PARTS, Config


def shared_batch(settings: Config) -> int:
    """Pairs of a batch over all processes, whatever their number; 0 if each has a batch of its own."""
    return settings.data.global_batch // settings.optim.accumulate


def turns(settings: Config, ranks: int) -> int:
    """Batches of an update, if ``ranks`` processes take them by turns, each of them whole; 0 if each has a part of all.

    They take turns where an update has a batch for each of them, and a process can take a batch at once: then no
    process waits for another one within a batch. With `data.last_batch` keep, the last update of an epoch may have
    fewer batches than there are processes, so they take parts.
    """
    data, size = settings.data, shared_batch(settings)
    whole = 1 < ranks <= settings.optim.accumulate and 0 < size <= data.batch_size and data.last_batch == "drop"
    return settings.optim.accumulate if whole else 0


def own_batch(settings: Config, ranks: int = 1) -> int:
    """Pairs of a batch on one of ``ranks`` processes, at most."""
    whole = shared_batch(settings)
    if not whole:
        return settings.data.batch_size
    return whole if turns(settings, ranks) else -(-whole // ranks)


def own_batches(settings: Config, ranks: int = 1, rank: int = 0) -> int:
    """Batches of an update on process ``rank`` of ``ranks``, at most. No process has more than the first one."""
    parts = settings.optim.accumulate
    return len(range(rank, parts, ranks)) if turns(settings, ranks) else parts


def update_pairs(settings: Config, ranks: int) -> int:
    """Pairs of an update over all of ``ranks`` processes."""
    return settings.data.global_batch or settings.data.batch_size * settings.optim.accumulate * ranks


def fewest_parts(pairs: int, least: int) -> int:
    """The fewest batches of one size that are ``pairs`` together: ``least`` or more, of two pairs or more; 0: none."""
    return next((n for n in range(max(1, least), min(pairs // 2, MOST_PARTS) + 1) if pairs % n == 0), 0)


def update_batches(settings: Config, before: Config | None = None) -> int:
    """Batches of an update: `optim.accumulate`, or if that is left at 1, as many as a global batch needs.

    A run that begins cuts a global batch that is larger than `data.batch_size` into the fewest batches of one size that
    are not. So they depend on the settings alone, whatever the number of processes. A run that goes on keeps its own.

    Args:
        settings: of the run.
        before: of the run that goes on; None: it begins.
    """
    pairs, given = settings.data.global_batch, settings.optim.accumulate
    if given > 1 or not pairs:
        return given
    if before is None:
        return fewest_parts(pairs, -(-pairs // settings.data.batch_size)) or 1
    return before.optim.accumulate if before.data.global_batch == pairs else given
