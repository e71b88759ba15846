"""Chat templates of real families, from files in their layout: what is supervised, BOS, system sentences, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tokenizerdata import (
    LLAMA2,
    LLAMA3,
    QWEN3,
    QWEN25,
    write_internvl,
    write_internvl_hf,
    write_llama2,
    write_llama3,
    write_qwen,
    write_smollm2,
)

from vitp.errors import CheckpointError, DataError
from vitp.instruction.chat import SPECIAL_TOKENS, ChatFormat
from vitp.instruction.chat_template import ChatConfig, apply_chat_config
from vitp.instruction.sample import Turn
from vitp.instruction.token_count import TokenCounter
from vitp.vlm.tokenizer import load_tokenizer

Writer = Callable[[Path], Path]


def write_slow(folder: Path) -> Path:
    """A tokenizer in Python, without a fast one."""
    from transformers import ByT5Tokenizer

    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = QWEN25
    tokenizer.save_pretrained(folder)
    return folder


FAMILIES: dict[str, tuple[Writer, str]] = {
    "internvl": (write_internvl, "<|im_end|>"),
    "internvl-hf": (write_internvl_hf, "<|im_end|>"),
    "qwen2.5": (lambda folder: write_qwen(folder, (), QWEN25), "<|im_end|>"),
    "smollm2": (write_smollm2, "<|im_end|>"),
    "llama3": (write_llama3, "<|eot_id|>"),
    "llama2": (write_llama2, "</s>"),
    "slow": (write_slow, "<|im_end|>"),
}
ANSWERS = ("Two ships.", "<ref>ship</ref><box>[[1, 2, 30, 40]]</box>", "naïve 東京 2,000\n\n* a  list", "b")
TURNS = tuple(
    turn
    for k, answer in enumerate(ANSWERS)
    for turn in (Turn("user", ("<image>\n" if k < 2 else "") + f"What is {k}?"), Turn("assistant", answer))
)


def opened(writer: Writer, folder: Path, config: ChatConfig) -> ChatFormat:
    return ChatFormat(apply_chat_config(load_tokenizer(str(writer(folder))), config), config.tokenise)


@pytest.fixture(
    scope="module", params=[(name, template) for name in FAMILIES for template in ("own", "chatml")], ids=str
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatFormat, str, str]:
    """A format, the end token of its answers, and the family."""
    name, template = request.param
    writer, end = FAMILIES[name]
    chat = opened(writer, tmp_path_factory.mktemp("tokenizer"), ChatConfig(template=template))
    return chat, end if template == "own" else "<|im_end|>", name


def test_supervised_are_the_answers_with_their_end_and_nothing_else(case: tuple[ChatFormat, str, str]) -> None:
    chat, end, name = case
    encoded = chat.encode(TURNS, [4, 2])
    decode = chat.tokenizer.decode
    said = [decode(encoded.ids[a:b].tolist()).lstrip(" ") for a, b in encoded.answers]
    if name == "llama2":  # its tokenizer puts a blank behind every added token
        said = [text.replace("> ", ">") for text in said]
    assert said == [answer + end for answer in ANSWERS]
    assert chat.end_token_id == chat.tokenizer.convert_tokens_to_ids(end)
    others = np.ones(len(encoded.ids), bool)
    for begin, after in encoded.answers:
        others[begin:after] = False
        assert encoded.ids[after - 1] == chat.end_token_id
    rest = decode(encoded.ids[others].tolist())
    assert not any(answer in rest for answer in ANSWERS[:3])
    assert all(f"What is {k}?" in rest for k in range(4))
    assert not (encoded.visual & ~others).any()
    assert encoded.visual.sum() == 6


def test_a_prompt_is_how_the_conversation_begins(case: tuple[ChatFormat, str, str]) -> None:
    """What generation sees of a conversation is, token by token, what training shows up to the answer."""
    chat = case[0]
    encoded = chat.encode(TURNS, [4, 2])
    for k, (begin, _) in enumerate(encoded.answers):
        prompt = chat.encode_prompt(TURNS[: 2 * k + 1], [4, 2][: min(k + 1, 2)])
        assert prompt.ids.tolist() == encoded.ids[:begin].tolist()


def test_bos_stands_once_and_first(case: tuple[ChatFormat, str, str]) -> None:
    chat, _, name = case
    encoded = chat.encode(TURNS, [1, 1])
    bos = chat.tokenizer.bos_token_id
    if name.startswith("llama"):
        assert np.flatnonzero(encoded.ids == bos).tolist() == [0]
    elif bos is not None:  # SmolLM2 calls the start of a turn so
        assert (encoded.ids == bos).sum() >= len(TURNS)


def test_counting_agrees(case: tuple[ChatFormat, str, str]) -> None:
    chat = case[0]
    odd = (Turn("user", "<image> a"), Turn("assistant", "\n b "), Turn("user", "\n"), Turn("assistant", " 12\n\n"))
    for turns, images in ((TURNS, 2), (TURNS[4:], 0), (odd, 1)):
        encoded = chat.encode(turns, [7] * images)
        (counted,) = TokenCounter(chat).count([turns])
        assert (counted.text, counted.supervised) == (len(encoded.ids) - 7 * images, encoded.supervised)


def test_a_saved_tokenizer_says_the_same(case: tuple[ChatFormat, str, str], tmp_path: Path) -> None:
    """The run's own copy needs no recipe: template, system sentence and tokens are in it."""
    chat = case[0]
    chat.tokenizer.save_pretrained(tmp_path)
    again = ChatFormat(load_tokenizer(str(tmp_path)))
    one, two = chat.encode(TURNS, [2, 2]), again.encode(TURNS, [2, 2])
    assert one.ids.tolist() == two.ids.tolist()
    assert one.answers == two.answers
    ids = [again.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == [chat.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]


@pytest.mark.parametrize("name", ["internvl", "internvl-hf", "smollm2", "llama3"])
def test_a_recipes_system_sentence(name: str, tmp_path: Path) -> None:
    sentence = 'Say "yes", \\n or {{ no }} {% x %}; 请简短。\nNothing else.'
    chat = opened(FAMILIES[name][0], tmp_path, ChatConfig(system=sentence))
    text, _ = chat.render(TURNS[:2])
    assert text.count(sentence) == 1
    assert text.index(sentence) < text.index("What is 0?")
    assert not any(default in text for default in ("You are a helpful", "You are SmolLM"))
    own = chat.render((Turn("system", "Mine."), *TURNS[:2]))[0]
    assert "Mine." in own
    assert sentence not in own


CONVERSATIONS = """
register(Conversation(name='older', system_message='Old.', roles=('a', 'b')))
register(Conversation(
    name='internvl2_5', system_template='<|im_start|>system\\n{system_message}',
    system_message='我是 "一个" 助手。', sep='<|im_end|>\\n'))
raise SystemExit('this is never run')
"""


def test_the_released_sentence_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    folder = write_internvl(tmp_path)
    config = ChatConfig(template="chatml", released_system=True)
    (folder / "conversation.py").write_text(CONVERSATIONS, "utf-8")
    (folder / "model.safetensors").touch()
    for origin in (folder, folder / "model.safetensors"):
        chat = ChatFormat(apply_chat_config(load_tokenizer(str(folder)), config, str(origin)))
        assert chat.render(TURNS[2:4])[0].startswith(
            '<|im_start|>system\n我是 "一个" 助手。<|im_end|>\n<|im_start|>user\n'
        )


@pytest.mark.parametrize(
    "code", [None, "", "register(Conversation(name='other', system_message='x'))", "if", "\0", "(" * 5000]
)
def test_a_checkpoint_that_does_not_state_it_is_refused(code: str | None, tmp_path: Path) -> None:
    folder = write_internvl(tmp_path)
    if code is not None:
        (folder / "conversation.py").write_text(code, "utf-8")
    with pytest.raises(
        CheckpointError, match=r"no conversation\.py states .* template internvl2_5; write .*data\.chat\.system"
    ):
        apply_chat_config(load_tokenizer(str(folder)), ChatConfig(released_system=True), str(folder))


def test_two_system_sentences_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="set one of them"):
        ChatConfig(system="a", released_system=True)


