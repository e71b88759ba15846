"""Fine-tuning on many ranks: the same losses, weights and log on any number of them, and mistakes that are said once."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tests.distributed.downstream import RECIPES, write_recipes
from tests.distributed.ranks import Started, finetuned, run_finetunes
from tests.distributed.test_failures import errors
from tests.distributed.test_ranks import assert_same_weights
from vitp.commands.finetune import finetune
from vitp.train.checkpoint import list_checkpoints
from vitp.train.trackers import read_evaluations, read_log

CASES = list(RECIPES)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_recipes(tmp_path_factory.mktemp("finetune"))


@pytest.fixture(scope="module")
def folder(recipes: dict[str, Path]) -> Path:
    return recipes["dice"].parent


@pytest.fixture(scope="module")
def alone(recipes: dict[str, Path], folder: Path) -> Path:
    """The runs on one process that all others must equal, each in a folder of its name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_finetunes([(recipe, [f"out={folder / 'alone' / name}"], False) for name, recipe in recipes.items()])
    finally:
        torch.set_num_threads(threads)
    return folder / "alone"


def on_ranks(recipes: dict[str, Path], size: int, strategy: str) -> Path:
    out = recipes["dice"].parent / f"{strategy}{size}"
    calls = [(recipe, [f"out={out / name}", f"strategy={strategy}"], False) for name, recipe in recipes.items()]
    finetuned(out.parent, size, calls)
    return out


@pytest.fixture(scope="module")
def two(recipes: dict[str, Path]) -> Path:
    return on_ranks(recipes, 2, "ddp")


@pytest.fixture(scope="module")
def three(recipes: dict[str, Path]) -> Path:
    return on_ranks(recipes, 3, "zero1")


def numbers(out: Path) -> dict[str, Any]:
    """What a run measured, without where and how fast."""
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key not in ("out", "seconds", "loss", "threshold")}


def assert_same_run(out: Path, expected: Path) -> None:
    """Weights, every number of the log, and the scores."""
    assert_same_weights(out, expected)
    lines, others = read_log(expected), read_log(out)
    assert [line["step"] for line in others] == [1, 2, 3, 4]
    for a, b in zip(lines, others, strict=True):
        assert list(a) == list(b)
        for key in a.keys() - {"samples_per_s", "wait_share"}:
            assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-5), (key, a["step"])
    assert numbers(out) == numbers(expected)
    assert (out / "report.html").is_file()
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_run(alone: Path, two: Path, case: str) -> None:
    """Parts of 2 and 3 (batch norm: 3 and 4) images: uneven labels, an image ignored as a whole, images of five sizes."""
    assert_same_run(two / case, alone / case)


@pytest.mark.parametrize("case", CASES)
def test_three_ranks_with_zero1_are_the_same_run(alone: Path, three: Path, case: str) -> None:
    assert_same_run(three / case, alone / case)


def test_ranks_share_the_validation_and_keep_the_same_best(alone: Path, three: Path) -> None:
    """One image for two of three ranks, none for the other."""
    for case, steps in (("dice", [1, 2, 3, 4]), ("mask", [2, 4])):
        found, expected = (read_evaluations(out / case) for out in (three, alone))
        assert [line["step"] for line in found] == steps
        for a, b in zip(expected, found, strict=True):
            same = [key for key in a if key.startswith("validation/") and key != "validation/seconds"]
            assert {key: b[key] for key in same} == pytest.approx({key: a[key] for key in same}, abs=1e-6)
        kept = numbers(three / case)["validation"]
        assert kept["images"] == 2
        newest = max((three / case / "validation").iterdir())
        assert newest.name == f"best_{kept['step']:08d}.safetensors"


def test_the_log_holds_the_parts_of_the_loss(three: Path) -> None:
    """Not rank 0's alone: the terms of every step add up to the whole step's loss."""
    for case, auxiliary in (("dice", 0.4), ("cascade", 0.0)):
        for line in read_log(three / case):
            terms = {key: value for key, value in line.items() if key.endswith("_loss") or key == "cross_entropy"}
            beside = terms.pop("auxiliary_loss", 0.0)
            assert sum(terms.values()) + auxiliary * beside == pytest.approx(line["loss"], rel=1e-4)


