"""What a target says of a file, and the files that it makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Answer:
    """One target's answer.

    Attributes:
      verdict: see report.judge. files: bytes by what follows F in their names, such as
        ".ethos-u55-128.tflite".
    """

    verdict: dict[str, Any]
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
