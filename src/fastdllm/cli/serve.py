"""``fastdllm serve``: a model behind OpenAI's protocol."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.cli import replicas as on_ray
from fastdllm.cli.config_file import ConfigFile
from fastdllm.cli.console import note
from fastdllm.cli.info import size
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    import socket

    from fastdllm.config import GenerationOptions
    from fastdllm.serve.service import Facts
    from fastdllm.serve.settings import Settings

HOST, PORT = "127.0.0.1", 8000
MAX_BATCH, QUEUE_SIZE, TIMEOUT, DRAIN_SECONDS = 16, 256, 600.0, 30.0
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
QUESTION = (
    "Mia has 28 pears. She gives 5 pears to each of 3 friends and then finds 3 more. How many pears does Mia have now?"
)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Embedded model, checkpoint folder, or hub id.")]
Host = Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is every interface.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes a free one.")]
Alias = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Another name for the model; may be repeated.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="Answer slots, unless a request says.")]
MaxBatch = Annotated[int, typer.Option(metavar="N", help="Most answers at work at a time.")]
MaxModelLen = Annotated[
    int | None, typer.Option(metavar="N", help="Prompt and answer together, at most [default: the model's].")
]
KvMemory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="For K/V and passes, as in 8G [default: 80 % of what is free].")
]
QueueSize = Annotated[int, typer.Option(metavar="N", help="Most answers that wait.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds until a request is given up.")]
DrainSeconds = Annotated[float, typer.Option(metavar="S", help="Seconds to finish in, once told to stop.")]
ApiKeyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="API keys, one a line; else FASTDLLM_API_KEYS [default: none].")
]
AllowOrigin = Annotated[
    list[str] | None, typer.Option(metavar="URL", help="Let pages of this origin call; may be repeated.")
]
LogText = Annotated[bool, typer.Option("--log-text", help="Write prompts and answers into the log.")]
NoPlayground = Annotated[bool, typer.Option("--no-playground", help="No page at /.")]


def serve(
    context: typer.Context,
    model: ModelName = opt.MODEL,
    host: Host = HOST,
    port: Port = PORT,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    compile: opt.Compile = False,
    alias: Alias = None,
    preset: opt.PresetName = None,
    cache: opt.Cache = opt.CACHE,
    decoder: opt.Decoder = opt.DECODER,
    block_length: opt.BlockLength = GenerationConfig.block_length,
    gen_length: MaxTokens = GenerationConfig.gen_length,
    max_batch: MaxBatch = MAX_BATCH,
    max_model_len: MaxModelLen = None,
    kv_memory: KvMemory = None,
    queue_size: QueueSize = QUEUE_SIZE,
    timeout: Timeout = TIMEOUT,
    drain_seconds: DrainSeconds = DRAIN_SECONDS,
    api_key_file: ApiKeyFile = None,
    allow_origin: AllowOrigin = None,
    log_text: LogText = False,
    no_playground: NoPlayground = False,
    replicas: on_ray.Replicas = None,
    replica_cpus: on_ray.ReplicaCpus = on_ray.CPUS,
    replica_gpus: on_ray.ReplicaGpus = None,
    ray_address: on_ray.RayAddress = None,
    config: ConfigFile = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API does."""
    given: GenerationOptions = {
        "gen_length": gen_length, "block_length": block_length, "cache": cache, "decoder": decoder
    }  # fmt: skip
    options, source = opt.with_preset(context, preset, given)
    try:
        from fastdllm.serve.auth import read_keys
        from fastdllm.serve.jobs import Limits
        from fastdllm.serve.server import listen
        from fastdllm.serve.settings import Settings
    except ImportError as error:
        raise OptionError(f"{error.name} is missing: pip install 'fastdllm[serve]'.") from None
    settings = Settings(
        aliases=tuple(alias or ()),
        options=options,
        limits=Limits(
            max_batch=max_batch, max_model_len=max_model_len, kv_bytes=size_of(kv_memory), queue_size=queue_size
        ),
        timeout=timeout,
        drain_seconds=drain_seconds,
        api_keys=read_keys(api_key_file, os.environ),
        allow_origins=tuple(allow_origin or ()),
        log_text=log_text,
        playground=not no_playground,
    )  # fmt: skip
    choice = opt.ModelChoice(
        model=model, revision=revision, dtype=dtype, device=device, threads=threads, compile=compile, preset=source
    )
    workers = on_ray.asked(context, replicas, replica_cpus, replica_gpus, ray_address)
    with listen(host, port) as bound:  # before the model is loaded, which can take minutes
        if workers is None:
            _run(choice, settings, host, bound)
        else:
            on_ray.serve(choice, settings, workers, host, bound)


def size_of(text: str | None) -> int | None:
    """Bytes of a size such as 512M, 8G or 8GiB; a number alone is bytes.

    Raises:
        OptionError: it is no size above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    count = round(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise OptionError(f"--kv-memory {text!r} is no size; give bytes, or a number with K, M, G or T as in 8G.")
    return count


def _run(choice: opt.ModelChoice, settings: Settings, host: str, bound: socket.socket) -> None:
    from fastdllm.record import fingerprint
    from fastdllm.serve.app import create_app
    from fastdllm.serve.server import Server

    folder = choice.resolve()
    engine = choice.load(folder)
    app = create_app(engine, replace(settings, name=public_name(choice), fingerprint=fingerprint(folder)))
    log_to_stderr()
    ready = partial(announce, app.state.service.facts, settings, host, bound.getsockname()[1])
    Server(app, ready=ready).run(sockets=[bound])
    note("stopped")


def public_name(choice: opt.ModelChoice) -> str:
    """What clients call the model, which is no path of this machine."""
    return Path(choice.model).resolve().name if Path(choice.model).is_dir() else choice.model


def log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name, level in (("fastdllm.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def announce(facts: Facts, settings: Settings, host: str, port: int, replicas: int | None = None) -> None:
    """Where it listens, with what, and a request to try."""
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    each = "" if replicas is None else f"{replicas} replica{'s' * (replicas > 1)}, each "
    room = f"{facts.slots} at a time of up to {facts.max_model_len} tokens, {size(facts.kv_bytes)} for K/V"
    note(f"fastdllm serves {facts.name} ({facts.dtype} on {facts.device}; {each}{room}) at {address}")
    key = ' -H "Authorization: Bearer $KEY"' if settings.api_keys else ""
    path = "chat/completions" if facts.chat else "completions"
    asks = {"messages": [{"role": "user", "content": QUESTION}]} if facts.chat else {"prompt": QUESTION}
    body = json.dumps({"model": facts.name, **asks})
    note(f"curl {address}/v1/{path} -H 'Content-Type: application/json'{key} -d {shlex.quote(body)}")
    if not settings.api_keys and not _is_loopback(host):
        note(f"warning: whoever can reach {host} can use this server; --api-key-file asks for a key")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
