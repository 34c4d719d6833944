"""YAML that others may have written: checked before it is loaded.

With YAML's aliases a file of a few lines can become an object of gigabytes, or one that contains itself, and
jsonargparse would walk through it forever. It would also import the module that a `class_path` names. Settings need
none of that. Loading itself (PyYAML's safe loader) runs no code, whatever a tag says.
"""

from __future__ import annotations

import yaml

MOST_NODES, MOST_DEPTH = 10_000, 20  # of a file of settings, with all aliases followed
LONGEST = 1 << 20  # characters
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = {"class_path", "init_args", "__path__", "config", "import"}  # options or jsonargparse's own: no settings


def refuse_bombs(text: str) -> str:
    """The text itself, if it is YAML that could be settings.

    Raises:
        yaml.YAMLError: it is no YAML, is larger or deeper than settings are, or has a forbidden or repeated key.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"{len(text):,} characters are no settings: at most {LONGEST:,} are read")
    sizes: dict[str, int | None] = {}  # anchor -> nodes of its value; None: the value is not complete
    stack: list[list] = [[None, 0, None, 0]]  # per open value: anchor, nodes, a mapping's keys so far, children
    for event in yaml.parse(text, Loader=_READER):
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, nodes, _, _ = stack.pop()
            if anchor is not None:
                sizes[anchor] = nodes
            stack[-1][1] += nodes
        elif isinstance(event, yaml.NodeEvent):
            _, _, keys, children = stack[-1]
            stack[-1][3] += 1
            if isinstance(event, yaml.CollectionStartEvent):
                if event.anchor is not None:
                    sizes[event.anchor] = None
                stack.append([event.anchor, 1, set() if isinstance(event, yaml.MappingStartEvent) else None, 0])
            elif isinstance(event, yaml.AliasEvent):
                size = sizes.get(event.anchor, 1)
                if size is None:
                    raise yaml.YAMLError(f"&{event.anchor} contains itself")
                stack[-1][1] += size
            else:
                if event.anchor is not None:
                    sizes[event.anchor] = 1
                stack[-1][1] += 1
                if keys is not None and children % 2 == 0:
                    if event.value in _FORBIDDEN:
                        raise yaml.YAMLError(f"{event.value} is no setting")
                    if event.value in keys:
                        raise yaml.YAMLError(f"{event.value} is there twice")
                    keys.add(event.value)
        if len(stack) > MOST_DEPTH or sum(nodes for _, nodes, _, _ in stack) > MOST_NODES:
            raise yaml.YAMLError(f"it has more than {MOST_NODES:,} values, or lists in lists {MOST_DEPTH} deep")
    return text
