"""Texts of other libraries and numbers, as a person reads them in a line."""

from __future__ import annotations

import re

_COLOURS = re.compile("\x1b\\[[0-9;]*m")


def in_one_line(error: BaseException, *, most: int = 400) -> str:
    """What an error of Keras or TensorFlow says, without colours, line breaks and the arguments
    that Keras lists at its end; `most` letters at most.

    Example:
      >>> in_one_line(ValueError("\\x1b[1mBad\\x1b[0m\\n shape.\\n\\nArguments received by ..."))
      'Bad shape'
    """
    text = _COLOURS.sub("", str(error)).split("Arguments received by")[0].split("Call arguments")[0]
    return " ".join(text.split()).rstrip(".")[:most] or type(error).__name__


def rounded(value: float, *, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent wherever a person reads it
    easier so; whole numbers stay whole.

    Example:
      >>> rounded(4561.3), rounded(32768), rounded(0.012345), rounded(2.357e-8)
      ('4560', '32768', '0.0123', '2.36e-8')
    """
    number = float(value)
    if not (number.is_integer() and abs(number) < 1e9):
        number = float(f"{number:.{digits}g}")
    return re.sub(r"e([+-]?)0*(\d)", r"e\1\2", f"{number:.10g}").replace("e+", "e")
