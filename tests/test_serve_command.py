"""``fastdllm serve`` as a process: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fastdllm.cli.serve import QUEUE_SIZE, size_of
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError
from fastdllm.serve.about import model_card
from fastdllm.serve.jobs import Limits
from fastdllm.serve.server import Server
from fastdllm.serve.service import Service
from fastdllm.serve.settings import Settings
from helpers import refused, run
from serving import PATIENCE

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
COMMAND = [sys.executable, "-m", "fastdllm", "serve"]


class Process:
    """A server in a process of its own, on a free port, once it says that it listens."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline() + self.process.stderr.readline()
        found = re.search(r"http://[\d.]+:\d+", self.said)
        assert found, self.said + self.process.stderr.read()
        self.url = found.group()


@contextmanager
def process(*options: str) -> Iterator[Process]:
    started = Process(*options)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


@pytest.mark.slow
def test_a_server_starts_says_what_it_is_and_ends_well_on_sigterm():
    """The request it suggests works; what streams when the signal comes is finished."""
    with process("--max-batch", "3", "--max-model-len", "256", "--kv-memory", "1G") as server:
        assert "serves tiny (float32 on cpu; 3 at a time of up to 256 tokens" in server.said
        words = shlex.split(server.said.splitlines()[1])
        assert words[:2] == ["curl", f"{server.url}/v1/chat/completions"]
        answer = httpx.post(words[1], content=words[-1], headers=dict([words[3].split(": ")])).json()
        assert answer["choices"][0]["message"]["content"]
        body = {"model": "tiny", "prompt": "Tom has", "max_tokens": 64, "n": 2, "temperature": 1.5, "stream": True}
        body["fastdllm"] = {"decoder": "topk:k=1"}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in rest]
        assert sum(reason is not None for reason in reasons) == 2
        _, said = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 0
        assert "stopping: running requests have 30 s" in said
        assert said.endswith("stopped\n")
        assert "Traceback" not in said


@pytest.fixture
def announced(monkeypatch):
    """Runs the command up to the point where connections are taken: what it printed, and the service."""
    kept = {}

    def run_server(self: Server, sockets: list[socket.socket]) -> None:
        kept["service"] = self._service
        self._ready()

    def announce(*options: str) -> tuple[str, Service]:
        result = run("serve", "--port", "0", *options)
        assert result.exit_code == 0, result.output
        return result.stderr, kept["service"]

    monkeypatch.setattr(Server, "run", run_server)
    monkeypatch.setattr("fastdllm.cli.serve.log_to_stderr", lambda: None)  # this process has other tests to log for
    return announce


def test_a_server_of_a_folder_does_not_show_its_path(model, announced):
    said, service = announced(model)
    name = Path(model).name
    assert f"serves {name} (float32 on cpu; " in said
    assert model not in said
    assert f'"model": "{name}"' in said
    card = model_card(service)
    assert (card["id"], model in json.dumps(card)) == (name, False)
    assert re.fullmatch(r"[0-9a-f]{12}", service.settings.fingerprint)


def test_options_reach_the_settings(tmp_path, announced):
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    preset = tmp_path / "mine.json"
    options = {"cache": "prefix", "block_length": 16, "temperature": 0.5}
    preset.write_text(json.dumps({"fastdllm_preset": 1, "options": options}))
    said, service = announced(
        "--preset", str(preset), "--block-length", "4", "--max-tokens", "64", "--api-key-file", str(keys),
        "--alias", "small", "--alias", "little", "--no-playground", "--log-text", "--timeout", "9",
        "--allow-origin", "https://page.example", "--max-batch", "2", "--queue-size", "7",
    )  # fmt: skip
    settings = service.settings
    assert ("Bearer" in said, "first-key" in said) == (True, False)
    assert settings.options == {
        "cache": "prefix", "block_length": 4, "temperature": 0.5, "gen_length": 64,
        "decoder": GenerationConfig.decoder,
    }  # fmt: skip
    assert (settings.aliases, settings.api_keys) == (("small", "little"), ("first-key",))
    assert (settings.playground, settings.log_text, settings.timeout) == (False, True, 9.0)
    assert settings.allow_origins == ("https://page.example",)
    assert (settings.limits.max_batch, settings.limits.queue_size) == (2, 7)


def test_an_open_address_without_keys_is_warned_of(announced):
    assert "--api-key-file asks for a key" in announced("--host", "0.0.0.0")[0]
    assert "warning" not in announced()[0]


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = refused("serve", "--port", port)
        assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in said


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid"),
        (("--cache", "doual"), "'doual' is not one of"),
        (("--max-batch", "0"), "max_batch=0 must be 1 or more"),
        (("--queue-size", "0"), "queue_size=0 must be 1 or more"),
        (("--timeout", "0"), "timeout=0.0 must be above 0"),
        (("--drain-seconds", "-1"), "drain_seconds=-1.0 must be 0 or more"),
        (("--kv-memory", "much"), "--kv-memory 'much' is no size"),
        (("--api-key-file", "/no/such/file"), "No such file"),
        (("--max-model-len", "100000", "--port", "0"), "max_model_len=100000 is more than the 512 positions"),
        (("--kv-memory", "1K", "--port", "0"), "budget of 1024 bytes does not hold one request"),
        (("--threads", "0", "--port", "0"), "threads=0 must be 1 or more"),
        (("no/such/model", "--port", "0"), "no/such/model"),
    ],
)
def test_options_that_cannot_be_are_one_sentence(options, phrase):
    assert phrase in refused("serve", *options)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith("fastdllm.serve")]:
        monkeypatch.delitem(sys.modules, name)
    assert "fastapi is missing: pip install 'fastdllm[serve]'." in refused("serve")


def test_other_commands_do_not_wait_for_the_servers_libraries():
    code = "import sys, fastdllm.cli.app; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert "typer" in loaded
    assert not loaded & {"fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic", "torch", "transformers"}


def test_help_names_the_defaults_that_apply():
    shown = " ".join(run("serve", "--help").stdout.split())
    limits, settings = Limits(), Settings()
    assert limits.queue_size == QUEUE_SIZE
    for default in (limits.max_batch, limits.queue_size, settings.timeout, settings.drain_seconds):
        assert f"[default: {default}]" in shown


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("2K", 2048), ("1.5M", 1572864), ("8G", 2**33), ("8GiB", 2**33), ("1tb", 2**40), (None, None)],
)
def test_sizes(text, count):
    assert size_of(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.G", "0", "1P", "one"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="is no size"):
        size_of(text)
