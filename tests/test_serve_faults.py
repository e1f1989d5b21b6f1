"""Limits and faults: what is too much is refused, what fails fails alone, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

import fastdllm
from fastdllm.engine import Engine
from fastdllm.errors import OptionError
from fastdllm.frequencies import build
from fastdllm.serve import exchange
from fastdllm.serve.auth import VARIABLE, read_keys
from fastdllm.serve.jobs import Limits
from fastdllm.serve.respond import EventStream
from fastdllm.serve.settings import Settings
from helpers import write_checkpoint
from serving import PATIENCE, Served, serving, until

BODY = {"model": "toy", "prompt": "hello", "max_tokens": 24, "fastdllm": {"decoder": "topk:k=1", "cache": "none"}}
POISON = "Q"


class Gate:
    """Holds the model before each pass while it is shut; and may slow it down or make it fail."""

    def __init__(self, engine: Engine) -> None:
        self._open = threading.Event()
        self._open.set()
        self.pause, self.error = 0.0, None
        engine.model.register_forward_pre_hook(self._before)

    def _before(self, *_: object) -> None:
        assert self._open.wait(PATIENCE)
        time.sleep(self.pause)
        if self.error is not None:
            raise self.error

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def engine(model) -> Engine:
    """A model of which one token's embedding is no number."""
    made = fastdllm.load(model)
    made.model.embed.weight[made.text.encode(POISON)] = float("nan")
    return made


@pytest.fixture
def gate(engine) -> Iterator[Gate]:
    made = Gate(engine)
    yield made
    made.open()


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "fastdllm.serve")
    return caplog


def start(engine: Engine, *, max_batch: int = 2, queue_size: int = 4, **settings):
    limits = Limits(max_batch=max_batch, max_model_len=128, queue_size=queue_size)
    return serving(engine, name="toy", limits=limits, **settings)


def post(served: Served, timeout: float = PATIENCE, headers: dict | None = None, **fields) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/completions", json={**BODY, **fields}, timeout=timeout, headers=headers)


def error_of(response: httpx.Response) -> dict:
    return response.json()["error"]


def test_a_client_that_leaves_frees_its_slot_at_the_next_pass(engine, gate, log):
    with start(engine) as served:
        gate.shut()
        with pytest.raises(httpx.ReadTimeout):
            post(served, timeout=0.3)
        until(lambda: any(" 499 " in line for line in log.messages))
        assert served.stats().active == 1  # the pass it takes part in is not over
        gate.open()
        until(lambda: served.stats().free_slots == 2)
        assert (served.stats().cancelled, served.stats().active) == (1, 0)
        assert served.stats().steps <= 2


def test_a_client_that_stops_reading_a_stream_frees_its_slots(engine, gate, log):
    with start(engine) as served:
        gate.shut()
        body = {**BODY, "stream": True, "n": 2, "fastdllm": {**BODY["fastdllm"], "stream_drafts": True}}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=PATIENCE) as stream:
            assert stream.status_code == 200
            until(lambda: served.stats().active + served.stats().waiting == 2)
            gate.open()
            assert next(stream.iter_lines()).startswith("data: ")
            gate.shut()
        until(lambda: any(" 499 " in line and "ended=gone" in line for line in log.messages))
        passes = served.stats().steps
        gate.open()
        until(lambda: served.stats().free_slots == 2)
        assert served.stats().cancelled == 2, "both had more to do"
        assert served.stats().steps <= passes + 4  # each takes part in the pass that was held, and in no other


def test_a_stream_that_nobody_begins_to_read_is_closed():
    """The client leaves between the answer's first pass and its first event."""
    closed = []

    async def events() -> AsyncIterator[bytes]:
        yield b"never read"

    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": "2.3"}}
    asyncio.run(EventStream(events(), lambda: closed.append(True))(scope, receive, send))
    assert closed == [True]