def test_chatml_alone_has_no_system_turn(tmp_path: Path) -> None:
    chat = opened(write_smollm2, tmp_path, ChatConfig(template="chatml"))
    assert chat.render(TURNS[:2])[0].startswith("<|im_start|>user\n")


def test_the_date_of_a_template_stands_still(tmp_path: Path) -> None:
    assert "Today Date: 26 Jul 2024" in opened(write_llama3, tmp_path, ChatConfig()).render(TURNS[:2])[0]
    moved = opened(write_llama3, tmp_path, ChatConfig(date="1 May 2031")).render(TURNS[:2])[0]
    assert "Today Date: 1 May 2031" in moved
    assert date.today().strftime("%d %b %Y") not in moved


def test_a_bos_the_template_forgets_is_put_first(tmp_path: Path) -> None:
    forgetful = LLAMA3.replace("{{ bos_token }}", "")
    for bos, times in (("once", 1), ("template", 0)):
        chat = opened(lambda folder: write_llama3(folder, forgetful), tmp_path, ChatConfig(bos=bos))
        ids = chat.encode(TURNS, [1, 1]).ids
        assert (ids == chat.tokenizer.bos_token_id).sum() == times


def test_reasoning_templates_are_refused_with_a_way_out(tmp_path: Path) -> None:
    def qwen3(folder: Path) -> Path:
        return write_qwen(folder, (), QWEN3)

    with pytest.raises(CheckpointError, match=r"rewrites earlier turns.*data\.chat\.template: chatml"):
        opened(qwen3, tmp_path, ChatConfig())
    chat = opened(qwen3, tmp_path, ChatConfig(template="chatml"))
    assert "think" not in chat.render(TURNS)[0]

    always = QWEN3.replace(" and loop.last", "")
    with pytest.raises(CheckpointError, match=r"'<think>.*in front of answers.*data\.chat\.template: chatml"):
        opened(lambda folder: write_qwen(folder, (), always), tmp_path, ChatConfig())


