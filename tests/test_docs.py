"""Every command in README.md and docs/: run on tiny data where that takes seconds, else parsed by itself."""

import argparse
import ast
import difflib
import json
import re
import runpy
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from essl_fast import config
from essl_fast.common import commands
from essl_fast.data import media
from essl_fast.data.datasets import read_chaotic_world
from tests import ROOT
from tests.tools.doors import door

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

# What makes a command small, appended to it: the demo's networks in place of VGG-16, one epoch, a CPU.
SHORT = (
    "--model.trunk small --model.audio small --model.pcm false --model.out_dim 128 --data.batch_size 6 --epochs 1 "
    "--data.last_batch keep --overlays 2 --device cpu --checkpoint_keep 1"
).split()

# In this order, since one needs what another made. What stands for the user's own is in capitals in the pages.
RUN = {
    "python -m essl_fast.prepare --videos videos --annotations SSL_ssl_format --out chaotic": [],
    "python -m essl_fast.prepare --verify --out chaotic": [],
    "python -m essl_fast.train --config semipl --data.root chaotic --out runs/semipl": SHORT,
    "python -m essl_fast.train --resume runs/semipl": [],
    "python -m essl_fast.evaluate runs/semipl/best.pt --split test --json semipl.json": ["--device", "cpu"],
    "python -m essl_fast.localize VIDEO --checkpoint runs/semipl --out localized": ["--rate", "1", "--device", "cpu"],
    "python -m essl_fast.report runs/semipl": [],
    "python -m essl_fast.doctor --config semipl --data chaotic": SHORT,
    "python -m essl_fast.prepare --dataset flickr --data SoundNet_Flickr --train-list flickr_10k.txt --test-list "
    "flickr_test.csv --out flickr10k": [],
    "python -m essl_fast.prepare --from-h5 metadata --out chaotic_h5": [],
}

# Not for this process: others run them, or nobody can here.
ELSEWHERE = {
    "pip install -c constraints.txt . && python -m essl_fast.train": "continuous integration's first step",
    "pip install -c constraints.txt '.[test,bench]' && python -m pytest": "this",
    "python -m essl_fast.train --resume runs/mine": "tests/test_extending.py",
    "pip wheel -c constraints.txt --wheel-dir wheels .": "needs a network",
    "pip install -c constraints.txt --no-index --find-links wheels essl_fast": "needs what that makes",
    "pip install -c constraints.txt '.[h5]'": "an extra of pyproject.toml",
    "pip install '.[tensorboard]'": "an extra of pyproject.toml",
    "pip install '.[app]'": "an extra of pyproject.toml",
    "pip install '.[export]'": "an extra of pyproject.toml",
    "pip install '.[remote]'": "an extra of pyproject.toml",
    "pip install '.[wandb]'": "an extra of pyproject.toml",
    "pip install '.[mlflow]'": "an extra of pyproject.toml",
    "pip install '.[ray]'": "an extra of pyproject.toml",
    "pip install -c constraints.txt .": "continuous integration's first step",
    "pip install git+https://HOST/OWNER/essl_fast": "tests/test_install.py, from a folder",
    "pip install -e .": "tests/test_install.py",
    "bash .ci/run": "runs this",
    "python -m essl_fast.NAME": "stands for each command",
    "python -m pytest tests/data/media/test_colours.py": "a part of this suite",
    "mkdir -p ~/.local/share/bash-completion/completions": "the user's own folder",
    "essl-fast --print-completion bash > ~/.local/share/bash-completion/completions/essl-fast": "tests/common",
    "python -m pytest tests/data/remote tests/prepare/test_sending.py": "a part of this suite",
    "bash .ci/weekly": "takes an hour",
    "python -m pydoc essl_fast.Loader": "Python's own",
    "python -m tests.phantom": "continuous integration, in a process of its own",
    "python -m tests.phantom --all": "14 minutes",
    "python -m pytest tests/kernels/test_log_mel.py": "a part of this suite",
    "python -m pytest -m slow tests/train/test_global_batch.py": "a part of this suite",
    "python -m pytest -m slow tests/train/test_graphs_of_ranks.py": "a part of this suite",
    "python -m pytest -m nightly tests/train/test_global_batch.py": "a part of this suite",
}


def fenced(text: str) -> list[str]:
    """The commands of a page's bash blocks."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s#\s.*", "", line).split()) for line in lines if line.strip()]


def inline(text: str) -> list[str]:
    """The commands between backticks in a page's sentences; a line may end within one."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = (" ".join(command.split()) for command in re.findall(r"`([^`]+)`", prose))
    return [one for one in found if re.match(r"python3? -m |torchrun |pip install |pip wheel |bash ", one)]


