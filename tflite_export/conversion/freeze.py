"""A Keras model becomes a SavedModel with constant weights, batch 1 and names of its own for
inputs and outputs.

What TensorFlow's converter crashes on is written in another way here, and what it has no good
integer kernel for in `integer_forms`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.quiet import held_stderr
from dgh_tf.common.text import in_one_line
from dgh_tf.models.batches import (
    different_images,
    noise_images,
    require_images_apart,
    with_any_batch,
)
from dgh_tf.models.choices import first_choice, is_choice, layer_name
from dgh_tf.models.tflite.model import plain
from tflite_export.calibration.check import Images
from tflite_export.calibration.collect import as_images
from tflite_export.conversion.integer_forms import with_integer_forms


def _distinct(names: Sequence[str], *, own: Collection[str] = ()) -> list[str]:
    """The names, with a number behind every one that another had before.

    own: the model's own names: nothing that was changed takes one of them from its owner.
    """
    taken, found = set(), []
    for name, given in zip(names, own or names, strict=True):
        if name in taken or (name != given and name in own):
            numbered = (f"{name}_{i}" for i in itertools.count(1))
            name = next(n for n in numbered if n not in taken and n not in names and n not in own)
        taken.add(name)
        found.append(name)
    return found


def file_names(names: Sequence[str], *, side: str) -> dict[str, str]:
    """The file's names by those under which TensorFlow traces the model: signatures of TensorFlow
    take ASCII alone. side: input or output.
    """
    traced = [n if n.isascii() else f"{side}_{i}" for i, n in enumerate(names)]
    return dict(zip(_distinct(traced), names, strict=True))


def _is_functional(model: Any) -> bool:
    """Whether the model knows its symbolic inputs; subclassed models do not."""
    return bool(getattr(model, "inputs", None))


def symbolic_input(model: Any) -> Any:
    """The model's symbolic input: a tensor, list or dict. Sequential models loaded and never called
    have only `inputs`.
    """
    return model.input if hasattr(model, "input") else model.inputs[0]


def input_shapes(model: Any, images: Images | None = None) -> dict[str, tuple[int | None, ...]]:
    """Shapes without the batch axis by input name, in the model's order.

    Args:
      model: a Keras 3 or tf_keras model.
      images: read for the names and shapes of a subclassed model, which declares none.
    Raises:
      ValueError: an input or output that is not float, inputs of one name in the file, layers that
        hold integers already, or a subclassed model without images.
    """
    import tensorflow as tf

    _require_floats(model)
    if _is_functional(model):
        tensors = tf.nest.flatten(symbolic_input(model))
        for tensor in tensors:
            if not tf.as_dtype(tensor.dtype).is_floating:
                raise ValueError(
                    f"Input '{tensor.name}' of model '{model.name}' takes "
                    f"{tf.as_dtype(tensor.dtype).name}; expected a "
                    "float input, such as an image. Export the part of the model behind that input."
                )
        shapes = {plain(tensor.name): tuple(tensor.shape[1:]) for tensor in tensors}
        if len(shapes) < len(tensors):
            raise ValueError(
                f"Inputs {', '.join(t.name for t in tensors)} of model '{model.name}' "
                "would have the same name in the file. "
                "Rename them so that they differ in letters or digits."
            )
        return shapes
    if images is None:
        raise ValueError(
            f"Model '{model.name}' is subclassed and declares no inputs, so their "
            "shapes are unknown. Pass images."
        )
    arrays = images if isinstance(images, Mapping) else {"input": images}
    return {name: tuple(np.shape(array)[1:]) for name, array in arrays.items()}


def collected(model: Any, source: Any) -> Images:
    """Calibration images from any form that `as_images` takes, under the file's input names.

    Raises TypeError or ValueError for what holds no images.
    """
    shapes = input_shapes(model) if _is_functional(model) else None
    return as_images(source, shapes=shapes, name=plain)


def _require_floats(model: Any) -> None:
    """Raises ValueError for a model that Keras has quantized, and for outputs that are no numbers
    of the network, such as the position of the highest.
    """
    import tensorflow as tf

    quantized = [x.name for x in model._flatten_layers() if getattr(x, "quantization_mode", None)]
    if quantized:
        more = f" and {len(quantized) - 1} more hold" if len(quantized) > 1 else " holds"
        raise ValueError(
            f"Model '{model.name}' is already quantized: layer '{quantized[0]}'{more} integers of "
            "Keras' own scheme, which TFLite does not know. Give the model as it was before "
            "model.quantize."
        )
    for tensor in tf.nest.flatten(getattr(model, "outputs", None) or []):
        if is_choice(tensor):
            choice = first_choice(tensor)
            raise ValueError(
                f"The head is in the way: layer '{layer_name(choice)}' of model '{model.name}' "
                f"gives {choice.dtype}, a choice that follows from the network's numbers "
                "and not one of them, so it has no scale. Give --head=logits (in "
                "Python the argument head), which ends the file before that layer, "
                "and choose outside."
            )


def named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    """Outputs as named in the .tflite file: dict keys (path joined by _), layer names of a list,
    'output' for a single one.
    """
    found = list(_walked(outputs, getattr(model, "output_names", None) or []))
    own = [name for name, _ in found]
    names = _distinct([plain(name) for name in own], own=own)
    return dict(zip(names, (tensor for _, tensor in found), strict=True))


def _walked(outputs: Any, names: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of every output, as `named_outputs` names them."""
    if isinstance(outputs, Mapping):
        for key in sorted(outputs):
            inner = list(_walked(outputs[key]))
            for name, tensor in inner:
                yield str(key) if len(inner) == 1 else f"{key}_{name}", tensor
    elif not isinstance(outputs, (list, tuple)):
        yield "output", outputs
    elif len(outputs) == 1:
        yield from _walked(outputs[0], names)
    else:
        nested = any(isinstance(o, (Mapping, list, tuple)) for o in outputs)
        if nested or len(set(names)) != len(outputs):
            names = [f"output_{i}" for i in range(len(outputs))]
        for name, output in zip(names, outputs, strict=True):
            inner = list(_walked(output))
            for n, tensor in inner:
                yield name if len(inner) == 1 else f"{name}_{n}", tensor


