"""How fast an index is built, opened and drawn from, and how much memory that takes, at a million text-only records.

    python -m bench.index --samples 1000000 --json

Data: made here, in a temporary folder. One question and one answer a record, together log-normal with median 90 words and
sigma 0.75, clipped to 18-360 (the text tokens of the "realistic length mixture" of `bench.plan` and the template's), 35 % of
them in the answer; words of two to nine letters from a Zipf distribution over 20,000 of them, every eighth with a comma or
full stop, some 0.85 KB a record. Tokenizer: byte-level BPE of 8,192 tokens, built from the same texts, with ChatML.

* records_per_s_core: records over CPU seconds of all processes, from a file never seen to its written index: scanning,
  hashing, parsing, counting tokens, joining, check sum. build_seconds: the same by the clock, with all cores.
* rivals, on the first records of the same file, CPU seconds of one process:
  released: what the released loader does to learn lengths, `json.loads` of every line and one tokenizer call on the joined
  texts; it does not know which tokens are supervised, nor the template's own. encode: `ChatFormat.encode`, exact.
  The index's counts are compared with those of `encode` on the same records, and must be equal.
* open_seconds: median of three processes, from nothing but imports to source and index both open: finding the index,
  comparing its check sum and its freshness. scan_seconds: opening the source without an index, for comparison.
* rss_mb: growth of the resident set, mapped pages included, while 100,000 samples are drawn at random from the source and
  their sizes from the index. Mapped pages are shared by all processes and can be dropped; rss_private_mb counts only what
  cannot. rss_scanned_mb: private growth from opening and drawing when the source has been scanned instead.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core is one core

import numpy as np

from vitp.instruction.chat import ChatFormat
from vitp.instruction.index import IndexConfig, SizeRules, open_source
from vitp.instruction.index_build import build_index
from vitp.instruction.source import Source, SourceConfig
from vitp.instruction.tiling import TilingConfig
from vitp.vlm.tokenizer import build_tokenizer, load_tokenizer

VOCABULARY, POOL, DRAWS, RIVAL = 20_000, 2_000_000, 100_000, 5_000


def words(seed: int) -> list[str]:
    """A long running text, as words."""
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgkjqxz", np.uint8)
    shares = 1.0 / np.arange(1, 27)
    lengths = rng.integers(2, 10, VOCABULARY)
    drawn = letters[rng.choice(26, int(lengths.sum()), p=shares / shares.sum())].tobytes().decode()
    ends = np.cumsum(lengths)
    known = [drawn[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    zipf = 1.0 / np.arange(1, VOCABULARY + 1)
    chosen = rng.choice(VOCABULARY, POOL, p=zipf / zipf.sum()).tolist()
    marks = rng.choice(["", ",", "."], POOL, p=[0.88, 0.06, 0.06]).tolist()
    return [known[word] + mark for word, mark in zip(chosen, marks, strict=True)]


def write_records(path: Path, samples: int, pool: list[str], seed: int) -> None:
    """The data set."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(90), 0.75, samples), 18, 360).astype(np.int64)
    starts = rng.integers(0, len(pool) - 360, samples)
    with path.open("w", encoding="utf-8") as stream:
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            cut = start + int(0.65 * length)
            question, answer = " ".join(pool[start:cut]), " ".join(pool[cut : start + length])
            stream.write(
                f'{{"conversations": [{{"from": "human", "value": "{question}"}}, {{"from": "gpt", "value": "{answer}"}}]}}\n'
            )


def parts(folder: Path) -> tuple[SourceConfig, SizeRules, IndexConfig]:
    """Source, rules and place of the bench's index."""
    chat = ChatFormat(load_tokenizer(str(folder / "tokenizer")))
    source = SourceConfig(name="bench", root=folder, annotations=Path("a.jsonl"))
    return source, SizeRules(chat, TilingConfig(), 448, 256, 4096), IndexConfig(folder=folder / "cache")


def cpu_seconds() -> float:
    """Of this process and of those it has started and that have ended."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    work()
    return clock() - begun


def resident() -> tuple[float, float]:
    """MB resident, and of these the private ones."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["RssAnon"].split()[0]) / 1024


