"""python examples/heatmap.py RUN IMAGE SOUND OUT: where in an image its sound comes from, drawn into OUT."""

import sys

from PIL import Image

from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.footage import read_picture
from essl_fast.localize.drawing import Overlay
from essl_fast.localize.finder import SoundFinder

run, image, sound, out = sys.argv[1:]
picture, track = read_picture(image), decode_sound(sound)
heat = SoundFinder.open(run).heatmap(picture, track.mono, track.rate)  # (224, 224), 0 to 1
Image.fromarray(Overlay.of(picture).blend(picture, heat)).save(out)
