"""Many processes, one run: who they are, what they must agree on, and how they work together outside the gradient.

``torchrun`` starts the processes, called ranks, and says in the environment which is which. They talk in two ways: small
messages between their CPUs (gloo), meant here, and gradients between their devices, see `vitp.train.strategies`.
Whatever concerns the run as a whole, files and messages above all, is done by rank 0 alone while the others wait.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from vitp.errors import ConfigError, OutputError, StoppedElsewhereError, TrainingError, VitpError
from vitp.provenance import provenance
from vitp.train.lifeline import Lifeline, Member
from vitp.train.task import StepBatch

T = TypeVar("T")
_PATIENCE = timedelta(days=7)  # ours: rank 0 may build an index for hours; the lifeline tells of dead ranks meanwhile
_SAME = ("vitp", "git_commit", "torch", "timm", "transformers")  # of `provenance`: what must not differ between ranks


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; a process by itself is the only rank.

    All methods but properties are collective: every rank calls them, in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of the same machine
    local_size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def parts(self, count: int) -> list[range]:
        """The run of `count` things that each rank is given, by rank: all of them in order, shared as evenly as can be."""
        return [range(count * rank // self.size, count * (rank + 1) // self.size) for rank in range(self.size)]

    def part(self, count: int) -> range:
        """The run that this rank is given of `count` things."""
        return self.parts(count)[self.rank]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank; values are pickled between the ranks of this run."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def collect(self, value: T) -> list[T]:
        """On rank 0 every rank's value, by rank, as `gather`; the others get their own alone, so that large ones travel once."""
        if self.alone:
            return [value]
        found: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, found)
        return [value] if found is None else found

    def together(self, work: Callable[[], T]) -> T:
        """Let every rank do something that may fail; if it fails on any, it fails on all, and rank 0 says it once.

        Raises:
            VitpError: on rank 0, its own failure or else that of the first rank that failed, with its number.
            StoppedElsewhereError: on the others.
        """
        if self.alone:
            return work()
        result: list[T] = []
        failure: VitpError | None = None
        try:
            result.append(work())
        except VitpError as error:
            failure = error
        failures = self.gather(None if failure is None else str(failure))
        number = next((rank for rank, text in enumerate(failures) if text is not None), None)
        if number is None:
            return result[0]
        raise self.told(
            failure if failure is not None and number == 0 else VitpError(f"rank {number}: {failures[number]}")
        )

    def lead(self, work: Callable[[], T]) -> T:
        """Let rank 0 do something while the others wait; all get its result (a small one), or stop if it fails."""
        mine: T | None = self.together(lambda: work() if self.first else None)
        shared: T = self.gather(mine)[0]  # type: ignore[assignment]
        return shared

    def told(self, error: VitpError) -> VitpError:
        """What a rank raises when all of them have found the same mistake: rank 0 the error, the others silence."""
        return error if self.first else StoppedElsewhereError(str(error))

    def alike(self, work: Callable[[], T]) -> T:
        """Do what fails on all ranks or on none, for instance since it sees shared numbers alone: rank 0 says why."""
        try:
            return work()
        except VitpError as error:
            raise self.told(error) from error

    def agree(self, values: dict[str, Any], fix: str) -> None:
        """See that all ranks have the same values.

        Raises:
            TrainingError: names the first difference, between which ranks it is, and `fix`.
        """
        if self.alone:
            return
        everyone = self.gather((socket.gethostname(), values))
        host, expected = everyone[0]
        for rank, (other, found) in enumerate(everyone):
            for key in sorted(expected.keys() | found.keys()):
                if expected.get(key) != found.get(key):
                    raise self.told(
                        TrainingError(
                            f"rank {rank} on {other} has {key} {found.get(key)!r} where rank 0 on {host} has "
                            f"{expected.get(key)!r}; {fix}"
                        )
                    )

    def shared(self, batch: StepBatch) -> StepBatch:
        """A rank's part of a step, told the whole step's weight, extent, counts and skipped samples.

        Numbers travel between CPUs, so no device waits; the weight is thus known before the forward pass.
        """
        if self.alone:
            return batch
        names = sorted(batch.counts)
        numbers = torch.tensor(
            [batch.weight, len(batch.skipped), *(batch.counts[name] for name in names)], dtype=torch.float64
        )
        dist.all_reduce(numbers)
        weight, skipped, *counts = numbers.tolist()
        weight = weight or 1.0  # nothing in the step counts: its loss is 0, as in one process
        extent = batch.extent
        if extent is not None:
            largest = torch.tensor(extent)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            extent = (int(largest[0]), int(largest[1]))
        everywhere = [record for part in self.gather(batch.skipped) for record in part] if skipped else []
        return replace(
            batch,
            micros=[micro.of_step(weight, extent) for micro in batch.micros],
            weight=weight,
            counts=dict(zip(names, counts, strict=True)),
            skipped=everywhere,
            extent=extent,
        )

    def see_the_same_folder(self, folder: Path) -> None:
        """See that `folder`, which rank 0 has made, is the same place for all.

        Raises:
            OutputError: a rank does not find there what rank 0 has written.
        """
        if self.alone:
            return
        sign = folder / f".ranks-{self.lead(os.getpid)}"
        self.lead(sign.touch)

        def look() -> None:
            if not os.path.exists(sign):
                raise OutputError(
                    f"{folder} on {socket.gethostname()} is not the folder that rank 0 made; 'out' must lie on storage "
                    "that all nodes share"
                )

        try:
            self.together(look)
        finally:
            if self.first:
                sign.unlink(missing_ok=True)

    def use_devices(self, device: str) -> None:
        """Give every rank the GPU of its local number, where GPUs are used at all.

        Args:
            device: the recipe's ``device``: auto, cpu or cuda.

        Raises:
            TrainingError: some ranks have a GPU and others have none.
        """
        if self.alone or device == "cpu":
            return
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        everyone = self.gather((socket.gethostname(), seen, self.local_rank, self.local_size))
        if device == "auto" and not any(number for _, number, _, _ in everyone):
            return
        for rank, (host, number, local_rank, local_size) in enumerate(everyone):
            if local_rank >= number:
                raise self.told(
                    TrainingError(
                        f"rank {rank} on {host} has no GPU of its own: torch sees {number} there and {local_size} ranks were "
                        "started; start as many ranks on each node as it has GPUs (--nproc-per-node), or say device: cpu"
                    )
                )
        torch.cuda.set_device(self.local_rank)