def cut(run: Path, to: Path) -> Path:
    """A copy of a run as if it had been killed after step 3."""
    shutil.copytree(run, to)
    shutil.rmtree(list_checkpoints(to)[-1])
    for name in ("model.safetensors", "metrics.json", "report.html"):
        (to / name).unlink()
    assert [path.name for path in list_checkpoints(to)] == ["step_00000002"]
    return to


def test_resumed_on_other_ranks_is_the_same_run(
    recipes: dict[str, Path], folder: Path, alone: Path, two: Path, three: Path
) -> None:
    on_two = [(cut(alone / "batch_norm", folder / "1-2"), "batch_norm"), (cut(three / "mask", folder / "3-2"), "mask")]
    finetuned(folder, 2, [(recipes[case], [f"out={out}"], True) for out, case in on_two])
    for case in ("dice", "oriented"):
        out = cut(two / case, folder / f"2-1-{case}")
        run_finetunes([(recipes[case], [f"out={out}"], True)])
        on_two.append((out, case))
    for out, case in on_two:
        assert_same_run(out, alone / case)


# ------------------------------------------------------------------------------------------------------------- scoring


def score(runs: list[Path], to: Path) -> None:
    """Score runs on all their images, one rank or many; rank 0 writes what it counted and which pictures it keeps."""
    from vitp.commands.finetune import load_finetune
    from vitp.commands.finetune_detect import DetectConfig
    from vitp.commands.scoring_masks import score_and_show as score_masks
    from vitp.commands.scoring_objects import choose_threshold
    from vitp.commands.scoring_objects import score_and_show as score_objects
    from vitp.datasets.dense import open_dataset
    from vitp.datasets.detection import open_detection
    from vitp.tasks.detect import load_detector
    from vitp.tasks.segment import load_dense
    from vitp.train.distributed import joined

    found: list[Any] = []
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    with joined() as ranks:
        for run in runs:
            config = load_finetune(run / "recipe.yaml")
            if isinstance(config, DetectConfig):
                boxes, (detector, shown) = open_detection(config.data), load_detector(run)
                open_ended = shown.model_copy(
                    update={"inference": shown.inference.model_copy(update={"threshold": None})}
                )
                shown, origin = choose_threshold(
                    detector, boxes, open_ended, bf16=False, progress=lambda *_: None, say=lambda _: None, ranks=ranks
                )
                seen = score_objects(
                    detector, boxes, range(len(boxes.items)), shown, origin, bf16=False, pictures=4,
                    progress=progress, ranks=ranks,
                )  # fmt: skip
                pictures = [str(one.__dict__) for one in seen.shown]
                found.append([str(shown), seen.scores.as_dict(), str(seen.errors), pictures, told[-1]])
            else:
                data, (model, inference) = open_dataset(config.data), load_dense(run)
                counted = score_masks(
                    model, data, range(len(data)), inference, pictures=5, progress=progress,
                    ranks=ranks,
                )  # fmt: skip
                kept = [(one.name, one.wrong, one.predicted.tolist()) for one in counted.shown]
                found.append([counted.metric.matrix.tolist(), kept, told[-1]])
        if ranks.first:
            to.write_text(json.dumps(found))


def test_shared_scoring_gives_the_same_numbers_and_pictures(folder: Path, alone: Path) -> None:
    runs = [alone / case for case in ("dice", "change", "mask", "oriented")]
    score(runs, folder / "scores-1.json")
    started = Started(folder, 3, score, runs, folder / "scores-3.json")
    assert started.join() == [0] * 3, started.said()
    one, other = (json.loads((folder / f"scores-{size}.json").read_text()) for size in (1, 3))
    assert repr(one) == repr(other)  # NaN included
    assert one[0][-1] == [11, 11]


# -------------------------------------------------------------------------------------------------------- the log's sums


