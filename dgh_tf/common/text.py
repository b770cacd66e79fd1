"""Texts of other libraries made fit for one line."""

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
