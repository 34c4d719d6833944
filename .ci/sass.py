"""Counts the instructions that a warp executes, in a kernel's machine code (SASS), without a GPU.

A path is one way from a kernel's first instruction to an EXIT. The number of times that it passes certain instructions
says which way it is: with 24 stores of 16 bytes and 72 loads of 4, a warp of two_views' rows_kernel makes its 8 rows.
``fewest`` finds the shortest of these paths.
"""

import importlib.util
import re
import subprocess
import sys
from collections import deque
from pathlib import Path

OUT = -1  # where an EXIT leads


def disassembled(cubin: Path) -> dict[str, str]:
    """{mangled name of a kernel: its SASS}, by the nvdisasm that comes with Triton."""
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        sys.exit("check_csrc: nvdisasm comes with Triton, which is not installed")
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    done = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"check_csrc: nvdisasm failed on {cubin.name}:\n{done.stdout + done.stderr}")
    blocks = re.split(r"^\.text\.(?=\S+:)", done.stdout, flags=re.MULTILINE)[1:]
    return {name: code for name, _, code in (block.partition(":") for block in blocks)}


def must_match(pattern: str, text: str) -> re.Match[str]:
    """What a pattern finds from the beginning of a text on. It ends the program if nvdisasm writes otherwise by now."""
    found = re.match(pattern, text)
    if found is None:
        sys.exit(f"check_csrc: nvdisasm wrote {text!r}; has its output changed?")
    return found


def graph(code: str) -> tuple[list[str], list[list[int]]]:
    """The instructions of a kernel, and for each the numbers of those that may come next."""
    instructions, labels = [], {}
    for line in code.splitlines():
        if found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(\S.*?)\s*;", line):
            instructions.append(found[1])
        elif found := re.match(r"(\.L\S*):", line):
            labels[found[1]] = len(instructions)
    following = []
    for number, text in enumerate(instructions):
        predicate, operation, rest = must_match(r"(@\S+\s+)?(\S+)\s*(.*)", text).groups()
        goes_on = bool(predicate)
        if operation.startswith("EXIT"):
            places = [OUT]
        elif operation.startswith("BRA"):
            places = [labels[must_match(r".*?`\((\.L\S*?)\)", rest)[1]]]
            goes_on = goes_on or "DIV" in operation or bool(re.match(r"!?U?P\d", rest))
        else:
            places, goes_on = [], True
        following.append(places + [number + 1] * (goes_on and number + 1 < len(instructions)))
    return instructions, following


def fewest(code: str, passes: dict[str, int]) -> int | None:
    """Instructions of the shortest path that passes each pattern so many times, or None if there is no such path."""
    instructions, following = graph(code)
    hits = [tuple(bool(re.search(pattern, text)) for pattern in passes) for text in instructions]
    wanted = tuple(passes.values())
    begin = (0, (0,) * len(wanted))
    length = {begin: 0}
    queue = deque([begin])
    while queue:
        here, passed = state = queue.popleft()
        if here == OUT:
            if passed == wanted:
                return length[state]
            continue
        passed = tuple(map(sum, zip(passed, hits[here], strict=True)))
        if any(done > most for done, most in zip(passed, wanted, strict=True)):
            continue
        for after in following[here]:
            if (after, passed) not in length:
                length[after, passed] = length[state] + 1
                queue.append((after, passed))
    return None
