"""``fastdllm generate``: read the prompts, refuse what contradicts itself, and hand over to a mode."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError

if TYPE_CHECKING:
    from fastdllm.config import GenerationOptions

BATCH_SIZE = 8

Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; else --file, else standard input.")]
File = Annotated[Path | None, typer.Option(metavar="FILE", help="Read the prompt, or with a .jsonl name many.")]
Jsonl = Annotated[bool, typer.Option("--jsonl", help='Many: {"prompt": ..., "id": ...} a line.')]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Results of many; run again to continue.")]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Prompts run together, of many.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--raw", help="With the chat template, or without [default: if any].")
]
Watch = Annotated[bool, typer.Option("--watch", help="The canvas as it fills, coloured by pass.")]
Compare = Annotated[bool, typer.Option("--compare", help="Beside plain decoding, with the speed-up.")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the StepEvents as JSON lines.")]


def generate(
    prompt: Prompt = None,
    file: File = None,
    jsonl: Jsonl = False,
    out: Out = None,
    batch_size: BatchSize = BATCH_SIZE,
    watch: Watch = False,
    compare: Compare = False,
    trace: Trace = None,
    chat: Chat = None,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    gen_length: opt.GenLength = GenerationConfig.gen_length,
    block_length: opt.BlockLength = GenerationConfig.block_length,
    cache: opt.Cache = opt.CACHE,
    decoder: opt.Decoder = opt.DECODER,
    temperature: opt.Temperature = GenerationConfig.temperature,
    top_p: opt.TopP = GenerationConfig.top_p,
    top_k: opt.TopK = GenerationConfig.top_k,
    cfg_scale: opt.CfgScale = GenerationConfig.cfg_scale,
    seed: opt.Seed = opt.SEED,
    stop_at_eos: opt.StopAtEos = GenerationConfig.stop_at_eos,
) -> None:
    """Answer a prompt, or many from JSON lines."""
    many = jsonl or (file is not None and file.suffix == ".jsonl")
    _refuse(prompt=prompt, file=file, many=many, out=out, watch=watch, compare=compare, trace=trace)
    options: GenerationOptions = {
        "gen_length": gen_length, "block_length": block_length, "cache": cache, "decoder": decoder,
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "cfg_scale": cfg_scale, "seed": seed,
        "stop_at_eos": stop_at_eos,
    }  # fmt: skip
    GenerationConfig(**options)  # refuses wrong options before a model is loaded
    text = read_prompt(prompt, file)
    choice = opt.ModelChoice(model=model, revision=revision, dtype=dtype, device=device, threads=threads)
    if many:
        from fastdllm.cli.many import answer_many

        source = str(file or "standard input")
        answer_many(choice, text, options, source=source, out=out, batch_size=batch_size, chat=chat)
    else:
        _answer_one(choice, text, options, chat=chat, watching=watch, comparing=compare, trace=trace)


def _answer_one(
    choice: opt.ModelChoice,
    text: str,
    options: GenerationOptions,
    *,
    chat: bool | None,
    watching: bool,
    comparing: bool,
    trace: Path | None,
) -> None:
    from fastdllm.cli import compare, one

    engine = choice.load(choice.resolve())
    (ids,) = engine.encode([text], chat=chat)
    task = one.Task(
        engine=engine, question=text, prompt=ids, options=options, chat=opt.uses_template(engine, chat), trace=trace
    )
    (compare.compare if comparing else one.watch if watching else one.print_answer)(task)


def _refuse(
    *,
    prompt: str | None,
    file: Path | None,
    many: bool,
    out: Path | None,
    watch: bool,
    compare: bool,
    trace: Path | None,
) -> None:
    given = prompt is not None
    opt.refuse_together({"PROMPT": given, "--file": file is not None}, why="each is the prompt")
    opt.refuse_together({"--watch": watch, "--compare": compare}, why="each has a screen of its own")
    opt.refuse_together({"PROMPT": given, "--jsonl": many}, why="JSON lines come from --file or standard input")
    for flag, wanted in {"--watch": watch, "--compare": compare, "--trace": trace is not None}.items():
        if wanted and many:
            raise OptionError(f"{flag} shows one prompt; many prompts (JSON lines) cannot be given with it.")
    if out is not None and not many:
        raise OptionError("--out holds the results of many prompts; give them as JSON lines with --file or --jsonl.")


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The prompt's text, less the line break that ends a file."""
    if prompt is not None:
        return prompt
    if file is None and sys.stdin.isatty():
        raise OptionError("there is no prompt; give one as the argument, with --file, or on standard input.")
    source = "standard input" if file is None else str(file)
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{source} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if not text.strip():
        raise OptionError(f"{source} is empty; it should hold the prompt.")
    return text.removesuffix("\n")
