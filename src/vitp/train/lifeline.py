"""A line from every rank to rank 0 that falls silent when its process dies: the others then stop, and say who it was.

The operating system closes the sockets of a process however it ends, SIGKILL included, and tells the other side at
once; a machine that vanishes is noticed by TCP's own keep-alive within a minute. A collective operation in which a
partner is missing would otherwise fail without a name on CPUs, and wait for its time limit on GPUs.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_GRACE = 1.0  # seconds; ours: torchrun ends the survivors a moment before or after they hear of a death
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 8}  # seconds, seconds, probes; ours: one minute


@dataclass(frozen=True)
class Member:
    """A process of the run."""

    rank: int
    host: str
    pid: int


@dataclass
class _Line:
    """One connection, as seen from this side."""

    other: Member
    socket: socket.socket
    heard: bytes = b""
    over: bool = field(default=False)  # the other side has said that it leaves


class Lifeline:
    """The near end of the lines of this process, watched by a thread of its own."""

    def __init__(self, me: Member, local_rank: int, lines: list[_Line]) -> None:
        self._me, self._lines, self._speaks = me, lines, me.rank <= 1 or local_rank == 0
        self._leaving = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._wake.setblocking(False)
        self._catch_termination()
        os.register_at_fork(after_in_child=self._let_go)
        self._thread = threading.Thread(target=self._watch, name="vitp-lifeline", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, me: Member, local_rank: int, gather: Callable[[Any], list[Any]]) -> Lifeline:
        """Connect to rank 0, or as rank 0 wait for all others.

        Args:
            me: this process.
            local_rank: its number on its machine.
            gather: every rank's value, by rank.
        """
        server = _listen() if me.rank == 0 else None
        port = server.getsockname()[1] if server else 0
        members, ports, tokens = zip(*gather((me, port, secrets.token_hex(16))), strict=True)
        if server is None:
            line = socket.create_connection((os.environ["MASTER_ADDR"], ports[0]), timeout=300)
            line.sendall(json.dumps({"token": tokens[0], "rank": me.rank}).encode() + b"\n")
            lines = [_Line(members[0], line)]
        else:
            with server:
                lines = _accept(server, tokens[0], members)
        for each in lines:
            each.socket.settimeout(None)
            each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if hasattr(socket, name):
                    each.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        return cls(me, local_rank, lines)

    def leave(self, why: str | None = None) -> None:
        """End the watch. With a reason all other ranks end too, and rank 0 tells it if it is this rank's and not empty."""
        self._leaving.set()
        self._send("bye" if why is None else "stop " + json.dumps(why))
        with suppress(OSError):
            self._wake.send(b"\0")
        self._thread.join(timeout=2 * _GRACE)
        self._restore_termination()
        for line in self._lines:
            line.socket.close()

    def wait_for_a_death(self) -> None:
        """Give the watch a moment to hear that another rank died, which ends this process with a sentence."""
        self._thread.join(_GRACE)

    def _send(self, word: str) -> None:
        for line in self._lines:
            with suppress(OSError):
                line.socket.sendall(word.encode() + b"\n")

    def _catch_termination(self) -> None:
        """Have SIGTERM noticed by the watching thread, even while the main thread waits inside an operation."""
        self._old: Any = None
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGTERM, lambda *_: None), signal.set_wakeup_fd(self._wake.fileno())

    def _restore_termination(self) -> None:
        if self._old is not None:
            signal.set_wakeup_fd(self._old[1])
            signal.signal(signal.SIGTERM, self._old[0])
            self._old = None

    def _let_go(self) -> None:
        """In a forked process, such as a data worker: hold none of the lines, or a death would go unnoticed."""
        self._restore_termination()
        for each in (*(line.socket for line in self._lines), self._wake, self._woken):
            each.close()

    def _watch(self) -> None:
        waits = selectors.DefaultSelector()
        waits.register(self._woken, selectors.EVENT_READ, None)
        for line in self._lines:
            waits.register(line.socket, selectors.EVENT_READ, line)
        until: float | None = None  # set once this process was asked to end
        while not self._leaving.is_set():
            ready = waits.select(None if until is None else max(0.0, until - time.monotonic()))
            for key, _ in ready:
                if key.data is None:
                    if signal.SIGTERM in self._woken.recv(64) and until is None:
                        until = time.monotonic() + _GRACE
                elif not self._hear(key.data):
                    waits.unregister(key.data.socket)
            if until is not None and time.monotonic() >= until:
                os._exit(128 + signal.SIGTERM)

    def _hear(self, line: _Line) -> bool:
        """Take in what came; False once nothing more can come. Ends the process where the run is over."""
        try:
            came = line.socket.recv(1 << 16)
        except OSError:
            came = b""
        *words, line.heard = (line.heard + came).split(b"\n")
        for word in words:
            line.over = True
            if word.startswith(b"stop"):
                why = json.loads(word[5:])
                self._stop(f"rank {line.other.rank}: {why}" if why and line.other.rank else "", 2 if why else 1)
        if not came and not line.over:
            other = line.other
            self._stop(
                f"rank {other.rank} (process {other.pid} on {other.host}) died, perhaps killed for lack of memory: all ranks "
                "stop; start again with --resume to go on from the last checkpoint"
            )
        return bool(came)

    def _stop(self, why: str, code: int = 1) -> None:
        """End this process with an exit code, after telling the others and, if it is one that speaks, the user."""
        if self._leaving.is_set():
            return
        if why and self._speaks:
            os.write(
                2, f"error: {why}\n".encode()
            )  # at once: the main thread may wait for the dead rank, holding streams
        self._send('stop ""')
        os._exit(code)


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # built in, but switched off on this machine
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(server: socket.socket, token: str, members: tuple[Member, ...]) -> list[_Line]:
    """Connections from all other ranks; strangers are turned away."""
    found: dict[int, _Line] = {}
    server.settimeout(300)
    while len(found) < len(members) - 1:
        connection, _ = server.accept()
        connection.settimeout(60)
        hello = b""
        with suppress(OSError, ValueError, KeyError, TypeError):
            while not hello.endswith(b"\n") and len(hello) < 256:
                part = connection.recv(256)
                if not part:
                    break
                hello += part
            said = json.loads(hello)
            if secrets.compare_digest(str(said["token"]), token):
                found[int(said["rank"])] = _Line(members[int(said["rank"])], connection)
                continue
        connection.close()
    return [found[rank] for rank in sorted(found)]
