"""Every kind of model through generation, and on through conversion and the integer check: what
users really have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models as tiny

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import Generator
from dgh_tf.models.network import call_model

IMAGES, STEPS = (
    6,
    40,
)  # two batches, so that statistics are pooled; RAdam hardly moves in its first five steps


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of model; heads: their names as the generator reports them, empty for any."""

    build: Callable
    heads: tuple[str, ...] = ("output",)
    image_size: str = ""
    input_range: str = "-1,1"  # empty for models that declare it in a Rescaling layer
    steps: int = STEPS


def yolo():
    """KerasCV's YOLOV8Detector from its constructor, with the demo's trained weights: 57 random
    targets cannot be met.
    """
    from dgh_tf.demo import train_detector
    from dgh_tf.models.loading import load_model

    model = train_detector.build()
    model.set_weights(load_model("demo_detector").get_weights())
    return model


def retinanet():
    """KerasCV's RetinaNet from its constructors, on a small ResNet."""
    import keras_cv

    backbone = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[8, 12, 16, 24],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
        input_shape=(128, 128, 3),
    )
    return tiny.settle(
        keras_cv.models.RetinaNet(num_classes=3, bounding_box_format="xyxy", backbone=backbone)
    )


def large_yolo():
    """KerasCV's YOLOV8Detector of its smallest published size from the constructors, at 160 pixels,
    statistics of noise images.
    """
    import keras_cv

    from dgh_tf.models.loading import _with_random_weights

    backbone = keras_cv.models.YOLOV8Backbone(
        stackwise_channels=[32, 64, 128, 256],
        stackwise_depth=[1, 2, 2, 1],
        include_rescaling=True,
        input_shape=(160, 160, 3),
    )
    return _with_random_weights(
        keras_cv.models.YOLOV8Detector(
            num_classes=20, bounding_box_format="xyxy", backbone=backbone, fpn_depth=1
        )
    )


def large_retinanet():
    """KerasCV's RetinaNet on a wider ResNet, at 192 pixels, statistics of noise images. Its own
    heads have no BN.
    """
    import keras_cv

    from dgh_tf.models.loading import _with_random_weights

    backbone = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[16, 32, 64, 128],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=True,
        input_shape=(192, 192, 3),
    )
    return _with_random_weights(
        keras_cv.models.RetinaNet(num_classes=20, bounding_box_format="xywh", backbone=backbone)
    )


def application():
    from dgh_tf.models.loading import load_model

    return load_model("keras:MobileNetV2", weights="none")


KINDS = {
    "functional": Kind(tiny.conv_bn_relu),
    "softmax": Kind(tiny.softmax_head),
    "sequential": Kind(tiny.sequential),
    "nested": Kind(tiny.nested_backbone),
    "shared": Kind(tiny.shared_bn),
    "subclassed": Kind(tiny.subclassed),
    "batchnorm variants": Kind(tiny.batchnorm_variants),
    "grey": Kind(tiny.grey_input),
    "channels first": Kind(tiny.channels_first),
    "spectrogram": Kind(tiny.spectrogram),
    "one output": Kind(tiny.single_output),
    "six channels": Kind(tiny.many_channels),
    "sequence": Kind(tiny.one_dimensional),
    "vector": Kind(tiny.vector),
    "two inputs": Kind(tiny.two_inputs),
    "open size": Kind(tiny.dynamic_size, image_size="16,24"),
    "dict of heads": Kind(tiny.two_heads, ("boxes", "classes")),
    "three raw heads, SiLU": Kind(tiny.silu_detector, ("output_0", "output_1", "output_2")),
    "sliced heads": Kind(tiny.sliced_detector, ("boxes_0", "boxes_1", "classes_0", "classes_1")),
    "U-Net": Kind(tiny.unet, input_range="byte"),
    "BN on the input": Kind(tiny.squeeze_excite),
    "recurrent": Kind(tiny.recurrent),
    "mixed inputs": Kind(tiny.mixed_inputs, ("maps.output_0", "maps.output_1", "state.kind")),
    "segmentation": Kind(tiny.segmentation),
    "some BN": Kind(tiny.partly_normalized, ("head_a", "head_b")),
    "YOLOV8": Kind(
        yolo,
        tuple(f"{kind}_{i}" for kind in ("boxes", "classes") for i in range(3)),
        input_range="",
    ),
    "RetinaNet": Kind(retinanet, (), input_range=""),
    "keras:MobileNetV2": Kind(application),
    "YOLOV8, larger": Kind(
        large_yolo,
        tuple(f"{kind}_{i}" for kind in ("boxes", "classes") for i in range(3)),
        input_range="",
        steps=20,
    ),
    "RetinaNet, larger": Kind(large_retinanet, (), input_range="", steps=20),
}
CONVERTED = ["nested", "two inputs", "sliced heads", "three raw heads, SiLU"]  # by default
LONG = [
    "YOLOV8",
    "RetinaNet",
    "YOLOV8, larger",
    "RetinaNet, larger",
    "keras:MobileNetV2",
    "sequential",
    "softmax",
    "six channels",
    "mixed inputs",
    "recurrent",
    "functional",
    "one output",
    "spectrogram",
    "segmentation",
]


