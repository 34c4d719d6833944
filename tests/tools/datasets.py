"""Flickr-SoundNet, VGG-SS and the published HDF5 files in small, in the folders that the published codes use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from essl_fast.data.datasets.listed import annotate
from essl_fast.kernels import reference
from tests.tools.media import make_sound

RATE = 16_000


def picture(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """RGB uint8 (height, width, 3), smooth and another for each number."""
    phase = np.random.default_rng(number).uniform(0.02, 0.2, (3, 2))
    y, x = np.mgrid[:height, :width]
    return np.stack([np.clip(127 + 100 * np.sin(a * x + b * y), 0, 255) for a, b in phase], -1).astype(np.uint8)


def sound(number: int, seconds: float = 4.0, rate: int = RATE) -> np.ndarray:
    """float32 (n,): tones over noise, another for each number."""
    rng = np.random.default_rng([number, 1])
    time = np.arange(round(seconds * rate)) / rate
    tones = sum(rng.uniform(0.05, 0.2) * np.sin(2 * np.pi * rng.uniform(200, 4000) * time) for _ in range(3))
    return (tones + rng.normal(0, 0.02, len(time))).astype(np.float32)


def make_pairs(pictures: Path, sounds: Path, names: list[str], extension: str = "wav") -> None:
    """A picture and a sound for each name; number i of them is `picture(i)` and `sound(i)`."""
    codecs = {"wav": "pcm_s16le", "mp3": "libmp3lame"}
    for folder in (pictures, sounds):
        folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number)).save(pictures / f"{name}.jpg", quality=95)
        make_sound(sounds / f"{name}.{extension}", sound(number), codecs[extension], RATE)


def make_flickr(root: Path, train: list[str], test: list[str], boxes: dict[str, list]) -> Path:
    """SSPL's tree: labelled pairs below 5k_labeled/, training pairs in EZ-VSL's frames/ and audio/."""
    labelled = root / "5k_labeled"
    make_pairs(labelled / "Data" / "frames", labelled / "Data" / "audio", test)
    make_pairs(root / "frames", root / "audio", train)
    (labelled / "Annotations").mkdir()
    for name, of_name in boxes.items():
        (labelled / "Annotations" / f"{name}.xml").write_text(xml(of_name, annotators=3))
    (root / "flickr_10k.txt").write_text("\n".join(train))
    (root / "flickr_test.csv").write_text("".join(f"{name},{number}\n" for number, name in enumerate(test)))
    return root


def make_vggss(root: Path, train: list[str], test: list[str], entries: list[dict]) -> Path:
    """LVS's tree: frames/, audio/ and the JSON file."""
    make_pairs(root / "frames", root / "audio", [*train, *test])
    (root / "vggss.json").write_text(json.dumps(entries))
    (root / "vggss_10k.txt").write_text("".join(f"{name}\n" for name in train))
    (root / "vggss_test.csv").write_text("".join(f"{name}\n" for name in test))
    return root


def normalized(wave: np.ndarray) -> np.ndarray:
    """The published normalisation, float32 step by step: minimum to -1, maximum nearly to 1."""
    wave = wave.astype(np.float32) - wave.astype(np.float32).min()
    return ((wave / (wave.max() + np.float32(1e-3))) - np.float32(0.5)) * np.float32(2)


def published_rows(numbers: list[int]) -> dict[str, np.ndarray]:
    """frames (n, 256, 256, 3), audios (n, 48000) and spects (n, 3, 96, 64), float32, as the published script has them.
    The log-mel is a float64 implementation of VGGish's own, apart from the package's."""
    frames = np.stack([picture(number, 256, 256) for number in numbers]).astype(np.float32)
    audios = np.stack([normalized(sound(number, 3.0) * (0.02 + 0.1 * number)) for number in numbers])
    return {"frames": frames, "audios": audios, "spects": np.stack([vggish(wave) for wave in audios])}


def vggish(wave: np.ndarray) -> np.ndarray:
    """(48000,) at 16 kHz -> (3, 96, 64) float32: log of 64 mel bands of magnitudes, windows of 25 ms every 10 ms."""
    starts = 160 * np.arange(1 + (len(wave) - 400) // 160)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    spectrum = np.abs(np.fft.rfft(wave.astype(np.float64)[starts[:, None] + np.arange(400)] * window, 512))

    def mel(hertz):
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(125), mel(7500), 66)
    at = mel(np.arange(257) * 8000 / 256)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    bands = np.maximum(0, np.minimum(rising, falling))
    bands[0] = 0
    return np.log(spectrum @ bands + 0.01)[:288].reshape(3, 96, 64).astype(np.float32)


def write_h5(folder: Path, pattern: str, split: str, rows: dict[str, np.ndarray]) -> None:
    """frames, audios and spects in a file each; `pattern` is its name with {} for which."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in rows.items():
        with h5py.File(folder / pattern.format(kind), "w") as file:
            file.create_dataset(f"{split}_{kind}", data=array)


def make_chaotic_h5(root: Path, train: list[str], test: list[str], boxes: list[dict], extra: int = 0) -> Path:
    """ChaoticWorld/ as the published script leaves it; `extra` names more in the training list than rows."""
    base = root / "ChaoticWorld"
    rows = published_rows(list(range(len(train) - extra)))
    write_h5(base / "all_unlabeled", "h5py_train_{}.h5", "train", rows)
    (base / "all_unlabeled" / "ChaoticWorld_train.csv").write_text("".join(f"{name}\n" for name in train))
    rows = published_rows([100 + at for at in range(len(test))])
    write_h5(base / "labeled" / "Data", "h5py_test_{}.h5", "test", rows)
    (base / "labeled" / "ChaoticWorld_test.csv").write_text("".join(f"{name}\n" for name in test))
    (base / "labeled" / "Annotations").mkdir()
    (base / "labeled" / "Annotations" / "ChaoticWorld_test.json").write_text(json.dumps(boxes, indent=4))
    return root


def xml(boxes, annotators: int = 2) -> str:
    """The published layout: annotators, their boxes one after another, `type` first in each."""
    names = ("xmin", "ymin", "xmax", "ymax")
    shares = [boxes[number::annotators] for number in range(annotators)]
    lines = ["<annotation>"]
    for number, share in enumerate(shares, 1):
        lines.append(f"<annotator{number}>")
        for box in share:
            sides = "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, box, strict=True))
            lines.append(f"<bbox><type>object</type>{sides}</bbox>")
        lines.append(f"</annotator{number}>")
    return "\n".join([*lines, "</annotation>\n"])


def label_map(label_of, name: str, consensus: int) -> np.ndarray:
    """The box map (224, 224) that training and evaluation see, times the consensus."""
    pairs = annotate({"test": [name]}, label_of, "annotations").pairs
    boxes = torch.from_numpy(pairs[0].boxes if len(pairs) else np.zeros((1, 4), np.int32))[None]
    return reference.box_weights(boxes, 224, consensus)[0].numpy() * consensus
