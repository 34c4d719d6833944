"""Fast training of event sound source localization: where in a video frame does the sound come from?

The commands are `python -m essl_fast.train`, `.prepare`, `.evaluate`, `.localize`, `.report`, `.reproduce`, `.doctor`,
`.export` and `.replay`; README.md tells how to use them. In Python, what a command does is a function of its package:
`essl_fast.prepare.prepare`, `essl_fast.train.fit`, `essl_fast.evaluate.evaluate`.
"""

from essl_fast.common.lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Loader": "data.loading.loader",
        "Manifest": "data.shards.manifest",
        "SoundFinder": "localize.finder",
        "kernels": "",
        "models": "",
    },
)
