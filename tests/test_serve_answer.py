"""What of an answer is said, and when: text that was sent is never taken back, and in the end it is the whole text."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdllm
from fastdllm.config import GenerationConfig
from fastdllm.engine import Engine
from fastdllm.events import RowEvent
from fastdllm.serve.answer import Answer
from fastdllm.serve.detokenizer import Detokenizer, Stops
from fastdllm.serve.jobs import Job
from fastdllm.serve.logprobs import token_bytes
from helpers import write_checkpoint

TEXTS = st.text(alphabet="aé€😀 \n\N{REPLACEMENT CHARACTER}b", max_size=24)


@pytest.fixture(scope="module")
def engines(tiny, model) -> dict[str, Engine]:
    """The embedded tokenizer, and one in which every byte is a token."""
    return {"words": tiny, "bytes": fastdllm.load(model)}


def tokens_of(engine: Engine, text: str, noise: random.Random) -> list[int]:
    """Tokens of a text, some of them replaced: broken characters, special tokens, ids the tokenizer does not know."""
    config = engine.config
    ids = engine.text.encode(text)
    allowed = [t for t in range(config.vocab_size) if t != config.mask_id and t not in config.eos_ids]
    return [noise.choice(allowed) if noise.random() < 0.15 else token for token in ids]


@pytest.mark.parametrize("kind", ["words", "bytes"])
@given(text=TEXTS, seed=st.integers(0, 2**32))
def test_tokens_one_by_one_give_the_text_of_all(engines, kind, text, seed):
    engine = engines[kind]
    tokens = tokens_of(engine, text, random.Random(seed))
    detokenizer = Detokenizer(engine.text)
    parts = [detokenizer.push(token) for token in tokens]
    assert "".join(parts) + detokenizer.flush() == engine.text.decode(tokens)


def test_an_incomplete_character_is_held_back(engines):
    detokenizer = Detokenizer(engines["bytes"].text)
    tokens = engines["bytes"].text.encode("a😀!")
    assert [detokenizer.push(token) for token in tokens] == ["a", "", "", "", "😀", "!"]


def test_bytes_that_are_no_character_are_shown_once(engines):
    """A run of broken bytes longer than what is remembered: each is shown as the tokenizer shows it, and none twice."""
    text = engines["bytes"].text
    tokens = [token for token in range(256) if token_bytes(text, token) in ([0xFF], [0xE2])] * 20
    detokenizer = Detokenizer(text)
    said = "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()
    assert said == text.decode(tokens) == "\N{REPLACEMENT CHARACTER}" * 40


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the stop string that is complete first begins, by looking at every beginning of the text."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_stop_strings_end_the_text_however_it_is_cut(text, stops, cuts):
    """Few letters, so that stop strings overlap with themselves, with one another and with the cuts."""
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    scan, said = Stops(stops), ""
    for start, end in itertools.pairwise(bounds):
        said += scan.push(text[start:end])
        assert not any(stop in said for stop in stops)
        if scan.found:
            break
    where = first_stop(text, stops)
    assert scan.found == (where is not None)
    assert said + ("" if scan.found else scan.flush()) == text[:where]


def test_no_more_is_held_back_than_a_stop_string_needs():
    scan = Stops(["</s>", "end"])
    assert [scan.push(part) for part in ("a<", "/", "b", "e", "n", "n", "x")] == ["a", "", "</b", "", "", "enn", "x"]


class Passes:
    """Events that fill a canvas in a random order, as a decoder that revises or one that does not would send them."""

    def __init__(self, engine: Engine, final: list[int], block: int, revises: bool, noise: random.Random) -> None:
        self.engine, self.final, self.block, self.revises, self.noise = engine, final, block, revises, noise
        ends = [slot for slot, token in enumerate(final) if token in engine.config.eos_ids]
        self.end = ends[0] if ends else len(final)
        self.events: list[RowEvent] = []
        for first in range(0, len(final), block):
            if first <= self.end:
                self._fill(list(range(first, min(first + block, len(final)))), first // block)
        last = self.events.pop()
        reason = "stop" if ends else "length"
        self.events.append(RowEvent(**{**vars(last), "finish_reason": reason}))

    def _fill(self, slots: list[int], number: int) -> None:
        noise, waiting = self.noise, [slot for slot in slots if slot <= self.end or self.noise.random() < 0.5]
        noise.shuffle(waiting)
        if self.revises and len(slots) > 1:
            wrong, opened = noise.sample(slots, 2)
            self._send(number, {wrong: self._other(), opened: self._other()}, ())
            self._send(number, {}, (opened,))
        while waiting:
            count = noise.randint(1, len(waiting))
            chosen, waiting = waiting[:count], waiting[count:]
            self._send(number, {slot: self.final[slot] for slot in chosen}, ())

    def _other(self) -> int:
        return self.noise.choice([1, 2, 3, self.engine.config.eos_ids[0]])

    def _send(self, number: int, written: dict[int, int], remasked: tuple[int, ...]) -> None:
        self.events.append(
            RowEvent(
                index=0, nfe=len(self.events) + 1, block=number, rows_computed=1, positions=tuple(written),
                tokens=tuple(written.values()), confidences=tuple(0.5 for _ in written), remasked=remasked,
            )
        )  # fmt: skip


def job_of(length: int, block: int, revises: bool) -> Job:
    decoder = "edit" if revises else "topk"
    return Job(prompt=(1, 2), config=GenerationConfig(gen_length=length, block_length=block, decoder=decoder))


@pytest.mark.parametrize("kind", ["words", "bytes"])
@given(
    text=TEXTS, seed=st.integers(0, 2**32), block=st.integers(1, 9), revises=st.booleans(), ends=st.booleans(),
    stops=st.lists(st.text(alphabet="aé😀 b", min_size=1, max_size=3), max_size=3),
)  # fmt: skip
def test_a_streamed_answer_is_the_whole_answer(engines, kind, text, seed, block, revises, ends, stops):
    engine, noise = engines[kind], random.Random(seed)
    final = tokens_of(engine, text, noise) or [1]
    if ends:
        final.insert(noise.randint(0, len(final)), engine.config.eos_ids[0])
    passes = Passes(engine, final, block, revises, noise)
    whole = engine.text.decode(final[: passes.end])
    where = first_stop(whole, stops)
    answer, said, told = Answer(engine, job_of(len(final), block, revises), stops), "", []
    for event in passes.events:
        delta = answer.add(event)
        said, told = said + delta.text, told + list(delta.tokens)
        assert whole[:where].startswith(said)
        if answer.finish_reason:
            break
    assert said == answer.text == whole[:where]
    assert told == answer.told
    assert [token.id for token in answer.tokens] == final[: len(answer.tokens)]
    assert answer.finish_reason == ("stop" if where is not None or ends else "length")
    if where is None:
        assert told == answer.tokens
        assert len(told) == passes.end
    else:
        counted = engine.text.decode(final[: len(answer.tokens)])
        assert all(token.offset < len(said) for token in told)
        assert first_stop(counted, stops) == where or counted == whole  # the token that completes it is the last


@given(seed=st.integers(0, 2**32), block=st.integers(1, 6))
def test_nothing_that_may_still_change_is_said(engines, seed, block):
    """Whatever follows, an answer says no more after a pass than tokens that every later pass leaves as they are."""
    engine, noise = engines["words"], random.Random(seed)
    final = [noise.randrange(3, 40) for _ in range(12)]
    passes = Passes(engine, final, block, True, noise)
    answer, canvas = Answer(engine, job_of(len(final), block, True)), [-1] * len(final)
    for at, event in enumerate(passes.events):
        answer.add(event)
        for slot, token in zip(event.positions, event.tokens, strict=True):
            canvas[slot] = token
        later = {slot for other in passes.events[at + 1 :] for slot in (*other.positions, *other.remasked)}
        assert not later & set(range(len(answer.tokens)))
        assert canvas[: len(answer.tokens)] == [token.id for token in answer.tokens]


def test_the_committed_prefix_is_said_at_once(engines):
    engine = engines["words"]
    ids = engine.text.encode(" Tom has 5 apples.")
    answer = Answer(engine, job_of(len(ids), len(ids), False))
    event = functools.partial(RowEvent, index=0, block=0, rows_computed=1)
    first = answer.add(event(nfe=1, positions=(0, 2), tokens=(ids[0], ids[2]), confidences=(1.0, 1.0)))
    assert first.text == engine.text.decode(ids[:1])
    second = answer.add(event(nfe=2, positions=(1,), tokens=(ids[1],), confidences=(1.0,)))
    assert first.text + second.text == engine.text.decode(ids[:3])


def test_the_view_shows_every_slot(engines):
    engine = engines["words"]
    (apple,), end = engine.text.encode(" apples"), engine.config.eos_ids[0]
    answer = Answer(engine, job_of(4, 4, False))
    event = RowEvent(
        index=0, nfe=1, block=0, rows_computed=4, positions=(1, 3), tokens=(apple, end), confidences=(0.75, 0.5)
    )
    answer.add(event)
    assert answer.view(event) == {
        "nfe": 1, "block": 0, "rows_computed": 4, "finish_reason": None, "canvas": [None, " apples", None, ""],
        "committed_at": [0, 1, 0, 1], "confidence": [None, 0.75, None, 0.5], "end": 3, "text": "",
    }  # fmt: skip


def test_without_a_tokenizer_tokens_count_and_nothing_is_said(tmp_path):
    engine = fastdllm.load(write_checkpoint(tmp_path, tokenizer=False))
    answer = Answer(engine, job_of(2, 2, False))
    event = RowEvent(
        index=0, nfe=1, block=0, rows_computed=2, positions=(0, 1), tokens=(5, 6), confidences=(1.0, 1.0),
        finish_reason="length",
    )  # fmt: skip
    answer.add(event)
    assert (answer.text, [token.id for token in answer.told]) == ("", [5, 6])


def test_bytes_of_tokens(engines):
    text = engines["bytes"].text
    tokens = text.encode("é€")
    assert [byte for token in tokens for byte in token_bytes(text, token)] == list("é€".encode())
    assert token_bytes(text, engines["bytes"].config.eos_ids[0]) == list(b"<|endoftext|>")
