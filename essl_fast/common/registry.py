"""Parts that are chosen by name in the settings, ours and those that a user's module adds."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from essl_fast.common.errors import InputError, short
from essl_fast.common.nearest import did_you_mean

Part = TypeVar("Part")


class Registry:
    """The parts of one kind: by name the part itself, and facts about it.

    TRUNKS = Registry("trunk", setting="model.trunk", own=("essl_fast.models.trunks",))

    @TRUNKS.register("small", frozen=False)
    def small(config): ...

    TRUNKS.get("small")(config)
    """

    def __init__(self, kind: str, setting: str = "", own: Iterable[str] = ()) -> None:
        """An empty registry.

        Args:
            kind: what is registered, for messages: "trunk".
            setting: the setting or option that chooses a name, for messages; ``kind`` if empty.
            own: modules of essl_fast that register our parts when they are imported. They are imported when a name is
                first looked up, so that the registry itself costs nothing.
        """
        self.kind, self.setting, self._own = kind, setting or kind, tuple(own)
        self._parts: dict[str, tuple[Any, dict[str, Any]]] = {}

    def register(self, name: str, **facts: Any) -> Callable[[Part], Part]:
        """A decorator that registers a part under ``name``; ``facts`` are kept for :meth:`facts`.

        A definition that is run again (a notebook cell, a reloaded module) replaces the first one.

        Raises:
            ValueError: another part is registered under the name.
        """

        def add(part: Part) -> Part:
            before = self._parts.get(name)
            if before is not None and before[0] is not part and not _same_definition(before[0], part):
                raise ValueError(
                    f"{self.setting}: the {self.kind} {name!r} is registered already, by {_place(before[0])}; "
                    f"choose another name for {_place(part)}"
                )
            self._parts[name] = part, facts
            return part

        return add

    def remove(self, name: str) -> None:
        """Forget a name. InputError, with all known names, if it is unknown."""
        self._find(name)
        del self._parts[name]

    def get(self, name: str) -> Any:
        """What is registered under ``name``. InputError, with all known names, if nothing is."""
        return self._find(name)[0]

    def facts(self, name: str) -> dict[str, Any]:
        """The facts that ``name`` was registered with. InputError, with all known names, if it is unknown."""
        return dict(self._find(name)[1])

    def names(self) -> list[str]:
        """All registered names: ours first, then in the order of registration."""
        for module in self._own:
            importlib.import_module(module)
        return sorted(self._parts, key=lambda name: not _place(self._parts[name][0]).startswith("essl_fast."))

    def _find(self, name: str) -> tuple[Any, dict[str, Any]]:
        names = self.names()
        if name not in self._parts:
            raise InputError(
                f"{self.setting}: there is no {self.kind} {short(str(name))}; known are {', '.join(names)}. "
                f"A module of your own that registers it is named with --import MODULE{did_you_mean(str(name), names)}"
            )
        return self._parts[name]


def _place(part: Any) -> str:
    """Where a part was defined: module and name."""
    return f"{getattr(part, '__module__', '?')}.{getattr(part, '__qualname__', repr(part))}"


def _same_definition(old: Any, new: Any) -> bool:
    """Whether two objects come from the same definition at the top of a module, run twice."""
    return _place(old) == _place(new) and "<" not in _place(new)


def import_modules(names: Iterable[str]) -> list[str]:
    """Import modules by name, from the current folder or wherever Python finds them, so that they register parts.

    Args:
        names: dotted names. A module that is imported already is not run again.

    Returns:
        The names of those that were not imported before.

    Raises:
        InputError: a name is no module's name, or its import failed; in one line.
    """
    new = [name for name in dict.fromkeys(names) if name not in sys.modules]
    for name in new:
        if not all(part.isidentifier() for part in name.split(".")):
            raise InputError(
                f"--import: {short(name)} is no module name; give it as Python imports it: my_package.part"
            )
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
        importlib.invalidate_caches()
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"--import: the module {name} cannot be imported ({reason}); it has to be in the current folder, in "
                "PYTHONPATH, or installed"
            ) from error
    return new
