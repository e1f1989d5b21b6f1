"""fastdllm as a model of lm-eval: ``generate_until`` by any cache and decoder, likelihoods by Monte Carlo.

Importing this module registers the model as ``fastdllm``.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import postprocess_generated_text

from fastdllm.checks import check_least
from fastdllm.config import GenerationConfig, GenerationOptions
from fastdllm.engine import Engine
from fastdllm.errors import FastdllmError, OptionError, out_of_memory
from fastdllm.evals.answering import Answerer, Ask
from fastdllm.evals.groups import MODELS, TOP
from fastdllm.evals.journal import Journal
from fastdllm.evals.likelihood import greedily, log_likelihood
from fastdllm.evals.numbers import peak_memory
from fastdllm.evals.workers import Workers, find_workers
from fastdllm.loading import load
from fastdllm.models.checkpoint import resolve
from fastdllm.presets import load_preset
from fastdllm.record import environment, fingerprint, settings

UNSCORED = -1e30  # finite, as metrics take differences
OPTIONS = tuple(GenerationOptions.__annotations__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing that lm-eval asks.

    Args:
        id: unique in the evaluation: task, document, place among the document's requests, sample.
        repeat: which sample of the same prompt, 0 the first.
    """

    id: str
    arguments: tuple[Any, ...]
    repeat: int


