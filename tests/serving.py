"""A server on a free port of this machine, as `fastdllm serve` starts it, in a thread of the test."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastdllm.engine import Engine
from fastdllm.serve.app import create_app
from fastdllm.serve.jobs import Stats
from fastdllm.serve.server import Server, listen
from fastdllm.serve.service import Service
from fastdllm.serve.settings import Settings

PATIENCE = 30.0
"""Seconds after which something that should happen is taken not to."""


class Served:
    """A server at work."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.app = create_app(engine, settings)
        self.service: Service = self.app.state.service
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        ready = threading.Event()
        self.server = Server(self.app, ready=ready.set)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        assert ready.wait(PATIENCE)

    def terminate(self) -> None:
        """What SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def stats(self) -> Stats:
        return self.service.scheduler.stats()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        self.socket.close()
        assert not self.thread.is_alive()


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[Served]:
    served = Served(engine, Settings(**settings))
    try:
        yield served
    finally:
        served.close()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
