"""The principles of the mixture: what is counted, and what is warned of for which downstream tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vitp
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import ConfigError
from vitp.instruction.principles import Principles, assess, modalities_of, shortcomings
from vitp.instruction.source import SourceConfig
from vitp.instruction.statistics import Counts, SourceStats, source_stats
from vitp.recipes import load_recipe


def stats(name: str, samples: int, tasks: dict[str, int], several: int = 0) -> SourceStats:
    counts = Counts()
    counts.numbers.update(samples=samples, answers=sum(tasks.values()) or samples, several_images=several)
    counts.tasks.update(tasks)
    return source_stats(name, counts, bad=0, distinct_images=samples, max_length=None)


def config(name: str, **keys: Any) -> SourceConfig:
    return SourceConfig(name=name, root=Path("/"), **keys)


def codes(held: Principles) -> list[str]:
    return [finding.code.removeprefix("principle-") for finding in shortcomings(held, "r.yaml:3")]


GOOD = [
    (config("rs", modality="optical"), stats("rs", 6000, {"caption": 2000, "classification": 2000, "vqa": 2000}, 10)),
    (config("boxes", modality="SAR", weight=2.0), stats("boxes", 2000, {"grounding": 2000})),
    (config("web", domain="general", weight=0.01), stats("web", 10_000, {"vqa": 9000, "ocr": 1000, "dialogue": 500})),
]
EVERYTHING = ("segmentation", "detection", "oriented_detection", "change", "classification")


def assessed(pairs: list[tuple[SourceConfig, SourceStats]], seen: int = 20_000, **keys: Any) -> Principles:
    return assess([c for c, _ in pairs], [s for _, s in pairs], images=18_000, seen=seen, **keys)


def test_shares_are_of_what_an_epoch_draws() -> None:
    held = assessed(GOOD)
    assert held.epoch == 6000 + 4000 + 100
    assert held.sources == pytest.approx({"rs": 60 / 101, "boxes": 40 / 101, "web": 1 / 101})
    assert held.general == pytest.approx(1 / 101)
    assert held.modalities == pytest.approx({"optical": 60 / 101, "SAR": 40 / 101})
    assert held.undeclared == pytest.approx(1 / 101)
    assert held.tasks == pytest.approx(
        {"caption": 20 / 101, "classification": 20 / 101, "vqa": 20.9 / 101, "grounding": 40 / 101, "ocr": 0.1 / 101}
    )
    assert held.task_bits == pytest.approx(-sum(p * math.log2(p) for p in held.tasks.values()))
    assert held.practised == ("caption", "classification", "dialogue", "grounding", "ocr", "vqa")
    assert held.repeats == pytest.approx({"rs": 20_000 / 10_100, "boxes": 2 * 20_000 / 10_100, "web": 200 / 10_100})
    equal = [(config(f"s{i}"), stats(f"s{i}", 100, {"vqa": 100})) for i in range(4)]
    assert assessed(equal).effective_sources == pytest.approx(4)
    assert assessed(equal).effective_tasks == pytest.approx(1)


def test_a_good_mixture_lacks_nothing_and_undeclared_goals_warn_of_nothing() -> None:
    assert codes(assessed(GOOD, downstream=EVERYTHING, downstream_modalities=("optical", "SAR"))) == []
    poor = [(config("one"), stats("one", 5, {}))]
    assert codes(assess([poor[0][0]], [poor[0][1]], images=0, seen=1000)) == []


@pytest.mark.parametrize(
    ("left_out", "downstream", "expected"),
    [
        ("boxes", ("detection",), ["task"]),
        ("boxes", ("oriented_detection",), ["task"]),
        ("boxes", ("segmentation", "change", "classification"), []),
        ("rs", ("classification",), ["diversity", "task"]),  # nearly all that is left is grounding
        ("rs", ("change",), ["diversity", "task"]),  # no sample with two images
        ("web", ("detection",), ["generality"]),
    ],
)
def test_what_is_left_out_is_missed_where_it_is_needed(
    left_out: str, downstream: tuple[str, ...], expected: list[str]
) -> None:
    held = assessed([pair for pair in GOOD if pair[0].name != left_out], downstream=downstream)
    assert codes(held) == expected


def test_modalities_scale_and_diversity() -> None:
    held = assessed(GOOD, downstream_modalities=("SAR", "CT"))
    (finding,) = shortcomings(held, "r.yaml:3")
    assert (finding.code, finding.where, finding.severity) == ("principle-modality", "r.yaml:3", "warning")
    assert finding.found == "no source declares the modality CT"
    assert "principle 2" in finding.expected
    one = [(config("one", domain="general"), stats("one", 1000, {"vqa": 990, "grounding": 10}))]
    found = shortcomings(assess([one[0][0]], [one[0][1]], images=900, seen=21_000, downstream=("detection",)), "x")
    assert [f.code for f in found] == [
        "principle-scale",
        "principle-scale",
        "principle-diversity",
        "principle-diversity",
    ]
    assert "900 distinct images" in found[0].found
    assert "21 times" in found[1].found


def test_declared_tasks_count_before_the_look() -> None:
    declared = [(config("s", tasks=("grounding", "dialogue")), stats("s", 100, {"vqa": 90, "grounding": 10}))]
    held = assessed(declared)
    assert (held.practised, held.tasks) == (("dialogue", "grounding"), {"grounding": 1.0})
    unlike = assessed([(config("s", tasks=("ocr", "caption")), stats("s", 100, {"vqa": 100}))])
    assert unlike.tasks == {"ocr": 0.5, "caption": 0.5}
    stray = assessed([(config("s"), stats("s", 1000, {"vqa": 999, "ocr": 1}))])
    assert stray.practised == ("vqa",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, []), (" ", []), ("optical", ["optical"]), ("CT, MRI, X-ray", ["CT", "MRI", "X-ray"]), ("cxr", ["X-ray"]),
        ("Sentinel-1 SAR", ["SAR"]), ("Sentinel-2", ["multispectral"]), ("radiology, mixed", ["radiology, mixed"]),
        ("H&E histopathology", ["pathology"]), ("optical coherence tomography", ["optical coherence tomography"]),
        ("aerial photographs", ["optical"]), ("electron density", ["electron density"]),
    ],
)  # fmt: skip
def test_modalities_from_free_text(text: str | None, expected: list[str]) -> None:
    assert modalities_of(text) == expected


def test_the_command_judges_at_the_recipes_line(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (200, 10, 10)).save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "yes"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "conversations": turns}))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nsteps: 2\nmodel:\n  tower: {architecture: vit_tiny_patch16_224, image_size: 32, patch_size: 8}\n"
        "data:\n  sources:\n"
        f"    - {{name: a, root: {tmp_path}, annotations: a.jsonl, modality: optical, tasks: [vqa], domain: general}}\n"
        "  downstream: [detection]\n"
    )
    report = vitp.check(recipe)
    told = {(f.code, f.where, f.sample) for f in report.findings}
    assert told == {(f"principle-{c}", f"{recipe}:8", None) for c in ("scale", "diversity", "task")}
    assert report.principles is not None
    assert report.principles.seen == 2 * 128
    assert any("oriented" in line or "for detection" in line for line in report.lines())
    quiet = vitp.check(recipe, ["data.downstream=[]"])
    assert not quiet.findings
    assert any("declare data.downstream" in line for line in quiet.lines())
    recipe.write_text(recipe.read_text().replace("[detection]", "[detecting]"))
    with pytest.raises(ConfigError, match=r"r\.yaml:8: data\.downstream\.0"):
        load_recipe(PretrainConfig, recipe)
