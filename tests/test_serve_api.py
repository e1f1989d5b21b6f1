"""The protocol: the official client is served, and what is wrong is refused by the name of its field."""

from __future__ import annotations

import asyncio
import json
import math
import re
from pathlib import Path

import httpx
import openai
import pytest

from fastdllm.config import GenerationConfig
from fastdllm.serve.document import REFUSALS
from fastdllm.serve.jobs import Limits
from fastdllm.serve.replies import ChatReply, CompletionReply, HealthReply, ModelsReply
from fastdllm.serve.schema import UNSERVED, ChatRequest, CompletionRequest
from serving import Served, serving, until

PAGE = Path(__file__).parent.parent / "docs" / "serve.md"
QUESTION = "Tom has 5 apples and buys 7 more apples. How many apples does Tom have?"
MESSAGES = [{"role": "user", "content": QUESTION}]
SLOTS, LENGTH = 4, 160


@pytest.fixture(scope="module")
def served(tiny):
    with serving(
        tiny, options={"gen_length": 32, "block_length": 8}, aliases=("small",), fingerprint="abc",
        limits=Limits(max_batch=SLOTS, max_model_len=LENGTH), max_choices=6, max_body=20_000,
    ) as server:  # fmt: skip
        yield server
        until(lambda: server.stats().free_slots == SLOTS)


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def alone(served: Served, question: str = QUESTION, **options):
    """What the engine answers without a server."""
    engine = served.service.engine
    (completion,) = engine.generate(question, **{"gen_length": 32, "block_length": 8, **options})
    return completion


def post(served: Served, path: str, body: object) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/{path}", json=body, timeout=60)


def test_a_chat_answer_is_the_engines(served, client):
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    expected = alone(served)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role) == (expected.text, "assistant")
    assert (choice.finish_reason, choice.index, choice.logprobs) == (expected.finish_reason, 0, None)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "tiny", "abc")
    usage = answer.usage.model_dump(exclude_unset=True)
    assert usage == {
        "prompt_tokens": expected.prompt_tokens, "completion_tokens": len(expected.tokens), "nfe": expected.nfe,
        "total_tokens": expected.prompt_tokens + len(expected.tokens),
        "tokens_per_forward": expected.tokens_per_forward,
    }  # fmt: skip


def test_the_fields_of_a_request_are_the_options_of_a_generation(served, client):
    answer = client.chat.completions.create(
        model="small", messages=MESSAGES, max_completion_tokens=24, temperature=0.7, top_p=0.8, seed=3,
        extra_body={"fastdllm": {"cache": "prefix", "decoder": "topk:k=2", "block_length": 12}},
    )  # fmt: skip
    expected = alone(
        served, gen_length=24, temperature=0.7, top_p=0.8, seed=3, cache="prefix", decoder="topk:k=2", block_length=12
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.nfe == expected.nfe


def test_messages_go_through_the_template(served, client):
    """Parts are joined by a line break, a developer is a system, and an answer can be handed back as it came."""
    first = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8).choices[0].message
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Tom has"}, {"type": "text", "text": "5 apples."}]},
        first,
        {"role": "user", "content": "And now?"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8)
    turns = [
        ("system", "Be brief."),
        ("user", "Tom has\n5 apples."),
        ("assistant", first.content),
        ("user", "And now?"),
    ]
    ids = served.service.engine.text.encode_chat([{"role": r, "content": c} for r, c in turns])
    (expected,) = served.service.engine.generate([ids], gen_length=8, block_length=8)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == len(ids)


def test_a_stream_adds_up_to_the_whole_answer(served, client):
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, logprobs=True, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    told = [entry for c in chunks[:-1] if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    assert told == whole.choices[0].logprobs.content
    assert [c.choices[0].finish_reason for c in chunks[-3:-1]] == [None, whole.choices[0].finish_reason]
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 2, "it came in parts"


def test_without_being_asked_for_a_stream_has_no_usage(client):
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4, stream=True))
    assert all(c.choices and "usage" not in c.model_fields_set for c in chunks)


