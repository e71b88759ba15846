"""The whole model as a folder that transformers opens as InternVLForConditionalGeneration, with processor and tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitp.errors import CheckpointError
from vitp.instruction.chat import IMAGE_END, IMAGE_START, IMAGE_TOKEN, ChatFormat
from vitp.instruction.sample import IMAGE_MARK, Turn
from vitp.instruction.tiling import cut_tiles
from vitp.release.contract import OnHub, Parity, Release, compare, opened_at
from vitp.release.quiet import quiet
from vitp.release.towers import image_processor, require_complete, vision_config, vision_tensors
from vitp.train.checkpoint import model_tensors
from vitp.vlm.attention import Documents
from vitp.vlm.internvl_names import names_in_vlm

# The processor insists on a token for videos, which the model never saw. Where the vocabulary has none, one is added to the
# tokenizer alone; texts with it are refused by the processor, so that no embedding is ever looked up for it.
_VIDEO = ("<|video_pad|>", "<video>")
_QUESTION = "What is in the picture?"

# Messages whose content is a list become messages of text, as in training; the model's own template does the rest.
_FLATTEN = (
    "{%- set vitp = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set vitp.text = message['content'] -%}"
    "{%- else -%}{%- set vitp.text = '' -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set vitp.text = vitp.text + '" + IMAGE_TOKEN + "\\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set vitp.text = vitp.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- set vitp.messages = vitp.messages + [{'role': message['role'], 'content': vitp.text}] -%}"
    "{%- endfor -%}"
    "{%- set messages = vitp.messages -%}"
)


def hf_command(release: Release, place: Path | OnHub) -> str:
    """How transformers' pipeline opens it."""
    return f"transformers.pipeline('image-text-to-text', model={opened_at(place)})"


@torch.no_grad()
def write_hf(release: Release, path: Path) -> Parity:
    """Write the folder, open it again as a user would, and compare tokens, pixels and logits.

    Raises:
        CheckpointError: a part has no counterpart in transformers' InternVL, or the processor prepares other inputs.
    """
    from transformers import AutoProcessor, InternVLForConditionalGeneration

    path.mkdir()
    with quiet():
        _empty_model(release).save_pretrained(path)
        _processor(release, path).save_pretrained(path)
        again, found = InternVLForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoProcessor.from_pretrained(path)
    require_complete(found, path)
    _compare_prompts(release, processor)
    return _compare_logits(release, again.eval())


def _config(release: Release) -> Any:
    from transformers import InternVLConfig

    model, language = release.model, release.model.language_model
    text = type(language.config).from_dict(language.config.to_dict())  # type: ignore[union-attr,operator]
    head: Any = language.get_output_embeddings()  # type: ignore[operator]
    tied = head.weight is language.get_input_embeddings().weight  # type: ignore[operator]
    if getattr(head, "bias", None) is not None:
        raise CheckpointError(
            "the language model's head has a bias, which transformers' InternVL cannot hold; use --to timm"
        )
    text.tie_word_embeddings, text.vocab_size, text.use_cache = tied, head.weight.shape[0], True
    text._name_or_path = ""  # a place on this machine
    return InternVLConfig(
        vision_config=vision_config(release).to_dict(),
        text_config=text.to_dict(),
        image_token_id=ChatFormat(release.tokenizer).image_token_id,
        image_seq_length=model.tokens_per_tile,
        downsample_ratio=1 / model.factor,
        tie_word_embeddings=tied,
    )


def _tensors(release: Release) -> dict[str, Tensor]:
    """Everything under transformers' module names."""
    language: Any = release.model.language_model
    base = getattr(language, "model", None)
    if base is None or language.base_model is not base:
        raise CheckpointError(
            f"the language model ({type(language).__name__}) keeps its layers in another place than transformers' InternVL "
            "expects; use --to timm for the ViT alone"
        )
    tensors = {f"model.vision_tower.{name}": tensor for name, tensor in vision_tensors(release).items()}
    for name, tensor in model_tensors(release.model).items():
        if not name.startswith("tower."):
            tensors.update(dict.fromkeys(names_in_vlm(name, "internvl_hf"), tensor))
    tensors["lm_head.weight"] = language.get_output_embeddings().weight.detach()
    return tensors


def _empty_model(release: Release) -> Any:
    """A model of transformers around the run's own tensors: none is copied unless its dtype changes."""
    from transformers import GenerationConfig, InternVLForConditionalGeneration

    factor = release.model.factor
    if factor & (factor - 1):
        raise CheckpointError(
            f"pixel_shuffle {factor}: transformers' InternVL computes with 1 / {factor} as a rounded fraction, which only "
            "1, 2 and 4 survive; use --to timm for the ViT alone"
        )
    config, tensors = _config(release), _tensors(release)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    try:
        model.load_state_dict({n: t.to(release.dtype) for n, t in tensors.items()}, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"transformers' InternVL cannot hold this model: {' '.join(str(error).split())[:300]}; use --to timm for the ViT"
        ) from error
    model.tie_weights()
    end = ChatFormat(release.tokenizer).end_token_id
    pad = release.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end if pad is None else pad)
    model.config.dtype = release.dtype
    return model


