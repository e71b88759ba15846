"""Whether a recipe's data can be trained on, before anything of a run is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from vitp.errors import DataError
from vitp.instruction.check import check_sources
from vitp.instruction.check_report import CheckReport
from vitp.instruction.source import Source
from vitp.progress import lines


def checked(
    sources: Sequence[Source],
    bad_samples: Literal["stop", "skip"],
    max_skipped_share: float,
    say: Callable[[str], None],
) -> CheckReport:
    """The report of the check, if training may start.

    Args:
        sources: of the mixture.
        bad_samples: whether one unusable sample stops everything, or is left to be replaced.
        max_skipped_share: of unusable samples, from which on the data as a whole is refused.
        say: told what is going on.

    Raises:
        DataError: names the first unusable sample.
    """
    say(f"checking {sum(len(s) for s in sources)} samples")
    shown = lines(say, "checked", "samples")
    report = check_sources(sources, progress=lambda done, total: shown(done, total, ""))
    found = report.count("error")
    if found:
        first = report.errors[0]
        if bad_samples == "stop":
            raise DataError(
                f"{first.found}; {first.fix} ({found} finding{'s' if found > 1 else ''} in all: `vitp check` lists them; "
                "data.bad_samples=skip trains without these samples)",
                first.where,
            )
        share = len(report.bad) / max(1, sum(len(s) for s in sources))
        if share > max_skipped_share:
            raise DataError(
                f"{share:.0%} of the samples are unusable, more than max_skipped_share {max_skipped_share:.0%}, the first "
                f"because {first.found}; mend them or raise max_skipped_share",
                first.where,
            )
        say(f"{len(report.bad)} unusable samples will be replaced by others of their source (listed in skipped.jsonl)")
    return report
