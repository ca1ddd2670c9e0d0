"""JSON texts as the seed's server reads and writes them: those of JavaScript."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse(raw: bytes) -> Any:
    """The value of a JSON text in UTF-8. Raises `ValueError` and `RecursionError`.

    Text with half a surrogate pair is refused: it can be neither stored nor answered. A number too large for a float is
    infinity.
    """
    value = _DECODER.decode(raw.decode("utf-8-sig"))
    if b"\\ud" in raw.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def write(value: Any) -> str:
    """JSON as ``JSON.stringify`` writes it: without blanks, and a number that is not finite as null."""
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
