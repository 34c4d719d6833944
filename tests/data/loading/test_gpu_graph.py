"""The graphs that a GPU runs, as far as they go without a driver: DALI knows every operator and argument, and the graph
is put together up to the point where DALI looks for the GPU."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, backend, fn

from essl_fast.data.loading import graph, reels
from essl_fast.data.media import hardware, nvdec

# Operator of `fn` → its name in DALI's registry.
OPERATORS = {
    "decoders.image": "decoders__Image",
    "decoders.video": "decoders__Video",
    "coord_transform": "CoordTransform",
    "resize": "Resize",
    "squeeze": "Squeeze",
}


@pytest.fixture
def called(monkeypatch):
    """(operator, device, arguments) of each operator that a graph asks for."""
    found = []
    for name in OPERATORS:
        *place, last = name.split(".")
        where = getattr(fn, place[0]) if place else fn
        real = getattr(where, last)

        def told(*inputs, _name=name, _real=real, **arguments):
            device = arguments.get("device") or getattr(inputs[0], "device", "cpu")
            found.append((_name, device, set(arguments) - {"device"}))
            return _real(*inputs, **arguments)

        monkeypatch.setattr(where, last, told)
    return found


@pytest.fixture
def built(monkeypatch):
    """Pipelines in the place of `build`, which needs a driver."""
    found = []
    monkeypatch.setattr(Pipeline, "build", lambda self: found.append(self))
    monkeypatch.setattr(nvdec, "engines", lambda device=0: 7)
    return found


def graphs(built) -> dict[str, callable]:
    device = torch.device("cuda", 0)

    def training(**kinds):
        return lambda: graph.build_graph(lambda: None, 4, 32, device, 2, 2, size_hint=(640, 360), **kinds)

    return {
        "pictures": training(),
        "clips": training(jpegs=False, clips=True),
        "both": training(clips=True),
        "reels": lambda: reels._pipeline(lambda: None, 32, device),
        "prepare": lambda: hardware._pipeline.__wrapped__("mixed"),
    }


WANTED = {
    "pictures": {"decoders.image": "mixed", "resize": "gpu"},
    "clips": {"decoders.video": "mixed", "coord_transform": "gpu", "squeeze": "gpu", "resize": "gpu"},
    "both": {
        "decoders.image": "mixed",
        "decoders.video": "mixed",
        "coord_transform": "gpu",
        "squeeze": "gpu",
        "resize": "gpu",
    },
    "reels": {"decoders.video": "mixed", "coord_transform": "gpu", "resize": "gpu"},
    "prepare": {"decoders.video": "mixed", "coord_transform": "gpu", "squeeze": "gpu"},
}


@pytest.mark.parametrize("name", WANTED)
def test_dali_knows_every_operator_and_argument(called, built, name):
    graphs(built)[name]()
    (pipeline,) = built
    pipeline._py_graph_built or pipeline._build_graph()
    assert {operator: device for operator, device, _ in called} == WANTED[name]
    for operator, device, arguments in called:
        schema = backend.GetSchema(OPERATORS[operator])
        assert arguments <= set(schema.GetArgumentNames()) | {"name"}, operator
        registered = {"mixed": backend.RegisteredMixedOps, "gpu": backend.RegisteredGPUOps}[device]()
        assert OPERATORS[operator] in registered, f"{operator} has no form for {device}"
    assert pipeline.num_threads == (2 if name in ("pictures", "clips", "both") else 7)
    assert json.dumps([str(type(out)) for out in pipeline._graph_out])
    assert all(out.device == "gpu" for out in pipeline._graph_out)


def test_the_jpeg_decoder_is_asked_for_what_a_cpu_does(called, built):
    """Chroma is interpolated, as libjpeg-turbo does in Pillow and in DALI on a CPU."""
    graphs(built)["pictures"]()
    built[0]._py_graph_built or built[0]._build_graph()
    (arguments,) = (arguments for operator, _, arguments in called if operator == "decoders.image")
    assert {"jpeg_fancy_upsampling", "hw_decoder_load", "adjust_orientation"} <= arguments


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_only_the_driver_is_missing():
    """DALI itself builds the graph up to its first question to the driver."""
    code = """
import torch
from essl_fast.data.loading.graph import build_graph
try:
    build_graph(lambda: None, 4, 32, torch.device("cuda", 0), 2, 2, clips=True)
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert "cuda" in done.stdout.lower() or "nvml" in done.stdout.lower(), done.stdout + done.stderr


def test_the_correction_runs_on_pictures_of_any_size():
    """`coord_transform` of uint8 pixels, a matrix each: what `tests.tools.dali.corrected` says."""
    from tests.tools.dali import corrected

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (2, height, width, 3), np.uint8) for height, width in ((5, 7), (8, 3), (1, 1))]
    turns = [rng.normal(0, 0.6, (3, 4)).astype(np.float32) for _ in pictures]
    pipeline = Pipeline(batch_size=3, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        held = fn.external_source(name="pictures", ndim=4)
        pipeline.set_outputs(
            fn.coord_transform(held, MT=fn.external_source(name="turns", ndim=2), dtype=hardware.types.UINT8)
        )
    pipeline.build()
    (found,) = pipeline.run(pictures=pictures, turns=turns)
    for at, (picture, turn) in enumerate(zip(pictures, turns, strict=True)):
        assert np.abs(np.array(found.at(at)).astype(int) - corrected(picture, turn)).max() <= 1
