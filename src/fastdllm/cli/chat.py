"""``fastdllm chat``: a conversation in the terminal, on the checkpoint's chat template."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.text import Text

from fastdllm.cli import options as opt
from fastdllm.cli.console import note, printable, stderr, stdout
from fastdllm.config import GenerationConfig
from fastdllm.errors import FastdllmError, OptionError

if TYPE_CHECKING:
    from fastdllm.config import GenerationOptions
    from fastdllm.engine import Engine

EXIT = "/exit"
COMMANDS = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer"

System = Annotated[str | None, typer.Option(metavar="TEXT", help="System message that opens the conversation.")]


def chat(
    context: typer.Context,
    system: System = None,
    model: opt.Model = opt.MODEL,
    revision: opt.Revision = None,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    compile: opt.Compile = False,
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
) -> None:
    """Talk with a model over several turns."""
    options: GenerationOptions = {
        "gen_length": gen_length, "block_length": block_length, "cache": cache, "decoder": decoder,
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "cfg_scale": cfg_scale, "seed": seed,
    }  # fmt: skip
    options, source = opt.with_preset(context, preset, options)
    GenerationConfig(**options)  # refuses wrong options before a model is loaded
    choice = opt.ModelChoice(
        model=model, revision=revision, dtype=dtype, device=device, threads=threads, compile=compile, preset=source
    )
    engine = choice.load(choice.resolve())
    if engine.text is None or not engine.text.has_chat_template:
        lacks = "tokenizer" if engine.text is None else "chat template"
        raise OptionError(f"{model} has no {lacks}, so there is no chat with it; use fastdllm generate.")
    opening = [] if system is None else [{"role": "system", "content": system}]
    _converse(Conversation(engine=engine, options=options, opening=opening))


@dataclass(kw_only=True)
class Conversation:
    """The turns so far, and the engine that answers."""

    engine: Engine
    options: GenerationOptions
    opening: list[dict[str, str]]
    turns: list[dict[str, str]] = field(default_factory=list)

    def say(self, message: str) -> None:
        """Answer a message; a turn that fails or is stopped leaves no trace in the conversation."""
        self.turns.append({"role": "user", "content": message})
        try:
            self.turns.append({"role": "assistant", "content": self._answer(self._fit())})
        except BaseException:
            self.turns.pop()
            raise

    def _fit(self) -> list[int]:
        """Token ids of the conversation, without its oldest turns where it no longer fits the model."""
        assert self.engine.text is not None
        room, dropped = self.engine.config.max_length - self.options["gen_length"], 0
        while len(ids := self.engine.text.encode_chat(self.opening + self.turns)) > room and len(self.turns) > 2:
            del self.turns[:2]
            dropped += 1
        if dropped:
            note(f"the conversation is longer than the model's {self.engine.config.max_length} positions; "
                 f"its oldest {'turn is' if dropped == 1 else f'{dropped} turns are'} forgotten")  # fmt: skip
        return ids

    def _answer(self, ids: list[int]) -> str:
        from fastdllm.cli.canvas_view import frame
        from fastdllm.cli.summary import EMPTY, one_line

        generation, console = self.engine.start([ids], **self.options), stdout()
        with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="ellipsis") as live:
            for event in generation:
                if console.is_terminal:
                    live.update(frame(generation, event), refresh=True)
        (completion,) = generation.completions
        console.print(Text(printable(completion.text.strip())), soft_wrap=True)
        timed = not console.is_terminal
        note(one_line(self.engine, completion, self.options, timed=timed) if completion.tokens else EMPTY)
        return completion.text


def _converse(conversation: Conversation) -> None:
    """Read messages until the input ends."""
    terminal = sys.stdin.isatty()
    if terminal:
        _enable_line_editing()
        note(f"{conversation.engine.name}: {COMMANDS}")
    while (message := _read(terminal)) != EXIT:
        if message == "/reset":
            conversation.turns.clear()
            note("the conversation is forgotten")
        elif message.startswith("/"):
            note(f"{message.split()[0]} is not a command: {COMMANDS}")
        elif message:
            _say(conversation, message)


def _say(conversation: Conversation, message: str) -> None:
    """One turn; neither a refusal nor Ctrl-C ends the conversation."""
    try:
        conversation.say(message)
    except FastdllmError as error:
        typer.echo(f"error: {error}", err=True)
    except KeyboardInterrupt:
        note("stopped; this turn is not kept")


def _read(terminal: bool) -> str:
    """The next message; ``/exit`` at the end of the input."""
    if not terminal:
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise OptionError(f"standard input is not UTF-8 text ({error.reason}).") from None
        return line.strip() if line else EXIT
    while True:
        try:
            return input("> ").strip()
        except KeyboardInterrupt:
            note("\nCtrl-D ends the conversation")
        except EOFError:
            stderr().print()
            return EXIT


def _enable_line_editing() -> None:
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 (input() uses it once it is imported)
