"""YAML that others may have written: looked at before anything is made of it.

YAML's aliases make a file of a few lines an object of gigabytes, or one that contains itself, and jsonargparse walks
through either forever; it also imports what a `class_path` names before it says that there is none here. Settings need
none of that. Plain loading (PyYAML's safe loader) runs no code, whatever a tag says.
"""

from __future__ import annotations

import yaml

MOST_NODES, MOST_DEPTH, LONGEST = 10_000, 20, 1 << 20  # of a file of settings, all aliases followed; characters
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = {"class_path", "init_args", "__path__", "config"}  # keys that jsonargparse knows and settings do not have


def refuse_bombs(text: str) -> str:
    """The text itself; yaml.YAMLError if it is no YAML, or is larger, deeper or stranger than settings are."""
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"{len(text):,} characters are no settings: at most {LONGEST:,} are read")
    sizes: dict[str, int | None] = {}  # of what an anchor names, in nodes; None: it is not complete
    stack: list[list] = [[None, 0, None, 0]]  # anchor, nodes, keys of a mapping so far, children
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
