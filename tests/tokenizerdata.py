"""Tiny tokenizers and processors in the files and the layout real checkpoints have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vitp.instruction.chat import SPECIAL_TOKENS
from vitp.instruction.pieces import PATTERNS

CORPUS = [
    "How many ships are there? Two  ships,\nin the harbour's 3 docks (of 120).",
    "assistant\nsystem\nuser\n\nYou are a helpful assistant.",
    "a tree. The trees\n\n  - one [[1, 2, 30, 40]]",
] * 20
# Before InternVL's own, as in Qwen2.5; stand-ins for its 22.
BASE_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box_start|>", "<tool_call>")
PIXELS, TOKENS_PER_TILE = 48, 9  # side of a tile; as patch 8 and pixel shuffle 2

# What the published templates do, in few words.
QWEN25 = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' or m.role == 'assistant' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Earlier answers as they are, the last with an empty train of thought in front.
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# With Llama 3.2's date, which is today's unless told.
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}<|eot_id|>"
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Llama 2 and Mistral: no role names; a pair of turns ends with </s>.
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}"
    "{% else %}{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)


def _qwen_pattern() -> str:
    return next(pattern for pattern in PATTERNS if "{1,3}" not in pattern)


def _byte_level(first: Any, special: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return core


def write_qwen(folder: Path, added: tuple[str, ...], template: str | None, rows: int | None = None) -> Path:
    """A Qwen2 tokenizer as its repositories hold it, slow files only, with `added` behind the base tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    core = _byte_level(pre_tokenizers.Split(Regex(_qwen_pattern()), "isolated"), [])
    core.model.save(str(folder))
    first = core.get_vocab_size()
    ids = {token: first + k for k, token in enumerate((*BASE_TOKENS, *added))}
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(i): {"content": t, "special": t != "<tool_call>", **plain} for t, i in ids.items()
        },
        "additional_special_tokens": [t for t in ids if t not in ("<|endoftext|>", "<tool_call>")],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "add_bos_token": False,
        "model_max_length": 8192,
    }
    if template is not None:
        config["chat_template"] = template
    _write(folder / "tokenizer_config.json", config)
    _write(folder / "added_tokens.json", ids)
    if rows is not None:
        auto = {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"}
        _write(
            folder / "config.json",
            {
                "model_type": "internvl_chat",
                "auto_map": auto,
                "template": "internvl2_5",
                "llm_config": {"vocab_size": rows},
            },
        )
    return folder


def write_internvl(folder: Path) -> Path:
    """The tokenizer of InternVL2.5-1B in its original repository: Qwen2.5's with nine tokens more, and its template."""
    return write_qwen(folder, SPECIAL_TOKENS, QWEN25, rows=1000)


def write_internvl_hf(folder: Path) -> Path:
    """Tokenizer and processor as in the repositories whose name ends in -hf."""
    from transformers import AutoTokenizer, GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    tokens = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    source = write_qwen(folder / "source", SPECIAL_TOKENS, template)
    tokenizer = AutoTokenizer.from_pretrained(source, extra_special_tokens={**tokens, "video_token": "<video>"})
    images = GotOcr2ImageProcessor(
        size={"height": PIXELS, "width": PIXELS}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    videos = InternVLVideoProcessor(size={"height": PIXELS, "width": PIXELS})
    InternVLProcessor(
        images, tokenizer, videos, image_seq_length=TOKENS_PER_TILE, chat_template=template
    ).save_pretrained(folder)
    return folder


def write_fast(folder: Path, core: Tokenizer, template: str | None, **special: str) -> Path:
    """A repository with tokenizer.json, as Llama 3 and SmolLM2 have."""
    folder.mkdir(parents=True, exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    if template is not None:
        config["chat_template"] = template
    _write(folder / "tokenizer_config.json", config)
    return folder


def write_smollm2(folder: Path) -> Path:
    """SmolLM2: single digits, GPT-2's pattern; its BOS is ChatML's turn start, which it never adds."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    names = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    return write_fast(folder, core, SMOLLM2, **names)


def write_llama3(folder: Path, template: str | None = LLAMA3) -> Path:
    """Llama 3: every text begins with BOS, added by the tokenizer, and by the template."""
    pattern = next(pattern for pattern in PATTERNS if "{1,3}" in pattern)
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    core = _byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"), special)
    core.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", core.token_to_id("<|begin_of_text|>"))]
    )
    return write_fast(folder, core, template, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def write_llama2(folder: Path, template: str | None = LLAMA2, corpus: Sequence[str] = CORPUS) -> Path:
    """Llama 2 and Mistral: SentencePiece's pieces with bytes for the rest; every text gets a blank in front."""
    texts = [text.replace(" ", "▁") for text in corpus]
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    state = json.loads(core.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are ordinary pieces
    core = Tokenizer.from_str(json.dumps(state))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    return write_fast(folder, core, template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), "utf-8")
