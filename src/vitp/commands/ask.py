"""`vitp ask`: a question about a picture, answered by the model of a pretraining run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitp.commands.pretrain import load_run
from vitp.errors import CheckpointError
from vitp.images.read import ImageConfig, read_image
from vitp.instruction.sample import IMAGE_MARK
from vitp.train.loop_config import choose_device
from vitp.vlm.generate import Question, answer


def ask(
    run: Path | str,
    image: Path | str,
    question: str | Sequence[str],
    *,
    max_new_tokens: int = 256,
) -> list[str]:
    """Ask the model of a run about a picture; all of its visual tokens are used.

    Args:
        run: folder of a pretraining run.
        image: a picture, GeoTIFF, DICOM or NIfTI file, read as training reads it by default.
        question: one, or several that know nothing of each other.
        max_new_tokens: where an answer without an end is cut.

    Returns:
        one answer a question.

    Raises:
        CheckpointError: the folder holds no run with a language model.
        DataError: the picture is missing or cannot be read.
    """
    folder = Path(run)
    if not (folder / "language_model").is_dir():
        raise CheckpointError(
            f"{folder} holds no language model that could be asked; name the folder of a `vitp pretrain` run, not a "
            "fine-tuned model or an exported backbone"
        )
    pixels = read_image(Path(image), ImageConfig())
    texts = [question] if isinstance(question, str) else list(question)
    model, tokenizer, config = load_run(folder)
    asked = [Question(pixels, text.replace(IMAGE_MARK, "").strip()) for text in texts]
    model = model.to(choose_device("auto"))
    return answer(model, tokenizer, asked, tiling=config.data.tiling, max_new_tokens=max_new_tokens)
