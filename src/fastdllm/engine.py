"""A model with its tokenizer, ready to answer prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, cast, get_args

import torch
from typing_extensions import Unpack

from fastdllm.canvas import Canvas
from fastdllm.checks import check_least
from fastdllm.completion import Completion, Draft, fold
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.errors import OptionError
from fastdllm.events import StepEvent
from fastdllm.heap import keep_freed
from fastdllm.loop import decode
from fastdllm.models.attention import Mixing, check_mixing
from fastdllm.models.checkpoint import load_weights, read_config, resolve, stored_dtype
from fastdllm.models.compiled import Compiled, check_compiler
from fastdllm.models.config import ModelConfig
from fastdllm.models.native import MIX, has_kernels, native_layout, use_kernels
from fastdllm.models.packed import Layout, choose_packing
from fastdllm.models.quantized import CAPABILITIES, int8_layout, quantization, torchao_layout
from fastdllm.models.transformer import Block, Transformer
from fastdllm.processes import agree, own_device, split_size
from fastdllm.sampling import Sampling
from fastdllm.text import Text, load_text

HALVES = (torch.bfloat16, torch.float16)
Prompts: TypeAlias = "str | Sequence[str] | Sequence[Sequence[int]]"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Engine:
    """Generates answers with one model. :func:`load` makes one from a checkpoint.

    Args:
        model: the network.
        text: its tokenizer; without one, prompts must be token ids and answers have no text.
        name: what results call the model.
    """

    def __init__(self, model: Transformer, text: Text | None = None, *, name: str = "model") -> None:
        self.model, self.text, self.name = model, text, name
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.weight.dtype

    @property
    def precision(self) -> str:
        """Name of the dtype of the linear layers' weights: ``"int8"``, or what :attr:`dtype` is."""
        return self.model.quantized or str(self.dtype).removeprefix("torch.")

    def encode(self, prompts: Prompts, *, chat: bool | None = None) -> list[list[int]]:
        """Token ids of each prompt.

        Args:
            prompts: one text, texts, or lists of token ids, which are taken as they are.
            chat: wrap texts in the checkpoint's chat template; by default when it has one.

        Raises:
            OptionError: an id is outside the vocabulary, or texts came without a tokenizer or template.
        """
        given: list[object] = [prompts] if isinstance(prompts, str) else list(prompts)
        if all(isinstance(p, str) for p in given):
            given = [*self._encode_texts([str(p) for p in given], chat)]
        return [self._checked(i, p) for i, p in enumerate(given)]

    def _encode_texts(self, texts: list[str], chat: bool | None) -> list[list[int]]:
        if not texts:
            return []
        if self.text is None:
            raise OptionError(f"{self.name} has no tokenizer; give prompts as lists of token ids.")
        if self.uses_template(chat):
            return [self.text.encode_chat([{"role": "user", "content": p}]) for p in texts]
        return [self.text.encode(p) for p in texts]

    def _checked(self, index: int, prompt: object) -> list[int]:
        try:
            ids = [int(token) for token in prompt]  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise OptionError(
                f"prompt {index} is {prompt!r}; prompts are one text, texts, or lists of token ids."
            ) from None
        wrong = [token for token in ids if not 0 <= token < self.config.vocab_size]
        if isinstance(prompt, str) or wrong:
            what = f"holds the id {wrong[0]}" if wrong else "is a text among lists of ids"
            raise OptionError(f"prompt {index} {what}; ids run from 0 to {self.config.vocab_size - 1}.")
        return ids

    def uses_template(self, chat: bool | None = None) -> bool:
        """Whether texts are wrapped in the chat template: as asked, or when the checkpoint has one."""
        return chat if chat is not None else self.text is not None and self.text.has_chat_template

    def canvas(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, index: Sequence[int], width: int
    ) -> Canvas:
        """The prompts with all of their answers masked.

        Args:
            index: the number of each, for events.
            width: slots of the canvas.
        """
        return Canvas(
            prompts,
            gen_length=config.gen_length,
            block_length=config.block_length,
            mask_id=self.config.mask_id,
            eos_ids=self.config.eos_ids,
            stop_at_eos=config.stop_at_eos,
            index=index,
            width=width,
            device=self.device,
        )

    def draft(self, index: int, prompt_tokens: int, gen_length: int) -> Draft:
        """The answer to prompt ``index`` before its first pass."""
        return Draft(index, prompt_tokens, gen_length, self.config.mask_id, self.config.pad_id)

    def start(
        self,
        prompts: Prompts,
        *,
        batch_size: int | None = None,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """A generation that has not begun: iterate it for events, then read its completions."""
        config = GenerationConfig(**options)
        config.rule.check_vocabulary(self.config.vocab_size)
        if batch_size is not None:
            check_least("batch_size", batch_size, 1)
        ids = self.encode(prompts, chat=chat)
        longest = max(map(len, ids), default=0)
        if longest + config.gen_length > self.config.max_length:
            raise OptionError(
                f"a prompt of {longest} tokens with gen_length={config.gen_length} is longer than the "
                f"{self.config.max_length} positions of {self.name}."
            )
        return Generation(self, ids, config, batch_size or max(1, len(ids)))

    def stream(
        self,
        prompts: Prompts,
        *,
        batch_size: int | None = None,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[StepEvent]:
        """The passes of :meth:`generate` as they happen, an event for each; the same arguments."""
        return iter(self.start(prompts, batch_size=batch_size, chat=chat, **options))

    def generate(
        self,
        prompts: Prompts,
        *,
        batch_size: int | None = None,
        chat: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]:
        """Answer every prompt; one completion for each, in their order.

        Args:
            prompts: one text, texts, or lists of token ids. Rows of a batch may differ in length;
                what a prompt gets never depends on its neighbours.
            batch_size: most prompts to run together; all of them by default.
            chat: wrap texts in the chat template; by default when the checkpoint has one.
            options: those of :class:`fastdllm.GenerationConfig`: ``gen_length``, ``block_length``,
                ``cache``, ``decoder``, ``temperature``, ``top_p``, ``top_k``, ``cfg_scale``, ``seed``,
                ``stop_at_eos``.

        Raises:
            OptionError: an option is out of range or contradicts another.
            NumericalError: the model's logits are not numbers.
        """
        generation = self.start(prompts, batch_size=batch_size, chat=chat, **options)
        for _ in generation:
            pass
        return generation.completions


class Generation:
    """One call of :meth:`Engine.generate` as it runs: an iterator of events that gathers the answers.

    ``drafts`` holds the prompts of the batch at work, ``finished`` the answers so far by prompt number.
    """

    def __init__(self, engine: Engine, prompts: list[list[int]], config: GenerationConfig, batch_size: int) -> None:
        self.engine, self.prompts, self.config = engine, prompts, config
        self.batch_size = batch_size
        self.drafts: dict[int, Draft] = {}
        self.finished: dict[int, Completion] = {}
        self._sampling = sampling_of(config, len(prompts), engine.device)
        self._events = self._run()

    def __iter__(self) -> Iterator[StepEvent]:
        return self._events

    @property
    def completions(self) -> list[Completion]:
        """The answers in the order of their prompts, once every event has been read."""
        return [self.finished[i] for i in range(len(self.prompts))]

    def _run(self) -> Iterator[StepEvent]:
        if self.engine.model.tensor_parallel > 1:  # what a cache keeps to itself (a recorder, say) may differ
            agree((self.prompts, self.batch_size, replace(self.config, cache="none")), "prompts or options")
        for first in range(0, len(self.prompts), self.batch_size):
            batch = range(first, min(first + self.batch_size, len(self.prompts)))
            length = self.config.gen_length
            self.drafts = {i: self.engine.draft(i, len(self.prompts[i]), length) for i in batch}
            for event in self._decode(batch):
                for draft in fold(self.drafts, event):
                    self.finished[draft.index] = self._complete(draft)
                yield event

    def _decode(self, batch: range) -> Iterator[StepEvent]:
        engine, config = self.engine, self.config
        prompts = self.prompts[batch.start : batch.stop]
        width = engine.model.room(max(map(len, prompts)) + config.gen_length)
        canvas = engine.canvas(prompts, config, index=batch, width=width)
        return decode(engine.model, canvas, config.policy, config.rule, self._sampling.keep(batch), config.cfg_scale)

    def _complete(self, draft: Draft) -> Completion:
        tokens = draft.answer(self.engine.config.eos_ids)
        text = self.engine.text.decode(tokens) if self.engine.text else ""
        return draft.finish(text, tokens)


def load(
    source: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    revision: str | None = None,
    tensor_parallel: int | str = 1,
    compile: bool = False,
    packed: bool | str = "auto",
    attention: str = "auto",
) -> Engine:
    """Load a checkpoint.

    Args:
        source: ``"tiny"`` (the model that comes with this package), a folder, or a hub id.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, a torch dtype, or ``"auto"``: what the
            checkpoint stores, or float32 on a CPU without fast bfloat16. ``"int8"`` rounds weights and rows of the
            linear layers to bytes, ``"float8"`` (GPUs) to 8-bit floats; all else is then in bfloat16, or in
            float32 on a CPU without fast bfloat16. On GPUs that needs torchao, and ``compile`` to be fast.
        device: a torch device, or ``"auto"``: the GPU when there is one.
        revision: branch, tag or commit of a hub id.
        tensor_parallel: processes that the model is split over, ``"auto"`` for all that torchrun started. Each of
            them then calls this and :meth:`Engine.generate` with the same arguments, and gets the same answers.
        compile: on a CPU, compute with kernels that are built for its processor by the C++ compiler (GCC), in
            seconds and once: float32 needs AVX-512, bfloat16 AMX. Elsewhere, compile the layers, and on a GPU record
            passes over a block as CUDA graphs: the first passes of each size take longer, up to a minute; what was
            compiled is kept for later runs.
        packed: lay the weights of linear layers out for the CPU once, here, rather than at every product; by
            default where that pays (:func:`fastdllm.models.packed.pack_where_it_pays`).
        attention: ``"sdpa"``, ``"matmul"``, ``"kernels"`` (those of ``compile``, in bfloat16), or ``"auto"``: on CPUs,
            the one that is fastest for the shape of a pass, timed once. They round differently; name one where every
            run must give the same bits.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or of a kind that is not served.
        OptionError: an unknown dtype, device or attention, what contradicts the device or another option, or no
            compiler for ``compile``.
    """
    size, mixing = split_size(tensor_parallel), check_mixing(attention)
    if compile and size > 1:
        raise OptionError(f"compile=True does not go with tensor_parallel={size}: leave one of them out.")
    folder = resolve(str(source), revision)
    where = choose_device(device if size == 1 else own_device(device))
    config = read_config(folder)
    text = load_text(folder)
    config = replace(config, eos_ids=end_ids(config, text))
    chosen, split = choose_dtype(dtype, folder, where), None
    if compile and not has_kernels(chosen, where):
        check_compiler(where)
    if size > 1:
        from fastdllm.models.tensor_parallel import TensorParallel  # DTensor takes seconds to import

        split = TensorParallel(config, where, size)
        agree((config, chosen), "models or dtypes")
    layout = choose_layout(dtype, packed, chosen, where, compile=compile, tensor_parallel=size)
    model = load_weights(folder, config, chosen, where, split, layout)
    return Engine(made_ready(model, dtype, mixing, compile=compile), text, name=str(source))


def made_ready(model: Transformer, dtype: str | torch.dtype, mixing: Mixing, *, compile: bool) -> Transformer:
    """The network as :func:`load` hands it to an engine, from one with its weights that was asked for in ``dtype``."""
    model.mixing, model.quantized = mixing, quantization(dtype)
    weight = model.embed.weight
    if weight.device.type == "cpu":
        keep_freed()
    native = compile and has_kernels(weight.dtype, weight.device)
    if native:
        use_kernels(model)
    if mixing == MIX and MIX not in cast(Block, model.blocks[0]).attention.mixes:
        raise OptionError(
            f"attention={MIX!r} needs compile=True, and bfloat16 on a CPU with AMX; it is one of "
            f"{', '.join(get_args(Mixing))}."
        )
    return Compiled(model) if compile and not native else model


def sampling_of(config: GenerationConfig, count: int, device: torch.device | str) -> Sampling:
    """The sampling options of ``count`` rows.

    Raises:
        OptionError: one is out of range.
    """
    return Sampling.of(
        count, temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, seed=config.seed, device=device
    )


def end_ids(config: ModelConfig, text: Text | None) -> tuple[int, ...]:
    """Ids that end an answer: the configuration's, and the turn ends that the tokenizer knows."""
    return tuple(dict.fromkeys((*config.eos_ids, *(text.turn_end_ids() if text else ()))))


def choose_device(device: str | torch.device) -> torch.device:
    """The device a name stands for; ``auto`` is the GPU when there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device={str(device)!r} cannot be used here ({str(error).splitlines()[0]}).") from None
    return chosen


def fast_at(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether 16-bit products are faster than float32 ones: on GPUs, and on CPUs with instructions for bfloat16."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public name for it yet
    return device.type != "cpu" or (dtype == torch.bfloat16 and bool(known and known()))


def choose_dtype(dtype: str | torch.dtype, folder: Path, device: torch.device) -> torch.dtype:
    """The dtype a name stands for; ``auto`` is the checkpoint's, where the device is fast at it.

    Where weights are to be rounded to 8 bits, it is that of all else.
    """
    if quantization(dtype):
        return torch.bfloat16 if fast_at(torch.bfloat16, device) else torch.float32
    if dtype == "auto":
        stored = stored_dtype(folder)
        return stored if stored in HALVES and fast_at(stored, device) else torch.float32
    for name, value in DTYPES.items():
        if dtype in (name, value):
            return value
    raise OptionError(f"dtype={dtype!r} is not one of auto, {', '.join((*DTYPES, *CAPABILITIES))}.")


def choose_layout(
    asked: str | torch.dtype, packed: bool | str, dtype: torch.dtype, device: torch.device, *,
    compile: bool, tensor_parallel: int,
) -> Layout | None:  # fmt: skip
    """How linear layers hold their weights, for :func:`load` with these options; None for plain ones.

    Raises:
        OptionError: they contradict one another, or the device.
    """
    kind = quantization(asked)
    other = "compile=True" if compile else f"tensor_parallel={tensor_parallel}" if tensor_parallel > 1 else ""
    if kind and packed != "auto":
        raise OptionError(f"packed={packed} is about float weights: leave it out with dtype={kind!r}.")
    if kind and (tensor_parallel > 1 or (other and device.type == "cpu")):
        raise OptionError(f"dtype={kind!r} does not go with {other} on {device.type}: leave one of them out.")
    if kind:
        return int8_layout() if kind == "int8" and device.type == "cpu" else torchao_layout(kind, device)
    if other and packed is True:
        raise OptionError(f"packed=True does not go with {other}: leave one of them out.")
    if compile and has_kernels(dtype, device):
        return native_layout(dtype)
    return None if other else choose_packing(packed, dtype, device)
