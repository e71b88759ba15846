"""The tokenizer built from a recipe's text, and tokenizers opened from files in their real layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tokenizerdata import (
    QWEN25,
    write_internvl,
    write_internvl_hf,
    write_llama2,
    write_llama3,
    write_qwen,
    write_smollm2,
)

from vitp.errors import CheckpointError
from vitp.instruction.chat import SPECIAL_TOKENS
from vitp.vlm.tiny import load_language_model
from vitp.vlm.tokenizer import (
    build_tokenizer,
    embedding_rows,
    load_tokenizer,
    raise_if_beyond,
    read_tokenizer,
    split_gguf,
)


def test_the_chat_templates_own_words_are_one_token_each() -> None:
    texts = [f"How many ships are at pier {i}?" if i % 2 else f"{i} ships" for i in range(200)]
    tokenizer = build_tokenizer(texts, 400)
    turns = [{"role": "user", "content": "ships?"}, {"role": "assistant", "content": "7"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    pieces = [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(pieces) == text
    assert {"user", "assistant"} <= set(pieces)


def test_any_text_survives() -> None:
    tokenizer = build_tokenizer(["a few words"] * 3, 300)
    text = "Straße, 東京 \U0001f6f0 \t\n <box>[[1, 2, 3, 4]]</box>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("writer", [write_internvl, write_internvl_hf])
def test_an_internvl_checkpoints_tokens_keep_their_ids(writer: Callable[[Path], Path], tmp_path: Path) -> None:
    """No remote code, although its config.json names some; nothing is added; the ids are those in the file."""
    folder = writer(tmp_path)
    tokenizer = load_tokenizer(str(folder))
    written = next(folder.rglob("added_tokens.json"))
    for token, number in json.loads(written.read_text()).items():
        assert tokenizer.convert_tokens_to_ids(token) == number
    first = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[0])
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(first, first + 9))  # InternVL's order
    assert len(tokenizer) == len(read_tokenizer(str(folder)))
    assert tokenizer.tokenize("a<img><IMG_CONTEXT></img>b<box>") == [
        "a",
        "<img>",
        "<IMG_CONTEXT>",
        "</img>",
        "b",
        "<box>",
    ]


@pytest.mark.parametrize("writer", [write_smollm2, write_llama3, write_llama2, lambda f: write_qwen(f, (), QWEN25)])
def test_missing_image_tokens_follow_all_others(writer: Callable[[Path], Path], tmp_path: Path) -> None:
    own = read_tokenizer(str(writer(tmp_path)))
    tokenizer = load_tokenizer(str(tmp_path))
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(embedding_rows(own), embedding_rows(own) + 9))
    vocabulary = tokenizer.get_vocab()
    assert all(vocabulary[token] == number for token, number in own.get_vocab().items())
    tokenizer.save_pretrained(tmp_path / "again")
    assert load_tokenizer(str(tmp_path / "again")).get_vocab() == vocabulary


def test_some_image_tokens_present(tmp_path: Path) -> None:
    """As where a model was trained to ground before: <ref> and <box> keep their ids, the others come behind."""
    present = ("<ref>", "</ref>", "<box>", "</box>")
    folder = write_qwen(tmp_path, present, QWEN25)
    own, tokenizer = read_tokenizer(str(folder)), load_tokenizer(str(folder))
    assert tokenizer.convert_tokens_to_ids(list(present)) == own.convert_tokens_to_ids(list(present))
    assert len(tokenizer) == len(own) + 5


def test_a_token_that_is_an_ordinary_piece_becomes_one_that_texts_are_cut_at(tmp_path: Path) -> None:
    folder = write_llama2(tmp_path, corpus=["<box> <box> <box> a<box>"] * 20)
    own, tokenizer = read_tokenizer(str(folder)), load_tokenizer(str(folder))
    assert "<box>" in own.get_vocab()
    assert own.tokenize("a<box>") == ["▁", "a<box>"]
    assert tokenizer.convert_tokens_to_ids("<box>") == own.convert_tokens_to_ids("<box>")
    assert tokenizer.tokenize("a<box>") == ["▁", "a", "<box>"]


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, (*SPECIAL_TOKENS, "<extra_0>", "<extra_1>"), QWEN25, rows=345)
    rows = embedding_rows(read_tokenizer(str(folder)))
    for short, found in ((1, r"<extra_1> has the id \d+, but"), (2, r"<extra_0> has the id \d+ \(and 1 more\), but")):
        config = {"model_type": "internvl_chat", "llm_config": {"vocab_size": rows - short}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=rf"{found} the language model has {rows - short} embedding rows"):
            load_tokenizer(str(folder))
    config = {"model_type": "qwen2", "vocab_size": rows}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_tokenizer(str(folder))


def test_rows_for_added_tokens_are_no_fault(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, (), QWEN25)
    rows = embedding_rows(read_tokenizer(str(folder)))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": rows}))
    tokenizer = load_tokenizer(str(folder))
    assert embedding_rows(tokenizer) == rows + 9
    raise_if_beyond(tokenizer, rows, folder)


def _of_code(folder: Path) -> None:
    auto = {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}
    config = {"tokenizer_class": "InternLM2Tokenizer", "auto_map": auto}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _cut_off(folder: Path) -> None:
    file = write_smollm2(folder) / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("prepare", "found"),
    [
        (lambda folder: None, "holds no tokenizer; copy tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "qwen2"}'), "holds no tokenizer"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "internvl_chat"}'), "holds no tokenizer"),
        (_of_code, "Python code in the model's folder, which is not run; .* name ends in -hf"),
        (_cut_off, "no tokenizer can be loaded"),
    ],
)
def test_what_is_no_tokenizer_is_one_sentence(prepare: Callable[[Path], object], found: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(CheckpointError, match=found) as caught:
        load_tokenizer(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [None, b"GGUF1234", b"", b"no gguf at all, but long enough to hold a header of one"]
)
def test_a_damaged_gguf_file_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    file = tmp_path / "model.Q4_1.gguf"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.Q4_1\.gguf"):
        load_tokenizer(str(file))


def test_a_gguf_file_is_read_as_one_and_a_file_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitp.synthesis.paraphrase.find_spec", lambda name: object())
    file = tmp_path / "small.gguf"
    assert split_gguf("Qwen/Qwen2.5-0.5B-Instruct") == ("Qwen/Qwen2.5-0.5B-Instruct", None)
    assert split_gguf(str(tmp_path)) == (str(tmp_path), None)
    file.write_bytes(b"GGUF" + bytes(20))
    assert split_gguf(str(file)) == (str(tmp_path), "small.gguf")
    file.write_bytes(b"<html>not found</html>      ")
    for load in (load_tokenizer, lambda path: load_language_model(path, 0)):
        with pytest.raises(CheckpointError, match="small.gguf is no whole GGUF file"):
            load(str(file))
        with pytest.raises(CheckpointError, match="gone.gguf"):
            load(str(tmp_path / "gone.gguf"))