def test_a_template_that_refuses_a_conversation_is_quoted(tmp_path: Path) -> None:
    chat = opened(write_llama2, tmp_path, ChatConfig())
    with pytest.raises(CheckpointError, match=r"system, user.*must alternate.*data\.chat\.template: chatml"):
        chat.encode((Turn("system", "a"), *TURNS[:2]), [1])


def test_no_template_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no chat template.*data\.chat\.template: chatml"):
        opened(lambda folder: write_llama3(folder, None), tmp_path, ChatConfig())
    assert opened(lambda folder: write_llama3(folder, None), tmp_path, ChatConfig(template="chatml")).encode(
        TURNS, [1, 1]
    )


def test_several_templates(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(write_llama2(tmp_path)))
    tokenizer.chat_template = {"tool_use": "x", "default": LLAMA2}
    assert apply_chat_config(tokenizer, ChatConfig()).chat_template == LLAMA2
    tokenizer.chat_template = {"tool_use": "x", "rag": "y"}
    with pytest.raises(CheckpointError, match="rag, tool_use and none called default"):
        apply_chat_config(tokenizer, ChatConfig())


def test_an_end_that_is_no_token_cannot_stop_an_answer(tmp_path: Path) -> None:
    bare = "{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
    bare += "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
    chat = opened(lambda folder: write_qwen(folder, (), bare), tmp_path, ChatConfig())
    with pytest.raises(CheckpointError, match="no token that could stop an answer"):
        _ = chat.end_token_id


def test_a_placeholder_inside_a_text_is_refused(tmp_path: Path) -> None:
    chat = opened(write_internvl, tmp_path, ChatConfig())
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*<IMG_CONTEXT>"):
        chat.encode((Turn("user", "<image> <IMG_CONTEXT>"), Turn("assistant", "b")), [3], "a.jsonl:3")


def test_missing_image_tokens_are_one_sentence(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(write_smollm2(tmp_path))
    with pytest.raises(CheckpointError, match=r"no token <img>.*load_tokenizer"):
        ChatFormat(tokenizer)


def test_parts_are_tokenised_as_generation_sees_them(tmp_path: Path) -> None:
    """SentencePiece puts a blank in front of every text, also of an answer on its own."""
    whole, parts = (opened(write_llama2, tmp_path, ChatConfig(tokenise=t)) for t in ("whole", "parts"))
    lengths = [len(chat.encode(TURNS[:2], [1]).ids) for chat in (whole, parts)]
    assert lengths[1] == lengths[0] + 1
