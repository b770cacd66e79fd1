"""TFMOT's fake quantization laid out as TFLite computes. Importing this turns tf.keras to
Keras 2 for good.

TFMOT's quantizers are used as they are; three of its choices are not. Its pattern for a convolution
followed by ReLU leaves the weights without any quantizer. It quantizes kernels along their last
axis, which of a depthwise kernel is the
multiplier: one range for all channels, where TFLite has a scale per channel. Its dense layers keep
their one range for all outputs: the converter does not take more of fake quantization.
"""

from __future__ import annotations

import math
from typing import Any

# before anything else of TensorFlow looks at tf.keras
import tensorflow_model_optimization as tfmot
from tensorflow_model_optimization.python.core.quantization.keras import quantizers
from tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit import (  # noqa: E501
    default_n_bit_quantize_registry,
    default_n_bit_transforms,
)
from tensorflow_model_optimization.python.core.quantization.keras.graph_transformations import (
    model_transformer,
)

ACTIVATION_BITS = 8
# of a layer: the attribute with its kernel, and how many of the kernel's last axes number channels
# with a range of their own
KERNELS = {
    "Conv1D": ("kernel", 1),
    "Conv2D": ("kernel", 1),
    "DepthwiseConv2D": ("depthwise_kernel", 2),
    "Dense": ("kernel", 0),
}
COMPUTING = {
    "Add",
    "Multiply",
    "Subtract",
    "Maximum",
    "Minimum",
}  # their output has a range of its own
FIXED = {"softmax", "sigmoid", "tanh"}  # their output has a range that TFLite prescribes


class ChannelQuantizer(quantizers.LastValueQuantizer):
    """Fake-quantizes a kernel symmetrically with a range per output channel: the largest weight of
    the channel.

    Args:
      num_bits: of the integers, 4 or 8.
      channel_axes: how many of the last axes number the channels: 2 for depthwise kernels, 0 for
        one range, else 1.
    """

    def __init__(self, *, num_bits: int, channel_axes: int) -> None:
        super().__init__(
            num_bits=num_bits, per_axis=channel_axes > 0, symmetric=True, narrow_range=True
        )
        self.channel_axes = channel_axes

    def flat_shape(self, shape: Any) -> list[int]:
        """[1, 1, weights per channel, channels]: the operator takes 1, 2 or 4 axes."""
        return [1, 1, -1, math.prod(shape[len(shape) - self.channel_axes :])]

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return self._add_range_weights(layer, name, self.per_axis, self.flat_shape(tensor_shape))

    def __call__(self, inputs: Any, training: bool, weights: dict[str, Any], **kwargs: Any) -> Any:
        import tensorflow as tf

        if not self.per_axis or (self.channel_axes == 1 and inputs.shape.rank == 4):
            return super().__call__(inputs, training, weights, **kwargs)
        flat = super().__call__(
            tf.reshape(inputs, self.flat_shape(inputs.shape)), training, weights, **kwargs
        )
        return tf.reshape(flat, inputs.shape)

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits, "channel_axes": self.channel_axes}


class LayerConfig(tfmot.quantization.keras.QuantizeConfig):
    """What of a layer is fake-quantized.

    Args:
      kernel: name of the layer's kernel, or None.
      bits: of its quantizer, 4 or 8.
      channel_axes: of its quantizer, see `ChannelQuantizer`.
      output: whether the output is quantized to 8 bits.
    """

    def __init__(self, *, kernel: str | None, bits: int, channel_axes: int, output: bool) -> None:
        self.kernel, self.bits, self.channel_axes, self.output = kernel, bits, channel_axes, output

    def get_weights_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        if self.kernel is None:
            return []
        return [
            (
                getattr(layer, self.kernel),
                ChannelQuantizer(num_bits=self.bits, channel_axes=self.channel_axes),
            )
        ]

    def get_activations_and_quantizers(self, layer: Any) -> list[tuple[Any, Any]]:
        return []

    def set_quantize_weights(self, layer: Any, quantize_weights: list[Any]) -> None:
        if self.kernel is not None:
            setattr(layer, self.kernel, quantize_weights[0])

    def set_quantize_activations(self, layer: Any, quantize_activations: list[Any]) -> None:
        pass

    def get_output_quantizers(self, layer: Any) -> list[Any]:
        if not self.output:
            return []
        return [
            quantizers.MovingAverageQuantizer(
                num_bits=ACTIVATION_BITS, per_axis=False, symmetric=False, narrow_range=False
            )
        ]

    def get_config(self) -> dict[str, Any]:
        return {
            "kernel": self.kernel,
            "bits": self.bits,
            "channel_axes": self.channel_axes,
            "output": self.output,
        }


class _InputOnly:
    """TFMOT's change of the graph, but for its patterns: the configs of `config_for` know what
    follows a layer.
    """

    def apply(self, model: Any, layer_quantize_map: dict[str, Any]) -> Any:
        transforms = [
            default_n_bit_transforms.InputLayerQuantize(
                num_bits_weight=ACTIVATION_BITS, num_bits_activation=ACTIVATION_BITS
            )
        ]
        return model_transformer.ModelTransformer(
            model, transforms, set(layer_quantize_map), layer_quantize_map
        ).transform()


class Scheme(tfmot.quantization.keras.QuantizeScheme):
    """The n-bit scheme with that layout."""

    def get_layout_transformer(self) -> _InputOnly:
        return _InputOnly()

    def get_quantize_registry(self) -> Any:
        return default_n_bit_quantize_registry.DefaultNBitQuantizeRegistry(
            num_bits_weight=ACTIVATION_BITS, num_bits_activation=ACTIVATION_BITS
        )


def config_for(layer: Any, *, weight_bits: int) -> LayerConfig:
    """The config of a tf_keras layer in its model. Raises ValueError for a layer that cannot be
    quantized here.
    """
    kind, followers = type(layer).__name__, [node.layer for node in layer.outbound_nodes]
    fused = len(followers) == 1 and _is_relu(followers[0])  # TFLite computes both in one operator
    if kind in KERNELS:
        kernel, axes = KERNELS[kind]
        return LayerConfig(kernel=kernel, bits=weight_bits, channel_axes=axes, output=not fused)
    registry = Scheme().get_quantize_registry()
    if kind in COMPUTING:
        output = not fused
    elif _name(layer) in FIXED:
        output = False
    elif registry.supports(layer):
        output = bool(registry.get_quantize_config(layer).get_output_quantizers(layer))
    else:
        raise ValueError(
            f"TFMOT cannot quantize layer '{layer.name}' ({kind}). Replace the layer, "
            "or use another algorithm."
        )
    return LayerConfig(kernel=None, bits=weight_bits, channel_axes=1, output=output)


def _name(layer: Any) -> str:
    """The function of an Activation or Softmax layer."""
    kind = type(layer).__name__
    return (
        "softmax"
        if kind == "Softmax"
        else layer.activation.__name__
        if kind == "Activation"
        else ""
    )


def _is_relu(layer: Any) -> bool:
    return type(layer).__name__ == "ReLU" or _name(layer) in ("relu", "relu6")
