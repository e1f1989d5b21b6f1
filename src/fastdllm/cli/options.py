"""Options that commands share; those of a generation take their defaults from GenerationConfig."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, cast

import typer

from fastdllm.checks import check_least
from fastdllm.cli.console import note
from fastdllm.cli.together import meet
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.presets import BUILT_IN, Preset, read_preset

if TYPE_CHECKING:
    from pathlib import Path

    from fastdllm.engine import Engine

MODEL = "tiny"
SEED = cast(int, GenerationConfig.seed)
CACHE, DECODER = str(GenerationConfig.cache), str(GenerationConfig.decoder)

GIVEN = ("COMMANDLINE", "DEFAULT_MAP")
"""Where the value of an option comes from that somebody has given: the command line, or the file of --config."""

Model = Annotated[str, typer.Option(metavar="MODEL", help="Embedded, a folder, or a hub id.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a hub id.")]
Dtype = Annotated[str, typer.Option(metavar="DTYPE", help="auto, float32, bfloat16, float16, int8; float8 on GPUs.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
TensorParallel = Annotated[
    str, typer.Option(metavar="N", help="Processes to split the model over: auto is all that torchrun started.")
]
Threads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="GPU: compiled layers, recorded passes. CPU: kernels built for it, the default of large models.",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option("--preset", metavar="PRESET", help=f"Options: {', '.join(BUILT_IN)}, or a file of fastdllm tune."),
]
GenLength = Annotated[int, typer.Option(metavar="N", help="Answer slots.")]
BlockLength = Annotated[int, typer.Option(metavar="N", help="Slots of a block.")]
Cache = Annotated[str, typer.Option(metavar="SPEC", help="K/V reuse: dual, prefix, none, ...; fastdllm methods.")]
Decoder = Annotated[str, typer.Option(metavar="SPEC", help="threshold, topk, ...; fastdllm methods.")]
Temperature = Annotated[float, typer.Option(metavar="T", help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(metavar="P", help="Keep the likeliest, to this probability.")]
TopK = Annotated[int | None, typer.Option(metavar="N", help="Keep this many of the likeliest.")]
CfgScale = Annotated[float, typer.Option(metavar="S", help="Guidance; needs cache none.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of the noise.")]
StopAtEos = Annotated[bool, typer.Option(show_default=False, help="End at an end token (the default).")]


COMPILING = (
    "on a GPU passes over a block are compiled when first met: up to a minute, and less in later runs; on a CPU "
    "kernels are built, once: seconds"
)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Which checkpoint to load, and how."""

    model: str
    revision: str | None
    dtype: str
    device: str
    threads: int | None = None
    tensor_parallel: str = "1"
    compile: bool = False
    preset: Preset | None = None
    """Where the options of the generation come from."""

    def resolve(self) -> Path:
        """The checkpoint's folder."""
        from fastdllm.models.checkpoint import resolve

        return resolve(self.model, self.revision)

    def load(self, folder: Path) -> Engine:
        """The engine, under the name that was asked for."""
        import torch

        meet(self.tensor_parallel, self.device)
        if self.threads is not None:
            check_least("threads", self.threads, 1)
            torch.set_num_threads(self.threads)
        self.warn_of_other_weights(folder)
        written = max((path.stat().st_mtime_ns for path in folder.iterdir()), default=0)
        if self.compile:
            note(COMPILING)
        engine = _loaded(folder, written, self.dtype, self.device, self.tensor_parallel, self.compile)
        engine.name = self.model
        return engine

    def warn_of_other_weights(self, folder: Path) -> None:
        """Say so where the preset was tuned on another model."""
        from fastdllm.record import fingerprint

        tuned = self.preset.tuned if self.preset else {}
        if self.preset and "weights" in tuned and tuned["weights"] != fingerprint(folder):
            then = f"{tuned.get('model')} (weights {tuned['weights']})"
            note(f"warning: preset {self.preset.name} was tuned for {then}; on {self.model} its accuracy is not known")


def with_preset(
    context: typer.Context, name: str | None, options: GenerationOptions
) -> tuple[GenerationOptions, Preset | None]:
    """The options of a command over those of a preset: what was given on the command line wins.

    Args:
        name: of a built-in preset or a file; without one the options stay as they are.
        options: the command's, by the names of its parameters.
    """
    if name is None:
        return options, None
    preset = read_preset(name)
    given = {
        parameter
        for parameter in options
        if (source := context.get_parameter_source(parameter)) and source.name in GIVEN
    }
    held = {option: value for option, value in preset.options.items() if option not in given}
    return cast(GenerationOptions, {**options, **held}), preset


@lru_cache(maxsize=1)
def _loaded(folder: Path, written: int, dtype: str, device: str, tensor_parallel: str, compile: bool) -> Engine:
    """The engine of a folder last ``written`` to then, loaded once however many studies of a report ask for it."""
    from fastdllm.loading import load

    return load(folder, dtype=dtype, device=device, tensor_parallel=tensor_parallel, compile=compile)


def refuse_together(given: dict[str, bool], *, why: str) -> None:
    """Raise when two or more of ``given`` (flag → was it given) are true."""
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise OptionError(f"{names[0]} and {names[1]} cannot be given together: {why}.")
