"""A float file that is made already is not made again, and changes nothing."""

import pytest
import tiny_models

from tflite_export import to_float_tflite
from tflite_export.conversion import converter
from tflite_export.quantization import quantize


@pytest.mark.parametrize(
    "options, conversions",
    [
        ({}, 0),
        ({"head": "logits"}, 0),
        ({"algorithm": "mse"}, 0),
        ({"algorithm": "minmax", "scheme": "w4a8"}, 0),
        ({"scheme": "int16x8"}, 1),  # by the converter, from the model itself
    ],
)
def test_a_given_float_file_is_used(monkeypatch, options, conversions):
    model, images = tiny_models.softmax_head(), tiny_models.images(8)
    float_tflite = to_float_tflite(model)
    want = quantize(model, images, **options)
    frozen = []

    def counted(*arguments, **others):
        frozen.append(arguments)
        return save_frozen(*arguments, **others)

    save_frozen = converter.save_frozen
    monkeypatch.setattr(converter, "save_frozen", counted)
    made = quantize(model, images, float_tflite=float_tflite, **options)
    assert made.tflite == want.tflite and len(frozen) == conversions