def _as_called(names: list[str], tensors: Sequence[Any]) -> Any:
    """A subclassed model's argument from the names that dgh_tf gives its inputs: input; input_0,
    input_1, ... of a list; keys of a dict.
    """
    if names == ["input"]:
        return tensors[0]
    return (
        list(tensors)
        if names == [f"input_{i}" for i in range(len(names))]
        else dict(zip(names, tensors, strict=True))
    )


@contextlib.contextmanager
def _unrolled(model: Any) -> Iterator[None]:
    """Recurrent layers written out step by step while the model is traced: TensorFlow's converter
    crashes on their loops.
    """
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "unroll", None) is False]
    settings = {
        "unroll": True,
        "_could_use_gpu_kernel": False,
    }  # the latter is tf_keras's: true, it calls a loop whatever unroll says
    before = [
        (layer, name, getattr(layer, name))
        for layer in layers
        for name in settings
        if hasattr(layer, name)
    ]
    for layer, name, _ in before:
        setattr(layer, name, settings[name])
    try:
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


@contextlib.contextmanager
def _valid_scopes(model: Any) -> Iterator[None]:
    """Layers under names that TensorFlow takes as scopes while the model is traced: no space, no
    script but ASCII.
    """
    before = []
    for layer in {id(each): each for each in (model, *model._flatten_layers())}.values():
        name = re.sub(r"[^A-Za-z0-9_./>-]", "_", layer.name)
        if layer is model and not re.match("[A-Za-z0-9.]", name):
            name = f"model{name}"
        if name != layer.name:
            attribute = "name" if "name" in vars(layer) else "_name"  # of Keras 3, of tf_keras
            before.append((layer, attribute, layer.name))
            setattr(layer, attribute, name)
    try:
        yield
    finally:
        for layer, attribute, name in before:
            setattr(layer, attribute, name)


