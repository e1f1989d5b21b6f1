"""``fastdllm bench-serve``: what it sends, what it makes of what comes back, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastdllm.errors import OptionError
from fastdllm.load_test import tables
from fastdllm.load_test.drive import Drive, Turn
from fastdllm.load_test.plan import Ask, Load, Plan, Prompt, loads
from fastdllm.load_test.report import Report
from fastdllm.load_test.request import Outcome, Request, measure
from fastdllm.load_test.score import Part, percentiles, scores
from fastdllm.load_test.target import Server, ServerError, Target
from fastdllm.serve.jobs import Limits
from helpers import refused, run
from serving import PATIENCE, Served, serving

DOCS = Path(__file__).parent.parent / "docs"
SLOTS = 4
PROMPTS = [Prompt(content=text) for text in ("Tom has 5 apples.", "Ana has 9 pears.", "Sam plants 3 rows.")]
METHOD = ("--cache", "dual", "--decoder", "threshold:threshold=0.9", "--block-length", "8")
ONCE = ("--concurrency", "1", "--requests", "3", "--rounds", "1", "--warm-up", "0")
QUICK = ("--requests", "5", "--rounds", "2", "--warm-up", "3", "--max-tokens", "8-24", *METHOD)
Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]


@pytest.fixture(scope="module")
def served(tiny) -> Iterator[Served]:
    with serving(
        tiny, options={"gen_length": 16, "block_length": 8}, aliases=("small",), fingerprint="abc",
        limits=Limits(max_batch=SLOTS, max_model_len=192),
    ) as server:  # fmt: skip
        yield server


@dataclass(frozen=True)
class Mocked:
    """A server that is a function."""

    handler: Handler

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self.handler), base_url="http://mocked")


SERVER = Server(url="http://mocked", model="m", owner=None, details=None, limits=None, environment=None)


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> str:
    choices = [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]
    return f"data: {json.dumps({'choices': choices, **more}, ensure_ascii=False)}\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "nfe": 2}
WHOLE = chunk("a\u2028") + chunk("b") + chunk(finish="stop") + chunk(usage=USAGE) + "data: [DONE]\n\n"


def outcome(answer: Handler, timeout: float = PATIENCE, due: float = 0.0, **more: Any) -> Outcome:
    """What a request comes to when the server answers so."""

    async def send() -> Outcome:
        async with Mocked(answer).client() as client:
            request = Request(number=3, path="/v1/chat/completions", body={}, **more)
            return await measure(client, request, due or time.perf_counter(), timeout)

    return asyncio.run(send())


def says(content: str, status: int = 200) -> Handler:
    """A server that always answers this, in pieces that end anywhere."""

    async def pieces():  # type: ignore[no-untyped-def]
        raw = content.encode()
        for at in range(0, len(raw), 7):
            yield raw[at : at + 7]

    async def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=pieces())

    return answer


class TestOneRequest:
    def test_a_stream_is_read_to_its_end(self) -> None:
        found = outcome(says(WHOLE), check=lambda text: text == "a\u2028b")
        assert (found.failure, found.right, found.number) == (None, True, 3)
        assert (found.prompt_tokens, found.tokens, found.nfe) == (7, 3, 2)
        assert found.first_text is not None
        assert 0 < found.first_text <= found.seconds

    def test_what_it_waited_before_it_was_sent_counts(self) -> None:
        found = outcome(says(WHOLE), due=time.perf_counter() - 100)
        assert found.first_text is not None
        assert min(found.seconds, found.first_text) >= 100

    def test_an_answer_without_text_has_no_first_text(self) -> None:
        found = outcome(says(chunk(finish="stop") + "data: [DONE]\n\n"))
        assert (found.failure, found.first_text, found.tokens) == (None, None, None)

    @pytest.mark.parametrize(
        ("content", "status", "kind"),
        [
            ('{"error": {"message": "later", "code": "queue_full", "type": "t"}}', 429, "status 429 queue_full"),
            ('{"error": {"message": "no", "code": null, "type": "bad"}}', 400, "status 400 bad"),
            ("<html>", 502, "status 502"),
            ('{"error": "no"}', 500, "status 500"),
            (chunk("a") + chunk("b"), 200, "broken off"),
            (chunk("a") + "data: [DONE]\n\n", 200, "broken off"),
            (chunk("a") + 'data: {"error": {"code": "timeout"}}\n\n', 200, "error in the stream timeout"),
            (chunk("a") + "data: {\n\n", 200, "not the protocol"),
            ("data: []\n\n", 200, "not the protocol"),
            ('data: {"usage": [7]}\n\n', 200, "not the protocol"),
            ('data: {"choices": [3]}\n\n', 200, "not the protocol"),
            ('{"choices": []}', 200, "broken off"),
        ],
    )
    def test_what_is_no_whole_answer_has_a_kind(self, content, status, kind) -> None:
        found = outcome(says(content, status))
        assert (found.failure, found.first_text, found.tokens, found.digest) == (kind, None, None, None)

    def test_a_server_that_is_not_there(self) -> None:
        async def nobody(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused")

        assert outcome(nobody).failure == "no connection"

    def test_a_request_is_given_up_after_its_time(self) -> None:
        async def never(request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError

        assert outcome(never, timeout=0.05).failure == "too late"


class TestWhatIsSent:
    def test_every_load_sends_the_same(self) -> None:
        ask = Ask(max_tokens=(8, 64), temperature=0.5, top_p=0.9, seed=3, extension={"cache": "dual"})
        sent = ask.requests(PROMPTS, 40, model="m", chats=True)
        assert [one.body for one in ask.requests(PROMPTS, 40, model="m", chats=True)] == [one.body for one in sent]
        assert [one.body for one in ask.requests(PROMPTS, 7, model="m", chats=True)] == [one.body for one in sent[:7]]
        asked = [one.body["messages"][0]["content"] for one in sent]
        assert asked[:4] == [prompt.content for prompt in (*PROMPTS, PROMPTS[0])]
        lengths = [one.body["max_tokens"] for one in sent]
        assert 8 <= min(lengths) < 20
        assert 50 < max(lengths) <= 64
        assert [one.body["seed"] for one in sent] == list(range(3, 43))
        assert sent[0].body["fastdllm"] == {"cache": "dual"}

    def test_what_is_not_asked_for_is_not_sent(self) -> None:
        (one,) = Ask(max_tokens=(8, 8), temperature=0.0).requests([Prompt(content=(1, 2))], 1, model="m", chats=False)
        assert one.path == "/v1/completions"
        assert one.body == {
            "model": "m", "prompt": [1, 2], "max_tokens": 8, "temperature": 0.0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        with pytest.raises(OptionError, match="token ids cannot be sent as a conversation; give --raw"):
            Ask(max_tokens=(8, 8), chat=True).requests([Prompt(content=(1, 2))], 1, model="m", chats=False)

    def test_arrivals_are_a_poisson_process_of_their_rate(self) -> None:
        load = Load(rate=5.0)
        plan = Plan(loads=[load], seed=7)
        times = list(islice(plan.arrivals(load, 0), 4000))
        gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
        assert statistics.fmean(gaps) == pytest.approx(0.2, rel=0.05)
        assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.08), "of an exponential law, as large as the mean"
        within = [sum(second <= at < second + 1 for at in times) for second in range(700)]
        assert statistics.variance(within) == pytest.approx(5.0, rel=0.15), "as large as the mean, too"
        assert times == list(islice(plan.arrivals(load, 0), 4000))
        assert times[:9] != list(islice(plan.arrivals(load, 1), 9))

    def test_loads(self) -> None:
        found = loads("1, 4", ".5,2.0")
        assert [load.name for load in found] == ["1 at a time", "4 at a time", "0.5 a second", "2 a second"]


@dataclass
class Door:
    """Counts how many requests are inside; each is answered after a moment."""

    inside: int = 0
    most: int = 0
    served: int = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(404)
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(0.05)
        self.inside -= 1
        self.served += 1
        return await says(WHOLE)(request)


def driven(door: Handler, plan: Plan, count: int | None = None) -> Drive:
    requests = Ask(max_tokens=(8, 8)).requests(PROMPTS, count or plan.requests, model="m", chats=True)
    drive = Drive(Mocked(door), SERVER, plan, requests)  # type: ignore[arg-type]
    ended: list[Turn] = []
    asyncio.run(drive.run(lambda: None, ended.append))
    assert ended == drive.turns
    return drive


class TestLoads:
    def test_a_closed_loop_is_always_full_and_never_fuller(self) -> None:
        door = Door()
        drive = driven(door, Plan(loads=[Load(concurrency=5)], requests=20, rounds=2, warm_up=3))
        assert door.most == 5
        assert door.served == 43
        for turn in drive.turns:
            assert sorted(one.number for one in turn.outcomes) == list(range(20))
            assert (turn.sent, turn.unfinished, turn.complete, turn.counters) == (20, 0, True, None)
        (score,) = scores(drive.turns)
        assert 3 < score.in_flight <= 5

    def test_an_open_loop_does_not_wait_for_answers(self) -> None:
        door = Door()
        drive = driven(door, Plan(loads=[Load(rate=1000.0)], requests=40, rounds=1, warm_up=1))
        assert door.most > 10
        assert sorted(one.number for one in drive.turns[0].outcomes) == list(range(40))

    def test_the_loads_take_turns(self) -> None:
        plan = Plan(loads=loads("1,2", "500"), requests=3, rounds=2, warm_up=0)
        turns = driven(Door(), plan).turns
        assert [(turn.round, turn.load) for turn in turns] == [(n, load) for n in (0, 1) for load in plan.loads]

    @pytest.mark.parametrize("load", [Load(concurrency=2), Load(rate=20.0)])
    def test_after_its_time_a_turn_sends_no_more(self, load) -> None:
        drive = driven(Door(), Plan(loads=[load], requests=10_000, rounds=1, warm_up=0, seconds=0.3))
        (turn,) = drive.turns
        assert 0 < turn.sent < 100
        assert turn.sent == len(turn.outcomes), "what was sent is waited for"

    def test_failures_are_counted_and_nothing_is_sent_twice(self) -> None:
        asked = 0

        async def moody(request: httpx.Request) -> httpx.Response:
            nonlocal asked
            if request.url.path == "/metrics":
                return httpx.Response(404)
            asked += 1
            if asked % 2:
                return httpx.Response(429, json={"error": {"code": "queue_full"}})
            return await says(WHOLE)(request)

        drive = driven(moody, Plan(loads=[Load(concurrency=2)], requests=10, rounds=1, warm_up=0))
        assert asked == 10
        (score,) = scores(drive.turns)
        assert (score.answered, score.failures) == (5, {"status 429 queue_full": 5})
        assert score.requests_per_second.median == pytest.approx(5 / drive.turns[0].seconds)

    def test_a_warm_up_that_fails_ends_the_test(self) -> None:
        wrong = says('{"error": {"message": "no such cache", "code": "c"}}', 400)
        with pytest.raises(ServerError, match=r"did not answer a request \(status 400 c\): no such cache"):
            driven(wrong, Plan(loads=[Load(concurrency=1)], requests=4))


def turn_of(load: Load, seconds: float, *outcomes: Outcome, number: int = 0) -> Turn:
    return Turn(load=load, round=number, outcomes=list(outcomes), sent=len(outcomes), seconds=seconds, complete=True)


class TestScores:
    def test_numbers_by_hand(self) -> None:
        one = Load(concurrency=1)
        whole = Outcome(number=0, seconds=2.0, first_text=0.5, tokens=30, nfe=10, right=True, digest="a")
        other = replace(whole, number=1, seconds=4.0, first_text=1.5, tokens=10, nfe=6, right=False, digest="b")
        lost = Outcome(number=2, seconds=1.0, failure="too late")
        first = turn_of(one, 10.0, whole, other, lost)
        first.counters = {"fastdllm_steps_total": 30.0, "fastdllm_passes_total": 10.0}
        first.client_seconds = 1.0
        second = turn_of(one, 5.0, replace(whole, digest="a"), replace(other, digest="c"), number=1)
        (score,) = scores([first, second])
        assert (score.answered, score.failures, score.unfinished) == (4, {"too late": 1}, 0)
        assert score.requests_per_second.values == (0.2, 0.4)
        assert score.tokens_per_second is not None
        assert score.tokens_per_second.values == (4.0, 8.0)
        assert (score.nfe, score.tokens_per_forward, score.batch) == (8.0, 80 / 32, 3.0)
        assert score.latency == {50: 3.0, 90: None, 99: None}
        assert score.first_text[50] == 1.0
        assert score.in_flight == pytest.approx((6 + 1 + 6) / 15)
        assert score.client == pytest.approx(1 / 15)
        assert (score.right, score.same) == (Part(count=2, of=4), Part(count=1, of=2))

    def test_what_a_server_does_not_say_is_none(self) -> None:
        silent = Outcome(number=0, seconds=1.0, digest="a")
        known = Outcome(number=1, seconds=1.0, digest="a", tokens=3, nfe=2)
        (score,) = scores([turn_of(Load(concurrency=1), 1.0, silent, known)])
        assert (score.tokens_per_second, score.nfe, score.tokens_per_forward, score.batch) == (None, None, None, None)
        assert (score.right, score.same) == (None, None)

    def test_percentiles_need_something_above_them(self) -> None:
        assert percentiles(range(101)) == {50: 50.0, 90: 90.0, 99: 99.0}  # type: ignore[arg-type]
        assert percentiles([float(x) for x in range(99)])[99] is None
        assert percentiles([1.0] * 10) == {50: 1.0, 90: 1.0, 99: None}
        assert percentiles([1.0]) == percentiles([]) == {50: None, 90: None, 99: None}

    def test_requests_of_others_are_noticed(self) -> None:
        turn = turn_of(Load(concurrency=1), 1.0, Outcome(number=0, seconds=1.0))
        turn.counters = {"fastdllm_jobs_accepted_total": 2.0}
        assert scores([turn])[0].shared
        turn.counters = {"fastdllm_jobs_accepted_total": 1.0}
        assert not scores([turn])[0].shared


@pytest.fixture(scope="module")
def done(served, tmp_path_factory) -> tuple[Any, dict[str, Any], float]:
    """The command on a server of the embedded model, its file, and the jobs that the server did for it."""
    path = tmp_path_factory.mktemp("bench") / "load.json"
    before = served.stats().finished
    result = run("bench-serve", served.url, "--concurrency", "1,3", "--rate", "30", *QUICK, "--json", path)
    assert result.exit_code == 0, result.output
    return result, json.loads(path.read_text()), served.stats().finished - before


class TestCommand:
    def test_every_request_is_sent_and_counted(self, done) -> None:
        _, found, jobs = done
        assert jobs == 3 + 3 * 2 * 5, "a warm-up of 3, and three loads in two rounds"
        assert [turn["sent"] for turn in found["turns"]] == [5] * 6
        for turn in found["turns"]:
            assert turn["counters"]["fastdllm_jobs_finished_total"] == 5
            assert turn["counters"]["fastdllm_steps_total"] == sum(turn["outcomes"]["nfe"])
            assert turn["counters"]["fastdllm_completion_tokens_total"] == sum(turn["outcomes"]["tokens"])
        assert [load["answered"] for load in found["loads"]] == [10, 10, 10]
        assert found["loads"][0]["batch"] == 1.0
        assert 1.0 < found["loads"][1]["batch"] <= 3.0

    def test_answers_are_those_of_the_engine_at_every_load(self, done, tiny) -> None:
        _, found, _ = done
        ask = Ask(max_tokens=(8, 24), seed=0)
        questions = [json.loads(line)["question"] for line in problems_of_tiny()[:5]]
        asked = ask.requests([Prompt(content=text) for text in questions], 5, model="tiny", chats=True)
        alone = [
            tiny.generate(text, gen_length=one.body["max_tokens"], block_length=8)[0]
            for text, one in zip(questions, asked, strict=True)
        ]
        for turn in found["turns"]:
            columns = turn["outcomes"]
            got = dict(zip(columns["number"], zip(columns["tokens"], columns["nfe"], strict=True), strict=True))
            assert [got[i] for i in range(5)] == [(len(one.tokens), one.nfe) for one in alone]
        parts = [load["same_as_first_turn"] for load in found["loads"]]
        assert parts == [{"count": 5, "of": 5}, {"count": 10, "of": 10}, {"count": 10, "of": 10}]
        assert all(load["right"]["of"] == 10 for load in found["loads"])

    def test_the_file_says_what_everything_depends_on(self, done) -> None:
        _, found, _ = done
        assert found["command"].startswith("fastdllm bench-serve http://127.0.0.1:")
        assert "--rate 30 --requests 5" in found["command"]
        server = found["server"]
        assert (server["model"], server["owner"], server["weights"]) == ("tiny", "fastdllm", "abc")
        assert (server["details"]["dtype"], server["details"]["max_model_len"]) == ("float32", 192)
        assert "caches" not in server["details"]
        assert server["limits"]["slots"] == SLOTS
        assert server["environment"].keys() >= {"torch", "hardware", "threads", "commit", "fastdllm"}
        assert found["asked"]["extension"] == {
            "cache": "dual", "decoder": "threshold:threshold=0.9", "block_length": 8
        }  # fmt: skip
        assert (found["asked"]["max_tokens"], found["asked"]["count"]) == ([8, 24], 5)
        assert re.fullmatch(r"[0-9a-f]{12}", found["asked"]["digest"])
        assert (found["plan"]["rounds"], found["plan"]["warm_up"], found["interrupted"]) == (2, 3, False)
        assert (found["client"]["same_machine"], "commit" in found["client"]) == (True, True)
        assert len(found["load_average"]["before"]) == 3

    def test_it_prints_tables_and_sentences(self, done) -> None:
        result, _, _ = done
        shown = " ".join(result.stdout.split())
        assert "Server: tiny (weights abc), float32 on cpu, " in shown
        assert "cache dual, decoder threshold:threshold=0.9, block_length 8, temperature 0." in shown
        assert "5 requests of each load in 2 rounds, the loads in turns, after 3 that do not count." in shown
        rows = [line.split() for line in result.stdout.splitlines() if re.match(r"3 at a time +10 ", line)]
        assert len(rows) == 1
        assert "25 of 25 are, to the letter, those of the first turn" in shown
        assert "round 2 of 2, 30 a second: 5 requests in" in result.stderr
        assert max(map(len, result.stdout.splitlines()[3:])) <= 80

    def test_the_page_is_made_from_the_file_alone(self, done) -> None:
        _, found, _ = done
        report = Report.from_json(found)
        assert json.loads(json.dumps(report.as_json())) == found
        page = tables.markdown(report)
        assert page.count("\n| 3 at a time | ") == 2
        assert "| load | latency, ms: p50 | p90 | p99 | first text, ms: p50 | p90 | p99 |" in page
        with pytest.raises(OptionError, match="does not come from fastdllm bench-serve"):
            Report.from_json({"fastdllm_bench": 1})

    def test_prompts_from_a_file_and_the_servers_own_options(self, served, tmp_path) -> None:
        source, path = tmp_path / "p.jsonl", tmp_path / "load.json"
        source.write_text('"Tom has 5"\n{"prompt": [1, 2, 3]}\n')
        before = served.stats().finished
        options = (
            "--raw",
            "--file",
            source,
            "--concurrency",
            "1",
            "--requests",
            "3",
            "--rounds",
            "1",
            "--warm-up",
            "0",
        )
        result = run("bench-serve", served.url, *options, "--model", "small", "--max-tokens", "8", "--json", path)
        assert result.exit_code == 0, result.output
        assert served.stats().finished - before == 3
        found = json.loads(path.read_text())
        assert found["turns"][0]["outcomes"]["prompt_tokens"][1] == 3
        assert (found["asked"]["prompts"], found["asked"]["extension"]) == ("p.jsonl", {})
        assert found["loads"][0]["right"] is None
        assert "cache dual:prompt_every=1" in result.stdout, "the server's own default is told"


def problems_of_tiny() -> list[str]:
    from fastdllm.models.source import EMBEDDED

    return (EMBEDDED["tiny"] / "problems.jsonl").read_text().splitlines()


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "phrase"),
        [
            (("http://example.com",), "example.com is not this machine"),
            (("localhost.example.com:80",), "is not this machine; a load test can be an attack"),
            (("0.0.0.0:80",), "0.0.0.0 is not this machine"),
            (("ftp://localhost",), "is no address of a server"),
            (("http://me:pass@localhost",), "is no address of a server"),
            (("http://localhost:http",), "is no address of a server"),
            (("--concurrency", "1,x"), "--concurrency '1,x' must be a number, or several"),
            (("--concurrency", "4,04"), "the load of 4 at a time is given twice"),
            (("--concurrency", "0"), "concurrency=0 must be 1 or more"),
            (("--rate", "0"), "rate=0.0 must be above 0"),
            (("--rate", "1e9"), "--rate '1e9' must be a number"),
            (("--requests", "9"), "requests=9 do not fill a load of 16 at a time"),
            (("--rounds", "0"), "rounds=0 must be 1 or more"),
            (("--warm-up", "-1"), "warm_up=-1 must be 0 or more"),
            (("--time", "0"), "time=0.0 must be above 0"),
            (("--timeout", "inf"), "timeout=inf must be 0 or more"),
            (("--max-tokens", "many"), "--max-tokens 'many' must be a number, or two as in 64-128"),
            (("--max-tokens", "9-8"), "--max-tokens '9-8' must be"),
            (("--max-tokens", "0"), "max_tokens=0 must be 1 or more"),
            (("--problems", "a", "--file", "b"), "--problems and --file cannot be given together"),
            (("--api-key-file", "/no/such/file"), "No such file"),
            (("127.0.0.1:9",), "there is no server at http://127.0.0.1:9 ("),
        ],
    )
    def test_options_that_cannot_be_are_one_sentence(self, options, phrase) -> None:
        assert phrase in refused("bench-serve", *options)

    def test_what_the_server_refuses_is_one_sentence(self, served) -> None:
        said = refused("bench-serve", served.url, "--cache", "doual")
        assert "did not answer a request (status 400 invalid_request_error): Cache 'doual' is not one of none" in said
        assert "not one of the server's: tiny, small" in refused("bench-serve", served.url, "--model", "large")

    def test_keys(self, tiny, tmp_path, monkeypatch) -> None:
        keys = tmp_path / "keys"
        keys.write_text("# mine\nthe-right-key\n")
        with serving(tiny, api_keys=("the-right-key",), options={"block_length": 8}) as served:
            assert "wants an API key; give one with --api-key-file" in refused("bench-serve", served.url)
            monkeypatch.setenv("FASTDLLM_API_KEYS", "wrong")
            assert "does not take this API key" in refused("bench-serve", served.url)
            monkeypatch.delenv("FASTDLLM_API_KEYS")
            path = tmp_path / "load.json"
            options = ("--api-key-file", keys, "--max-tokens", "8", "--json", path, *ONCE)
            result = run("bench-serve", served.url, *options)
            assert result.exit_code == 0, result.output
            assert "the-right-key" not in path.read_text()
            assert json.loads(path.read_text())["server"]["limits"], "metrics are read with the key"

    def test_what_is_no_such_server(self, tmp_path) -> None:
        command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path
        ) as other:
            assert other.stdout is not None
            port = re.findall(r"port (\d+)", other.stdout.readline())[0]
            said = refused("bench-serve", f"localhost:{port}/v1/")
            other.terminate()
        assert f"what answers at http://localhost:{port} does not speak OpenAI's protocol: GET /v1/models gives" in said

    def test_without_the_extra_it_says_what_to_install(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "httpx", None)
        for name in [name for name in sys.modules if name.startswith("fastdllm.load_test")]:
            monkeypatch.delitem(sys.modules, name)
        assert "httpx is missing: pip install 'fastdllm[serve]'." in refused("bench-serve")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost/v1", "http://localhost"),
        ("http://localhost:1/a/v1/", "http://localhost:1/a"),
        ("https://[::1]:8000", "https://[::1]:8000"),
    ],
)
def test_addresses(text, url) -> None:
    assert Target.parse(text).url == url


def test_a_key_does_not_show() -> None:
    target = Target.parse("http://example.com", "secret", allow_remote=True)
    assert (target.url, "secret" in repr(target)) == ("http://example.com", False)


def test_a_client_does_not_wait_for_torch() -> None:
    modules = "fastdllm.cli.bench_serve, fastdllm.load_test.drive, fastdllm.load_test.tables, fastdllm.serve.auth"
    code = f"import sys, {modules}; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert not {"torch", "transformers"} & set(ran.stdout.split())


@pytest.mark.slow
def test_an_interrupted_test_prints_what_it_has(served, tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "fastdllm", "bench-serve", served.url, "--concurrency", "1,2", "--rounds", "500"]
    options = ["--requests", "4", "--max-tokens", "16", "--json", "load.json"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        assert process.stderr is not None
        while "round 2 of 500, 1 at a time" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in said
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["interrupted"]
    assert found["loads"][0]["answered"] >= 8
    *whole, last = found["turns"]
    assert len(whole) >= 3
    assert all(turn["complete"] for turn in whole)
    left = 0 if last["complete"] else last["sent"] - len(last["outcomes"]["number"])
    assert f"interrupted   this is what was done by then; {left} requests were on their way" in shown
    assert not any("no connection" in load["failures"] for load in found["loads"])


def test_the_documented_table_is_that_of_the_file() -> None:
    report = Report.from_json(json.loads((DOCS / "bench-serve.json").read_text(encoding="utf-8")))
    assert tables.markdown(report) in (DOCS / "bench-serve.md").read_text(encoding="utf-8")
    assert not report.interrupted
    assert [score.load.name for score in report.scores][:3] == ["1 at a time", "4 at a time", "16 at a time"]
