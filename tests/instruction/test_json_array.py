"""Arrays are indexed as `json.load` reads them, whatever falls on the border of two chunks, in constant memory."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitp.errors import DataError
from vitp.instruction import json_array
from vitp.instruction.json_array import index_array

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def elements(data: bytes, chunk: int) -> list[bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_CHUNK", chunk)
        seen: list[bytes] = []
        starts, ends, lines = index_array(io.BytesIO(data), "a.json", seen.append)
    assert b"".join(seen) == data
    assert lines.tolist() == [data[:start].count(b"\n") + 1 for start in starts]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(values, max_size=5), st.sampled_from([None, 0, 1]), st.booleans(), st.sampled_from(["utf-8", "utf-8-sig"]),
    st.integers(1, 30),
)  # fmt: skip
def test_every_array_at_every_chunk_size(
    items: list[object], indent: int | None, ascii_only: bool, coding: str, chunk: int
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_only)
    data = text.encode(coding, "replace")
    found = [json.loads(piece) for piece in elements(data, chunk)]
    assert json.dumps(found) == json.dumps(json.loads(data.decode(coding)))  # NaN is not equal to itself


@settings(max_examples=300, deadline=None)
@given(st.lists(values, max_size=3), st.data(), st.integers(1, 12))
def test_what_json_refuses_is_refused(items: list[object], data: st.DataObject, chunk: int) -> None:
    """One character of an array is changed, removed or doubled; the verdict is that of `json.loads`."""
    text = json.dumps(items, ensure_ascii=False).encode("utf-8", "replace").decode()
    place = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from(["", text[place] * 2, *'[]{},:"\\0.eE+-untfI \n']))
    text = text[:place] + put + text[place + 1 :]
    expected: object = None
    with contextlib.suppress(ValueError):
        expected = json.loads(text)
    if isinstance(expected, list):
        found = [json.loads(piece) for piece in elements(text.encode(), chunk)]
        assert json.dumps(found) == json.dumps(expected)
    else:
        with pytest.raises(DataError, match=r"a\.json:\d+: "):
            elements(text.encode(), chunk)


@given(st.integers(1, 40))
@example(3)
def test_numbers_and_words_on_a_border(chunk: int) -> None:
    text = '[1.5e+10,-12,0.25 ,-Infinity,true,false , null,"\\ud83d\\ude00","\\\\",[[]],{"a":{}},1E5]'
    assert [json.loads(piece) for piece in elements(text.encode(), chunk)] == json.loads(text)


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_CHUNK", 4096)
    data = json.dumps([{"text": "x" * 2000}] * 2000, indent=1).encode()  # 4 MB
    stream = io.BytesIO(data)
    tracemalloc.start()
    starts, _, _ = index_array(stream, "a.json")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(starts) == 2000
    assert peak < 400_000


def test_a_quote_that_is_never_closed_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "MAX_ELEMENT", 1 << 20)
    monkeypatch.setattr(json_array, "_CHUNK", 1 << 16)
    read: list[int] = []
    data = b'[1,\n"' + b"x" * (8 << 20) + b"]"
    with pytest.raises(
        DataError, match=r"a\.json:2: holds an element of more than 1 MB, or a quote that is never closed"
    ):
        index_array(io.BytesIO(data), "a.json", lambda piece: read.append(len(piece)))
    assert sum(read) < 4 << 20
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="is not UTF-8"):
        index_array(io.BytesIO(b"[" + rng.bytes(1000)), "a.json")