def save_frozen(
    model: Any,
    folder: str | os.PathLike,
    *,
    shapes: Mapping[str, Sequence[int]],
    images: Mapping[str, np.ndarray] | None = None,
    activation_bits: int = 8,
) -> list[str]:
    """Saves `model` with its weights as constants and batch 1 to a SavedModel; returns the output
    names in the model's order.

    The signature serving_default takes float32 [1, ...shape] by input name and gives a dict by
    output name, both as `file_names` has them traced.

    images: [images, ...] by input name, which show that the model treats each by itself; empty:
      noise shows it; None: nothing does. Raises ValueError where it does not.
    activation_bits: see `with_integer_forms`.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    order: list[str] = []

    def called(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        functional = _is_functional(model)
        packed = (
            tf.nest.pack_sequence_as(symbolic_input(model), tensors)
            if functional
            else _as_called(list(shapes), tensors)
        )
        return named_outputs(model, model(packed, training=False))

    def named(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = called(*tensors)
        order[:] = outputs
        traced = zip(file_names(order, side="output"), outputs.values(), strict=True)
        return {name: tf.convert_to_tensor(output) for name, output in traced}

    specs = [
        tf.TensorSpec((1, *shape), tf.float32, name=name)
        for name, shape in zip(file_names(list(shapes), side="input"), shapes.values(), strict=True)
    ]
    with _unrolled(model), _valid_scopes(model):
        try:
            traced = tf.function(named, autograph=False).get_concrete_function(*specs)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"Model '{model.name}' cannot take one image: {in_one_line(error)}. Build it so "
                "that it takes batches of any size, with -1 wherever a shape names the batch."
            ) from error
    if images is not None:
        given = [images[name] for name in shapes] if images else None
        tried = different_images(given) if given else noise_images(list(shapes.values()))
        _require_images_apart(model, called, traced, tried)
    names = sorted(
        traced.structured_outputs
    )  # the frozen function's outputs are flat, in this order
    with held_stderr():  # TensorFlow 2.19 counts GPUs aloud whenever it optimizes a graph
        frozen = with_integer_forms(
            convert_variables_to_constants_v2(traced), activation_bits=activation_bits
        )

    def signature(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        # identity: a name of its own for every output, also when two outputs are one tensor
        return {
            name: tf.identity(value) for name, value in zip(names, frozen(*tensors), strict=True)
        }

    module = tf.Module()
    module.signature = tf.function(signature, autograph=False, input_signature=specs)
    # SiLU's custom gradient captures tensors that a frozen graph does not hold; inference needs no
    # gradient
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), signatures=module.signature, options=options)
    return order


def _require_images_apart(
    model: Any, called: Callable, traced: Callable, images: Sequence[np.ndarray]
) -> None:
    """Raises ValueError for a model whose images give something else alone than together.

    called: the model on tensors of any batch. traced: the same, traced at batch 1.
    """
    import tensorflow as tf

    together = called(*map(tf.constant, images))
    names = file_names(list(together), side="output")
    apart = [traced(*(tf.constant(x[i : i + 1]) for x in images)) for i in range(len(images[0]))]
    named = [{names[traced_as]: value for traced_as, value in one.items()} for one in apart]
    require_images_apart(model, named, together)


def in_float32(model: Any) -> Any:
    """The model with float32 layers, since the converter has kernels for no other precision, and
    with batches of any size. Raises ValueError where it cannot be rebuilt.
    """
    from dgh_tf.models import loading

    model = with_any_batch(model)
    try:
        return loading.in_float32(model)
    except Exception as error:  # a subclass's from_config can fail in any way
        raise ValueError(
            f"Model '{model.name}' computes in half or double precision and cannot be rebuilt "
            f"in float32 ({type(error).__name__}). "
            "Build it with the dtype policy float32 and give it the same weights with set_weights."
        ) from error