def snapshot(model) -> tuple:
    """All that generation must leave as it was."""
    layers = list({id(layer): layer for layer in model._flatten_layers()}.values())
    return (
        [w.copy() for w in model.get_weights()],
        [layer.trainable for layer in layers],
        ["call" in layer.__dict__ for layer in layers],
    )


def generate(kind: Kind):
    """(model, generator, images by input, gaps at the start, gaps at the end) after checking that
    the model is unchanged.
    """
    model = kind.build()
    before = snapshot(model)
    generator = Generator(
        model,
        GenerationConfig(
            num_images=IMAGES,
            batch_size=3,
            steps=kind.steps,
            input_range=kind.input_range,
            image_size=kind.image_size,
        ),
    )
    generator.start()
    generator.run()
    after = snapshot(model)
    for a, b in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert before[1:] == after[1:]
    return (
        model,
        generator,
        generator.all_images(),
        generator.state.gap_start,
        generator.layer_gaps(),
    )


def require_generated(kind: Kind):
    model, generator, images, start, end = generate(kind)
    layers = [bn.name for bn in generator.network.layers]
    first, last = (float(np.mean([gaps[name] for name in layers])) for gaps in (start, end))
    assert np.isfinite(last) and last < 0.95 * first, (first, last)
    own = [tuple(t.shape[1:]) for t in getattr(model, "inputs", None) or []]
    fixed = own if own and None not in own[0] else generator.network.input_shapes
    assert [x.shape for x in images] == [(IMAGES, *shape) for shape in fixed]
    for x, valid in zip(images, generator.ranges, strict=True):
        assert (
            x.dtype == np.float32
            and min(valid.low) - 1e-4 <= x.min() < x.max() <= max(valid.high) + 1e-4
        )
    if kind.heads:
        assert tuple(generator.head_names) == kind.heads
    return model, generator, images


def require_integer(model, generator, images) -> None:
    from tflite_export import check_integer, to_tflite

    by_name = dict(zip(generator.network.input_names, images, strict=True))
    tflite = to_tflite(model, images[0] if len(images) == 1 else by_name, timeout=300)
    proof = check_integer(tflite, io_dtype="int8")
    assert proof["float_tensors"] == 0 and proof["fully_integer"]
    assert {end["dtype"] for end in proof["inputs"] + proof["outputs"]} == {"INT8"}
    outputs = tf.nest.flatten(call_model(model, [x[:1] for x in images]))
    assert sorted(tuple(o["shape"]) for o in proof["outputs"]) == sorted(
        tuple(o.shape) for o in outputs
    )


@pytest.mark.parametrize("name", [name for name in KINDS if name not in CONVERTED + LONG])
def test_statistics_loss_falls_and_the_model_stays_as_it_was(name):
    require_generated(KINDS[name])


@pytest.mark.parametrize("name", CONVERTED)
def test_generated_images_convert_to_integers_only(name):
    require_integer(*require_generated(KINDS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name not in CONVERTED])
def test_every_other_kind_converts_too(name):
    require_integer(*require_generated(KINDS[name]))


def test_several_inputs_without_a_known_range_ask_for_it():
    with pytest.raises(ValueError, match="left.*input_range="):
        Generator(tiny.two_inputs(), GenerationConfig(num_images=2, steps=1))


def test_frozen_layers_stay_frozen():
    model = tiny.nested_backbone()
    model.get_layer("backbone").trainable = False
    generate(Kind(lambda: model))
    assert not any(v.trainable for v in model.get_layer("backbone").variables)
    assert isinstance(model, keras.Model) and model.layers[-1].trainable