def ranks_started() -> int:
    """How many ranks torchrun (or whoever sets its variables) started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def refuse_ranks(
    what: str, fix: str = "start it without torchrun (`vitp pretrain` and `vitp finetune` run on many)"
) -> None:
    """For what one process does; `what` and `fix` are the ends of the sentence.

    Raises:
        ConfigError: torchrun started several, on rank 0.
        StoppedElsewhereError: likewise, on the others.
    """
    if ranks_started() > 1:
        rank = int(os.environ.get("RANK", "0"))
        raise Ranks(rank, ranks_started()).told(ConfigError(f"{what} runs in one process; {fix}"))


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run for the time of a block; a process started by itself is alone and pays nothing.

    A rank that dies inside the block ends all others, and one of them says which it was.

    Raises:
        TrainingError: ranks run different versions.
    """
    if ranks_started() == 1:
        yield Ranks()
        return
    rank, size = int(os.environ["RANK"]), ranks_started()
    ranks = Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    if not dist.is_initialized():
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = _meeting_place(rank)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        else:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)  # only then: a command may pretrain more than once
    lifeline = Lifeline.open(Member(ranks.rank, socket.gethostname(), os.getpid()), ranks.local_rank, ranks.gather)
    try:
        ours = provenance()
        ranks.agree({key: ours[key] for key in _SAME}, "install the same versions on every node")
        yield ranks
        dist.barrier()
    except StoppedElsewhereError:
        _end(lifeline, None)
        raise
    except VitpError as error:
        _end(lifeline, str(error))
        raise error if ranks.first else StoppedElsewhereError(str(error)) from error
    except BaseException:
        lifeline.wait_for_a_death()  # of which a failed operation may be the first sign
        _end(lifeline, "")
        raise
    lifeline.leave()


def _meeting_place(rank: int) -> TCPStore:
    """A store that rank 0 opens for this start of the ranks alone.

    torchrun keeps one store over all its restarts, in which the addresses of ranks that died would be found. Ranks look
    there for the newest store of rank 0 only, and look again until it is one that answers.
    """
    host, key = os.environ["MASTER_ADDR"], "vitp/meeting-place"
    agent = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE)
    if rank == 0:
        own = TCPStore(host, 0, is_master=True, timeout=_PATIENCE, wait_for_workers=False)
        agent.set(key, str(own.port))
        return own
    while True:
        port = int(agent.get(key))
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            time.sleep(0.1)  # of an earlier start: the new rank 0 is still on its way
        else:
            return TCPStore(host, port, is_master=False, timeout=_PATIENCE, wait_for_workers=False)


def _end(lifeline: Lifeline, why: str | None) -> None:
    atexit.unregister(dist.destroy_process_group)  # it would wait for operations that never end
    lifeline.leave(why)
