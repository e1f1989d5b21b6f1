"""``fastdllm bench-serve``: how much a running server answers, and how fast."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdllm.cli import options as opt
from fastdllm.cli.command import command_of
from fastdllm.cli.console import INTERRUPTED, note
from fastdllm.cli.posed import open_problems
from fastdllm.cli.progress import progress
from fastdllm.cli.prompts import read_entries
from fastdllm.cli.subject import print_measured
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError
from fastdllm.files import read_text, write_whole
from fastdllm.machine import cpu_name, load_average, source_commit

if TYPE_CHECKING:
    from fastdllm.load_test.drive import Drive, Turn
    from fastdllm.load_test.plan import Posed
    from fastdllm.load_test.report import Report
    from fastdllm.load_test.target import Server, Target

URL, CONCURRENCY, REQUESTS, ROUNDS, SECONDS, TIMEOUT = "http://127.0.0.1:8000", "1,4,16", 128, 3, 60.0, 120.0

Url = Annotated[str, typer.Argument(metavar="URL", help="Where the server listens.")]
ModelName = Annotated[str | None, typer.Option("--model", metavar="NAME", help="[default: the only one it has].")]
Concurrency = Annotated[
    str | None,
    typer.Option(metavar="N,...", help=f"Requests at a time [default: {CONCURRENCY}, unless there is a --rate]."),
]
Rate = Annotated[str | None, typer.Option(metavar="R,...", help="Requests a second, as a Poisson process.")]
Requests = Annotated[int, typer.Option(metavar="N", help="Of each load in each round.")]
Rounds = Annotated[int, typer.Option(metavar="N", help="Turns of each load, those of all loads interleaved.")]
WarmUp = Annotated[
    int | None, typer.Option(metavar="N", help="Requests before, which do not count [default: the highest load, or 8].")
]
Seconds = Annotated[float, typer.Option("--time", metavar="S", help="Seconds after which a turn sends no more.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds until a request is given up.")]
ProblemsFile = Annotated[
    Path | None,
    typer.Option("--problems", metavar="FILE", help="Or a benchmark [default: those of the embedded model]."),
]
PromptsFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Prompts as JSON lines.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--raw", help="As conversations, or as they are [default: chat, if it can].")
]
MaxTokens = Annotated[str, typer.Option("--max-tokens", metavar="N", help="Or N-M: of each request, drawn evenly.")]
CacheSpec = Annotated[str | None, typer.Option("--cache", metavar="SPEC", help="[default: the server's].")]
DecoderSpec = Annotated[str | None, typer.Option("--decoder", metavar="SPEC", help="[default: the server's].")]
BlockLength = Annotated[int | None, typer.Option("--block-length", metavar="N", help="[default: the server's].")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of arrivals, lengths and noise.")]
ApiKeyFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="An API key; else FASTDLLM_API_KEYS [default: none].")
]
AllowRemote = Annotated[bool, typer.Option("--allow-remote", help="Other machines than this one, too.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Everything that was measured.")]


def bench_serve(
    context: typer.Context,
    url: Url = URL,
    model: ModelName = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    requests: Requests = REQUESTS,
    rounds: Rounds = ROUNDS,
    warm_up: WarmUp = None,
    seconds: Seconds = SECONDS,
    timeout: Timeout = TIMEOUT,
    problems: ProblemsFile = None,
    file: PromptsFile = None,
    chat: Chat = None,
    max_tokens: MaxTokens = str(GenerationConfig.gen_length),
    cache: CacheSpec = None,
    decoder: DecoderSpec = None,
    block_length: BlockLength = None,
    temperature: opt.Temperature = GenerationConfig.temperature,
    top_p: opt.TopP = None,
    seed: Seed = opt.SEED,
    api_key_file: ApiKeyFile = None,
    allow_remote: AllowRemote = False,
    json_file: JsonFile = None,
) -> None:
    """Send a running server many requests, and time its answers."""
    try:
        from fastdllm.load_test.drive import Drive
        from fastdllm.load_test.plan import Ask, Plan, loads
        from fastdllm.load_test.report import Report
        from fastdllm.load_test.target import Target
        from fastdllm.serve.auth import read_keys
    except ImportError as error:
        raise OptionError(f"{error.name} is missing: pip install 'fastdllm[serve]'.") from None
    opt.refuse_together({"--problems": problems is not None, "--file": file is not None}, why="each has the prompts")
    if concurrency is None and rate is None:
        concurrency = CONCURRENCY
    plan = Plan(
        loads=loads(concurrency, rate), requests=requests, rounds=rounds, warm_up=warm_up, seconds=seconds,
        timeout=timeout, seed=seed,
    )  # fmt: skip
    keys = read_keys(api_key_file, os.environ)
    target = Target.parse(url, keys[0] if keys else None, allow_remote=allow_remote)
    extension = {"cache": cache, "decoder": decoder, "block_length": block_length}
    ask = Ask(
        max_tokens=length_range(max_tokens), chat=chat, temperature=temperature, top_p=top_p, seed=seed,
        extension={name: value for name, value in extension.items() if value is not None},
    )  # fmt: skip
    before = load_average()
    server = asyncio.run(_look(target, model))
    posed = _read_prompts(problems, file, requests, server.model)
    drive = Drive(target, server, plan, ask.requests(posed.prompts, requests, model=server.model, chats=server.chats))
    interrupted = _run(drive)
    report = Report(
        command=command_of(context), server=drive.server.as_json(), asked={**asdict(ask), **posed.as_json()},
        plan=plan.as_json(), client=_client(target), load_average={"before": before, "after": load_average()},
        interrupted=interrupted, turns=drive.turns,
    )  # fmt: skip
    _publish(report, json_file)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


async def _look(target: Target, model: str | None) -> Server:
    from fastdllm.load_test.target import look

    async with target.client() as client:
        return await look(client, model)


def _read_prompts(problems: Path | None, file: Path | None, count: int, model: str) -> Posed:
    """The prompts that the options name; answers are judged where that is fair to the model."""
    from fastdllm.arena.problems import digest
    from fastdllm.load_test.plan import Posed, Prompt
    from fastdllm.models.source import EMBEDDED, resolve

    if file is not None:
        entries = read_entries(read_text(file), str(file))[:count]
        asked = [entry.prompt if isinstance(entry.prompt, str) else tuple(entry.prompt) for entry in entries]
        return Posed(name=file.name, digest=digest(file), prompts=[Prompt(content=content) for content in asked])
    found = open_problems(problems, resolve(opt.MODEL), opt.MODEL, count)
    judged = problems is not None or model in EMBEDDED
    prompts = [Prompt(content=one.question, check=one.solved_by if judged else None) for one in found.problems]
    return Posed(name=found.name, digest=found.digest, prompts=prompts)


def _run(drive: Drive) -> bool:
    """Send everything, with a bar; True where that was interrupted once there were outcomes."""
    plan = drive.plan

    def tell(turn: Turn) -> None:
        failed = sum(one.failure is not None for one in turn.outcomes)
        said = f", {failed} of them failed" if failed else ""
        late = f"; {plan.requests - turn.sent} were not sent, as time was over" if turn.sent < plan.requests else ""
        note(
            f"round {turn.round + 1} of {plan.rounds}, {turn.load.name}: {turn.sent} requests in {turn.seconds:.1f} s"
            f"{said}{late}"
        )

    total = plan.requests * plan.rounds * len(plan.loads)
    try:
        with progress("requests", total, 0) as advance:
            asyncio.run(drive.run(advance, tell))
    except KeyboardInterrupt:
        if not any(turn.outcomes for turn in drive.turns):
            raise
        return True
    return False


def _client(target: Target) -> dict[str, Any]:
    """This process and its machine."""
    import httpx

    import fastdllm
    from fastdllm.load_test.target import is_loopback

    return {
        "same_machine": is_loopback(httpx.URL(target.url).host), "hardware": cpu_name(), "cores": os.cpu_count(),
        "python": platform.python_version(), "httpx": httpx.__version__, "fastdllm": fastdllm.__version__,
        "commit": source_commit(),
    }  # fmt: skip


def _publish(report: Report, json_file: Path | None) -> None:
    """Print tables and sentences, and write the file that was asked for."""
    from fastdllm.load_test import tables

    title = (line.replace("`", "") for line in tables.title(report))
    print_measured(title, tables.all_tables(report), tables.sentences(report))
    note(tables.NOTE)
    if json_file is not None:
        write_whole(json_file, json.dumps(report.as_json(), separators=(",", ":")) + "\n")
        note(f"written: {json_file}")


def length_range(text: str) -> tuple[int, int]:
    """Fewest and most tokens of ``N`` or ``N-M``.

    Raises:
        OptionError: it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if least > most:
        raise OptionError(f"--max-tokens {text!r} must be a number, or two as in 64-128.")
    return least, most