def first_lines(folder: Path) -> Iterator[str]:
    with (folder / "a.jsonl").open(encoding="utf-8") as stream:
        for _, line in zip(range(RIVAL), stream, strict=False):
            yield line


def rivals(folder: Path) -> dict[str, float]:
    """Records a second and core of the other ways to know lengths; checks the index against the exact one."""
    config, rules, place = parts(folder)
    source = open_source(config, place)
    index = build_index(source, rules, place)
    count = min(RIVAL, len(source))

    def released() -> None:
        for line in first_lines(folder):
            item = json.loads(line)
            joined = "\n".join(turn["value"] for turn in item["conversations"])
            rules.chat.tokenizer(joined, return_tensors="np", padding=False, truncation=False)

    def encode() -> None:
        for i in range(count):
            encoded = rules.chat.encode(source.sample(i).turns, [])
            assert (len(encoded.ids), encoded.supervised) == (index.text_tokens[i], index.supervised_tokens[i])

    return {
        "released_records_per_s_core": count / timed(released, time.process_time),
        "encode_records_per_s_core": count / timed(encode, time.process_time),
        "text_tokens_per_record": float(np.mean(index.text_tokens)),
        "index_bytes_per_record": index.path.stat().st_size / len(index),
    }


def probe(folder: Path, draws: int, scanned: bool) -> None:
    """In a process of its own: open, draw, and print what it took."""
    config, rules, place = parts(folder)
    Source(SourceConfig(name="warm", root=folder, annotations=Path("small.jsonl"))).sample(0)  # what first calls load
    np.random.default_rng(0).integers(9, size=9)
    before = resident()
    begun = time.perf_counter()
    source = Source(config) if scanned else open_source(config, place)
    index = None if scanned else build_index(source, rules, place)
    opened = time.perf_counter() - begun
    drawn = np.random.default_rng(1).integers(len(source), size=draws)
    between = resident()
    for start in range(0, draws, 128):
        some = drawn[start : start + 128]
        for i in some.tolist():
            source.sample(i)
        if index is not None:
            index.sizes(some)
    after = resident()
    figures = {
        "seconds": opened,
        "rss": after[0] - between[0],
        "private": after[1] - (before if scanned else between)[1],
    }
    print(json.dumps(figures))


def probed(folder: Path, draws: int, scanned: bool = False) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.index", "--probe", str(folder), "--draws", str(draws)]
    done = subprocess.run([*command, *(["--scanned"] if scanned else [])], capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def measure(folder: Path, samples: int, seed: int) -> dict[str, float]:
    begun = time.perf_counter()
    pool = words(seed)
    write_records(folder / "a.jsonl", samples, pool, seed)
    write_records(folder / "small.jsonl", 10, pool, seed)
    texts = (" ".join(pool[k : k + 100]) for k in range(0, 1_000_000, 100))
    build_tokenizer(texts, 8192).save_pretrained(folder / "tokenizer")
    made = time.perf_counter() - begun
    size = (folder / "a.jsonl").stat().st_size
    print(f"{samples:,} records of {size / samples:.0f} bytes made in {made:.0f} s", flush=True)
    del pool
    config, rules, place = parts(folder)

    def build() -> None:
        build_index(open_source(config, place), rules, place)

    cpu = cpu_seconds()
    clock = timed(build, time.perf_counter)
    cpu = cpu_seconds() - cpu
    print(f"built in {clock:.1f} s with {place.processes} processes, {cpu:.1f} s of CPU", flush=True)
    result = {"samples": float(samples), "records_per_s_core": samples / cpu, "build_seconds": clock, **rivals(folder)}
    result["times_released"] = result["records_per_s_core"] / result["released_records_per_s_core"]
    result["open_seconds"] = statistics.median(probed(folder, 0)["seconds"] for _ in range(3))
    drawn, scanned = probed(folder, DRAWS), probed(folder, DRAWS, scanned=True)
    result |= {"rss_mb": drawn["rss"], "rss_private_mb": drawn["private"]}
    return result | {"rss_scanned_mb": scanned["private"], "scan_seconds": scanned["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--draws", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scanned", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe is not None:
        probe(args.probe, args.draws, args.scanned)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.samples, args.seed)
    print(json.dumps({name: round(value, 4) for name, value in sorted(result.items())}))


if __name__ == "__main__":
    main()