def _processor(release: Release, path: Path) -> Any:
    """An InternVLProcessor of transformers: the recipe's tiles, the run's tokenizer, its template for messages with images."""
    from transformers import AutoTokenizer, InternVLProcessor, InternVLVideoProcessor

    tiling = release.facts.config.data.tiling
    if not tiling.thumbnail and tiling.max_tiles > 1:
        raise CheckpointError(
            "data.tiling.thumbnail is false, but transformers' InternVL processor always adds one; use --to timm for the ViT"
        )
    release.tokenizer.save_pretrained(path)
    named = {
        "start_image_token": IMAGE_START,
        "end_image_token": IMAGE_END,
        "context_image_token": IMAGE_TOKEN,
        "video_token": next((t for t in _VIDEO if t in release.tokenizer.get_vocab()), _VIDEO[-1]),
    }
    tokenizer = AutoTokenizer.from_pretrained(path, extra_special_tokens=named)
    side = {"height": release.backbone.image_size, "width": release.backbone.image_size}
    mean, std = list(release.backbone.mean), list(release.backbone.std)
    return InternVLProcessor(
        image_processor=image_processor(release, tiles=(tiling.min_tiles, tiling.max_tiles)),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side, image_mean=mean, image_std=std),
        image_seq_length=release.model.tokens_per_tile,
        chat_template=_FLATTEN + release.tokenizer.chat_template,
    )


def sample_picture(height: int, width: int) -> Tensor:
    """A picture uint8 [3, H, W], the same on every machine."""
    down, across = torch.arange(height)[:, None], torch.arange(width)[None]
    return torch.stack([(down * 7 + across) % 256, (down + across * 3) % 256, (down * across) % 256]).to(torch.uint8)


def _prompt(release: Release, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Our own inputs for the test question: ids [1, L], which of them are visual [1, L], tiles."""
    tiles = cut_tiles(picture, release.facts.config.data.tiling, release.model.image_size)
    turns = (Turn("user", f"{IMAGE_MARK}\n{_QUESTION}"),)
    encoded = ChatFormat(release.tokenizer).encode_prompt(turns, [len(tiles) * release.model.tokens_per_tile])
    return torch.from_numpy(encoded.ids).long()[None], torch.from_numpy(encoded.visual)[None], tiles


def _processed(processor: Any, picture: Tensor) -> Any:
    content = [{"type": "image"}, {"type": "text", "text": _QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=picture, text=text, return_tensors="pt")


def _compare_prompts(release: Release, processor: Any) -> None:
    """The same token ids for pictures of one tile, of a wide and of a tall grid; the same pixels for one tile."""
    side = release.model.image_size
    for height, width in ((side, side), (side, 2 * side + 3), (3 * side + 1, side)):
        picture = sample_picture(height, width)
        ids, _, tiles = _prompt(release, picture)
        theirs = _processed(processor, picture)
        if theirs["input_ids"].tolist() != ids.tolist():
            raise CheckpointError(
                f"for a picture of {width} x {height} transformers' processor makes {theirs['input_ids'].shape[1]} tokens "
                f"that differ from the {ids.shape[1]} of training; the recipe's template or tiling has no counterpart there"
            )
        if (height, width) == (side, side):
            pixels = (tiles.float() - release.model.mean.cpu()) / release.model.std.cpu()
            parity = compare(pixels, theirs["pixel_values"])
            if not parity.difference <= parity.allowed:
                raise CheckpointError("transformers' processor normalises pixels otherwise than the recipe")


def _compare_logits(release: Release, again: Any) -> Parity:
    """Logits of the whole prompt, ours and theirs, from the same tokens and tiles."""
    side = release.model.image_size
    ids, visual, tiles = _prompt(release, sample_picture(side, 2 * side))
    model: Any = release.model
    ours = _logits(_rounded(release), ids, visual, tiles)
    pixels = (tiles.float() - model.mean) / model.std
    theirs = again(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    return compare(ours, theirs)


def _logits(model: Any, ids: Tensor, visual: Tensor, tiles: Tensor) -> Tensor:
    """Logits [1, L, V] of one prompt [1, L] with all visual tokens kept, on the way that training takes."""
    language = model.language_model
    every = torch.arange(int(visual.sum()))
    shown = model.project(model.encode(tiles), every)
    inputs = language.get_input_embeddings()(ids[0]).index_copy(0, visual[0].nonzero().flatten(), shown)
    positions = torch.arange(len(inputs))[None]
    out = language.model(
        inputs_embeds=inputs[None],
        position_ids=positions,
        use_cache=False,
        documents=Documents.of([len(inputs)], inputs.device),
    )
    logits: Tensor = language.get_output_embeddings()(out.last_hidden_state)
    return logits


def _rounded(release: Release) -> Any:
    """The model as the file holds it: itself in fp32, else a copy with every number rounded."""
    if release.dtype == torch.float32:
        return release.model
    rounded = copy.deepcopy(release.model)
    for tensor in model_tensors(
        rounded
    ).values():  # what is stored; constants that are computed anew keep their precision
        tensor.copy_(tensor.to(release.dtype))
    return rounded
