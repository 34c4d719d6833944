"""Fast training of event sound source localization: where in a video frame does the sound come from?

The commands are ``python -m essl_fast.train``, ``.prepare``, ``.evaluate``; README.md tells how to use them.
"""

__version__ = "0.1.0"
