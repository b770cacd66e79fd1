"""TensorBoard summaries: read back by TensorBoard's own reader; a missing package is told before
anything runs.
"""

import importlib.util

import numpy as np
import pytest

from dgh_tf.run import tensorboard


def test_a_missing_package_is_told_in_one_line(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    with pytest.raises(ValueError, match="pip install tensorboard"):
        tensorboard.require()


def test_figures_and_preview_are_read_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    summaries = tensorboard.Summaries(tmp_path)
    for step in (1, 2):
        summaries.add(step, {"bn": 1.0 / step, "spread/output": 3.0})
    summaries.finish(2, preview=np.zeros((8, 8, 3), np.uint8), gaps={"bn_1": 0.25})
    found = accumulator.EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}
    )
    found.Reload()
    assert set(found.Tags()["tensors"]) == {"bn", "spread/output", "gap/bn_1", "preview"}
    values = [
        (
            event.step,
            float(
                np.frombuffer(event.tensor_proto.tensor_content, np.float32)[0]
                if event.tensor_proto.tensor_content
                else event.tensor_proto.float_val[0]
            ),
        )
        for event in found.Tensors("bn")
    ]
    assert values == [(1, 1.0), (2, 0.5)]
