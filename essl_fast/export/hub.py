"""A folder for the Hugging Face Hub: weights, settings, and a model card with the results; and its upload."""

from __future__ import annotations

import json
import re
from pathlib import Path

from essl_fast import checkpoints, config, models
from essl_fast.common.errors import InputError, reason
from essl_fast.common.files import atomic_file, parse_json

CARD = "README.md"
ROWS = {  # of summary.json -> what the card calls it
    "test": "this model",
    "untrained": "untrained",
    "centre_prior": "centre prior",
    "largest_object_prior": "largest-object prior",
}


def write_folder(
    out: Path, model: models.Localizer, settings: config.Config, state: dict, source: Path
) -> dict[Path, str]:
    """model.safetensors, config.json and README.md. As in `command`.

    Raises:
        InputError: the package safetensors is missing.
    """
    weights = out / checkpoints.MODEL_FILE
    checkpoints.save_safetensors(weights, model, settings, state)
    told = checkpoints.about(settings, state)
    texts = {
        out / checkpoints.CONFIG_FILE: json.dumps(told, indent=2) + "\n",
        out / CARD: card(settings, told, results_beside(source)),
    }
    for path, text in texts.items():
        with atomic_file(path) as file:
            file.write(text.encode())
    return {weights: checkpoints.check_safetensors(weights, model), **dict.fromkeys(texts, "")}


def results_beside(checkpoint: Path) -> dict:
    """What summary.json in a checkpoint's folder says of it, if the checkpoint is the run's best.pt; {} otherwise."""
    path = checkpoint.with_name("summary.json")
    if checkpoint.name != "best.pt" or not path.is_file():
        return {}
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({reason(error)}): delete it, the card then has no results") from error
    return found if isinstance(found, dict) else {}


def card(settings: config.Config, told: dict, summary: dict) -> str:
    """The model card, Markdown with the hub's header.

    Args:
        settings: of the model.
        told: what :func:`essl_fast.checkpoints.about` gives.
        summary: the run's results; {} if they are not known.
    """
    shape = settings.model
    demo = settings.data.root == "demo"
    data = "the demo's synthetic world" if demo else told["data"].get("dataset", "a data set of its owner's")
    networks = f"{shape.trunk} and {shape.audio}" + (" with PCM" if shape.pcm else "")
    lines = [
        "---",
        "library_name: essl_fast",
        "tags: [sound-source-localization, audio-visual]",
        "---",
        "",
        f"# {settings.objective.method} for event sound source localization",
        "",
        "Given a video frame and the 3 s of sound around it: where in the frame does the sound come from?",
        "",
        f"Method {settings.objective.method}, networks {networks}, trained on {data} with "
        "[essl_fast](https://pypi.org/project/essl-fast/).",
        "",
    ]
    if demo:
        classes = ", ".join(told["data"].get("classes", ()))
        lines += [f"It knows the demo's toy objects only ({classes}); on other videos its answers mean nothing.", ""]
    lines += _results(told, summary)
    lines += [
        "## Use",
        "",
        "```python",
        "import essl_fast",
        "",
        'model, settings = essl_fast.load_checkpoint("hf://ORG/NAME")',
        'finder = essl_fast.SoundFinder.open("hf://ORG/NAME")',
        "heat = finder.heatmap(image, sound, rate)  # (H, W, 3) uint8, (n,) float32 -> (224, 224)",
        "```",
        "",
        "`python -m essl_fast.localize VIDEO --checkpoint hf://ORG/NAME` draws the heat over a video.",
        "",
        "## What goes in and comes out",
        "",
        *(f"* **{name}**: {what}" for name, what in told["inputs"].items()),
        "",
    ]
    return "\n".join(lines)


def _results(told: dict, summary: dict) -> list[str]:
    """The section of the results; where they are not known, only how the weights were chosen."""
    found = {words: summary[name] for name, words in ROWS.items() if isinstance(summary.get(name), dict)}
    lines = []
    if found:
        lines += [
            "## Results",
            "",
            "| on the test split | pairs | success at cIoU 0.5, % | AUC, % |",
            "| --- | --- | --- | --- |",
        ]
        for words, one in found.items():
            lines.append(f"| {words} | {one['pairs']} | {100 * one['success_at_half']:.1f} | {100 * one['auc']:.1f} |")
        lines.append("")
    best = told.get("best") or {}
    if best:
        half, auc = best["score"]
        text = f"The weights are those of epoch {best['epoch']}, the best on the {best['split']} split"
        lines += [f"{text} ({100 * half:.1f}% success, AUC {100 * auc:.1f}%).", ""]
        if best["split"] == "test":
            lines += ["They were chosen on the test split itself, so these figures are optimistic.", ""]
        if best.get("min_score") is not None:
            least = f"A similarity below {best['min_score']:.3f} was wrong more often than right on that split."
            lines += [least, ""]
    return lines


def check_name(name: str) -> None:
    """InputError if `name` is no ORG/NAME of the hub, or the package huggingface_hub is missing."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise InputError(f"--push: {name} is no name of a model; it is like org/name")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--push: the package huggingface_hub is missing: pip install huggingface_hub (or pip install '.[export]' "
            "in the source folder)"
        ) from error


def push(folder: Path, name: str) -> str:
    """Upload a folder as the model ORG/NAME, which is made, private, if it is not there. A line for the user.

    Raises:
        InputError: the hub refuses it or is out of reach.
    """
    check_name(name)
    import huggingface_hub

    files = [checkpoints.MODEL_FILE, checkpoints.CONFIG_FILE, CARD]
    try:
        api = huggingface_hub.HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), allow_patterns=files)
    except Exception as error:  # a dozen types: no token, no right, no network
        raise InputError(
            f"--push: {name} cannot be uploaded ({reason(error)}); check the network and `hf auth login`; the folder "
            f"{folder} is complete"
        ) from error
    return f"uploaded: hf://{name}"
