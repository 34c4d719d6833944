"""The demo world: short videos, made from a seed, in which one of several moving objects sounds; and single objects."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.data.synthetic import singles as singles
    from essl_fast.data.synthetic.world import OtherWorld as OtherWorld
    from essl_fast.data.synthetic.world import World as World
    from essl_fast.data.synthetic.world import make_world as make_world
    from essl_fast.data.synthetic.world import world_lock as world_lock

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"OtherWorld": "world", "World": "world", "make_world": "world", "singles": "", "world_lock": "world"}
)
