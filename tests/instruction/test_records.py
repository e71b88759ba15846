"""Records: every usual layout becomes the same sample, and every mistake is one sentence with its place and its fix."""

import io
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitp.errors import DataError
from vitp.instruction.json_array import index_array
from vitp.instruction.records import RESERVED, RecordError, decode_record, parse_record
from vitp.instruction.sample import IMAGE_MARK, Sample, Turn

WHERE = "data.jsonl:7"


def llava(*texts: str, image: object = None) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"conversations": turns} if image is None else {"image": image, "conversations": turns}


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def refusal(record: object, code: str) -> str:
    with pytest.raises(RecordError) as caught:
        parse_record(record, WHERE)
    assert caught.value.code == code, caught.value
    message = str(caught.value)
    assert message == f"{WHERE}: {caught.value.found}; {caught.value.fix}"
    assert caught.value.found
    assert caught.value.fix
    assert "\n" not in message
    return message


def test_all_layouts_of_one_record_give_one_sample() -> None:
    expected = Sample(turns("<image>\nWhat is it?", "A port.", "Sure?", "Yes."), ("a.jpg",), WHERE)
    texts = ["<image>\nWhat is it?", "A port.", "Sure?", "Yes."]
    sharegpt = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    for record in (
        llava(*texts, image="a.jpg"),
        llava(*texts, image=["a.jpg"]),
        llava("What is it?", *texts[1:], image="a.jpg"),
        {"messages": sharegpt, "images": ["a.jpg"]},
        {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in sharegpt], "image": "a.jpg"},
        {"messages": [{"role": "user", "content": parts}, *sharegpt[1:]], "images": "a.jpg"},
        {"messages": [{"role": "user", "content": [{**parts[0], "image": "a.jpg"}, parts[1]]}, *sharegpt[1:]]},
        {"messages": [{"role": "user", "content": [{**parts[0], "path": "a.jpg"}, parts[1]]}, *sharegpt[1:]]},
        {**llava(*texts, image="a.jpg"), "id": 3, "width": 8, "video": None, "images": []},
    ):
        assert parse_record(record, WHERE) == expected, record


def test_system_turns() -> None:
    expected = (Turn("system", "Be brief."), *turns("Hi", "Hello"))
    first = {"from": "system", "value": "Be brief."}
    plain = llava("Hi", "Hello")["conversations"]
    assert parse_record({"conversations": [first, *plain]}, WHERE).turns == expected
    assert parse_record({"conversations": plain, "system": "Be brief."}, WHERE).turns == expected
    refusal({"conversations": [first, *plain], "system": "Be brief."}, "record-order")
    refusal({"conversations": [*plain, first]}, "record-order")
    assert "is null" in refusal({"conversations": [{"from": "system", "value": None}, *plain]}, "record-type")


def test_text_only_and_several_images() -> None:
    for empty in (None, "", []):
        assert parse_record({**llava("Hi", "Hello"), "image": empty}, WHERE) == Sample(turns("Hi", "Hello"), (), WHERE)
    two = parse_record(llava("<image><image> Same?", "No.", "<image>?", "Yes.", image=["a", "b", "c"]), WHERE)
    assert two.images == ("a", "b", "c")
    assert two.turns == turns("<image><image> Same?", "No.", "<image>?", "Yes.")
    late = parse_record(llava("Hi", "Hello", "<image> What?", "A ship.", image="a"), WHERE)
    assert late.turns[0].text == "Hi"  # a mark is only added where there is none at all
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}, {"type": "image"}, {"type": "image"}]
    mixed = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}],
        "images": ["a", "b"],
    }
    assert parse_record(mixed, WHERE).turns[0].text == "One two\n<image>\n<image>"


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (llava("<image><image>?", "x", image="a"), "2 <image> marks for 1 image"),
        (llava("no mark", "x", image=["a", "b"]), "0 <image> marks for 2 images"),
        (llava("<image>?", "x"), "1 <image> mark for 0 images"),
        (llava("Hi", "Here: <image>", image="a"), "turn 2 (assistant) holds an <image> mark"),
        ({**llava("Hi", "x", image="a"), "system": "<image>"}, "turn 1 (system) holds an <image> mark"),
    ],
)
def test_image_marks(record: dict[str, Any], found: str) -> None:
    assert found in refusal(record, "image-marks")


def test_turns_must_alternate_and_end_with_an_answer() -> None:
    assert "turn 1 comes from assistant where user" in refusal(
        {"conversations": [{"from": "gpt", "value": "x"}]}, "record-order"
    )
    user = {"from": "human", "value": "x"}
    assert "turn 2 comes from user where assistant" in refusal({"conversations": [user, user]}, "record-order")
    assert "ends with a turn of user" in refusal(llava("a", "b", "c"), "record-order")
    assert "ends with a turn of system" in refusal(
        {"conversations": [{"from": "system", "value": "x"}]}, "record-order"
    )