def test_log_probabilities_are_those_of_the_commit(served, client):
    expected = alone(served)
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, logprobs=True).choices[0]
    content = answer.logprobs.content
    assert [entry.logprob for entry in content] == [math.log(c) for c in expected.confidences[: len(expected.tokens)]]
    assert bytes(byte for entry in content for byte in entry.bytes).decode() == expected.text
    assert [entry.top_logprobs for entry in content] == [[]] * len(expected.tokens)
    plain = client.completions.create(model="tiny", prompt=QUESTION, logprobs=0, max_tokens=16).choices[0]
    assert "".join(plain.logprobs.tokens) == plain.text
    assert plain.logprobs.top_logprobs is None
    starts = [sum(map(len, plain.logprobs.tokens[:i])) for i in range(len(plain.logprobs.tokens))]
    assert plain.logprobs.text_offset == starts


def test_choices_have_seeds_of_their_own(served, client):
    """Choice i is what a request with seed + i gets; greedy choices are all alike."""
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16}
    three = client.chat.completions.create(**options, temperature=1.0, seed=2**63 - 2, n=3)
    texts = [choice.message.content for choice in three.choices]
    seeds = (2**63 - 2, 2**63 - 1, -(2**63))
    assert texts == [alone(served, gen_length=16, temperature=1.0, seed=seed).text for seed in seeds]
    assert len(set(texts)) == 3
    alike = client.chat.completions.create(**options, n=2)
    assert len({choice.message.content for choice in alike.choices}) == 1
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert three.usage.completion_tokens > alike.usage.completion_tokens
    assert three.usage.prompt_tokens == alike.usage.prompt_tokens


def test_without_a_seed_every_answer_is_drawn_anew(client):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16, "temperature": 1.5}
    answers = {client.chat.completions.create(**options).choices[0].message.content for _ in range(3)}
    assert len(answers) > 1


def test_streamed_choices_do_not_mix(client):
    options = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16, "temperature": 1.0, "seed": 5, "n": 3}
    whole = client.chat.completions.create(**options)
    texts, reasons = [""] * 3, [None] * 3
    for chunk in client.chat.completions.create(**options, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_the_asynchronous_client(served):
    """Many at a time, streamed and whole; each gets what it would get alone."""
    questions = [f"Anna has {n} pears and gives away {n // 2} pears. How many pears are left?" for n in range(4, 9)]
    expected = [alone(served, question, gen_length=16).text for question in questions]

    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        options = {"model": "tiny", "messages": [{"role": "user", "content": questions[number]}], "max_tokens": 16}
        if number % 2:
            return (await client.chat.completions.create(**options)).choices[0].message.content
        parts = await client.chat.completions.create(**options, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in parts])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(len(questions))))

    assert asyncio.run(ask_all()) == expected
    assert served.stats().largest_batch > 1


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("as_ids", [False, True])
def test_the_forms_of_a_prompt(served, client, several, as_ids):
    engine = served.service.engine
    texts = ["Tom has 5 apples", "Anna reads"] if several else ["Tom has 5 apples"]
    given = [engine.text.encode(text) for text in texts] if as_ids else texts
    answer = client.completions.create(model="tiny", prompt=given if several else given[0], n=2, max_tokens=8)
    expected = engine.generate(texts, chat=False, gen_length=8, block_length=8)
    assert [choice.text for choice in answer.choices] == [e.text for e in expected for _ in range(2)]
    assert [choice.index for choice in answer.choices] == list(range(2 * len(texts)))
    assert answer.usage.prompt_tokens == sum(e.prompt_tokens for e in expected)
    assert answer.usage.nfe == 2 * sum(e.nfe for e in expected)