COMMANDS = sorted({command for page in PAGES for text in [page.read_text()] for command in fenced(text) + inline(text)})
PARSED = [command for command in COMMANDS if command not in ELSEWHERE]


def literals(path: Path) -> list[str]:
    """A file's strings, those that are written in pieces as one; a value inside one is a line of its own."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "\n" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


class Parsed(Exception):
    """The command line was understood."""


def module_and_arguments(command: str) -> tuple[str, list[str]]:
    words = shlex.split(command)
    at = words.index("-m")
    return words[at + 1], words[at + 2 :]


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """A folder with what the pages suppose: videos and annotations, the other data sets, an empty run directory."""
    from tests.tools import datasets as dataset_tools

    where = tmp_path_factory.mktemp("docs")
    world, prepared = tiny
    (where / "videos").symlink_to(world.videos)
    (where / "SSL_ssl_format").symlink_to(world.annotations)
    (where / "ready").symlink_to(prepared)
    train, test = ["1", "2", "3", "4"], ["5", "6"]
    boxes = {name: [[20, 20, 120, 120], [30, 30, 130, 130]] for name in [*train, *test]}
    dataset_tools.make_flickr(where / "SoundNet_Flickr", train, test, boxes)
    for file in ("flickr_10k.txt", "flickr_test.csv"):
        shutil.copy(where / "SoundNet_Flickr" / file, where / file)
    names = [f"AAAAAAAA_{number:06d}" for number in range(4)]
    seen = [{"file": f"BBBBBBBB_{number:06d}", "class": "crash", "bbox": [20, 30, 160, 150]} for number in range(2)]
    dataset_tools.make_chaotic_h5(where / "metadata", names, [one["file"] for one in seen], seen)
    return where


@pytest.mark.parametrize("command", PARSED)
def test_a_command_is_understood(command, place, monkeypatch, capsys):
    """By its own parser; the run ends there."""
    module, arguments = module_and_arguments(command)
    arguments = [{"chaotic": "ready", "N": "1"}.get(word, word) for word in arguments] or ["--help"]
    monkeypatch.chdir(place)

    def parsed(parse):
        def once(*given, **named):
            parse(*given, **named)
            raise Parsed

        return once

    monkeypatch.setattr(sys, "argv", [module, *arguments])
    for parser in (argparse.ArgumentParser, commands.Options):
        monkeypatch.setattr(parser, "parse_args", parsed(parser.parse_args))
    if "--resume" in arguments and "auto" not in arguments:  # it reads the run's settings first: run below
        assert f"python -m essl_fast.train {shlex.join(arguments)}" in RUN
        return
    monkeypatch.setattr(config, "parse", parsed(config.parse))
    with pytest.raises(SystemExit if arguments == ["--help"] else Parsed):
        main = door(module).main
        main() if module.startswith("tests.") else main(arguments)


@pytest.mark.slow
def test_the_commands_in_the_pages_run(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    video = media.find_video(place / "videos", (place / "SSL_ssl_format" / "test_ssl.txt").read_text().split()[0])
    shown = {command for page in PAGES for command in fenced(page.read_text()) + inline(page.read_text())}
    assert not RUN.keys() - shown, "these are no longer in any page"
    for command, more in RUN.items():
        module, arguments = module_and_arguments(command)
        arguments = [str(video) if word == "VIDEO" else word for word in arguments]
        assert door(module).main([*arguments, *more]) in (0, None), command
    for made in ("chaotic/manifest.json", "runs/semipl/summary.json", "semipl.json", "flickr10k/manifest.json"):
        assert (place / made).is_file(), made
    assert list((place / "localized").glob("*.mp4"))
    the_page_of_outputs_is_of_these_files(place)


def the_page_of_outputs_is_of_these_files(place: Path) -> None:
    """docs/outputs.md names every field that the commands wrote, and no others but those that it ties to an option."""
    fields: dict[str, dict[str, bool]] = {}  # by heading: name of a field -> whether every file has it
    for line in (ROOT / "docs" / "outputs.md").read_text().splitlines():
        if line.startswith("#"):
            rows = fields.setdefault(line.strip("# "), {})
        elif line.startswith("| `"):
            names, holds = line.split(" | ")[:2]
            rows |= dict.fromkeys(re.findall(r"`(\w+)`", names), not holds.startswith(("with ", "where ")))

    def fits(heading: str, held: dict, beside: str = "") -> None:
        told = fields[heading] | (fields[beside] if beside else {})
        assert held.keys() <= told.keys(), heading
        assert {name for name, always in told.items() if always} <= held.keys(), heading

    summary = json.loads((place / "runs" / "semipl" / "summary.json").read_text())
    fits("A result", summary["test"])
    fits("`summary.json` of a run", summary)
    fits("`evaluate --json FILE`", json.loads((place / "semipl.json").read_text()), "A result")
    lines = [json.loads(line) for line in (place / "runs" / "semipl" / "log.jsonl").read_text().splitlines()]
    assert (
        {"start", "resume", "epoch", "end"}
        <= {line["event"] for line in lines}
        <= fields["`log.jsonl` of a run"].keys()
    )
    for line in lines:
        if line.pop("event") == "epoch" and line.pop("time"):
            fits("An `epoch`", line)
    for line in (place / "runs" / "semipl" / "test_pairs.jsonl").read_text().splitlines():
        assert json.loads(line).keys() == {"key", "class", "ciou"}
    moments = json.loads(next((place / "localized").glob("*.moments.json")).read_text())
    fits("`NAME.moments.json` of `localize`", moments)
    for moment in moments["moments"]:
        fits("A moment", moment)


def test_every_command_is_checked_somewhere():
    assert len(PARSED) > 20
    assert not ELSEWHERE.keys() - set(COMMANDS), "these are no longer in any page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}"


def test_the_troubleshooting_page_quotes_real_messages():
    """The fixed parts of each stand in a string of the code."""
    strings = "\n".join(literal for path in (ROOT / "essl_fast").rglob("*.py") for literal in literals(path))
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert len(quoted) > 15
    for message in quoted:
        parts = [part for part in re.split(r"…|cuda was|nan in", message) if len(part) > 8]
        for part in parts:
            assert part.strip(" ;.:(),'") in strings, f"{part!r} of {message!r}"


def test_the_example_in_the_readme_is_the_file():
    shown = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    example = (ROOT / "examples" / "heatmap.py").read_text()
    assert len(shown) == 1 and textwrap.dedent(shown[0]).strip() in textwrap.dedent(example)


def test_the_table_for_your_own_videos_is_read(tmp_path):
    """docs/your_data.md: its five rows are five pairs, with the boxes scaled from --annotation-size to the grid."""
    page = (ROOT / "docs" / "your_data.md").read_text()
    table = re.search(r"```\n(start_fid,.*?)```", page, re.DOTALL)[1]
    folder = tmp_path / "annotation" / "group"
    folder.mkdir(parents=True)
    (folder / "street_01.csv").write_text(table)
    for name, text in (("train_ssl.txt", "street_01\n"), ("test_ssl.txt", "")):
        (tmp_path / name).write_text(text)
    pairs = read_chaotic_world(tmp_path, size=(320, 180), validation=0).pairs
    assert [(pair.fid, pair.time) for pair in pairs] == [(51, 2), (126, 5), (201, 8), (301, 12), (401, 16)]
    assert all((pair.fid - 1) / 25 == pair.time for pair in pairs), "what the page says of start_time"
    assert pairs[0].boxes.tolist() == [[84, 49, 126, 136]] and pairs[1].class_name == "dog"


def test_the_loop_of_ones_own_trains(tiny):
    module = runpy.run_path(str(ROOT / "examples" / "own_loop.py"))
    losses = module["train"](str(tiny[1]), steps=12)
    assert len(losses) == 12 and min(losses[6:]) < losses[0]


def test_the_page_of_names_is_current():
    """docs/api.md names what the packages export; each name has a sentence."""
    listing = runpy.run_path(str(ROOT / "docs" / "list_api.py"))
    names = listing["tables"]()
    assert "| ? |" not in names, [line for line in names.splitlines() if "| ? |" in line]
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines()
    made = listing["page_with"](names).splitlines()
    assert [*difflib.unified_diff(page, made, lineterm="", n=0)] == [], "run python docs/list_api.py"


def test_the_page_of_settings_is_current():
    """docs/settings.md has a row for every setting, with what --help-all says of it."""
    listing = runpy.run_path(str(ROOT / "docs" / "list_settings.py"))
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w.]+)` \|.* \w.* \|", page, re.MULTILINE) == [
        name for group in listing["GROUPS"] for name in config.leaves() if name.rpartition(".")[0] == group
    ]
    assert len(config.leaves()) == len(re.findall(r"^\| `", page, re.MULTILINE))
    made = listing["page_with"](listing["tables"]())
    assert [*difflib.unified_diff(page.splitlines(), made.splitlines(), lineterm="", n=0)] == [], (
        "run python docs/list_settings.py"
    )


def test_the_pictures_are_of_the_run_that_the_text_quotes():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_pictures.py"))
    assert drawing["quotes"](json.loads((ROOT / "docs" / "pictures.json").read_text())) == []
