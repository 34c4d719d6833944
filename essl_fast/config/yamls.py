"""YAML that others may have written: checked before it is loaded.

With YAML's aliases a file of a few lines can become an object of gigabytes, or one that contains itself, and
reading it would never end. Settings need none of that. Loading itself (PyYAML's safe loader) runs no code, whatever a
tag says.

Values stay texts: what `off`, `12:30` or `1e-4` means is decided by the setting's kind, as on a command line, and not
by a version of YAML.
"""

from __future__ import annotations

import yaml

MOST_NODES, MOST_DEPTH = 10_000, 20  # of a file of settings, with all aliases followed
LONGEST = 1 << 20  # characters
_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FORBIDDEN = {"config", "import"}  # options, but no settings


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


class Plain(str):
    """A text that stood without quotes: `null` is YAML's null, and not the word."""


class _Texts(_READER):  # type: ignore[valid-type,misc]  # one of two classes
    """A loader whose values are texts, lists and mappings."""


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return node.value if node.style in ("'", '"', "|", ">") else Plain(node.value)


_Texts.yaml_constructors = {
    tag: constructor
    for tag, constructor in _READER.yaml_constructors.items()
    if tag in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", None)
}
for _kind in ("null", "bool", "int", "float", "timestamp", "value", "str"):
    _Texts.add_constructor(f"tag:yaml.org,2002:{_kind}", _text)


def texts(text: str) -> object:
    """The value of a YAML text: dicts and lists of texts, which are :class:`Plain` where they have no quotes.

    Raises:
        yaml.YAMLError: as of :func:`refuse_bombs`, or it has a tag that settings do not need.
    """
    try:
        loader = _Texts(refuse_bombs(text))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None
