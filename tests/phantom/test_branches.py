"""Every place of the package that only a GPU takes is listed, with what enters it."""

import ast
import textwrap

from tests import ROOT
from tests.phantom.branches import FILE, PHANTOM, TABLE, in_package, places

HOW = f"mend {FILE.name}: [number of expressions, what enters the place], as branches.py says"


def test_the_table_is_the_sources():
    found = dict(in_package(ROOT))
    new = {place: count for place, count in found.items() if TABLE.get(place, [0])[0] != count}
    assert not new, f"{new}: {HOW}"
    assert not TABLE.keys() - found.keys(), f"{sorted(TABLE.keys() - found.keys())} are gone: {HOW}"


def test_every_place_has_evidence():
    for place, (_, evidence) in TABLE.items():
        if evidence == PHANTOM:
            continue
        file, _, test = evidence.partition("::")
        if test:
            names = {n.name for n in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(n, ast.FunctionDef)}
            assert test in names, f"{place}: there is no {evidence}"
        else:
            assert evidence.startswith("GPU: ") and len(evidence) > 12, f"{place}: {evidence} is no evidence"


def test_places_are_found():
    source = """
        if torch.cuda.is_available(): pass
        class A:
            def f(self, x: torch.cuda.Event) -> torch.cuda.Stream:
                y: torch.cuda.Event = None
                def g():
                    return x.is_cuda and x.device.type != "cpu"
                return x.type in ("cpu", "cuda")
        def h():
            return "cuda", cuda.x, x == "gpu"
    """
    assert places(textwrap.dedent(source)) == {"<module>": 1, "A.f": 1, "A.f.<locals>.g": 2}
