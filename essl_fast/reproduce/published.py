"""Published figures that a user has and this project does not know."""

from __future__ import annotations

from pathlib import Path

import yaml

from essl_fast.common.errors import InputError
from essl_fast.config.yamls import refuse_bombs
from essl_fast.report import paper
from essl_fast.reproduce.rows import TABLES


def read_published(path: Path) -> dict[str, paper.Row]:
    """Read a YAML file of published figures, by the names of the rows:

        source: SemiPL, arXiv 2404.19615, table 2      # where they are published; default: the file's name
        rows:
          lss: {success: 31.4, auc: 37.7}              # per cent; one of the two is enough

    Raises InputError if the file cannot be read, or says something else.
    """
    try:
        content = yaml.safe_load(refuse_bombs(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"--published: {path} cannot be read ({what})") from error
    names = {row.name: row.label for _, rows in TABLES.values() for row in rows}
    if not isinstance(content, dict) or set(content) - {"source", "rows"} or not isinstance(content.get("rows"), dict):
        raise InputError(f"--published: {path} needs rows: with lines such as lss: {{success: 31.4, auc: 37.7}}")
    source, found = str(content.get("source", path.name)), {}
    for name, figures in content["rows"].items():
        if name not in names:
            raise InputError(f"--published: {path}: {name} is no row; rows are {', '.join(names)}")
        if not isinstance(figures, dict) or not figures or set(figures) - {"success", "auc"}:
            raise InputError(f"--published: {path}: {name} needs success and auc in per cent, got {figures!r}")
        for key, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
                raise InputError(f"--published: {path}: {key} of {name} must be from 0 to 100 per cent, got {value!r}")
        success, auc = (None if key not in figures else figures[key] / 100 for key in ("success", "auc"))
        found[name] = paper.Row(names[name], "Chaotic World", success, auc, source)
    return found
