"""Processes that train together learn at once when one of them dies, and why.

A collective operation on GPUs waits for a dead process until its timeout, and nobody learns the reason. So every
process holds a connection to the first. The kernel closes it when a process ends, however it ends; if the machine is
gone, the kernel's keep-alive finds out within half a minute. A process that is busy, or stopped in a debugger, keeps
it.

Messages are lines of JSON: `{"token": ..., "rank": ...}` at first, `{"end": reason or null}` before a process leaves,
and from the first process `{"lost": sentence}` to all others.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Lifeline", "connect"]

log = logging.getLogger("astrozoo.training")
GRACE = 5.0  # seconds in which a process may end by itself after another is lost; a stuck one is ended then
_JOIN = 20.0  # seconds within which all processes connect
_LONGEST = 65536  # bytes of a message


class Lifeline:
    """This process's end of the connections.

    Attributes:
        failure: Why this process fails, told to the others when it ends; None while all is well.
    """

    def __init__(self, rank: int, processes: int) -> None:
        self.rank, self.processes = rank, processes
        self.failure: str | None = None
        self._lost: str | None = None
        self._news = threading.Event()
        self._peers: dict[int, socket.socket] = {}
        self._leaving = False
        # A worker process that loads data inherits connections and would keep them open after this process died.
        os.register_at_fork(after_in_child=self._forget)

    def lost(self, patience: float = 2.0) -> str | None:
        """Which process died or failed, and why, in a sentence; None if none did within `patience` seconds."""
        self._news.wait(patience)
        return self._lost

    def leave(self) -> None:
        """Tell the others that this process ends, and whether it fails. Never raises."""
        raised = getattr(sys, "last_value", None)  # set before the interpreter exits with an uncaught exception
        if self.failure is None and raised is not None:
            self.failure = _in_words(raised)
        self._leaving = True
        for rank in list(self._peers):
            self._send(rank, {"end": self.failure})

    def fail(self, error: BaseException) -> None:
        """Note why this process is about to fail."""
        self.failure = _in_words(error)

    # -- the connections -----------------------------------------------------------------------------------------------

    def listen(self, server: socket.socket, token: str) -> None:
        """On the first process: accept the others, then wait for news from them."""
        deadline = time.monotonic() + _JOIN
        with server, contextlib.suppress(TimeoutError):
            while len(self._peers) < self.processes - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.001))
                peer, _ = server.accept()
                rank = _greeting(peer, token)
                if rank is None or not 0 < rank < self.processes or rank in self._peers:
                    peer.close()
                    continue
                _keep_alive(peer)
                self._peers[rank] = peer
        self._watch()

    def call(self, peer: socket.socket, token: str) -> None:
        """On every other process: greet the first, then wait for news from it."""
        _keep_alive(peer)
        self._peers[0] = peer
        self._send(0, {"token": token, "rank": self.rank})
        self._watch()

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        unread: dict[int, bytes] = {}
        for number, peer in self._peers.items():
            peer.setblocking(False)
            selector.register(peer, selectors.EVENT_READ, number)
        while self._peers:
            for key, _ in selector.select():
                rank: int = key.data
                try:
                    received = self._peers[rank].recv(_LONGEST)
                except BlockingIOError:
                    continue
                except OSError:  # reset, or no answer to the keep-alive
                    received = b""
                *lines, rest = (unread.get(rank, b"") + received).split(b"\n")
                unread[rank] = rest[:_LONGEST]
                farewell = False
                for message in filter(None, map(_parsed, lines)):
                    if "lost" in message:
                        self._lose(str(message["lost"]))
                    if "end" in message:
                        farewell = True
                        if message["end"] is not None:
                            self._lose(f"{self._name(rank)} failed: {str(message['end']).rstrip('.')}.")
                if received and not farewell:
                    continue
                selector.unregister(self._peers[rank])
                self._peers.pop(rank).close()
                if not farewell:
                    self._lose(
                        f"{self._name(rank)} died without a word: it was killed, for instance because memory ran out, "
                        f"or its machine is gone."
                    )

    def _lose(self, sentence: str) -> None:
        if self._lost is not None:
            return
        self._lost = sentence
        for rank in list(self._peers) if self.rank == 0 else ():
            self._send(rank, {"lost": sentence})
        # All may have failed together, and a script that has caught the error may go on.
        if self.failure is None and not self._leaving:
            log.error("%s This is process %d, which ends too.", sentence, self.rank)
            threading.Thread(target=self._end, name="astrozoo-end", daemon=True).start()
        self._news.set()

    def _end(self) -> None:
        """End this process if it does not by itself: it is stuck in an operation with the lost one."""
        time.sleep(GRACE)
        sys.stderr.flush()
        os._exit(1)

    def _send(self, rank: int, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, KeyError):  # who is gone needs no news
            self._peers[rank].send(json.dumps(message).encode()[: _LONGEST - 1] + b"\n")

    def _name(self, rank: int) -> str:
        return f"process {rank} of {self.processes}"

    def _forget(self) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.close()
        self._peers = {}


def connect(rank: int, processes: int, gather: Callable[[Any], list[Any]]) -> Lifeline | None:
    """Connect all processes, which call this together; None where the address of the first is not known.

    Args:
        rank: Of this process.
        processes: How many there are.
        gather: Gives all processes' values, in order of their ranks.
    """
    host = os.environ.get("MASTER_ADDR")
    server = offer = None
    if rank == 0 and host:
        server, token = _server(processes), secrets.token_hex(16)
        offer = server.getsockname()[1], token
    offer = gather(offer)[0]
    if offer is None or not host:
        return None
    port, token = offer
    line = Lifeline(rank, processes)
    target: Callable[[socket.socket, str], None]
    if server is not None:
        target, end = line.listen, server
    else:
        try:
            end = socket.create_connection((host, port), timeout=_JOIN)
        except OSError as error:
            log.warning(
                "process %d cannot reach %s:%d (%s): it will not learn why others fail.", rank, host, port, error
            )
            return None
        target = line.call
    threading.Thread(target=target, args=(end, token), name="astrozoo-lifeline", daemon=True).start()
    return line


def _server(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # the kernel may know IPv6, and no interface have it
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server(("", 0), backlog=backlog)


def _greeting(peer: socket.socket, token: str) -> int | None:
    """The rank of who connects, or None for a stranger."""
    peer.settimeout(5)
    received = b""
    with contextlib.suppress(OSError):
        while not received.endswith(b"\n") and len(received) < 256:
            part = peer.recv(1)  # no more than the greeting, what follows is for the watch
            if not part:
                return None
            received += part
    message = _parsed(received)
    known = message is not None and hmac.compare_digest(str(message.get("token")), token)
    return int(message["rank"]) if known and message and isinstance(message.get("rank"), int) else None


def _keep_alive(peer: socket.socket) -> None:
    """Ask the other machine's kernel after 10 s of silence, every 5 s, four times."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # TCP_KEEPALIVE is what macOS calls the first
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:4000]
