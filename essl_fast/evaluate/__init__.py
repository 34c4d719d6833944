"""How well a model localizes the pairs of a split: metrics, baselines, further metrics."""

from typing import TYPE_CHECKING

from essl_fast.common.lazy import lazy_exports

if TYPE_CHECKING:
    from essl_fast.evaluate import class_aware as class_aware
    from essl_fast.evaluate import metrics as metrics
    from essl_fast.evaluate.command import evaluate_checkpoint as evaluate_checkpoint
    from essl_fast.evaluate.command import evaluate_published as evaluate_published
    from essl_fast.evaluate.consensus import consensus_of as consensus_of
    from essl_fast.evaluate.consensus import warn_of_consensus as warn_of_consensus
    from essl_fast.evaluate.evaluation import centre_view as centre_view
    from essl_fast.evaluate.evaluation import evaluate as evaluate
    from essl_fast.evaluate.loaders import evaluation_loader as evaluation_loader
    from essl_fast.evaluate.loaders import loader_settings as loader_settings
    from essl_fast.evaluate.priors import boxes_prior as boxes_prior
    from essl_fast.evaluate.priors import centre_prior as centre_prior
    from essl_fast.evaluate.priors import object_prior as object_prior
    from essl_fast.evaluate.result import Evaluation as Evaluation
    from essl_fast.evaluate.tables import extra_tables as extra_tables
    from essl_fast.evaluate.tables import table as table
    from essl_fast.evaluate.tables import trust as trust

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Evaluation": "result",
        "boxes_prior": "priors",
        "centre_prior": "priors",
        "centre_view": "evaluation",
        "class_aware": "",
        "consensus_of": "consensus",
        "evaluate": "evaluation",
        "evaluate_checkpoint": "command",
        "evaluate_published": "command",
        "evaluation_loader": "loaders",
        "extra_tables": "tables",
        "loader_settings": "loaders",
        "metrics": "",
        "object_prior": "priors",
        "table": "tables",
        "trust": "tables",
        "warn_of_consensus": "consensus",
    },
)