def test_a_client_that_leaves_the_queue_is_never_admitted(engine, gate, log, background):
    with start(engine, max_batch=1) as served:
        gate.shut()
        first = background.submit(post, served)
        until(lambda: served.stats().active == 1)
        with pytest.raises(httpx.ReadTimeout):
            post(served, timeout=0.3, stream=True)
        until(lambda: any(" 499 " in line for line in log.messages))
        gate.open()
        assert first.result().status_code == 200
        until(lambda: served.stats().free_slots == 1)
        stats = served.stats()
        assert (stats.cancelled, stats.finished, stats.waiting) == (1, 1, 0)
        assert stats.steps == first.result().json()["usage"]["nfe"]


def test_a_full_queue_says_when_to_come_back(engine, gate, background):
    with start(engine, max_batch=1, queue_size=1) as served:
        gate.shut()
        running = background.submit(post, served)
        until(lambda: served.stats().active == 1)
        waiting = background.submit(post, served)
        until(lambda: served.stats().waiting == 1)
        refused = post(served)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert (error_of(refused)["type"], error_of(refused)["code"]) == ("rate_limit_error", "queue_full")
        gate.open()
        assert [one.result().status_code for one in (running, waiting)] == [200, 200]


def test_of_a_request_that_does_not_fit_the_queue_nothing_stays(engine, gate):
    """Two choices have a place, the third has not: the request is refused, and its first two leave again."""
    with start(engine, max_batch=1, queue_size=1) as served:
        gate.shut()
        assert post(served, n=3).status_code == 429
        gate.open()
        until(lambda: served.stats().free_slots == 1 and not served.stats().waiting)
        assert served.stats().finished == 0
        assert post(served, n=2).status_code == 200


def test_a_request_that_takes_too_long_is_given_up(engine, gate):
    gate.pause = 0.05
    with start(engine, timeout=0.3) as served:
        late = post(served)
        assert late.status_code == 504
        assert error_of(late)["code"] == "timeout"
        until(lambda: served.stats().free_slots == 2)
        gate.pause = 0.0
        assert post(served, max_tokens=2).status_code == 200


def test_a_pass_that_hangs_does_not_keep_its_client(engine, gate, monkeypatch):
    monkeypatch.setattr(exchange, "OVERDUE", 0.1)
    with start(engine, timeout=0.2) as served:
        gate.shut()
        assert post(served).status_code == 504
        gate.open()


def test_what_goes_wrong_in_a_stream_is_its_last_event(engine, gate):
    gate.pause = 0.05
    with start(engine, timeout=0.4) as served:
        body = {**BODY, "stream": True}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=PATIENCE) as stream:
            assert stream.status_code == 200
            events = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
        assert json.loads(events[-1])["error"]["code"] == "timeout"
        assert "[DONE]" not in events


@pytest.mark.parametrize("stream", [False, True])
def test_numbers_that_are_none_fail_their_request_alone(engine, gate, background, stream):
    with start(engine) as served:
        expected = post(served).json()["choices"][0]["text"]
        gate.shut()
        beside = running(background, served)
        poisoned = background.submit(post, served, prompt=f"a{POISON}", stream=stream)
        until(lambda: served.stats().waiting == 1)
        gate.open()
        if stream:
            assert '"code":"numerical_error"' in poisoned.result().text.splitlines()[-2]
        else:
            assert poisoned.result().status_code == 500
            assert error_of(poisoned.result())["code"] == "numerical_error"
        assert beside.result().json()["choices"][0]["text"] == expected
        assert post(served).json()["choices"][0]["text"] == expected


def test_out_of_memory_is_an_answer(engine, gate):
    with start(engine) as served:
        gate.error = RuntimeError("CUDA out of memory")
        refused = post(served)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert error_of(refused)["code"] == "out_of_memory"
        gate.error = None
        assert post(served).status_code == 200


def test_an_unforeseen_failure_tells_the_client_nothing_of_the_inside(engine, gate, log):
    with start(engine) as served:
        gate.error = RuntimeError("secret detail")
        failed = post(served)
        assert failed.status_code == 500
        assert "secret" not in failed.text
        assert error_of(failed)["type"] == "server_error"
        assert "secret detail" in log.text
        gate.error = None
        assert post(served).status_code == 200