def add_up(to: Path) -> None:
    from vitp.train.distributed import joined
    from vitp.train.step_sums import StepSums
    from vitp.train.strategies import choose_strategy

    device = torch.device("cpu")
    with joined() as ranks:
        sums = StepSums(ranks, choose_strategy("ddp", ranks, device), device)
        found = []
        for mine in ([{"a": 1.0}, {"a": 2.0}], [{"a": 1.0, "c": 3.0}, {"b": 5.0}], [{}, {"c": 0.5}]):
            extra = mine[ranks.rank]
            loss, *others = sums.total(torch.tensor(1.0 + ranks.rank, dtype=torch.float64), extra).tolist()
            found.append((loss, sums.named(others, extra)))
        if ranks.first:
            to.write_text(json.dumps(found))


def test_ranks_may_have_other_numbers_in_their_logs(folder: Path) -> None:
    started = Started(folder, 2, add_up, folder / "sums.json")
    assert started.join() == [0, 0], started.said()
    assert json.loads((folder / "sums.json").read_text()) == [
        [3.0, {"a": 3.0}],
        [3.0, {"a": 1.0, "c": 3.0, "b": 5.0}],
        [3.0, {"a": 0.0, "b": 0.0, "c": 0.5}],
    ]


# ------------------------------------------------------------------------------------------------------- the command line


def command(arguments: list[str], out: Path) -> None:
    from vitp.cli import app

    with open(out, "a") as stream:
        os.dup2(stream.fileno(), 1)
    app(arguments, standalone_mode=False)


def test_rank_0_alone_speaks(recipes: dict[str, Path], folder: Path) -> None:
    out = folder / "spoken"
    arguments = ["finetune", str(recipes["dice"]), f"out={out}", "steps=2", "workers=1", "--json"]
    started = Started(folder, 2, command, arguments, folder / "stdout.txt")
    assert started.join() == [0, 0], started.said()
    (line,) = (folder / "stdout.txt").read_text().splitlines()
    assert json.loads(line)["out"] == str(out)
    assert math.isfinite(json.loads(line)["miou"])
    for once in ("RANDOM weights", "data: 6 training and 3 test images", "report: "):
        assert started.said().count(once) == 1, started.said()
    assert not re.search(r"^rank 1", started.said(), re.MULTILINE)


