"""What the config inside a model file may name. It is read here before Keras sees it.

A config is JSON: dicts with a `class_name` become objects, and Keras 2 and 3 each have ways to make
that any class, function or module. So only names on the lists below pass, and those that the
running program registered with Keras itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from dgh_tf.models.keras2_functions import FUNCTIONS, OPERATORS

MOST_NESTED = 100  # levels of lists and dicts in a config; real ones have about 10
MOST_LAYERS = 5_000  # in one model
MOST_OBJECTS = 100_000  # layers and their parts, those inside nested models counted at every use
MOST_ITEMS = 2_000_000  # values in a config
_SHOWN = 60  # characters of a name in an error


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODELS = frozenset({"Functional", "Model", "Sequential"})
FUNCTION_LAYERS = frozenset({"TFOpLambda", "SlicingOpLambda"})
# of both generations; what reads files, holds code or wraps another library is not here
LAYERS = _names("""
    Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveAveragePooling2D
    AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D Add
    AdditiveAttention AlphaDropout Attention AugMix AutoContrast Average AveragePooling1D
    AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D AvgPool3D BatchNormalization
    BatchNormalizationV1 BatchNormalizationV2 Bidirectional CategoryEncoding CenterCrop Concatenate
    ContrastLimitedAdaptiveHistogramEqualization Conv1D Conv1DTranspose Conv2D Conv2DTranspose
    Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Convolution1D Convolution1DTranspose
    Convolution2D Convolution2DTranspose Convolution3D Convolution3DTranspose Cropping1D Cropping2D
    Cropping3D CustomScaleLayer CutMix Dense DepthwiseConv1D DepthwiseConv2D Discretization Dot
    Dropout ELU EinsumDense Embedding Equalization Flatten GRU GRUCell GaussianDropout
    GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D
    GlobalAvgPool1D GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention
    GroupedQueryAttention HashedCrossing Hashing Identity InputLayer LSTM LSTMCell
    LayerNormalization LeakyReLU Masking MaxNumBoundingBoxes
    MaxPool1D MaxPool2D MaxPool3D MaxPooling1D MaxPooling2D MaxPooling3D Maximum MelSpectrogram
    Minimum MixUp MultiHeadAttention Multiply Normalization PReLU Permute Pipeline RMSNormalization
    RNN RandAugment RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
    RandomCrop RandomElasticTransform RandomErasing RandomFlip RandomFourierFeatures
    RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert RandomPerspective
    RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
    RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape Resizing
    ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D SeparableConvolution1D
    SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization SpatialDropout1D
    SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells Subtract
    SyncBatchNormalization ThresholdedReLU TimeDistributed UnitNormalization UpSampling1D
    UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D
    """)
# of keras_cv; its presets, tokenizers and text encoders read or download files and are not here
KERAS_CV = _names("""
    AnchorGenerator BASNet BoxMatcher CSPDarkNetBackbone CrossStagePartial DarknetConvBlock
    DarknetConvBlockDepthwise DeepLabV3Plus DenseNetBackbone DropBlock2D DropPath
    EfficientMultiheadAttention EfficientNetLiteBackbone EfficientNetV1Backbone
    EfficientNetV2Backbone FasterRCNN FeaturePyramid FusedMBConvBlock HierarchicalTransformerEncoder
    ImageClassifier LayerScale MBConvBlock MiTBackbone MobileNetV3Backbone
    MultiClassNonMaxSuppression NonMaxSuppression OverlappingPatchingAndEmbedding
    PatchingAndEmbedding PredictionHead ROIGenerator ROIPooler ResNetBackbone ResNetV2Backbone
    RetinaNet RetinaNetLabelEncoder SegFormer SpatialPyramidPooling SqueezeAndExcite2D
    StochasticDepth TransformerEncoder VGG16Backbone ViTDetBackbone YOLOV8Backbone YOLOV8Detector
    YOLOV8LabelEncoder
    """)
# initializers, regularizers, constraints and precision policies: what layers hold
PARTS = _names("""
    Constant GlorotNormal GlorotUniform HeNormal HeUniform IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFTInitializer
    TruncatedNormal VarianceScaling Zeros L1 L2 L1L2 OrthogonalRegularizer MaxNorm MinMaxNorm NonNeg
    RadialConstraint UnitNorm Policy DTypePolicy DTypePolicyMap FloatDTypePolicy
    QuantizedDTypePolicy QuantizedFloat8DTypePolicy PolicyV1
    """)
ACTIVATIONS = _names("""
    celu elu exponential gelu glu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh
    leaky_relu linear log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_shrink softmax
    softplus softsign sparse_plus sparse_sigmoid sparsemax squareplus swish tanh tanh_shrink
    threshold
    """)
# Keras 3 functions used as layers: whole modules that compute, and of `core`, which also holds
# functions that take functions, these
OPERATIONS = tuple(f"keras.src.ops.{name}" for name in ("numpy", "nn", "image", "math", "linalg"))
CORE = _names("Cast SaturateCast Slice SliceUpdate StopGradient Unstack")
# what no layer needs but a nested model that was compiled: harmless classes of these modules
TRAINING = ("keras.losses", "keras.metrics", "keras.optimizers")
MODULES = (
    *("builtins", "keras", "keras.activations", "keras.constraints", "keras.dtype_policies"),
    *("keras.initializers", "keras.layers", "keras.models", "keras.regularizers"),
)
INSIDE = (
    tuple(  # modules whose names moved between releases; the class must be on a list all the same
        f"{package}.{part}."
        for package in ("keras", "keras.src", "tf_keras", "tf_keras.src", "keras_cv.src")
        for part in ("layers", "models", "engine", "mixed_precision", "ops", "dtype_policies")
    )
    + ("keras.mixed_precision", "keras_cv.layers", "keras_cv.models")
)
# values, not objects: tensors and slices that a config spells out
VALUES = _names(
    "__tuple__ __ellipsis__ __slice__ __keras_tensor__ __tensor__ __numpy__ TensorShape"
)
DTYPES = _names(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
)
# arguments by which a spectrogram layer makes tables that are no weights
TABLE_SIZES = _names("fft_length num_mel_bins frame_length")
MOST_TABLE = 8192
_REGISTERED = re.compile(r"[\w.]+>\w+")  # package>name, as Keras registers classes and functions
READS_FILES = (
    "which may read other files of this machine. Take the layer out of the model and do its work "
    "before the model"
)
REASONS = {
    "Lambda": "python",
    "__lambda__": "python",
    "JaxLayer": "python",
    "FlaxLayer": "python",
    "TorchModuleWrapper": "python",
    "TFSMLayer": "which runs another SavedModel. Build the model without it",
    "StringLookup": READS_FILES,
    "IntegerLookup": READS_FILES,
    "TextVectorization": READS_FILES,
    "DenseFeatures": READS_FILES,
    "SequenceFeatures": READS_FILES,
}


def shown(text: Any) -> str:
    """A name from a file as an error may print it: short, and without control characters."""
    text = str(text)
    return ascii(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))[1:-1]


def require_allowed(config: Any, *, path: str, custom: Callable[[str], bool]) -> None:
    """Refuses a config that names what is on no list, or that is made to grow without end.

    Args:
      config: parsed JSON.
      path: the file, for messages.
      custom: whether the running program registered a class or function under this name itself.
    Raises: ValueError naming the class, function, module or limit.
    """
    require_bounded(config, path=path)
    for item in _dicts(config):
        if "class_name" in item:
            _require_object(item, path, custom)
        for key, value in item.items():
            _require_value(key, value, path, custom)
    _calls(config, path)


def require_bounded(config: Any, *, path: str) -> None:
    """Refuses a config of more levels or values than any model has."""
    level, count, depth = [config], 0, 0
    while level:
        count, depth = count + len(level), depth + 1
        if depth > MOST_NESTED or count > MOST_ITEMS:
            raise ValueError(
                f"The config in {path} has over {MOST_NESTED} levels or {MOST_ITEMS:,} values, "
                "which no model needs. Save the model again with model.save."
            )
        level = [
            value
            for item in level
            if isinstance(item, dict | list)
            for value in (item.values() if isinstance(item, dict) else item)
        ]


def _dicts(config: Any) -> Iterator[dict]:
    items = [config]
    while items:
        item = items.pop()
        if isinstance(item, dict):
            yield item
            items.extend(item.values())
        elif isinstance(item, list):
            items.extend(item)


def _require_value(key: str, value: Any, path: str, custom: Callable[[str], bool]) -> None:
    """Refuses text by which Keras would find a function, and sizes of tables that it would make
    before any weight.
    """
    if isinstance(value, str) and (key.endswith("activation") or _REGISTERED.fullmatch(value)):
        _require_function(value, path, custom)
    if key in TABLE_SIZES and isinstance(value, int | float) and value > MOST_TABLE:
        raise ValueError(
            f"{path} asks for {shown(key)}={value:,}; at most {MOST_TABLE:,} can be worked on here."
        )


def _require_function(name: Any, path: str, custom: Callable[[str], bool]) -> None:
    # a layer may stand where a function is expected: 'ReLU' for 'relu'
    if not isinstance(name, str) or not (
        name.split(">")[-1] in ACTIVATIONS | LAYERS | PARTS | MODELS | KERAS_CV or custom(name)
    ):
        raise ValueError(
            f"{path} uses the function {shown(name)!r}, which is not on the list of functions that "
            "a model file may name (dgh_tf.models.allowed). If it is yours, import the code that "
            "registers it with Keras and call dgh_tf.generate_images(model) from Python."
        )


def _require_object(item: dict, path: str, custom: Callable[[str], bool]) -> None:
    kind, registered, module = (
        item.get(key) for key in ("class_name", "registered_name", "module")
    )
    if not isinstance(kind, str) or not isinstance(registered, str | None):
        raise ValueError(f"{path} has a config whose class_name is no text. Save the model again.")
    if kind in VALUES:
        _require_numbers(item, path)
        return
    if kind == "function":
        _require_function(item.get("config"), path, custom)
        _require_module(module, path, kind)
        return
    own = registered or kind
    if custom(own) and (custom(kind) or kind == own.split(">")[-1] and kind not in REASONS):
        return
    for name in (kind, registered) if registered else (kind,):
        bare = name.split(">")[-1].split(".")[-1]
        if bare in REASONS:
            _refuse_by_reason(bare, path)
        if not (
            bare in LAYERS | PARTS | MODELS | FUNCTION_LAYERS | KERAS_CV
            or (module in OPERATIONS and bare.isidentifier())
            or (module == "keras.src.ops.core" and bare in CORE)
            or (module in TRAINING and bare.isidentifier() and bare[0].isupper())
        ):
            _refuse_unknown(bare, path)
        if bare in FUNCTION_LAYERS:
            _require_known_function(item, path)
    _require_module(module, path, kind)


def _require_numbers(item: dict, path: str) -> None:
    """Of an array that a config spells out: a type such as 'U9999999' would make much of little."""
    config = item.get("config")
    dtype = config.get("dtype") if isinstance(config, dict) else None
    if dtype is not None and not (isinstance(dtype, str) and dtype in DTYPES):
        raise ValueError(f"{path} has an array of {shown(dtype)!r}, which is no type of numbers.")


def _require_module(module: Any, path: str, kind: str) -> None:
    known = module is None or (
        isinstance(module, str)
        and (module in MODULES or module in TRAINING or module.startswith(INSIDE))
    )
    if not known:
        raise ValueError(
            f"{path} takes its class {shown(kind)!r} from the module {shown(module)!r}; a model "
            "file may name modules of Keras only. If it is yours, import the code that registers "
            "it with Keras and call dgh_tf.generate_images(model) from Python."
        )


def _refuse_by_reason(name: str, path: str) -> None:
    if REASONS[name] == "python":
        kind = "Lambda" if name == "__lambda__" else name
        raise ValueError(
            f"{path} holds Python code (a {kind} layer); loading it would run that code. If you "
            "trust the file, give allow_unsafe_deserialization=True; else build the model without "
            f"{kind} and save it again."
        )
    raise ValueError(f"{path} has the layer {name}, {REASONS[name]}.")


def _refuse_unknown(name: str, path: str) -> None:
    raise ValueError(
        f"{path} has layers of a class that Keras does not know, or that may do more than compute: "
        f"{shown(name)}. If it is yours (a layer or a subclassed model), import the code that "
        "defines and registers it, build the model and call dgh_tf.generate_images(model) from "
        "Python."
    )


def _require_known_function(layer: dict, path: str) -> None:
    config = layer.get("config")
    function = config.get("function") if isinstance(config, dict) else None
    if layer["class_name"].endswith("SlicingOpLambda") and function is None:
        return
    if not isinstance(function, str) or (function not in FUNCTIONS and function not in OPERATORS):
        raise ValueError(
            f"{path} uses a TensorFlow function as a layer that has no counterpart here "
            f"(TFOpLambda of tf.{shown(function)}). Build the model in Keras 3 from its code, give "
            "it the old weights with set_weights, and save that."
        )


def _calls(config: Any, path: str) -> int:
    """How many calls of layers building `config` takes. A nested model used twice counts twice, so
    that twenty models that each use the next one twice count a million.

    Raises: ValueError above the limit, and for a call without a tensor, which would compute while
      the file loads.
    """
    if isinstance(config, list):
        return sum(_calls(item, path) for item in config)
    if not isinstance(config, dict):
        return 0
    layers = config.get("layers")
    inner = [value for key, value in config.items() if key != "inbound_nodes"]
    total = sum(_calls(item, path) for item in inner)
    if isinstance(layers, list):
        names = {
            str((layer.get("config") or {}).get("name", layer.get("name")))
            for layer in layers
            if isinstance(layer, dict) and isinstance(layer.get("config") or {}, dict)
        } | {str(layer.get("name")) for layer in layers if isinstance(layer, dict)}
        for layer in layers:
            if isinstance(layer, dict):
                _require_fed(layer, names, path)
    if "class_name" in config:
        nodes = config.get("inbound_nodes")
        uses = max(1, len(nodes)) if isinstance(nodes, list) else 1
        total = (total + 1) * uses
    if total > MOST_OBJECTS or (isinstance(layers, list) and len(layers) > MOST_LAYERS):
        raise ValueError(
            f"Building the model in {path} takes over {MOST_LAYERS:,} layers or "
            f"{MOST_OBJECTS:,} objects, nested models counted at every use. "
            "It cannot be read here."
        )
    return total


def _require_fed(layer: dict, names: set[str], path: str) -> None:
    """Each call of a layer needs a tensor of the graph: on constants alone it would run at once."""
    nodes = layer.get("inbound_nodes")
    if not isinstance(nodes, list):
        return
    for node in nodes:
        if not _fed(node, names):
            raise ValueError(
                f"{path} calls the layer {shown(layer.get('name'))!r} on constants instead of "
                "tensors, so that it would compute while the file is read. "
                "Take it out of the model and save it again."
            )


def _fed(node: Any, names: set[str]) -> bool:
    """Whether a node holds a tensor: {"class_name": "__keras_tensor__"} in Keras 3, [layer, node,
    output, ...] in Keras 2. The value of a constant is no place to look for one.
    """
    if isinstance(node, dict):
        return node.get("class_name") == "__keras_tensor__" or any(
            _fed(value, names) for value in node.values()
        )
    if not isinstance(node, list):
        return False
    if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):
        if node[0] != "_CONSTANT_VALUE" and node[0] in names:
            return True
        if node[0] == "_CONSTANT_VALUE" and not _numbers(node[2]):
            return False
        return any(_fed(value, names) for value in node[3:])
    return any(_fed(value, names) for value in node)


def _numbers(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_numbers, value))
    return value is None or isinstance(value, bool | int | float)