@register_model("fastdllm")
class FastDLLM(TemplateLM):  # type: ignore[misc]
    """Masked diffusion models in lm-eval.

    Args:
        pretrained: a folder, a hub id, or a name such as ``llada-inst``.
        batch_size: prompts run together; halved when they do not fit in memory.
        mc_num: samples of a likelihood estimate.
        mc_batch_size: of them that run together; halved when they do not fit in memory.
        check_greedy: whether to decode each scored continuation, too; without, none counts as greedy.
        preset: options by name or file, over which those given here win.
        out: folder in which answers are kept; a second run with the same goes on from there. None keeps nothing.
        options: those of :class:`fastdllm.GenerationConfig`; ``gen_length`` is 256 unless given.

    Raises:
        OptionError: an unknown option, or one out of range.
    """

    def __init__(
        self, pretrained: str = "tiny", *, batch_size: int | str = 1, max_batch_size: object = None,
        dtype: str = "auto", device: str = "auto", revision: str | None = None, mc_num: int = TOP["mc_num"],
        mc_batch_size: int = TOP["mc_batch_size"], check_greedy: bool = TOP["check_greedy"],
        preset: str | None = None, out: str | Path | None = None, workers: Workers | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        unknown = options.keys() - set(OPTIONS)
        if unknown:
            raise OptionError(f"{min(unknown)!r} is no option of fastdllm; there are {', '.join(OPTIONS)}.")
        self.workers = workers or find_workers()
        where = str(self.workers.device) if device == "auto" and self.workers.device.type == "cuda" else device
        source = str(MODELS[pretrained]["path"]) if pretrained in MODELS else pretrained
        folder = resolve(source, revision)
        self.engine: Engine = load(folder, dtype=dtype, device=where)
        self.engine.name = pretrained
        if self.engine.text is None:
            raise OptionError(f"{pretrained} has no tokenizer, without which it cannot be evaluated.")
        given = {"gen_length": 256, **(load_preset(preset) if preset else {}), **options}
        self.options = cast(GenerationOptions, given)
        self.config = GenerationConfig(**self.options)
        self.mc_num, self.mc_batch_size, self.check_greedy = mc_num, mc_batch_size, check_greedy
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 1  # "auto" is for models that find one
        for name, value in (("batch_size", self.batch_size), ("mc_num", mc_num), ("mc_batch_size", mc_batch_size)):
            check_least(name, value, 1)
        self.rendered = False
        self.room = self.max_length - self.config.gen_length
        if self.room < 1:
            raise OptionError(
                f"gen_length={self.config.gen_length} leaves no room for a prompt: {pretrained} has {self.max_length} "
                "positions."
            )
        self.journal = Journal(None if out is None else Path(out), self.workers)
        self.provenance = {"weights": fingerprint(folder), "revision": revision}

    # What lm-eval asks of a model

    @property
    def rank(self) -> int:
        return self.workers.rank

    @property
    def world_size(self) -> int:
        return self.workers.count

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # of the tensors that lm-eval makes for gathering

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.workers.gather_all(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        return self.workers.gather(obj)

    def barrier(self) -> None:
        self.workers.wait()

    @property
    def eot_token_id(self) -> int:
        return self.engine.config.eos_ids[0]

    @property
    def max_length(self) -> int:
        return self.engine.config.max_length

    @property
    def tokenizer_name(self) -> str:
        return self.engine.name

    def chat_template(self, chat_template: bool | str = False) -> str:
        template = self.engine.text.tokenizer.chat_template if self.engine.text else None
        return str(template or "")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text; where the last turn is the assistant's, it is left open to go on."""
        assert self.engine.text is not None
        self.rendered = True
        if add_generation_prompt:
            return self.engine.text.render_chat(chat_history)
        return self.engine.text.render_chat(chat_history[:-1]) + chat_history[-1]["content"]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        assert self.engine.text is not None
        return self.engine.text.encode(string, parse_special=self.rendered)

    def _loglikelihood_tokens(self, requests: Any, **_: object) -> Any:
        raise NotImplementedError("requests are scored one by one; see loglikelihood")

    # The three kinds of request

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text of each answer up to the first of its task's stop sequences."""
        given = named(requests)
        if any((r.repeats or 1) > 1 for r in requests) and not self.config.temperature:
            self._say("this task asks for several samples of each answer, which at temperature 0 are all the same")
        asks = {r.id: self._ask(r) for r in given}
        with self.journal.open("generate", {r.id: r.arguments[0] for r in given}, self.settings(), self.runs_on()):
            left = [ask for name, ask in asks.items() if name not in self.journal.held]
            Answerer(self.engine, self.options, batch_size=self.batch_size, keep=self._keep, say=self._say).answer(left)
        return [stopped(str(self.journal.held[r.id].get("text", "")), r.arguments[1].get("until")) for r in given]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        given = named(requests)
        return [(score_of(line), bool(line["greedy"])) for line in self._scored("loglikelihood", given)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The likelihood of whole texts, in windows of as many tokens as the model takes."""
        return [score_of(line) for line in self._scored("loglikelihood_rolling", named(requests))]

    def _scored(self, kind: str, given: list[Request]) -> list[dict[str, Any]]:
        own = {**self.settings(), "mc_num": self.mc_num, "check_greedy": self.check_greedy}
        with self.journal.open(kind, {r.id: list(r.arguments) for r in given}, own, self.runs_on()):
            for request in given:
                if request.id not in self.journal.held:
                    self._keep({"id": request.id, "prompt": list(request.arguments), **self._score(request)})
        return [self.journal.held[r.id] for r in given]

    def _score(self, request: Request) -> dict[str, Any]:
        try:
            windows, truncated = self._windows(*request.arguments)
            seed = seed_of(request.id, self.config.seed)
            score = sum(self._estimate(*window, seed=seed + i) for i, window in enumerate(windows))
            greedy = self.check_greedy and len(request.arguments) == 2 and greedily(self.engine, *windows[0])
        except (FastdllmError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, FastdllmError) or out_of_memory(error)):
                raise
            self._say(f"{request.id} has no score: {error}")
            return {"score": None, "greedy": False, "truncated": False, "error": str(error)}
        return {"score": score, "greedy": greedy, "truncated": truncated}

    def _estimate(self, context: list[int], target: list[int], *, seed: int) -> float:
        try:
            return log_likelihood(
                self.engine, context, target, samples=self.mc_num, batch_size=self.mc_batch_size, seed=seed
            )
        except (MemoryError, RuntimeError) as error:
            if self.mc_batch_size == 1 or not out_of_memory(error):
                raise
        self.mc_batch_size //= 2
        self._say(f"going on with mc_batch_size={self.mc_batch_size}, as more do not fit in memory")
        return self._estimate(context, target, seed=seed)

    def _windows(self, context: str, continuation: str | None = None) -> tuple[list[tuple[list[int], list[int]]], bool]:
        """What to score given what: the continuation given its context, or a text in pieces that fit the model.

        The other is whether the context's beginning had to go.
        """
        if continuation is None:
            tokens = self.tok_encode(context)
            return [([], tokens[at : at + self.max_length]) for at in range(0, len(tokens), self.max_length)], False
        if context:
            before, after = self._encode_pair(context, continuation)
        else:
            before, after = [self.prefix_token_id], self.tok_encode(continuation)
        if not after or len(after) >= self.max_length:
            raise OptionError(f"a continuation of {len(after)} tokens cannot be scored by {self.engine.name}.")
        room = self.max_length - len(after)
        return [(before[-room:], after)], len(before) > room

    # What answers depend on

    def settings(self) -> dict[str, object]:
        return {**settings(self.engine, self.config, chat=self.rendered), **self.provenance}

    def runs_on(self) -> dict[str, object]:
        return {**environment(self.engine), "batch_size": self.batch_size, "processes": self.workers.count}

    def _ask(self, request: Request) -> Ask:
        """The prompt's tokens; its beginning goes where it is too long, as in the other models of lm-eval."""
        tokens = self.tok_encode(request.arguments[0])
        return Ask(
            id=request.id, prompt=request.arguments[0], tokens=tuple(tokens[-self.room :]),
            truncated=len(tokens) > self.room, repeat=request.repeat,
        )  # fmt: skip

    def _keep(self, line: dict[str, object]) -> None:
        """Keep an answer, with the most memory that this process has taken so far."""
        self.journal.add({**line, "peak_memory": peak_memory(self.engine.device)})

    def _say(self, sentence: str) -> None:
        print(f"fastdllm: {sentence}", file=sys.stderr)


def named(requests: Iterable[Instance]) -> list[Request]:
    """Requests under names that stay the same from run to run; those that only pad the processes have one already."""
    seen: Counter[str] = Counter()
    found = []
    for request in requests:
        base = f"{request.task_name}#{request.doc_id}.{request.idx}"
        repeat = seen[base] % (request.repeats or 1)
        seen[base] += 1
        found.append(Request(id=f"{base}.{repeat}", arguments=request.args, repeat=repeat))
    return found


def score_of(line: dict[str, Any]) -> float:
    """The likelihood in a line; next to none where it has an error."""
    return UNSCORED if line["score"] is None else float(line["score"])


def stopped(text: str, until: Sequence[str] | str | None) -> str:
    """The text left of the first stop sequence."""
    stops = [until] if isinstance(until, str) else list(until or [])
    return str(postprocess_generated_text(text, stops, None))


def seed_of(name: str, seed: object) -> int:
    """A seed for one request, which depends on no other."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "big")