def test_a_text_completion_streams(client):
    whole = client.completions.create(model="tiny", prompt="Tom has", max_tokens=16, logprobs=1)
    chunks = list(client.completions.create(model="tiny", prompt="Tom has", max_tokens=16, logprobs=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    offsets = [at for c in chunks if c.choices[0].logprobs for at in c.choices[0].logprobs.text_offset]
    assert offsets == whole.choices[0].logprobs.text_offset
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_an_answer_ends_before_a_stop_string(served, client):
    expected = alone(served)
    word = expected.text.split()[3]
    where = expected.text.index(word)
    before = served.stats().cancelled
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, stop=["never said", word])
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stop=word, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected.text[:where]
    assert whole.choices[0].message.content == expected.text[:where]
    assert whole.choices[0].finish_reason == "stop"
    tokens = whole.usage.completion_tokens
    decode = served.service.engine.text.decode
    assert word in decode(expected.tokens[:tokens])
    assert word not in decode(expected.tokens[: tokens - 1])
    assert whole.usage.nfe < expected.nfe
    until(lambda: served.stats().cancelled == before + 2)  # the rest is not computed


def test_drafts_show_the_canvas_pass_by_pass(served, client):
    expected = alone(served)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, extra_body={"fastdllm": {"stream_drafts": True}}
        )
    )
    drafts = [chunk.model_extra["fastdllm"] for chunk in chunks if "fastdllm" in (chunk.model_extra or {})]
    assert [draft["nfe"] for draft in drafts] == list(range(1, expected.nfe + 1))
    assert sum(draft["rows_computed"] for draft in drafts) == expected.rows_computed
    last = drafts[-1]
    assert last["finish_reason"] == expected.finish_reason
    assert last["text"] == expected.text
    assert tuple(last["committed_at"]) == expected.committed_at
    written = [c for c, at in zip(expected.confidences, expected.committed_at, strict=True) if at]
    assert [value for value in last["confidence"] if value is not None] == written
    said = ""
    for chunk in chunks:
        said += chunk.choices[0].delta.content or ""
        draft = (chunk.model_extra or {}).get("fastdllm")
        if draft:
            assert chunk.choices[0].delta.model_fields_set == set()
            assert draft["text"] == said
            open_at = next((i for i, piece in enumerate(draft["canvas"]) if piece is None), 32)
            assert "".join(draft["canvas"][:open_at]).startswith(said)


def test_the_model_describes_itself(served, client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    card = client.models.retrieve("small").model_extra["fastdllm"]
    assert client.models.retrieve("tiny").id == "tiny"
    assert (card["family"], card["max_model_len"], card["aliases"]) == ("llada", LENGTH, ["small"])
    dual = next(entry for entry in card["caches"] if entry["name"] == "dual")
    assert dual["summary"].endswith(".")
    assert {"name": "suffix_window", "type": "int | None", "default": None} in dual["parameters"]
    assert card["defaults"]["block_length"] == 8
    # What is told can be asked for.
    defaults = {name: card["defaults"][name] for name in ("cache", "decoder", "block_length")}
    assert post(served, "chat/completions", chat(max_tokens=4, fastdllm=defaults)).status_code == 200


def test_replies_are_what_the_document_says(served):
    ChatReply.model_validate(post(served, "chat/completions", chat(logprobs=True, max_tokens=4)).json())
    body = {"model": "tiny", "prompt": "Tom", "max_tokens": 4, "logprobs": 1}
    CompletionReply.model_validate(post(served, "completions", body).json())
    ModelsReply.model_validate(httpx.get(f"{served.url}/v1/models").json())
    HealthReply.model_validate(httpx.get(f"{served.url}/health").json())
    document = httpx.get(f"{served.url}/docs", follow_redirects=True).json()
    assert "/v1/chat/completions" in document["paths"]
    assert document["components"]["schemas"]["Extension"]["properties"]["cache"]


def test_the_page_names_every_metric_field_and_status(served):
    page = PAGE.read_text(encoding="utf-8")
    named = {full for token in re.findall(r"fastdllm_[a-z_{},]+", page) for full in spelt_out(token)}
    kinds = {family.name: family.type for family in served.service.metrics.registry.collect()}
    assert named == {f"{name}_total" if kind == "counter" else name for name, kind in kinds.items()}
    for field in (ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()) - UNSERVED:
        assert field == "parallel_tool_calls" or f"`{field}" in page, field
    for status in REFUSALS:
        assert re.search(rf"^\|.*\b{status}\b", page, re.MULTILINE), status


def spelt_out(name: str) -> list[str]:
    """`a_{b,c}_d` as `a_b_d` and `a_c_d`; labels at the end are left out."""
    before, _, rest = name.rstrip(",").partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{one}{after}" for one in inside.split(",")] if after else [before]


def test_metrics_count_what_was_served(served, client):
    def value(name: str) -> float:
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)

    names = ("completion_tokens_total", "prompt_tokens_total", "steps_total", "tokens_per_forward_count")
    before = [value(f"fastdllm_{name}") for name in names]
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, max_tokens=16)
    usage = answer.usage
    added = [value(f"fastdllm_{name}") - old for name, old in zip(names, before, strict=True)]
    assert added == [usage.completion_tokens, usage.prompt_tokens, usage.nfe, 2]
    assert value('fastdllm_requests_total{path="/v1/chat/completions",status="200"}') >= 1
    assert value("fastdllm_slots") == SLOTS


