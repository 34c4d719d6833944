"""How well a model localizes the pairs of a split: metrics, baselines, further metrics."""

from essl_fast.common.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Evaluation": "result",
        "boxes_prior": "priors",
        "centre_prior": "priors",
        "centre_view": "evaluation",
        "consensus_of": "consensus",
        "evaluate": "evaluation",
        "evaluate_checkpoint": "command",
        "evaluate_published": "command",
        "evaluation_loader": "loaders",
        "extra_tables": "tables",
        "loader_settings": "loaders",
        "metrics": "",
        "table": "tables",
        "warn_of_consensus": "consensus",
    },
)
