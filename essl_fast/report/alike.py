"""Whether runs side by side were trained and tested alike. If not, their page says who was not, and in what."""

from collections.abc import Sequence

from essl_fast.report.runs import Run

MOST = 4  # runs of a group that are named


def groups(runs: Sequence[Run]) -> tuple[list[int], list[str]]:
    """(the group of each run, from 1, and a line for each group). Runs that are alike have no group: ([], []).

    Runs of a group have the same data, test pairs and protocol, as far as their logs tell.
    """
    found = [_facts(run, all(other.splits for other in runs)) for run in runs]
    differing = [name for name in dict.fromkeys(name for facts in found for name in facts) if _differs(name, found)]
    if not differing:
        return [], []
    kinds = [tuple(facts.get(name, "") for name in differing) for facts in found]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds), 1)}
    lines = []
    for kind, number in numbers.items():
        members = [run.label for run, other in zip(runs, kinds, strict=True) if other == kind]
        more = f" and {len(members) - MOST} more" if len(members) > MOST else ""
        what = "; ".join(f"{name} {value}" for name, value in zip(differing, kind, strict=True) if value)
        lines.append(f"group {number} ({', '.join(members[:MOST])}{more}): {what or 'its log does not tell'}")
    return [numbers[kind] for kind in kinds], lines


def _differs(name: str, found: Sequence[dict[str, str]]) -> bool:
    return len({facts[name] for facts in found if facts.get(name)}) > 1


def _facts(run: Run, recorded: bool) -> dict[str, str]:
    """What the figures of a run depend on besides its method; recorded: all runs kept what their splits hold."""
    by_test = run.config.get("select_on") == "test"
    facts = {}
    if recorded:
        trained = ["train", "val"] if by_test and "val" in run.splits else ["train"]
        facts["trained on"] = _held(run, trained)
        facts["tested on"] = _held(run, ["test"])
    else:
        facts["data"] = run.data_name() + _place(run)
    if "test" in run.results:
        facts["scored"] = f"{run.results['test']['pairs']:,} test pairs"
    facts["epoch chosen on"] = "the test set itself" if by_test else str(run.config.get("select_on", ""))
    agreeing = run.config.get("objective", {}).get("consensus", "")
    facts["annotators that must agree:"] = "the data set's own number" if agreeing == 0 else str(agreeing)
    return facts


def _held(run: Run, splits: Sequence[str]) -> str:
    """The pairs of some splits, in words."""
    held = [run.splits[split] for split in splits if split in run.splits]
    marks = " and ".join(each["sha256"][:12] for each in held)
    return f"{sum(each['pairs'] for each in held):,} pairs of {run.data_name()} (SHA-256 {marks or 'of none'})"


def _place(run: Run) -> str:
    """Where the data is, or what the demo's world is made of."""
    root = str(run.config.get("data", {}).get("root", ""))
    if root != "demo":
        return f" in {root}" if root else ""
    world = {name: value for name, value in run.config.get("demo", {}).items() if name != "cache"}
    return f" ({', '.join(f'{name} {value}' for name, value in world.items())})" if world else ""
