"""``fastdllm generate``: read the prompts, refuse what contradicts itself, and hand over to a mode."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastdllm.cli import options as opt
from fastdllm.cli import replicas as on_ray
from fastdllm.cli.together import meet
from fastdllm.config import GenerationConfig
from fastdllm.errors import OptionError
from fastdllm.processes import from_first, is_first

if TYPE_CHECKING:
    from fastdllm.cluster.workers import Workers
    from fastdllm.config import GenerationOptions

BATCH_SIZE = 8

Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="The prompt; else --file, else standard input.")]
File = Annotated[Path | None, typer.Option(metavar="FILE", help="Read the prompt, or with a .jsonl name many.")]
Jsonl = Annotated[bool, typer.Option("--jsonl", help='Many: {"prompt": ..., "id": ...} a line.')]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Results of many; run again to continue.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Prompts run together, of many.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--raw", help="With the chat template, or without [default: if any].")
]
Watch = Annotated[bool, typer.Option("--watch", help="The canvas as it fills, coloured by pass.")]
Compare = Annotated[bool, typer.Option("--compare", help="Beside plain decoding, with the speed-up.")]
Trace = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the StepEvents as JSON lines.")]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Where prompts come from and where answers go."""

    prompt: str | None
    file: Path | None
    jsonl: bool
    out: Path | None
    batch_size: int
    watch: bool
    compare: bool
    trace: Path | None
    chat: bool | None

    @property
    def many(self) -> bool:
        return self.jsonl or (self.file is not None and self.file.suffix == ".jsonl")

    @property
    def source(self) -> str:
        """What messages call the place the prompts come from."""
        return "standard input" if self.file is None else str(self.file)

    def refuse_contradictions(self) -> None:
        """Raises OptionError when two options cannot both be meant."""
        prompt = self.prompt is not None
        opt.refuse_together({"PROMPT": prompt, "--file": self.file is not None}, why="each is the prompt")
        opt.refuse_together({"PROMPT": prompt, "--jsonl": self.many}, why="JSON lines come from a file or a pipe")
        opt.refuse_together({"--watch": self.watch, "--compare": self.compare}, why="each has a screen of its own")
        for flag, wanted in {"--watch": self.watch, "--compare": self.compare, "--trace": self.trace}.items():
            if wanted and self.many:
                raise OptionError(f"{flag} shows one prompt; many prompts (JSON lines) cannot be given with it.")
        if self.out is not None and not self.many:
            raise OptionError("--out holds the results of many prompts; give JSON lines with --file or --jsonl.")

    def read(self) -> str:
        """The prompt's text, less the line break that ends a file."""
        if self.prompt is not None:
            return self.prompt
        if self.file is None and (sys.stdin is None or sys.stdin.isatty()):
            raise OptionError("there is no prompt; give one as the argument, with --file, or on standard input.")
        try:
            text = sys.stdin.read() if self.file is None else self.file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise OptionError(f"{self.source} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
        if not text.strip():
            raise OptionError(f"{self.source} is empty; it should hold the prompt.")
        return text.removesuffix("\n")


def generate(
    context: typer.Context,
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
    compile: opt.Compile = False,
    tensor_parallel: opt.TensorParallel = "auto",
    preset: opt.PresetName = None,
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
    ray: on_ray.Ray = False,
    replicas: on_ray.Replicas = None,
    replica_cpus: on_ray.ReplicaCpus = on_ray.CPUS,
    replica_gpus: on_ray.ReplicaGpus = None,
    ray_address: on_ray.RayAddress = None,
) -> None:
    """Answer a prompt, or many from JSON lines."""
    options: GenerationOptions = {
        "gen_length": gen_length, "block_length": block_length, "cache": cache, "decoder": decoder,
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "cfg_scale": cfg_scale, "seed": seed,
        "stop_at_eos": stop_at_eos,
    }  # fmt: skip
    request = Request(
        prompt=prompt, file=file, jsonl=jsonl, out=out, batch_size=batch_size, watch=watch, compare=compare,
        trace=trace, chat=chat,
    )  # fmt: skip
    options, source = opt.with_preset(context, preset, options)
    choice = opt.ModelChoice(
        model=model, revision=revision, dtype=dtype, device=device, threads=threads, tensor_parallel=tensor_parallel,
        compile=compile, preset=source,
    )  # fmt: skip
    workers = on_ray.asked(context, replicas, replica_cpus, replica_gpus, ray_address, wanted=ray)
    _answer(request, choice, options, workers)


def _answer(request: Request, choice: opt.ModelChoice, options: GenerationOptions, workers: Workers | None) -> None:
    request.refuse_contradictions()
    if workers is not None:
        on_ray.refuse_contradictions(choice, many=request.many)
    GenerationConfig(**options)  # refuses wrong options before a model is loaded
    meet(choice.tensor_parallel, choice.device)
    text = from_first(request.read)
    if not is_first():
        request = replace(request, out=None, trace=None)
    if request.many:
        from fastdllm.cli.many import answer_many

        answer_many(request, choice, text, options, workers)
        return
    from fastdllm.cli import compare, one

    engine = choice.load(choice.resolve())
    (ids,) = engine.encode([text], chat=request.chat)
    templated = engine.uses_template(request.chat)
    task = one.Task(engine=engine, question=text, prompt=ids, options=options, chat=templated, trace=request.trace)
    show = compare.compare if request.compare else one.watch if request.watch else one.print_answer
    show(task)