def running(background: ThreadPoolExecutor, served: Served) -> Future:
    future = background.submit(post, served)
    until(lambda: served.stats().active == 1)
    return future


def test_told_to_stop_it_finishes_what_runs_and_refuses_the_rest(engine, gate, background):
    with start(engine) as served:
        expected = post(served).json()["choices"][0]["text"]
        gate.shut()
        first = running(background, served)
        served.terminate()
        until(lambda: served.stats().closing)
        late = post(served)
        assert (late.status_code, error_of(late)["code"]) == (503, "server_closing")
        assert int(late.headers["Retry-After"]) >= 1
        health = httpx.get(f"{served.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "closing")
        gate.open()
        assert first.result().json()["choices"][0]["text"] == expected
        served.thread.join(PATIENCE)
        assert not served.thread.is_alive()


def test_told_twice_it_ends_at_once(engine, gate, background, log):
    with start(engine) as served:
        gate.shut()
        first = running(background, served)
        served.terminate()
        until(lambda: served.stats().closing)
        served.terminate()
        served.thread.join(PATIENCE / 2)
        assert not served.thread.is_alive()
        assert (first.result().status_code, error_of(first.result())["code"]) == (503, "server_closing")
        gate.open()
    assert not [record for record in log.records if record.exc_info]


def test_what_does_not_finish_in_time_is_told_so(engine, gate, background):
    gate.pause = 0.1
    with start(engine, drain_seconds=0.2) as served:
        first = running(background, served)
        served.terminate()
        assert first.result().status_code == 503
        assert error_of(first.result())["code"] == "server_closing"


def test_requests_choose_no_files_of_the_server(engine, tmp_path):
    """But for the one that the server's own decoder reads."""
    file = tmp_path / "frequencies.json"
    file.write_text(json.dumps(build(["some text"], engine.text.encode)))
    with start(engine, options={"decoder": f"pc:k=2,frequencies={file}"}) as served:
        assert post(served, max_tokens=4, fastdllm={}).status_code == 200
        assert post(served, max_tokens=4, fastdllm={"decoder": f"pc:frequencies={file}"}).status_code == 200
        for other in (f"{file}x", f"{tmp_path}/../frequencies.json", "/etc/hostname"):
            refused = post(served, fastdllm={"decoder": f"pc:frequencies={other}"})
            assert (refused.status_code, error_of(refused)["param"]) == (400, "fastdllm.decoder")
            assert "can name tiny alone" in error_of(refused)["message"]


def test_only_who_has_a_key_is_served(engine):
    with start(engine, api_keys=("first", "second")) as served:
        for key in ("first", "second"):
            assert post(served, headers={"Authorization": f"Bearer {key}"}, max_tokens=2).status_code == 200
        for wrong in ("Bearer third", "Basic first", "first", "Bearer first second", "Bearer \xe9"):
            refused = post(served, headers={"Authorization": wrong.encode("latin-1")})
            assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")
        assert post(served).headers["WWW-Authenticate"] == "Bearer"
        get = {path: httpx.get(served.url + path).status_code for path in ("/health", "/openapi.json", "/", "/docs")}
        assert get == {"/health": 200, "/openapi.json": 200, "/": 200, "/docs": 307}
        for path in ("/metrics", "/v1/models", "/nowhere", "//health", "/health/"):
            assert httpx.get(served.url + path).status_code == 401
        assert "HTTPBearer" in httpx.get(f"{served.url}/openapi.json").text


def test_keys_come_from_a_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n  two \n")
    assert read_keys(file, {VARIABLE: "three, one four"}) == ("three", "one", "four", "two")
    assert read_keys(None, {}) == ()
    for content in ("", "# none\n"):
        file.write_text(content)
        with pytest.raises(OptionError, match="holds no API key"):
            read_keys(file, {})
    with pytest.raises(OptionError, match=f"{VARIABLE} holds no API key"):
        read_keys(None, {VARIABLE: " "})
    with pytest.raises(OptionError, match="printable ASCII"):
        read_keys(None, {VARIABLE: "schlüssel"})


def test_keys_are_shown_nowhere():
    assert "geheim" not in repr(Settings(api_keys=("geheim",)))


def test_browsers_of_other_origins_are_let_in_by_name_alone(engine):
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST",
           "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
    with start(engine) as served:
        closed = httpx.options(f"{served.url}/v1/completions", headers=ask)
        assert "access-control-allow-origin" not in closed.headers
    with start(engine, allow_origins=("https://page.example",), api_keys=("key",)) as served:
        let = httpx.options(f"{served.url}/v1/completions", headers=ask)
        assert let.headers["access-control-allow-origin"] == "https://page.example"
        refused = post(served, headers={"Origin": "https://page.example"})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://page.example")
        other = httpx.options(f"{served.url}/v1/completions", headers={**ask, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_logs_hold_no_text_unless_asked(engine, log):
    with start(engine) as served:
        answer = post(served, prompt="hushhush").json()
        post(served, prompt="hushhush", stop="hushhush", nonsense="hushhush")
        post(served, prompt="hushhush" * 100)
    (line,) = [line for line in log.messages if " 200 " in line]
    usage = answer["usage"]
    assert f"prompt=8 completion={usage['completion_tokens']} nfe={usage['nfe']}" in line
    assert "POST /v1/completions 200" in line
    assert " id=req-" in line
    assert "hushhush" not in log.text
    with start(engine, log_text=True) as served:
        answer = post(served, prompt="hushhush").json()
    assert 'prompts ["hushhush"]' in log.text
    assert json.dumps([answer["choices"][0]["text"]]) in log.text


def test_paths_cannot_forge_lines_of_the_log(engine, log):
    with start(engine) as served:
        httpx.get(f"{served.url}/a%0aPOST%20/v1/completions%20200")
    (line,) = [line for line in log.messages if " 404 " in line]
    assert "\n" not in line
    assert "/a%0APOST%20/v1" in line


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_may_not_be_longer_than_allowed(engine, chunked):
    with start(engine, max_body=1000) as served:
        content = json.dumps({**BODY, "prompt": "a" * 200_000}).encode()
        sent = iter([content[:900], content[900:]]) if chunked else content
        refused = httpx.post(f"{served.url}/v1/completions", content=sent, headers={"Content-Type": "application/json"})
        assert (refused.status_code, error_of(refused)["param"]) == (413, None)
        assert served.stats().accepted == 0


@pytest.mark.parametrize("options", [{"tokenizer": False}, {"template": False}])
def test_a_checkpoint_without_template_completes_and_does_not_chat(tmp_path, options):
    made = fastdllm.load(write_checkpoint(tmp_path, **options))
    with start(made) as served:
        chat = {"model": "toy", "messages": [{"role": "user", "content": "hello"}]}
        refused = httpx.post(f"{served.url}/v1/chat/completions", json=chat)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "messages")
        assert "use /v1/completions" in error_of(refused)["message"]
        answer = post(served, prompt=[1, 2, 3], logprobs=0)
        assert answer.status_code == 200
        assert len(answer.json()["choices"][0]["logprobs"]["tokens"]) == answer.json()["usage"]["completion_tokens"]
        if "tokenizer" in options:
            refused = post(served, prompt="hello")
            assert (refused.status_code, error_of(refused)["param"]) == (400, "prompt")


def test_the_playground_is_served_with_a_policy_and_can_be_left_out(engine):
    with start(engine) as served:
        page = httpx.get(served.url + "/")
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"].startswith("default-src 'self';")
        script = httpx.get(f"{served.url}/playground.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert httpx.get(f"{served.url}/../pyproject.toml").status_code == 404
    with start(engine, playground=False) as served:
        assert httpx.get(served.url + "/").status_code == 404
        assert httpx.get(f"{served.url}/health").status_code == 200
