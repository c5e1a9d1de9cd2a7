"""The encoding: what goes in comes out; what nobody may send is refused before it costs anything."""

from __future__ import annotations

import tracemalloc

import hypothesis
import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis.extra import numpy as arrays

from padpolicy.control import wire

PLAIN = ["|b1", "|i1", "<i2", "<i8", "|u1", "<u2", ">u2", "<f2", "<f4", ">f4", "<f8", "<U5", "|S3"]
LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=9)
ARRAYS = st.sampled_from(PLAIN).flatmap(
    lambda kind: arrays.arrays(np.dtype(kind), arrays.array_shapes(min_dims=0, min_side=0))
)
MESSAGES = st.recursive(
    LEAVES | st.binary(max_size=9) | ARRAYS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, list):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@hypothesis.settings(max_examples=20)
@hypothesis.given(MESSAGES)
def test_round_trip(message) -> None:
    try:
        back = wire.unpack(wire.pack(message))
    except wire.WireError as error:
        assert "deep" in str(error)
        return
    assert same(message, back)


@hypothesis.given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        wire.unpack(data)
    except wire.WireError as error:
        assert str(error).endswith(".")


def test_bytes_are_those_of_openpi() -> None:
    data = wire.pack({"observation/state": np.arange(3, dtype=np.float32), "prompt": "hi"})
    assert data.hex() == (
        "82b16f62736572766174696f6e2f737461746584c40b5f5f6e6461727261795f5fc3c40464617461c40c000000000000803f00000040"
        "c4056474797065a33c6634c40573686170659103a670726f6d7074a26869"
    )


def test_scalars_keep_their_type_and_tuples_become_lists() -> None:
    back = wire.unpack(wire.pack({"a": np.float32(1.5), "b": np.int64(-3), "c": (1, 2), "d": np.bool_(True)}))
    assert back == {"a": 1.5, "b": -3, "c": [1, 2], "d": True}
    assert [type(back[key]) for key in "abd"] == [np.float32, np.int64, np.bool_]


@pytest.mark.parametrize(
    "value", [np.zeros(2, object), np.zeros(2, complex), np.zeros(2, [("x", "f4")]), object(), {1, 2}, 1j]
)
def test_what_is_not_sent(value) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        wire.pack({"x": value})


def array(**changes) -> bytes:
    entries = {"__ndarray__": True, "data": b"\0" * 12, "dtype": "<f4", "shape": [3], **changes}
    return msgpack.packb({name.encode(): value for name, value in entries.items()})


REFUSED = {
    "nothing": (b"", "incomplete"),
    "two messages": (b"\xc0\xc0", "extra data"),
    "objects": (array(dtype="|O"), "dtype '|O'"),
    "records": (array(dtype="|V12"), "dtype '|V12'"),
    "fields": (array(dtype="f4,f4"), "dtype 'f4,f4'"),
    "complex numbers": (array(dtype="<c8"), "dtype '<c8'"),
    "no such type": (array(dtype="<f7"), "data type '<f7'"),
    "no bytes each": (array(dtype="<U0"), "dtype '<U0'"),
    "negative shape": (array(shape=[-3]), r"shape is \[-3\]"),
    "shape of truth values": (array(shape=[True]), r"shape is \[True\]"),
    "too many axes": (array(shape=[1] * 9), "at most 8 whole numbers"),
    "huge shape": (array(shape=[2**62, 2**62]), "got 12 bytes"),
    "huge and empty": (array(shape=[0, 2**40], data=b""), "got 0 bytes"),
    "short data": (array(shape=[4]), "has 16 bytes of data, got 12"),
    "long data": (array(shape=[2]), "has 8 bytes of data, got 12"),
    "text as data": (array(data="x" * 12), "got a str"),
    "scalar of a list": (msgpack.packb({b"__npgeneric__": True, b"dtype": "<f4", b"data": [1]}), "data is a list"),
    "scalar too large": (msgpack.packb({b"__npgeneric__": True, b"dtype": "|i1", b"data": 999}), "999"),
    "list as a key": (b"\x81\x90\x01", "not allowed for map key"),
    "number as a key": (b"\x81\x01\x01", "not allowed for map key"),
    "extension": (b"\xc7\x03\x05abc", "extension of type 5"),
    "date": (b"\xd6\xff\x00\x00\x00\x01", "a Timestamp"),
    "broken text": (b"\xa2\xff\xfe", "utf-8"),
    "deep": (b"\x91" * 9 + b"\xc0", "more than 8 deep"),
    "very deep": (b"\x91" * 100_000, "StackError"),
    "announced list": (b"\xdd\xff\xff\xff\xff", "max_array_len"),
    "announced map": (b"\xdf\xff\xff\xff\xff", "max_map_len"),
    "many maps": (b"\xdc\x00\x0f" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 15, "more than 10000 entries"),
    "nested announcements": (b"\xdc\x04\x00" * 2000, "StackError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, words = REFUSED[case]
    tracemalloc.start()
    with pytest.raises(wire.WireError, match=words):
        wire.unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_pickle_is_never_opened() -> None:
    """An array of objects would be one: its data is refused by its type, whatever it holds."""

    class Trap:
        def __reduce__(self):
            return pytest.fail, ("it was opened",)

    import pickle

    data = pickle.dumps(Trap())
    for dtype in ("|O", "O", "object", f"|V{len(data)}"):
        with pytest.raises(wire.WireError, match="dtype"):
            wire.unpack(array(data=data, dtype=dtype, shape=[1]))
    assert wire.unpack(wire.pack({"x": data})) == {"x": data}


def test_arrays_are_read_only_views() -> None:
    back = wire.unpack(wire.pack(np.arange(4)))
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1
