"""python examples/heatmap.py RUN IMAGE SOUND OUT: where in an image its sound comes from, drawn into OUT."""

import sys

from PIL import Image

from essl_fast.localize import Overlay, SoundFinder, read_picture, read_sound

if len(sys.argv) != 5:
    sys.exit("usage: python examples/heatmap.py RUN IMAGE SOUND OUT")
run, image, sound, out = sys.argv[1:]
picture, (track, rate) = read_picture(image), read_sound(sound)
heat = SoundFinder.open(run).heatmap(picture, track, rate)  # (224, 224), 0 to 1
Image.fromarray(Overlay.of(picture).blend(picture, heat)).save(out)
