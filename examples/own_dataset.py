"""A reader of one's own: annotations in COCO's form, on frames of videos. In this folder:

    python -m essl_fast.prepare --dataset coco --import own_dataset --videos VIDEOS --annotations FILE.json --out FOLDER

    {"images": [{"id": 1, "video": "a", "frame": 51, "time": 2.0, "width": 1280, "height": 720, "split": "train"}, ...],
     "annotations": [{"image_id": 1, "bbox": [x, y, width, height], "category_id": 3}, ...],
     "categories": [{"id": 3, "name": "siren"}, ...]}

`frame` counts from 1, `time` is in seconds, `split` is train or test. A part of the training videos becomes the val
split.
"""

import json

from essl_fast import register_dataset
from essl_fast.data import media
from essl_fast.data.datasets import Annotations, Dataset, Files, Pairs, boxes_to_grid, choose_validation


def corners(box):
    """COCO's x, y, width, height as x1, y1, x2, y2."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


@register_dataset("coco", needs=("videos", "annotations"))
def read_coco(options):
    """The pairs of a COCO file: one for each image, with the boxes and classes of its annotations."""
    told = json.loads(options.annotations.read_text())
    names = {category["id"]: category["name"] for category in told["categories"]}
    of_image = {}
    for annotation in told["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    val = choose_validation(
        sorted({image["video"] for image in told["images"] if image["split"] == "train"}),
        options.validation,
        options.seed,
    )
    of_video = {}
    for image in told["images"]:
        split = "val" if image["video"] in val else image["split"]
        boxes = [corners(annotation["bbox"]) for annotation in of_image.get(image["id"], [])]
        classes = tuple(names[annotation["category_id"]] for annotation in of_image.get(image["id"], []))
        grid = boxes_to_grid(boxes, image["width"], image["height"]).tolist() if boxes else []
        of_video.setdefault((image["video"], split), []).append((image["frame"], image["time"], grid, classes))
    pairs = Pairs()
    for (video, split), found in of_video.items():
        pairs.add_video(video, split, found)
    return Dataset(
        "coco",
        Annotations(pairs),
        files_of=lambda video: Files(media.find_video(options.videos, video)),
        settings={"dataset": "coco", "validation": options.validation, "seed": options.seed},
    )
