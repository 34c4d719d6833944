"""The published data path: HDF5 of float32 frames and log-mels, PIL transforms, DataLoader workers.

What the baseline reads and does for each pair in each epoch:

    read     a frame (256, 256, 3) float32, 768 KB, and its log-mel (3, 96, 64) float32, 72 KB, by h5py
    train    twice: PIL bicubic resize to 246, random crop to 224, random flip, to float32 in [0, 1], normalise
    test     resize to 224, the same picture as both views
    collate  the default collate function stacks the samples, the pinning thread copies them once more for a GPU

It is faster than the published code, so that we gain nothing from mere mistakes: each worker opens the files once, not
three times a pair; the waveform, which is not used, is not read; and workers stay from epoch to epoch.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from essl_fast import kernels
from essl_fast.config import SIZE, STORED_SIDE
from essl_fast.data.loading import Loader
from essl_fast.data.shards import Manifest
from essl_fast.kernels.reference import IMAGENET_MEAN, IMAGENET_STD

try:
    import h5py
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the published-style baseline reads HDF5: pip install h5py") from error

FRAME = 256  # side of a stored frame
FOLDERS = {"train": "ChaoticWorld/all_unlabeled", "test": "ChaoticWorld/labeled/Data"}


def files_of(root: Path, split: str) -> dict[str, Path]:
    """The published files of a split, and its boxes and labels (NumPy files here, JSON in the published data)."""
    folder = Path(root) / FOLDERS[split]
    return {
        "frames": folder / f"h5py_{split}_frames.h5",
        "spects": folder / f"h5py_{split}_spects.h5",
        "boxes": folder / f"{split}_boxes.npy",
        "labelled": folder / f"{split}_labelled.npy",
    }


def export(manifest: Manifest, root: Path, splits: dict[str, tuple[str, ...]] | None = None, batch: int = 64) -> Path:
    """Writes prepared pairs in the published layout, in the manifest's order, unless they are there; the folder.

    ``splits``: which of the manifest's splits make up the published "train" and "test".
    Frames are resized once from the prepared picture to 256 x 256; log-mels are of the normalised sound.
    """
    for split, ours in (splits or {"train": ("train",), "test": ("test",)}).items():
        files = files_of(root, split)
        if files["labelled"].is_file():  # written last
            continue
        files["frames"].parent.mkdir(parents=True, exist_ok=True)
        loader = Loader(manifest, ours, batch_size=batch, side=FRAME, shuffle=False)
        rows = np.concatenate([manifest.rows(name) for name in ours])
        with h5py.File(files["frames"], "w") as frames, h5py.File(files["spects"], "w") as spects, loader:
            pictures = frames.create_dataset(f"{split}_frames", (len(rows), FRAME, FRAME, 3), "float32")
            examples = spects.create_dataset(f"{split}_spects", (len(rows), 3, 96, 64), "float32")
            place = {int(row): at for at, row in enumerate(rows)}
            for raw in loader:
                at = np.array([place[row] for row in raw.index.tolist()])
                if not np.array_equal(at, np.arange(at[0], at[0] + len(at))):
                    raise RuntimeError(f"{manifest.root}: the unshuffled loader left the manifest's order")
                pictures[at[0] : at[0] + len(at)] = raw.frames[raw.rows].numpy()
                examples[at[0] : at[0] + len(at)] = kernels.log_mel(raw.sound).numpy()
        np.save(files["boxes"], np.asarray(manifest.boxes)[rows])
        np.save(files["labelled"], np.asarray(manifest.labelled)[rows])
    return Path(root)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture of H x W pixels as (3, H, W) float32, normalised with ImageNet's mean and std."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return pixels.sub_(mean).div_(std)


def target_map(boxes: np.ndarray, consensus: int, side: int = SIZE) -> np.ndarray:
    """Pixel weights (side, side) float32 of boxes (K, 4) on the 224 grid; edges go to the nearest pixel of side."""
    covering = np.zeros((side, side), np.float32)
    for x1, y1, x2, y2 in (2 * side * boxes.astype(np.int64) + SIZE) // (2 * SIZE):
        covering[y1:y2, x1:x2] += 1
    return np.minimum(covering / consensus, 1)


class PublishedSet(Dataset):
    """A split of :func:`export`: two views of a frame and its log-mel, made on the CPU in a worker.

    A sample: view1, view2 (3, 224, 224) float32; spect (3, 1, 96, 64) float32; index; and with ``targets``, for the
    supervised loss, target1, target2 (224, 224) float32, cropped and flipped as the views are, and labelled.
    """

    def __init__(self, root: Path, split: str, targets: bool = False, consensus: int = 1) -> None:
        self.files, self.split, self.targets, self.consensus = files_of(root, split), split, targets, consensus
        self.boxes, self.labelled = np.load(self.files["boxes"]), np.load(self.files["labelled"])
        self._open: tuple[h5py.Dataset, h5py.Dataset] | None = None  # by the worker: handles do not outlive a fork

    def __len__(self) -> int:
        return len(self.boxes)

    def _data(self) -> tuple[h5py.Dataset, h5py.Dataset]:
        if self._open is None:
            names = ("frames", "spects")
            self._open = tuple(h5py.File(self.files[name], "r")[f"{self.split}_{name}"] for name in names)
        return self._open

    def _train_view(self, image: Image.Image, target: np.ndarray | None) -> tuple[Tensor, Tensor | None]:
        resized = image.resize((STORED_SIDE, STORED_SIDE), Image.Resampling.BICUBIC)
        top, left = torch.randint(STORED_SIDE - SIZE + 1, (2,)).tolist()
        flip = torch.rand(()).item() < 0.5
        view = resized.crop((left, top, left + SIZE, top + SIZE))
        if flip:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if target is None:
            return to_tensor(view), None
        window = target[top : top + SIZE, left : left + SIZE]
        return to_tensor(view), torch.from_numpy(np.ascontiguousarray(window[:, ::-1] if flip else window))

    def __getitem__(self, index: int) -> dict:
        frames, spects = self._data()
        image = Image.fromarray(np.uint8(frames[index]))
        sample = {"index": index, "spect": torch.from_numpy(spects[index])[:, None]}
        if self.split == "test":
            sample["view1"] = to_tensor(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            sample["view2"] = to_tensor(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
            return sample
        target = target_map(self.boxes[index], self.consensus, STORED_SIDE) if self.targets else None
        for view in (1, 2):
            sample[f"view{view}"], cropped = self._train_view(image, target)
            if cropped is not None:
                sample[f"target{view}"] = cropped
        if self.targets:
            sample["labelled"] = bool(self.labelled[index])
        return sample


def data_loader(dataset: PublishedSet, batch_size: int, workers: int, keep_last: bool, pin: bool) -> DataLoader:
    """As the published code has it: shuffled for training, pinned for a GPU; workers stay for the next epoch."""
    train = dataset.split == "train"
    return DataLoader(
        dataset,
        batch_size,
        shuffle=train,
        num_workers=workers,
        pin_memory=pin,
        drop_last=train and not keep_last,
        persistent_workers=workers > 0,
    )
