""".ci/sass.py finds the shortest way of a warp through machine code, and follows branches as the GPU does."""

import importlib.util

import pytest

from tests import ROOT

# Two loads and a store each time round; a lane that has nothing to do leaves; the way by .L_x_1 stores without loading.
CODE = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @P0 EXIT ;
        /*0020*/              @!P1 BRA `(.L_x_1) ;
.L_x_0:
        /*0030*/                   LDG.E.CONSTANT R2, desc[UR4][R4.64] ;
        /*0040*/                   LDG.E.CONSTANT R3, desc[UR4][R4.64+0x4] ;
        /*0050*/                   STG.E.128 desc[UR4][R6.64], R8 ;
        /*0060*/                   BRA.U !UP0, `(.L_x_0) ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0080*/                   STG.E.128 desc[UR4][R6.64], R8 ;
.L_x_2:
        /*0090*/                   EXIT ;
"""


@pytest.fixture(scope="module")
def sass():
    spec = importlib.util.spec_from_file_location("sass", ROOT / ".ci" / "sass.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("stores", "loads", "length"), [(0, 0, 2), (1, 0, 5), (1, 2, 9), (3, 6, 17), (1, 1, None), (2, 2, None)]
)
def test_the_shortest_way_with_so_many_stores_and_loads(sass, stores, loads, length):
    assert sass.fewest(CODE, {r"STG\.E\.128": stores, r"LDG\.E\.CONSTANT": loads}) == length


def test_any_way(sass):
    assert sass.fewest(CODE, {}) == 2