def chat(**fields) -> dict:
    return {"model": "tiny", "messages": MESSAGES, **fields}


def completion(**fields) -> dict:
    return {"model": "tiny", "prompt": "Tom has", **fields}


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
REFUSED = [
    (chat(frequenzy_penalty=0), "frequenzy_penalty", "nknown parameter"),
    (chat(fastdllm={"caches": "dual"}), "fastdllm.caches", "nknown parameter"),
    (chat(fastdllm={"cache": "doual"}), "fastdllm.cache", "'doual' is not one of none, prefix, dual"),
    (chat(fastdllm={"cache": "dual:prompt_every=0"}), "fastdllm.cache", "must be 1 or more"),
    (chat(fastdllm={"decoder": "threshold:thresold=1"}), "fastdllm.decoder", "takes threshold=, alg="),
    (chat(fastdllm={"decoder": "schedule:steps=1"}, max_tokens=16), "fastdllm.decoder", "steps=1"),
    (chat(fastdllm={"decoder": "pc:frequencies=/etc/hostname"}), "fastdllm.decoder", "can name tiny alone"),
    (chat(fastdllm={"decoder": "pc: frequencies = /etc/hostname"}), "fastdllm.decoder", "can name tiny alone"),
    (chat(fastdllm={"block_length": 0}), "fastdllm.block_length", "greater than or equal to 1"),
    (chat(fastdllm={"stream_drafts": True}), "fastdllm.stream_drafts", "stream: true"),
    (chat(stream_options={"include_usage": True}), "stream_options", "stream: true"),
    (chat(temperature=-0.1), "temperature", "greater than or equal to 0"),
    (chat(temperature="0"), "temperature", "valid number"),
    (chat(temperature=True), "temperature", "valid number"),
    (chat(top_p=0), "top_p", "greater than 0"),
    (chat(seed=2**63), "seed", "less than"),
    (chat(n=0), "n", "greater than or equal to 1"),
    (chat(n=7), "n", "at most 6"),
    (chat(stop=["a", "b", "c", "d", "e"]), "stop", "at most 4 texts"),
    (chat(stop=""), "stop", "at most 4 texts"),
    (chat(stop=["a", ""]), "stop[1]", "at least 1 character"),
    (chat(max_tokens=0), "max_tokens", "greater than or equal to 1"),
    (chat(max_tokens=1000), "max_tokens", "1000; this model's maximum context length is 160 tokens"),
    (chat(max_tokens=8, max_completion_tokens=9), "max_completion_tokens", "contradicts max_tokens=8"),
    (chat(max_tokens=150), "messages", "maximum context length is 160 tokens. However, you requested"),
    (chat(logprobs=1), "logprobs", "valid boolean"),
    (chat(logprobs=True, top_logprobs=2), "top_logprobs", "not served"),
    (chat(frequency_penalty=0.5), "frequency_penalty", "not served"),
    (chat(logit_bias={"5": 1}), "logit_bias", "not served"),
    (chat(tools=[{"type": "function"}]), "tools", "not served"),
    (chat(response_format={"type": "json_object"}), "response_format.type", "should be 'text'"),
    (chat(messages=[]), "messages", "at least 1 item"),
    (chat(messages="hello"), "messages", "valid list"),
    (chat(messages=[{"role": "tool", "content": "x"}]), "messages[0].role", "'system', 'developer', 'user'"),
    (chat(messages=[{"role": "user"}]), "messages[0].content", "issing required"),
    (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content", "a text or a list of text parts"),
    (chat(messages=IMAGE), "messages[0].content[0].type", "'text'"),
    (chat(messages=[{"role": "user", "content": "\ud800"}]), "messages", "no character"),
    (chat(messages=[{"role": "user", "content": "a " * 400}]), "messages", "Please reduce the length of the messages"),
    ({"messages": MESSAGES}, "model", "issing required"),
    ([1], None, "JSON object"),
    (completion(prompt=[]), "prompt", "a list of token ids"),
    (completion(prompt=[1, "a"]), "prompt", "a list of token ids"),
    (completion(prompt=[10**6]), "prompt", "ids run from 0 to 895"),
    (completion(prompt=["a"] * 7), "prompt", "at most 6"),
    (completion(logprobs=5), "logprobs", "less than or equal to 1"),
    (completion(echo=True), "echo", "not served"),
    (completion(best_of=2), "best_of", "not served"),
    (completion(suffix="x"), "suffix", "not served"),
    (completion(max_completion_tokens=4), "max_completion_tokens", "nknown parameter"),
]


@pytest.mark.parametrize(("body", "param", "phrase"), REFUSED, ids=[f"{p}-{i}" for i, (_, p, _) in enumerate(REFUSED)])
def test_a_wrong_field_is_named(served, body, param, phrase):
    path = "completions" if isinstance(body, dict) and "prompt" in body else "chat/completions"
    content = json.dumps(body)
    response = httpx.post(f"{served.url}/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert phrase in error["message"]
    assert error["message"].endswith(".")


def test_harmless_fields_pass(served):
    body = chat(
        max_tokens=4, max_completion_tokens=4, temperature=None, top_p=1, n=None, stop=None, stream=False, user="u",
        frequency_penalty=0, presence_penalty=0.0, logit_bias={}, response_format={"type": "text"}, tools=[],
        tool_choice="none", logprobs=False, top_logprobs=0, store=False, metadata={}, service_tier="auto",
        fastdllm={}, seed=None,
    )  # fmt: skip
    assert post(served, "chat/completions", body).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status", "phrase"),
    [
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, "{}", 415, "Content-Type: application/json"),
        ("POST", "/v1/chat/completions", {}, b"{}", 415, "Content-Type: application/json"),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, "", 400, "JSON object"),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, '{"a":', 400, "not JSON"),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, b'{"\xff":1}', 400, "UTF-8"),
        ("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, "[" * 9999, 400, "JSON"),
        ("POST", "/v1/completions", {"Content-Type": "application/json"}, b" " * 20_001, 413, "20000 bytes"),
        ("GET", "/v1/chat/completions", {}, None, 405, "does not take GET"),
        ("DELETE", "/v1/models/tiny", {}, None, 405, "does not take DELETE"),
        ("GET", "/v1/models/other", {}, None, 404, "'other' does not exist"),
        ("GET", "/v1/embeddings", {}, None, 404, "nothing at GET /v1/embeddings"),
    ],
)
def test_what_is_no_request_is_refused_in_the_same_shape(served, method, path, headers, content, status, phrase):
    response = httpx.request(method, served.url + path, headers=headers, content=content)
    error = response.json()["error"]
    assert response.status_code == status, error
    assert error["type"] == "invalid_request_error"
    assert phrase in error["message"]


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist") as caught:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_prompt_takes_what_is_left(served, client):
    """Without max_tokens, the answer is as long as the default or what the prompt leaves."""
    text = " Tom" * (LENGTH - 5)
    answer = client.completions.create(model="tiny", prompt=text, extra_body={"fastdllm": {"decoder": "topk:k=1"}})
    prompt = answer.usage.prompt_tokens
    (expected,) = served.service.engine.generate(
        text, chat=False, gen_length=LENGTH - prompt, block_length=8, decoder="topk:k=1"
    )
    assert LENGTH - prompt < GenerationConfig.block_length
    assert answer.choices[0].text == expected.text


def test_ids_of_requests_come_back(served):
    assert httpx.get(f"{served.url}/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for harmful in ("a b", "x" * 65, "a\tb", ""):
        given = httpx.get(f"{served.url}/health", headers={"x-request-id": harmful}).headers["x-request-id"]
        assert given.startswith("req-")