def test_empty_texts() -> None:
    for blank in ("", " \n\t", "\u3000"):
        assert "the answer in turn 2 is empty" in refusal(llava("a", blank), "empty-text")
        assert "the question in turn 3 is empty" in refusal(llava("a", "b", blank, "c"), "empty-text")
    assert parse_record(llava("", "a caption", image="a"), WHERE).turns[0].text == "<image>\n"  # a question by picture


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ([], "a list"),
        (None, "null"),
        ("text", "the text 'text'"),
        (3, "the number 3"),
        (True, "true"),
        ({"conversations": "x"}, "the text 'x' under 'conversations'"),
        ({"conversations": []}, "an empty list"),
        ({"messages": {}}, "an object under 'messages'"),
        ({"conversations": ["x"]}, "turn 1 is the text 'x'"),
        (llava("a", "b", image=5), "the number 5 under 'image'"),
        (llava("a", "b", image=["a", None]), "null under 'image'"),
        (llava("a", "b", image=["  "]), "under 'image'"),
        (llava("a", "b", image="a\0b"), "under 'image'"),
        (llava("a", "b", image={"path": "a"}), "an object under 'image'"),
        ({"conversations": [{"from": "human", "value": 7}]}, "the text of turn 1 is the number 7"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "a part of type 'audio'"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "the text 'x' as a part"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a part of type 'text'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": 1}]}]}, "the number 1 as its path"),
    ],
)
def test_wrong_types(record: object, found: str) -> None:
    assert found in refusal(record, "record-type")


def test_wrong_layouts() -> None:
    assert "neither" in refusal({"image": "a", "text": "x"}, "record-layout")
    assert "'text'" in refusal({"text": "x"}, "record-layout")  # what it has instead
    assert "both 'conversations' and 'messages'" in refusal({**llava("a", "b"), "messages": []}, "record-layout")
    assert "both 'image' and 'images'" in refusal({**llava("a", "b", image="a"), "images": ["a"]}, "record-layout")
    assert "turn 1 has no 'from'" in refusal({"conversations": [{"value": "x"}]}, "record-layout")
    assert "turn 1 has no 'value'" in refusal({"conversations": [{"from": "human"}]}, "record-layout")
    attached = [{"type": "image", "image": "a"}, {"type": "text", "text": "?"}]
    both = {"messages": [{"role": "user", "content": attached}, {"role": "assistant", "content": "x"}], "image": "a"}
    assert "inside its content parts" in refusal(both, "record-layout")


def test_unknown_roles_and_videos() -> None:
    for role in ("tool", "Human", None, ["gpt"]):
        assert "human, user, gpt" in refusal({"conversations": [{"from": role, "value": "x"}]}, "record-role")
    assert "'video'" in refusal({**llava("a", "b"), "video": "v.mp4"}, "video")
    assert "'videos'" in refusal({**llava("a", "b"), "videos": ["v.mp4"]}, "video")
    part = {"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}
    refusal({"messages": [part]}, "video")


@pytest.mark.parametrize("token", RESERVED)
@pytest.mark.parametrize("turn", [0, 1])
def test_reserved_tokens_cannot_be_forged(token: str, turn: int) -> None:
    texts = ["question", "answer"]
    texts[turn] += f" {token} "
    assert token in refusal(llava(*texts), "reserved-token")


def test_half_surrogates_are_refused_since_no_tokenizer_takes_them() -> None:
    record = json.loads(r'{"conversations": [{"from": "human", "value": "ok"}, {"from": "gpt", "value": "x\ud83d"}]}')
    assert "character 2" in refusal(record, "bad-text")
    refusal(llava("a", "b", image="x\ud83d.jpg"), "bad-text")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["<image>", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["image", "images", "conversations", "messages", "from", "value", "role", "content", "type"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_nothing_but_a_sample_or_a_record_error_comes_out(value: object) -> None:
    try:
        sample = parse_record(value, WHERE)
    except RecordError:
        return
    marks = sum(turn.text.count(IMAGE_MARK) for turn in sample.turns)
    assert marks == len(sample.images)
    assert sample.turns[-1].role == "assistant"


def test_the_error_survives_a_worker_process() -> None:
    with pytest.raises(RecordError) as caught:
        parse_record([], WHERE)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.code, copy.where) == (str(caught.value), "record-type", WHERE)


# ------------------------------------------------------------------------------------------------------ from bytes


@pytest.mark.parametrize(
    ("data", "code", "found"),
    [
        (b'{"a": 1\0}', "line-encoding", "NUL byte (byte 8)"),
        (b'{"a": "\xff"}', "line-encoding", "byte 8 is 0xff"),
        (b'{"a": 1', "line-syntax", "no JSON"),
        (b"[" * 200_000, "line-syntax", "too deep"),
        (b"9" * 10_000, "line-syntax", "too long"),
    ],
)
def test_damaged_bytes(data: bytes, code: str, found: str) -> None:
    with pytest.raises(RecordError) as caught:
        decode_record(data, WHERE)
    assert caught.value.code == code
    assert found in str(caught.value)


@given(
    st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=2), max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.booleans(),
)
def test_array_elements_are_found_at_their_bytes_and_lines(
    values: list[object], indent: int | None, ascii_only: bool, mark: bool
) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode(
        "utf-8-sig" if mark else "utf-8", "replace"
    )
    starts, ends, lines = index_array(io.BytesIO(data), "a.json")
    found = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    assert [json.loads(piece) for piece in found] == json.loads(data.decode("utf-8-sig"))
    assert lines.tolist() == [data[:start].count(b"\n") + 1 for start in starts]


@pytest.mark.parametrize(
    ("data", "line"),
    [(b"[", 1), (b"[1,\n2", 2), (b"[1,\n]", 2), (b"[1\n2]", 2), (b"[1]\n x", 2), (b"[]\n]", 2), (b'["\xff"]', 1)],
)
def test_a_broken_array_is_refused_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(DataError) as caught:
        index_array(io.BytesIO(data), "a.json")
    assert caught.value.where == f"a.json:{line}"
