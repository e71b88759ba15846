"""Which chat template a tokenizer uses: its own or ChatML, its system sentence, its BOS token.

The choice is written into the tokenizer's template, once. So training, generation, the saved run and whatever opens it
elsewhere see the same text without having to be told.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import model_validator

from vitp.config import Config
from vitp.errors import CheckpointError

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatConfig(Config):
    """How a conversation becomes text and tokens.

    The released InternVL code: ``template: chatml`` and ``released_system: true``. transformers' InternVL processor:
    ``template: chatml`` alone. docs/templates.md lists where they differ.
    """

    # own: the tokenizer's; chatml: what InternVL2.5 and later are trained with, no system turn by itself
    template: Literal["own", "chatml"] = "own"
    system: str | None = None  # the system turn of conversations without one; None: what the template does by itself
    released_system: bool = False  # the same, read from the conversation.py of a checkpoint in InternVL's own layout
    # whole: released and transformers; parts: each answer apart, as it is when the model has written it
    tokenise: Literal["whole", "parts"] = "whole"
    # once: at the start if the tokenizer begins texts with one (released, transformers); template: only what that writes
    bos: Literal["once", "template"] = "once"
    date: str = (
        "26 Jul 2024"  # for templates that ask for today's, which must not change while training; Llama 3.2's own
    )

    @model_validator(mode="after")
    def _one_system(self) -> ChatConfig:
        if self.system is not None and self.released_system:
            raise ValueError("system and released_system both name a system sentence: set one of them")
        return self


def apply_chat_config(tokenizer: Any, config: ChatConfig, origin: str | None = None) -> Any:
    """Write the choices into a tokenizer, in place; with the defaults most tokenizers stay as they are.

    ChatML's two tokens are added to a tokenizer that lacks them.

    Args:
        tokenizer: a transformers tokenizer.
        config: the choices.
        origin: folder, file or hub id of the checkpoint, for `released_system`.

    Returns:
        the same tokenizer.

    Raises:
        CheckpointError: the tokenizer has several templates and none is called default, or the checkpoint states no
            system sentence.
    """
    system = released_system(origin) if config.released_system else config.system
    template = tokenizer.chat_template
    if config.template == "chatml":
        template = CHATML
        missing = [token for token in (TURN_START, TURN_END) if token not in tokenizer.get_added_vocab()]
        if missing:
            tokenizer.add_tokens(missing, special_tokens=True)
    if isinstance(template, dict):
        if "default" not in template:
            raise CheckpointError(
                f"the tokenizer has the chat templates {', '.join(sorted(template))} and none called default; "
                "set data.chat.template: chatml"
            )
        template = template["default"]
    if not template:
        return tokenizer  # whoever needs one says so
    if "strftime_now" in template:
        template = f"{{% macro strftime_now(format) %}}{{{{ {_literal(config.date)} }}}}{{% endmacro %}}{template}"
    if system is not None:
        turn = f"{{'role': 'system', 'content': {_literal(system)}}}"
        template = (
            "{% if not messages or messages[0]['role'] != 'system' %}"
            f"{{% set messages = [{turn}] + messages %}}{{% endif %}}{template}"
        )
    if config.bos == "once" and _lacks_bos(tokenizer, template):
        template = f"{{{{ bos_token }}}}{template}"
    if template != tokenizer.chat_template:
        tokenizer.chat_template = template
    return tokenizer


def released_system(origin: str | None) -> str:
    """The system sentence of a checkpoint in InternVL's own layout.

    config.json names a conversation template, and the repository's conversation.py lists what belongs to each. The file is
    read, never run.

    Raises:
        CheckpointError: it is not stated there.
    """
    name, text = "", None
    if origin is not None:
        try:
            config = json.loads(_beside(origin, "config.json").read_text("utf-8"))
            name = config.get("template", "") if isinstance(config, dict) else ""
            text = _system_message(_beside(origin, "conversation.py").read_text("utf-8"), name)
        except (OSError, ValueError, SyntaxError, RecursionError):
            text = None
    if text is None:
        what = f"the template {name}" if name else "a template"
        raise CheckpointError(
            f"{origin or 'the language model built here'}: no conversation.py states the system sentence of {what}; write the "
            "sentence into data.chat.system, or set data.chat.released_system: false"
        )
    return text


def _beside(origin: str, name: str) -> Path:
    """A file of a checkpoint, from its folder or the hub."""
    place = Path(origin)
    if place.exists():
        return (place.parent if place.is_file() else place) / name
    from transformers.utils import cached_file

    return Path(cached_file(origin, name))


def _system_message(code: str, template: str) -> str | None:
    """The `system_message` of the call that has ``name=template``."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if given.get("name") == template and isinstance(given.get("system_message"), str):
                return str(given["system_message"])
    return None


def _literal(text: str) -> str:
    """A text as a Jinja string."""
    return json.dumps(text, ensure_ascii=False)


def _lacks_bos(tokenizer: Any, template: str) -> bool:
    """Whether the tokenizer begins texts with a BOS token and the template does not."""
    bos = tokenizer.bos_token
    if not bos or tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return False
    turns = [{"role": "user", "content": "a"}]
    try:
        shown = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)
    except TemplateError:  # said by whoever uses it
        return False
    return not str(shown).lstrip().startswith(bos)
