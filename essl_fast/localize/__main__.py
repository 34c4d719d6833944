"""python -m essl_fast.localize VIDEO --checkpoint RUN --out DIR: where in a video its sound comes from, by the moment.

DIR/<name>.overlay.mp4    the video with its sound: heat, a white contour at the threshold, ground truth in green
DIR/<name>.sheet.png      a contact sheet of up to 12 moments
DIR/<name>.moments.json   each moment with the boxes of its regions at or above the threshold, in the video's pixels

The heat has one scale for the whole video, from its smallest to its largest cosine of picture and sound, so that one
moment can be compared with another. A moment stays dark where its score, the largest cosine of its map, is below
--min-score, where the sound is silent (below -60 dB), and where the picture is one colour. By default --min-score is
the score below which the model was wrong more often than right on the split that its checkpoint was chosen on.

A moment is a frame with the 3 s of sound around it, as a pair is in training. In the first and the last 1.5 s, the
first and the last 3 s of the track are taken, since the network was trained on full 3 s. A track below 3 s is repeated,
as in training. Where the track has ended, nothing is localized.

The file is decoded twice: once for the moments, which go through the network in batches, and once to draw, when the
heat of each moment is known and can fade into the next one's. So memory holds a batch of 224 x 224 frames and the few
frames between decoder and encoder, whatever the length, the resolution and the rate. On a GPU its video decoder (NVDEC,
by DALI) decodes the moments, and their frames stay there; what is drawn is needed on the host, and PyAV decodes it.
"""

from __future__ import annotations

if __name__ == "__main__":
    from essl_fast.common.commands import begin

    begin()

import sys
from collections.abc import Sequence

from essl_fast.common import commands
from essl_fast.common.commands import command, slow_imports
from essl_fast.common.errors import InputError
from essl_fast.common.registry import import_modules
from essl_fast.localize import options as options_of

PROG = "python -m essl_fast.localize"


def parser() -> commands.Options:
    """The options."""
    return options_of.parser(PROG, __doc__ or "")


def main(argv: Sequence[str] | None = None) -> int:
    options = options_of.read_options(PROG, __doc__ or "", argv)
    with slow_imports():
        from essl_fast.data.media.footage import is_picture
        from essl_fast.localize.command import localize

    import_modules(options.imports)
    if options.image and not is_picture(options.image):
        raise InputError(f"--image: {options.image} has no picture's ending; give a JPEG or PNG file")
    localize(
        options.image or options.input,
        options.checkpoint,
        options.out,
        sound=options.sound,
        rate=options.rate,
        threshold=options.threshold,
        min_score=options.min_score,
        opacity=options.opacity,
        boxes=options.boxes,
        boxes_size=options.boxes_size,
        video=not options.no_video,
        batch=options.batch,
        device=options.device,
        decoder=options.decoder,
        precision=options.precision,
        weights=options.weights,
        console=commands.console(kept=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(command(main, PROG))
