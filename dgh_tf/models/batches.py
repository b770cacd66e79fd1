"""Models that fix how many images they take at once, with batches of any size.

Images are made in batches of the user's choice, and a .tflite file takes one image. A model built
with keras.Input(batch_shape=(8, ...)) is built again without that number, given the same weights,
and believed only after both gave the same outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_TRIED = 3  # images that run alone and together
_SCALES = (1.0, 16.0, 256.0)  # of the noise, whatever the input's unit
_CLOSE = 1e-3  # of an output's largest value: another order of sums, not another image
_BATCH_SHAPES = ("batch_shape", "batch_input_shape")


def with_any_batch(model: Any) -> Any:
    """The model itself, or where it takes batches of one size only, one that takes any.

    Args:
      model: a Keras 3 or tf_keras model.
    Raises: ValueError where the outputs of an image depend on its place in the batch or on the
      images beside it, and for layers that keep a state from one call to the next.
    """
    _require_stateless(model)
    sizes = {size for each in _models(model) for size in _fixed_sizes(each)}
    if not sizes or not _inputs(model):
        return model
    try:
        (size,) = sizes
        rebuilt = type(model).from_config(_freed(model.get_config(), model))
        if not rebuilt.built:
            rebuilt.build(rebuilt.input_shape)
        rebuilt.set_weights(model.get_weights())
        same = _gives_the_same(model, rebuilt, size)
    except Exception:  # Keras and TensorFlow raise any kind where shapes do not fit
        same = False
    if not same:
        known = " or ".join(map(str, sorted(sizes)))
        raise ValueError(
            f"Model '{model.name}' takes batches of {known} alone: what an image gives depends on "
            "its place in the batch or on the images beside it, or a layer holds that number. "
            "Build it with keras.Input(shape) in place of batch_shape, with -1 wherever a shape "
            "names the batch, and give it the same weights with set_weights."
        )
    return rebuilt


def require_images_apart(
    model: Any, apart: Sequence[Mapping[str, Any]], together: Mapping[str, Any]
) -> None:
    """Refuses a model that mixes the images of a batch: alone, as a .tflite file takes them, they
    give something else.

    Args:
      model: Keras model, for its name in messages.
      apart: the outputs of each of some images by name, [1, ...].
      together: the same of all of them, [images, ...].
    Raises: ValueError naming the output.
    """
    for name, values in together.items():
        if not _close(np.concatenate([np.asarray(one[name]) for one in apart]), np.asarray(values)):
            raise ValueError(
                f"Output '{name}' of model '{model.name}' mixes the images of a batch: alone, as a "
                ".tflite file takes it, an image gives something else than among others. Take out "
                "the layer that computes over the batch axis (axis 0), or compute it outside the "
                "model."
            )


def different_images(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """A few images of each array [images, ...], no two of them equal, float32 in its range."""
    shades = np.linspace(1.0, 0.5, _TRIED, dtype=np.float32)
    return [
        np.stack([shade * x[i % len(x)] for i, shade in enumerate(shades)]).astype(np.float32)
        for x in arrays
    ]


def noise_images(shapes: Sequence[Sequence[int]], *, count: int = _TRIED) -> list[np.ndarray]:
    """Float32 [count, *shape] for each shape, at several scales in turn."""
    rng = np.random.default_rng(0)
    scales = [_SCALES[i % len(_SCALES)] for i in range(count)]
    return [
        np.stack([scale * rng.standard_normal(shape, np.float32) for scale in scales])
        for shape in shapes
    ]


def _require_stateless(model: Any) -> None:
    for layer in model._flatten_layers():
        if not hasattr(layer, "layers") and getattr(layer, "stateful", False) is True:
            raise ValueError(
                f"Layer '{layer.name}' of model '{model.name}' keeps its state from one call to "
                "the next (stateful=True); here and in a .tflite file each call starts from zero. "
                "Build the model with stateful=False and give it the same weights with "
                "set_weights, or make the state an input and an output."
            )


def _models(model: Any) -> Iterator[Any]:
    """The model and those nested in it, each with inputs of its own."""
    for layer in {id(each): each for each in (model, *model._flatten_layers())}.values():
        if hasattr(layer, "layers"):
            yield layer


def _inputs(model: Any) -> list[Any]:
    try:
        return list(getattr(model, "inputs", None) or [])
    except (ValueError, AttributeError):  # a Sequential model that was never called
        return []


def _fixed_sizes(model: Any) -> list[int]:
    shapes = [tuple(tensor.shape) for tensor in _inputs(model)]
    return [int(shape[0]) for shape in shapes if shape and shape[0] is not None]


def _freed(config: Any, model: Any) -> Any:
    """A model's config without the size of its batch: a changed copy."""
    config = {**config, "layers": [_freed_layer(layer, model) for layer in config["layers"]]}
    if isinstance(config.get("build_input_shape"), list | tuple):
        config["build_input_shape"] = (None, *config["build_input_shape"][1:])
    return config


