"""How far a checkpoint may be believed: from which score on, and on which videos at all."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Trust(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
        min_score: the largest cosine of a map below which its model is wrong more often than right, on the split that
            the checkpoint was chosen on; None if the checkpoint does not say, or if there is no such score.
        reason: a line about it for the user.
        toys: the classes of the demo's world if the model was trained on nothing else; () of another model.
        home: the demo world that it was trained on; None of another model.
    """

    min_score: float | None
    reason: str
    toys: tuple[str, ...] = ()
    home: Path | None = None

    @classmethod
    def of(cls, state: dict, path: Path) -> Trust:
        """From the dict of a checkpoint of ours, `path`."""
        best = state.get("best") or {}
        # last.pt also says which epoch was the best, but its weights are of that one only if it has not gone on.
        if state.get("kind") == "last" and best.get("epoch") != state.get("epoch"):
            best = {}
        split, toys, home = best.get("split", "val"), (), None
        if (state.get("config") or {}).get("data", {}).get("root") == "demo":
            toys = tuple((state.get("data") or {}).get("classes", ()))
            home = Path(state["data_root"]).parent if state.get("data_root") else None
        if "min_score" not in best:
            reason = (
                f"{path} does not say below which score its model is mostly wrong, so every moment is shown; "
                f"python -m essl_fast.evaluate {path} --split val finds it, --min-score takes it"
            )
            return cls(None, reason, toys, home)
        if best["min_score"] is None:
            reason = (
                f"on its {split} split this model was wrong more often than right at every score: every moment is "
                "shown, and none can be trusted"
            )
            return cls(None, reason, toys, home)
        least = float(best["min_score"])
        reason = (
            f"moments with a score below {least:.3f} stay dark: on the {split} split the model was wrong more often "
            "than right below it (--min-score -1 shows them)"
        )
        return cls(least, reason, toys, home)

    def warning(self, given: Path) -> str:
        """A line that a demo's model needs with a video that is not of the demo's world; "" where there is no need."""
        if not self.toys or (self.home and given.resolve().is_relative_to(self.home.resolve())):
            return ""
        return (
            f"this model was trained on the demo's world and knows its {len(self.toys)} toy objects only "
            f"({', '.join(self.toys)}): what it shows of another video means nothing"
        )
