"""Messages with arrays as msgpack, as openpi's server and client write them. Bytes are data here, never code.

    array   {b"__ndarray__": true, b"data": C-order bytes, b"dtype": "<f4", b"shape": [2, 3]}
    scalar  {b"__npgeneric__": true, b"data": 1.5, b"dtype": "<f4"}

Whatever comes in costs memory in proportion to its own length. Needs numpy and msgpack only.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import numpy as np

MAX_DEPTH = 8  # lists and maps inside each other
MAX_ITEMS = 10_000  # entries of all lists and maps of a message together
MAX_LENGTH = 1024  # entries of one list or map
MAX_AXES = 8  # of an array
DTYPE = re.compile(r"[<>|=][biufSU][0-9]{1,7}")  # no objects (O), no records (V), no complex numbers (c)


class WireError(ValueError):
    """Bytes that are not such a message: says what was expected and what came."""


def pack(message: Any) -> bytes:
    """Dicts, lists, strings, bytes, numbers, None and numpy arrays as bytes.

    Raises:  TypeError for anything else, objects, records and complex numbers in arrays included.
    """
    return msgpack.packb(message, default=_plain)


def unpack(data: bytes) -> Any:
    """What `pack` was given; tuples come back as lists, arrays read-only.

    Raises:  WireError if the bytes are not one whole message, or hold what `pack` does not write, or are nested deeper
             than MAX_DEPTH, or have more than MAX_ITEMS entries.
    """
    items = 0

    def count(n: int) -> None:
        nonlocal items
        items += n + 1
        if items > MAX_ITEMS:
            raise WireError(f"more than {MAX_ITEMS} entries.")

    def read_list(entries: list[Any]) -> list[Any]:
        count(len(entries))
        return entries

    def read_map(entries: dict[Any, Any]) -> Any:
        count(len(entries))
        if b"__ndarray__" in entries:
            return _array(entries)
        if b"__npgeneric__" in entries:
            return _scalar(entries)
        return entries

    try:
        message = msgpack.unpackb(
            data,
            list_hook=read_list,
            object_hook=read_map,
            ext_hook=_no_extension,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
        )
    except WireError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        why = " ".join(str(error).split())[:100] or type(error).__name__
        raise WireError(f"expected one msgpack message, got {len(data)} bytes that are not: {why}.") from None
    _check_depth(message, 0)
    return message


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and DTYPE.fullmatch(value.dtype.str):
        if isinstance(value, np.ndarray):
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    what = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
    raise TypeError(f"{what} cannot be sent: only numbers, truth values, text and bytes, alone or in arrays.")


def _array(entries: dict[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(entries), entries.get(b"shape"), entries.get(b"data")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"an array's shape is {_brief(shape)}: expected at most {MAX_AXES} whole numbers from 0.")
    expected = math.prod(shape) * dtype.itemsize
    if not isinstance(data, bytes) or len(data) != expected or max(shape, default=0) > len(data) + MAX_LENGTH:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise WireError(f"an array of {dtype.str} and shape {_brief(shape)} has {expected} bytes of data, got {got}.")
    return np.ndarray(tuple(shape), dtype, data)


def _scalar(entries: dict[Any, Any]) -> Any:
    dtype, data = _dtype(entries), entries.get(b"data")
    if not isinstance(data, (bool, int, float, str, bytes)):
        raise WireError(f"a scalar's data is a {type(data).__name__}: expected a number, text or bytes.")
    with np.errstate(over="ignore"):  # too large for its type: infinite, for the reader to refuse
        return dtype.type(data)


def _dtype(entries: dict[Any, Any]) -> np.dtype:
    name = entries.get(b"dtype")
    if not isinstance(name, str) or not DTYPE.fullmatch(name) or not (dtype := np.dtype(name)).itemsize:
        raise WireError(f"dtype {_brief(name)}: expected a plain one of numpy's, such as '<f4' or '|u1'.")
    return dtype


def _no_extension(code: int, data: bytes) -> Any:
    raise WireError(f"a msgpack extension of type {code}: expected none.")


def _check_depth(value: Any, depth: int) -> None:
    """Raises WireError for what is nested too deeply, or is of a type that messages do not have (msgpack's dates)."""
    if depth > MAX_DEPTH:
        raise WireError(f"lists and maps more than {MAX_DEPTH} deep.")
    if isinstance(value, (list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            _check_depth(entry, depth + 1)
    elif not isinstance(value, (type(None), bool, int, float, str, bytes, np.ndarray, np.generic)):
        raise WireError(f"a {type(value).__name__}: expected numbers, text, bytes, arrays, lists and maps.")


def _brief(value: Any) -> str:
    return repr(value)[:60]