def _freed_layer(layer: dict[str, Any], model: Any) -> dict[str, Any]:
    inner, name = dict(layer["config"]), layer["config"]["name"]
    built = {key: value for key, value in layer.items() if key != "build_config"}
    for key in _BATCH_SHAPES:
        if inner.get(key):
            inner[key] = (None, *inner[key][1:])
    if "layers" in inner:
        nested = next(each for each in _models(model) if each.name == name)
        return {**built, "config": _freed(inner, nested)}
    if "newshape" in inner:  # an operation of keras.ops
        inner["newshape"] = _freed_shape(model, name)
    if inner.get("function") == "reshape":  # a TensorFlow function as a layer of Keras 2
        shape = {"shape": list(_freed_shape(model, name))}
        nodes = [_with_arguments(node, shape) for node in layer["inbound_nodes"]]
        return {**built, "config": inner, "inbound_nodes": nodes}
    return {**built, "config": inner}


def _with_arguments(node: list[Any], arguments: dict[str, Any]) -> list[Any]:
    """An inbound node of Keras 2, [layer, node, tensor, arguments], with others of the latter."""
    return [*node[:3], {**node[3], **arguments}]


def _freed_shape(model: Any, name: str) -> tuple[int, ...]:
    """The shape that a reshape gives, its first side left open."""
    import tensorflow as tf

    operations = getattr(model, "operations", None) or model.layers
    node = next(each for each in operations if each.name == name)._inbound_nodes[0]
    return (-1, *(int(side) for side in tf.nest.flatten(node.outputs)[0].shape[1:]))


def _gives_the_same(model: Any, rebuilt: Any, size: int) -> bool:
    """Whether the second model gives for images alone and together what the first gives in batches
    of `size`.
    """
    import tensorflow as tf

    def outputs(each: Any, batch: list[np.ndarray]) -> list[np.ndarray]:
        given = tf.nest.pack_sequence_as(each.input, batch) if len(batch) > 1 else batch[0]
        return [np.asarray(value) for value in tf.nest.flatten(each(given, training=False))]

    def joined(each: Any, *, step: int, count: int) -> list[np.ndarray]:
        parts = [outputs(each, [x[i : i + step] for x in noise]) for i in range(0, count, step)]
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    shapes = [tuple(t.shape[1:]) for t in _inputs(model)]
    count = size * math.ceil(_TRIED / size)
    noise = noise_images(shapes, count=count)
    wanted = [values[:_TRIED] for values in joined(model, step=size, count=count)]
    return all(
        _close(w, f)
        for step in (1, _TRIED)
        for w, f in zip(wanted, joined(rebuilt, step=step, count=_TRIED), strict=True)
    )


def _close(wanted: np.ndarray, found: np.ndarray) -> bool:
    if wanted.shape != found.shape:
        return False
    size = np.max(np.abs(wanted[np.isfinite(wanted)]), initial=0.0)
    return bool(np.allclose(wanted, found, rtol=0, atol=_CLOSE * size, equal_nan=True))
