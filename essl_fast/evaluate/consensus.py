"""How many annotators must agree for a pixel to count fully."""

from essl_fast import config
from essl_fast.data.shards import Manifest


def consensus_of(settings: config.Config, manifest: Manifest) -> int:
    """How many annotators must agree: what the settings say or, where that is 0, what the data set says."""
    return settings.objective.consensus or manifest.consensus


def warn_of_consensus(settings: config.Config, manifest: Manifest, console) -> None:
    """Print a warning where the settings override the data set's number."""
    asked = consensus_of(settings, manifest)
    if asked != manifest.consensus:
        text = f"objective.consensus {asked} overrides the {manifest.consensus} of {manifest.place}"
        console.print(f"warning: {text}: results are not those of its protocol", soft_wrap=True, markup=False)
