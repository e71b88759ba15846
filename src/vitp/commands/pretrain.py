"""`vitp pretrain`: instruction data in, a trained vision-language model with its domain ViT out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitp.backbone.vit import choose_attention
from vitp.commands.precheck import checked
from vitp.commands.preflight import Fitting, fitted_plan
from vitp.commands.pretrain_recipe import PretrainConfig, fingerprint
from vitp.commands.ranks import OtherRank, share_steps
from vitp.config import save
from vitp.errors import CheckpointError, DataError
from vitp.files import raise_if_unwritable, write_json
from vitp.instruction.chat import ChatFormat
from vitp.instruction.chat_template import apply_chat_config
from vitp.instruction.check_report import CheckReport
from vitp.instruction.held_out import HELD_OUT, find_splits, parted, write_splits
from vitp.instruction.index import SizeRules
from vitp.instruction.pack import StepBuilder
from vitp.instruction.plan import PlanConfig
from vitp.instruction.source import Source
from vitp.provenance import provenance
from vitp.recipes import load_recipe
from vitp.report.pretraining import write_run_report
from vitp.tasks.answering import Evaluator
from vitp.tasks.pretraining import PretrainingTask
from vitp.train.average import load_weights
from vitp.train.checkpoint import list_checkpoints
from vitp.train.distributed import Ranks, joined
from vitp.train.loop import TrainResult, check_output, in_step, open_output, train
from vitp.train.loop_config import choose_device, uses_bf16
from vitp.train.task import Progress
from vitp.vlm.acceleration import accelerate
from vitp.vlm.build import assemble, tokenizer_of
from vitp.vlm.cost import estimate_cost
from vitp.vlm.flops import last_block_of
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.tokenizer import build_tokenizer, load_tokenizer


@dataclass(frozen=True)
class PretrainResult:
    """What a finished pretraining run leaves behind."""

    out: Path
    train: TrainResult


def _texts(sources: Sequence[Source], limit: int = 200_000) -> Iterator[str]:
    """Questions and answers, evenly from all sources, for building a tokenizer."""
    share = max(1, limit // len(sources))
    for source in sources:
        stride = max(1, len(source) // share)
        for i in range(0, len(source), stride):
            try:
                sample = source.sample(i)
            except DataError:
                continue
            for turn in sample.turns:
                yield turn.text.replace("<image>", "")


def recipe_tokenizer(
    config: PretrainConfig, sources: Sequence[Source], say: Callable[[str], None] = lambda _: None
) -> Any:
    """The model's own tokenizer, or for a language model from scratch one built from the sources' text; with the
    recipe's chat template.

    Raises:
        CheckpointError: there is none where the recipe says.
    """
    language = config.model.language_model
    origin = config.model.vlm or language.path
    if origin is not None:
        return apply_chat_config(tokenizer_of(origin, say), config.data.chat, origin)
    return apply_chat_config(build_tokenizer(_texts(sources), language.vocabulary), config.data.chat)


def size_rules(config: PretrainConfig, tokenizer: Any) -> SizeRules:
    """What an index must know of a recipe."""
    tower = config.model.tower
    side = tower.image_size // tower.patch_size // config.model.pixel_shuffle
    chat = ChatFormat(tokenizer, config.data.chat.tokenise)
    return SizeRules(chat, config.data.tiling, tower.image_size, side * side, config.data.max_length)


def build_model(
    config: PretrainConfig, tokenizer: Any, run: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> VisionLanguageModel:
    """The model of a recipe with its initial weights; what is not loaded is drawn from the recipe's seed.

    Args:
        config: the recipe.
        tokenizer: the model's.
        run: a run whose weights will be loaded next; nothing is then read from the places the recipe names.
        say: receives what was loaded and what is new.

    Raises:
        CheckpointError: given weights do not fit.
        ConfigError: the parts do not fit together.
    """
    return assemble(config.model, tokenizer, config.seed, run, say)


def build_task(
    config: PretrainConfig,
    sources: Sequence[Source],
    tokenizer: Any,
    run: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PretrainingTask:
    """Model, data and learning rates of a recipe."""
    model = build_model(config, tokenizer, run, say)
    builder = StepBuilder(
        sources,
        ChatFormat(tokenizer, config.data.chat.tokenise),
        seed=config.seed,
        batch_size=config.batch_size,
        tile_size=config.model.tower.image_size,
        tokens_per_tile=model.tokens_per_tile,
        depth_modules=len(model.depth_modules),
        tiling=config.data.tiling,
        vrl=config.vrl,
        weighting=config.loss_weighting,
        max_length=config.data.max_length,
        plan=PlanConfig(
            max_tokens_per_pack=config.max_tokens_per_pack,
            max_tiles_per_pack=config.max_tiles_per_pack,
            max_samples_per_pack=config.max_samples_per_pack,
            cost=estimate_cost(
                model,
                config.trained,
                kept_share=config.vrl.kept_share,
                last_block=last_block_of(model, config.vrl.kept_share),
            ),
        ),
        text_steps=config.warm_start.steps,
        text_batch_size=config.warm_start.batch_size,
    )
    return PretrainingTask(
        model,
        builder,
        lr_tower=config.lr_tower,
        lr_projector=config.lr_projector,
        lr_language_model=config.lr_language_model,
    )


def pretrain(
    recipe: PretrainConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> PretrainResult:
    """Pretrain a vision-language model on instruction data.

    Args:
        recipe: a PretrainConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        resume: continue the run in the output folder.
        overwrite: start anew in a folder that holds another run.
        progress: told after every step.
        say: receives lines worth reading (which parts train, what is replaced).

    Returns:
        the run's folder and the training result; the check's report is in its check.json.

    Raises:
        VitpError: any mistake the user can mend, before training where it can be seen before.
    """
    with joined() as ranks:
        config = ranks.together(lambda: load_recipe(PretrainConfig, recipe, overrides))
        ranks.use_devices(config.device)
        if not ranks.first:
            progress, say = OtherRank(ranks.rank, say), lambda _: None
        return _pretrain(config, ranks, resume, overwrite, progress, say)


def _pretrain(
    config: PretrainConfig,
    ranks: Ranks,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
    say: Callable[[str], None],
) -> PretrainResult:
    """One rank's part of `pretrain`; `progress` and `say` are rank 0's."""
    out = config.folder
    ranks.lead(lambda: check_output(out, resume=resume, overwrite=overwrite))
    whole = ranks.together(config.data.open_sources)
    same = fingerprint(config, whole)
    beside = {**in_step(config, resume=resume), "evaluation.every": config.evaluation.every}
    ranks.agree(same | beside, "start all ranks with the same recipe, overrides and data")
    resumed = ranks.lead(lambda: resume and (out / "recipe.yaml").is_file())
    others = ranks.together(lambda: config.evaluation.open_sources(config.data.sources, config.data.index))
    report = ranks.together(lambda: _checked([*whole, *others], config, say) if ranks.first and not resumed else None)
    numbers = config.evaluation.numbers(config.data.sources)
    splits = ranks.together(lambda: find_splits(whole, numbers, out / HELD_OUT if resumed else None))
    sources, held = parted(whole, splits)
    asked = [*held, *others]
    first = None
    if not resumed:
        first = ranks.together(
            lambda: _begin(config, sources, asked, report, overwrite, ranks, say) if report is not None else None
        )
        ranks.lead(lambda: write_splits(out / HELD_OUT, whole, splits) if splits else None)
        ranks.see_the_same_folder(out)
    # The other ranks' weights are those of rank 0, which the loop hands out.
    begun = ranks.together(lambda: first or _join(config, sources, asked, ranks, say))
    fitting = ranks.lead(lambda: begun.fitting or _fitted(begun.task, config, ranks, True, say))
    task = begun.task
    task.builder.plan = fitting.plan
    if not ranks.alone:
        share_steps(task.builder, whole, config.data.index, config.strategy, ranks, say)
    device = choose_device(config.device)
    model = task.model
    say(f"a conversation is shown as {task.builder.chat.example()!r}")
    choose_attention(model.tower, model.grid**2, device, bf16=uses_bf16(config.precision, device))
    accelerate(model, config, device, fitting.checkpointing, say)
    for group in task.parameter_groups():
        state = f"lr {group.lr:g}" if group.lr > 0 else "frozen (lr 0)"
        say(f"{group.name.replace('_', ' ')}: {group.size / 1e6:.2f} M parameters, {state}")
    warm = config.warm_start.steps
    result = train(
        task,
        config.model_copy(update={"steps": config.steps + warm}),
        out,
        resume=resume,
        progress=progress,
        schedule_starts=(0, warm) if warm else (0,),
        fingerprint=same,
        after_step=begun.evaluator,
        ranks=ranks,
    )
    ranks.lead(lambda: write_run_report(out, config.name))
    return PretrainResult(out, result)


def _checked(sources: Sequence[Source], config: PretrainConfig, say: Callable[[str], None]) -> CheckReport:
    return checked(sources, config.data.bad_samples, config.max_skipped_share, say)


def _evaluator(
    config: PretrainConfig, task: PretrainingTask, asked: Sequence[Source], ranks: Ranks, say: Callable[[str], None]
) -> Evaluator | None:
    """Asks the model about sources while it trains; None where there are none."""
    if not asked:
        return None
    return Evaluator(
        task.model,
        task.builder,
        asked,
        config.evaluation,
        out=config.folder,
        name=config.name,
        steps=config.steps + config.warm_start.steps,
        bf16=uses_bf16(config.precision, choose_device(config.device)),
        say=say,
        rank=ranks.rank,
        everywhere=config.strategy == "fsdp" and not ranks.alone,
    )


@dataclass(frozen=True)
class _Begun:
    """What a rank trains with."""

    task: PretrainingTask
    evaluator: Evaluator | None
    fitting: Fitting | None  # rank 0's is everybody's


def _fitted(
    task: PretrainingTask, config: PretrainConfig, ranks: Ranks, resumed: bool, say: Callable[[str], None]
) -> Fitting:
    return fitted_plan(task, config, ranks=ranks.size, resumed=resumed, say=say, modes=config.checkpointing_modes)


def _begin(
    config: PretrainConfig,
    sources: Sequence[Source],
    asked: Sequence[Source],
    report: CheckReport,
    overwrite: bool,
    ranks: Ranks,
    say: Callable[[str], None],
) -> _Begun:
    """A new run: its model built, its folder made when nothing can go wrong any more."""
    tokenizer = recipe_tokenizer(config, sources, say)
    task = build_task(config, sources, tokenizer, say=say)
    begun = _Begun(task, _evaluator(config, task, asked, ranks, say), _fitted(task, config, ranks, False, say))
    open_output(config.folder, overwrite=overwrite)
    _describe(config.folder, config, tokenizer, task, report)
    return begun


def _join(
    config: PretrainConfig, sources: Sequence[Source], asked: Sequence[Source], ranks: Ranks, say: Callable[[str], None]
) -> _Begun:
    """A run whose folder is there: one that is resumed, or that rank 0 has begun."""
    task = build_task(config, sources, load_tokenizer(str(config.folder / "tokenizer")), run=config.folder)
    return _Begun(task, _evaluator(config, task, asked, ranks, say), None)


def _describe(out: Path, config: PretrainConfig, tokenizer: Any, task: PretrainingTask, report: CheckReport) -> None:
    """Everything but weights that it takes to open the run again; the recipe last, as the sign that all is there."""
    try:
        tokenizer.save_pretrained(out / "tokenizer")
        task.model.language_model.config.save_pretrained(out / "language_model")  # type: ignore[operator,union-attr]
    except OSError as error:
        raise_if_unwritable(error, out)
        raise
    write_json(out / "provenance.json", provenance())
    write_json(out / "check.json", report.to_json())
    save(config, out / "recipe.yaml")


def load_run(run: Path | str) -> tuple[VisionLanguageModel, Any, PretrainConfig]:
    """The model (eval mode), tokenizer and recipe of a pretraining run, from its newest checkpoint.

    Raises:
        CheckpointError: not a run's folder, or no complete checkpoint in it.
    """
    folder = Path(run)
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder} is not a pretraining run: it holds no recipe.yaml")
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise CheckpointError(f"{folder} holds no complete checkpoint yet; let the run reach its first one")
    config = load_recipe(PretrainConfig, folder / "recipe.yaml")
    tokenizer = load_tokenizer(str(folder / "tokenizer"))
    model = build_model(config, tokenizer, run=folder)
    load_weights(checkpoints[-1], model)
    return model.eval(), tokenizer, config
