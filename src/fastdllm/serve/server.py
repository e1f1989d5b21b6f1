"""Listening and stopping: uvicorn, with an end that finishes what runs."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from fastdllm.errors import OptionError
from fastdllm.serve.settings import Settings

KEEP_ALIVE = 65
"""Seconds an idle connection stays open: longer than the proxies in front of servers keep theirs (mostly 60)."""
LAST_WORDS = 5
"""Seconds for answers that are complete to reach their clients."""
logger = logging.getLogger("fastdllm.serve")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to an address; connections wait until the server takes them.

    Raises:
        OptionError: the address cannot be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as undo:
            bound = undo.enter_context(socket.socket(family, kind))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            undo.pop_all()
            return bound
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"cannot listen on {host} port {port} ({why}); give another --host or --port.") from None


class Stoppable(Protocol):
    """What an application's ``state.service`` must be: a :class:`fastdllm.serve.service.Service`, or many of them."""

    @property
    def settings(self) -> Settings: ...

    def stop(self) -> None:
        """Take no more requests; returns once those at work have ended."""


class Server(uvicorn.Server):
    """On the first SIGTERM or SIGINT, what runs is finished while new requests are refused; on the second, it ends.

    Args:
        ready: called once connections are taken.
    """

    def __init__(self, app: FastAPI, ready: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=LAST_WORDS, lifespan="on",
        )  # fmt: skip
        super().__init__(config)
        self._service: Stoppable = app.state.service
        self._ready = ready
        self._told = False
        self._draining: threading.Thread | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In a signal handler: only notes are made. Nothing is raised again at the end, which is a good one."""
        if self._told:
            self.should_exit = self.force_exit = True
        self._told = True

    async def on_tick(self, counter: int) -> bool:
        if self._told and self._draining is None:
            seconds = self._service.settings.drain_seconds
            logger.info("stopping: running requests have %g s to finish, new ones are refused", seconds)
            # A daemon: asyncio's own threads would be waited for, and a second signal not be heeded.
            self._draining = threading.Thread(target=self._service.stop, name="fastdllm-stop", daemon=True)
            self._draining.start()
        drained = self._draining is not None and not self._draining.is_alive()
        return await super().on_tick(counter) or drained