@pytest.mark.parametrize(("rank", "said"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("given", [["evaluate", "run"], ["probe", "x"], ["predict", "run", "x.png"], ["demo"],
                                   ["evaluate", "busi", "--sweep", "seed=0,1"]])  # fmt: skip
def test_other_commands_run_in_one_process(
    given: list[str], rank: str, said: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vitp.cli import app
    from vitp.errors import StoppedElsewhereError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    error = CliRunner().invoke(app, given).exception
    assert "in one process" in str(error)
    assert isinstance(error, StoppedElsewhereError) == (not said)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- mistakes


def fail(recipe: Path, overrides: list[str]) -> None:
    finetune(recipe, overrides)


@pytest.mark.parametrize(
    ("case", "size", "overrides", "expected"),
    [
        ("change", 3, ["batch_size=2"], r"batch_size: a step of 2 images leaves some of the 3 ranks without one; raise"),
        ("mask", 2, ["batch_size=1"], r"batch_size: a step of 1 images leaves some of the 2 ranks without one; raise"),
        ("dice", 2, ["strategy=fsdp"], r"strategy: fsdp is for `vitp pretrain`, and 2 ranks .*say strategy: ddp"),
        ("dice", 2, ["ema=0.9"], r"ema: averages the weights of one process, and this run has 2; leave ema out"),
        ("batch_norm", 2, ["micro_batch=3"],
         r"batch_size: batch norm .*a batch of 7 on 2 ranks in micro-batches of 3 makes 1 on some and 2 on others; take"),
        ("dice", 2, ["data.ignore=null"], r"\S+masks/\S+: pixel value 9 is no class"),
        ("cascade", 2, ["data.val_list=val.txt", "validation.metric=mask_AP"],
         r"validation\.metric: mask_AP is of masks; take detector\.kind"),
    ],
)  # fmt: skip
def test_mistakes_are_said_once_before_anything_is_written(
    recipes: dict[str, Path], folder: Path, case: str, size: int, overrides: list[str], expected: str
) -> None:
    out = folder / "mistaken"
    started = Started(folder, size, fail, recipes[case], [*overrides, f"out={out}"])
    assert started.join() == [2] * size, started.said()
    (sentence,) = errors(started.said())
    assert re.match("error: " + expected, sentence), sentence
    assert not out.exists()


def other_places(folder: Path, spoil: Callable[[Path], None]) -> list[list[str]]:
    """Rank 0's data, and a copy of them that rank 1 sees."""
    copy = folder / f"copy-{spoil.__name__}"
    shutil.copytree(folder / "data", copy)
    spoil(copy)
    return [[f"data.root={folder / 'data'}"], [f"data.root={copy}"]]


def gone(data: Path) -> None:
    (data / "images/2.png").unlink()
    (data / "masks/2.png").unlink()


def damaged_test_image(data: Path) -> None:
    for name in ("6", "7", "8"):
        (data / f"images/{name}.png").write_bytes((data / f"images/{name}.png").read_bytes()[:200])


def relabelled(data: Path) -> None:
    text = (data / "labels.json").read_text()
    (data / "labels.json").write_text(text.replace('"category_id": 1', '"category_id": 0', 1))


def other_test_images(data: Path) -> None:
    (data / "test.txt").write_text("5.png\n6.png\n7.png\n")


def start_unlike(recipe: Path, given: tuple[list[str], bool]) -> None:
    overrides, resume = given
    finetune(recipe, overrides, resume=resume)


@pytest.mark.parametrize(
    ("other", "resume", "named"),
    [
        (["checkpoint_every=3"], False, "checkpoint_every 3 where rank 0 on \\S+ has 2; start all"),
        ([], True, "--resume True where rank 0 on \\S+ has False; start all"),
        ([], False, "data.parts "),  # the list of the test images says something else on rank 1
    ],
)
def test_ranks_that_would_wait_for_each_other_or_learn_from_other_images_are_refused(
    recipes: dict[str, Path], folder: Path, other: list[str], resume: bool, named: str
) -> None:
    """What a resumed run may change, so that its fingerprint does not tell, or what only a list says."""
    out = folder / f"unlike-{named[:4]}"
    unlike = other_places(folder, other_test_images) if named.startswith("data") else [[], []]
    given = [([*unlike[0], f"out={out}"], False), ([*unlike[1], f"out={out}", *other], resume)]
    started = Started(folder, 2, start_unlike, recipes["change"], given, per_rank=True)
    assert started.join() == [2, 2], started.said()
    (sentence,) = errors(started.said())
    assert re.match(rf"error: rank 1 on \S+ has {named}", sentence), sentence
    assert not out.exists()


@pytest.mark.parametrize(
    ("case", "spoil", "expected"),
    [
        (
            "dice",
            gone,
            r"rank 1 on \S+ has data\.images '\w+' where rank 0 on \S+ has '\w+'; start all ranks with the same",
        ),
        (
            "mask",
            relabelled,
            r"rank 1 on \S+ has labels \d+ where rank 0 on \S+ has \d+; give all nodes the same label",
        ),
        ("dice", damaged_test_image, r"rank 1: \S+images/[678]\.png: "),  # found out when the test images are scored
    ],
)
def test_what_one_rank_finds_ends_all(
    recipes: dict[str, Path], folder: Path, case: str, spoil: Callable[[Path], None], expected: str
) -> None:
    out = folder / f"ended-{spoil.__name__}"
    given = [[*place, f"out={out}"] for place in other_places(folder, spoil)]
    started = Started(folder, 2, fail, recipes[case], given, per_rank=True)
    assert started.join() == [2, 2], started.said()
    (sentence,) = errors(started.said())
    assert re.match("error: " + expected, sentence), sentence
    assert not (out / "metrics.json").exists()
