"""How well a model localizes the pairs of a split: metrics, what it must beat, further metrics."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Evaluation": "evaluation",
        "FOREIGN": "evaluation",
        "centre_view": "evaluation",
        "evaluate": "evaluation",
        "evaluation": "",
        "loaders": "",
        "metrics": "",
        "priors": "",
        "protocol": "",
        "tables": "",
    },
)
