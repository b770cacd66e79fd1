"""Numbers, sizes and names as a person reads them on the page."""

from __future__ import annotations

import math
import re

_OPERATIONS = ("convolution", "depthwise", "MatMul", "BiasAdd", "Relu", "Relu6", "add", "AvgPool")
# scopes of TensorFlow and of Keras' own operations, which no layer is called
_FUNCTIONS = r"(moments|einsum|Repeat|Gelu|Silu|Erfc?|Softplus|SquaredDifference)(_\d+)?$"
_UNITS = {
    "ms": "ms",
    "kib": "KiB",
    "bytes": "bytes",
    "mhz": "MHz",
    "mb": "MB",
    "steps": "steps",
    "db": "dB",
}
_FIGURES = {
    "arena_bytes": "arena",
    "arena_estimate_bytes": "arena, estimated",
    "activations_bytes": "activations, planned",
    "live_peak_bytes": "most memory alive at once",
    "live_peak_at": "most memory alive in layer",
    "model_bytes": "size of the file",
    "float_model_bytes": "size of the float file",
    "latency_ms": "latency",
    "float_latency_ms": "latency of the float file",
    "speedup": "speed-up over float",
    "sram_kib": "SRAM",
    "inferences_per_second": "inferences per second",
    "npu_operators": "operators on the NPU, as Vela counts them",
}
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ACRONYMS = {"sram": "SRAM", "dram": "DRAM", "npu": "NPU", "cpu": "CPU", "macs": "MACs"}


def number(value: object) -> str:
    """Three significant digits: 0.0123, 1,230, 5, 2.36 × 10⁻⁸; "–" for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    if isinstance(value, int) and abs(value) < 10**6:
        return f"{value:,}"
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(_RAISED)}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def ends(low: float, high: float) -> str:
    """Both ends of a range, to the third digit of the larger one: what is nothing beside it is 0.

    No line breaks within. Example: `ends(2.36e-8, 0.9812)` reads 0 to 0.981.
    """
    largest = max(abs(low), abs(high))
    if math.isfinite(largest) and largest:
        places = 2 - math.floor(math.log10(largest))
        # adding 0.0 takes the sign off a zero
        low, high = (round(float(end), places) + 0.0 for end in (low, high))
    return f"{number(low)}\u00a0to\u00a0{number(high)}"


def percent(share: object, *, digits: int = 0) -> str:
    """A share of 1 as a percentage: 0.987 is "99 %"."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not math.isfinite(share):
        return "–"
    return spaced_percent(f"{share:.{digits}%}")


def spaced_percent(words: str) -> str:
    """Words with one space before each %, at which no line breaks: as `percent` writes it."""
    return re.sub(r"\s*%", "\u00a0%", words)


def size(bytes_: object) -> str:
    """Bytes as KiB or MiB with three digits."""
    if isinstance(bytes_, bool) or not isinstance(bytes_, int | float) or bytes_ < 0:
        return "–"
    if bytes_ < 1024:
        return f"{number(bytes_)} bytes"
    return f"{number(bytes_ / 1024)} KiB" if bytes_ < 2**20 else f"{number(bytes_ / 2**20)} MiB"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "8 s", "3 min 20 s", "2 h 5 min"."""
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def figure(key: str, value: object) -> tuple[str, str]:
    """A target's figure as label and text. key: the name with its unit at the end, such as
    latency_ms.
    """
    words = key.split("_")
    unit = _UNITS.get(words[-1], "") if len(words) > 1 else ""
    label = _FIGURES.get(key) or " ".join(
        _ACRONYMS.get(word, word) for word in (words[:-1] if unit else words)
    )
    if unit == "bytes":
        return label, size(value)
    if isinstance(value, bool):
        return label, "yes" if value else "no"
    if isinstance(value, int | float):
        return label, " ".join(filter(None, (number(value), unit)))
    return label, layer_name(value) if key.endswith("_at") else str(value)


def layer_name(tensor: object) -> str:
    """The Keras layer that a tensor of a .tflite file comes from.

    TFLite joins the names of all operations it fused by semicolons, for example
    "net_1/relu_1/Relu;net_1/conv_1/convolution". The layer with the weights names the tensor best.
    Keras numbers its scopes once more when a model is traced; that number is taken off.
    """
    text = str(tensor)
    if text.startswith("serving_default_"):
        return f"input {text.removeprefix('serving_default_').split(':')[0]}"
    if re.fullmatch(r"(Stateful)?PartitionedCall(_\d+)?(:\d+)?", text):
        index = text.rpartition(":")[2]
        return "output" if index in (text, "0") else f"output {index}"
    parts = [part.split("/") for part in text.split(";") if part]
    for operation in _OPERATIONS:
        for part in parts:
            if operation in part[1:]:
                return _layer(part[: part.index(operation, 1)])
    scoped = [part for part in parts if len(part) > 1]
    return _layer(scoped[0][:-1]) if scoped else text


def _layer(scopes: list[str]) -> str:
    """The innermost scope that is of a layer, not of a TensorFlow function inside of it such as
    Repeat or moments; without the number of its trace.
    """
    while len(scopes) > 1 and re.match(_FUNCTIONS, scopes[-1]):
        scopes = scopes[:-1]
    numbered = all(re.search(r"_\d+$", scope) for scope in scopes)
    return re.sub(r"_\d+$", "", scopes[-1]) if numbered else scopes[-1]


def operator(kind: object) -> str:
    """An operator's name in words: DEPTHWISE_CONV_2D is "depthwise conv 2D"."""
    words = str(kind).lower().replace("_", " ")
    return re.sub(r"\b([123])d\b", r"\1D", words)
