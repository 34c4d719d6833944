"""From videos and annotations to shards: every file is read once."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.prepare.against import compare as compare
    from essl_fast.prepare.checking import check as check
    from essl_fast.prepare.checking import print_checked as print_checked
    from essl_fast.prepare.folder import PreparedDifferently as PreparedDifferently
    from essl_fast.prepare.on_ray import parts_on_ray as parts_on_ray
    from essl_fast.prepare.reporting import print_part as print_part
    from essl_fast.prepare.reporting import print_summary as print_summary
    from essl_fast.prepare.reporting import print_verified as print_verified
    from essl_fast.prepare.reporting import reporter as reporter
    from essl_fast.prepare.run import prepare as prepare
    from essl_fast.prepare.run import prepare_dataset as prepare_dataset
    from essl_fast.prepare.run import prepare_part as prepare_part
    from essl_fast.prepare.verifying import verify as verify

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "PreparedDifferently": "folder",
        "check": "checking",
        "compare": "against",
        "parts_on_ray": "on_ray",
        "prepare": "run",
        "prepare_dataset": "run",
        "prepare_part": "run",
        "print_checked": "checking",
        "print_part": "reporting",
        "print_summary": "reporting",
        "print_verified": "reporting",
        "reporter": "reporting",
        "verify": "verifying",
    },
)
