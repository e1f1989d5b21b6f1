"""The playground in a browser: it runs, compares, stops, says what goes wrong, and asks nobody but its server."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from browsing import CONTRASTS, PHONE, SMALL, UNNAMED, Visit
from fastdllm.pieces import pieces
from serving import Served, serving

PROMPT = "Ivy cuts 5 cakes into 5 slices each. 3 guests eat 2 slices each. How many slices are left?"
FAST: dict[str, Any] = {
    "gen_length": 48, "block_length": 8, "cache": "dual", "decoder": "threshold:threshold=0.9", "seed": 0,
}  # fmt: skip
PLAIN = {**FAST, "cache": "none", "decoder": "topk:k=1"}
EVIL = "<img src=x onerror=boom=1>"
ASKED = re.compile(r"/v1/(chat/)?completions$")
WRITTEN = ".canvas .slot:not(.open)"
REFUSED = "Failed to load resource"
"""How the browser itself writes of every answer that is no success."""


@pytest.fixture(scope="module")
def server(tiny) -> Iterator[Served]:
    with serving(tiny) as one:
        yield one


class Playground(Visit):
    """The page, ready to run."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        super().__init__(browser, f"{url}/", **options)
        self.ready()
        self.fill({"#prompt": PROMPT, "#gen-length": "48"})

    def ready(self) -> None:
        self.page.wait_for_selector("#run:enabled")

    def fill(self, values: dict[str, str]) -> None:
        if not self.page.is_visible(".settings fieldset"):
            self.page.click(".settings > summary")
        for selector, value in values.items():
            self.page.fill(selector, value)

    def run(self, plain: str = "after") -> None:
        self.start(plain)
        self.ended()

    def start(self, plain: str) -> None:
        self.page.check(f"[name=plain][value={plain}]")
        self.page.click("#run")

    def ended(self) -> None:
        self.page.wait_for_selector("#run:enabled")

    def count(self, name: str, run: int = 0) -> float:
        return float(self.page.locator(f"[data-count={name}]").nth(run).inner_text().replace(",", ""))

    def until(self, done: Callable[[], object]) -> None:
        """What the browser tells of may come a moment later."""
        for _ in range(400):
            if done():
                return
            self.page.wait_for_timeout(50)
        pytest.fail("in twenty seconds it did not come to that")

    def answers(self) -> list[str]:
        return list(self.page.locator(".answer").all_inner_texts())

    def status(self) -> str:
        return str(self.page.inner_text("#status"))

    def trouble(self) -> str:
        self.page.wait_for_selector("#trouble:visible")
        return str(self.page.inner_text("#trouble-text"))

    def answer_with(self, *frames: dict[str, Any], done: bool = True, status: int = 200, **headers: str) -> None:
        """Every answer from now on consists of these chunks."""
        body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n" * done
        kind = {"content-type": "text/event-stream"}
        self.page.route(ASKED, lambda route: route.fulfill(status=status, body=body, headers={**kind, **headers}))

    def refuse_with(self, status: int, error: dict[str, Any], **headers: str) -> None:
        body = json.dumps({"error": error})
        self.page.route(ASKED, lambda route: route.fulfill(status=status, body=body, headers=headers))


@pytest.fixture
def page(browser, server) -> Iterator[Playground]:
    """A page that must not be in trouble at the end."""
    one = Playground(browser, server.url)
    yield one
    one.context.close()
    assert one.troubles == []
    assert all(url.startswith(server.url) for url in one.requests)


@pytest.fixture
def troubled(browser, server) -> Iterator[Playground]:
    """A page that is refused: the browser writes that down, and nothing else may be amiss."""
    one = Playground(browser, server.url)
    yield one
    one.context.close()
    assert [text for text in one.troubles if REFUSED not in text] == []


def shown(engine: Any, answer: Any) -> list[str]:
    """What the canvas shows of an answer up to its end."""
    config = engine.config
    texts = pieces(engine.text, answer.canvas[: len(answer.tokens)], config.mask_id, config.eos_ids)
    return [*texts, *(["∎"] if answer.finish_reason == "stop" else [])]


def test_the_canvas_fills_with_the_answer(page, tiny):
    (answer,) = tiny.generate(PROMPT, **FAST)
    assert page.page.locator(".slot.open").count() >= 48  # before the first pass all are masked
    page.run("no")
    assert page.answers() == [answer.text.strip()]
    slots = page.page.locator(".canvas .slot")
    assert slots.count() == 48
    assert slots.all_text_contents()[: len(answer.tokens) + 1] == shown(tiny, answer)
    assert page.page.locator(".canvas .block").count() == 6
    told = {name: page.count(name) for name in ("passes", "tpf", "rows")}
    assert told == {
        "passes": answer.nfe, "tpf": round(answer.tokens_per_forward, 2), "rows": answer.rows_computed,
    }  # fmt: skip
    assert page.count("rate") == pytest.approx(len(answer.tokens) / page.count("seconds"), rel=0.1)
    assert page.page.inner_text(".scale .last") == str(answer.nfe)
    assert page.status().startswith(f"Finished: {answer.nfe} passes")
    assert not page.page.is_visible("#verdict")


def test_plain_decoding_runs_after_the_accelerated_answer(page, tiny):
    order: list[str] = []
    page.page.on("request", lambda request: ASKED.search(request.url) and order.append(decoder_of(request)))
    page.page.on("requestfinished", lambda request: ASKED.search(request.url) and order.append("finished"))
    page.run()
    page.until(lambda: len(order) == 4)
    assert order == ["threshold:threshold=0.9", "finished", "topk:k=1", "finished"]
    fast, plain = (tiny.generate(PROMPT, **options)[0] for options in (FAST, PLAIN))
    assert page.answers() == [fast.text.strip(), plain.text.strip()]
    assert [page.count("passes", run) for run in (0, 1)] == [fast.nfe, plain.nfe]
    said = page.page.inner_text("#verdict")
    assert f"{plain.nfe / fast.nfe:.1f}× fewer passes" in said
    assert f"{fast.nfe} instead of {plain.nfe}" in said
    assert f"{plain.rows_computed / fast.rows_computed:.1f}× fewer rows" in said
    assert re.search(r"\d× (faster|slower)", said)
    assert ("identical" if fast.text == plain.text else "differ") in page.status()
    assert "× fewer passes" in page.status()  # for those who hear the page


def decoder_of(request: Any) -> str:
    return str(request.post_data_json["fastdllm"]["decoder"])


def test_both_at_the_same_time(page):
    order: list[str] = []
    page.page.on("request", lambda request: ASKED.search(request.url) and order.append("sent"))
    page.page.on("requestfinished", lambda request: ASKED.search(request.url) and order.append("finished"))
    page.run("together")
    page.until(lambda: len(order) == 4)
    assert order == ["sent", "sent", "finished", "finished"]
    assert "time not compared" in page.page.inner_text("#verdict")
    assert page.page.locator(".run .slot.open:not(.beyond)").count() == 0


def test_stop_frees_the_slot(page, server):
    stats = server.stats
    page.fill({"#gen-length": "400", "#block-length": "400"})
    page.page.select_option("#decoder-name", "topk")
    page.start("after")
    page.page.locator(WRITTEN).nth(2).wait_for()
    assert stats().active == 1
    page.page.click("#stop")
    page.ended()
    assert page.status() == "Stopped. The server drops the answer at its next pass, and its slot is free."
    assert 3 <= page.count("passes") < 400
    assert f"stopped after pass {page.count('passes'):.0f}" in page.page.inner_text(".state >> nth=0")
    page.until(lambda: not stats().active)
    assert (stats().active, stats().free_slots) == (0, stats().slots)
    assert page.page.locator(".run").nth(1).locator(WRITTEN).count() == 0  # the plain one never began
    page.fill({"#gen-length": "16", "#block-length": "16"})
    page.run("no")
    assert page.page.locator(WRITTEN).count() > 0


def test_a_wrong_parameter_is_told_in_words(troubled):
    troubled.fill({"#decoder-threshold": "-1"})
    troubled.run()
    assert "threshold=-1.0 must be 0 or more" in troubled.trouble().lower()
    assert troubled.page.get_attribute("#decoder-threshold", "aria-invalid") == "true"
    assert troubled.page.evaluate("document.getElementById('trouble').role") == "alert"
    troubled.fill({"#decoder-threshold": "0.9", "#gen-length": "0"})
    troubled.run()
    assert "max_tokens" in troubled.trouble()
    assert troubled.page.get_attribute("#gen-length", "aria-invalid") == "true"
    troubled.fill({"#gen-length": "16"})
    troubled.run("no")
    assert not troubled.page.is_visible("#trouble")
    assert troubled.status().startswith("Finished")


def test_a_server_that_is_gone(troubled):
    troubled.page.route(ASKED, lambda route: route.abort("connectionrefused"))
    troubled.run()
    assert troubled.trouble().startswith("The server cannot be reached.")
    troubled.page.route("**/v1/models", lambda route: route.abort("connectionrefused"))
    troubled.page.reload()
    assert troubled.trouble().startswith("The server cannot be reached.")
    troubled.page.unroute("**/v1/models")
    troubled.page.click("#again")
    troubled.ready()
    assert not troubled.page.is_visible("#trouble")


@pytest.mark.parametrize("how", ["ended early", "torn"])
def test_a_connection_that_breaks_off(troubled, how):
    frame = {"fastdllm": drawn(["a", None])}
    if how == "ended early":
        troubled.answer_with(frame, done=False)
        troubled.run()
    else:
        with torn(f"data: {json.dumps(frame)}\n\n") as (port, tear):
            troubled.page.route(ASKED, lambda route: route.continue_(url=f"http://127.0.0.1:{port}/"))
            troubled.start("after")
            troubled.page.locator(WRITTEN).wait_for()
            tear.set()
            troubled.ended()
    assert troubled.trouble() == "The connection broke off before the answer was finished."
    assert troubled.page.inner_text(".state >> nth=0") == "failed"
    assert troubled.page.locator(".slot").first.inner_text() == "a"


@contextmanager
def torn(body: str) -> Iterator[tuple[int, threading.Event]]:
    """The port of a server that breaks off in the middle of its one answer, when the event is set."""
    tear = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1 << 16)
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(f"{head}{len(body):x}\r\n{body}\r\nff\r\n".encode())
            tear.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1], tear
        thread.join()


def test_errors_that_come_with_a_time_or_in_the_stream(troubled):
    troubled.refuse_with(429, {"message": "5 requests wait already"}, **{"Retry-After": "7"})
    troubled.run()
    assert troubled.trouble() == "5 requests wait already. Try again in 7 seconds."
    troubled.page.unroute_all()
    troubled.answer_with({"fastdllm": drawn(["a", None])}, {"error": {"message": "the request took too long."}})
    troubled.run()
    assert troubled.trouble() == "the request took too long."
    assert "fewer" in troubled.page.inner_text("#verdict")  # nothing is compared
    assert "×" not in troubled.page.inner_text("#verdict")


def test_an_api_key_is_asked_for_and_kept_in_memory(browser, tiny):
    with serving(tiny, api_keys=("secret-1",)) as guarded:
        one = Visit(browser, f"{guarded.url}/")
        one.page.wait_for_selector("#key-form:visible")
        assert one.page.inner_text("#trouble-text") == "This server asks for an API key."
        assert one.page.evaluate("document.activeElement.id") == "key"
        one.page.keyboard.type("wrong")
        one.page.keyboard.press("Enter")
        one.page.get_by_text("does not know this API key").wait_for()
        one.page.fill("#key", "secret-1")
        one.page.keyboard.press("Enter")
        one.page.wait_for_selector("#run:enabled")
        assert not one.page.is_visible("#key-form")
        one.page.fill("#gen-length", "8")
        one.page.keyboard.press("Control+Enter")
        one.page.get_by_text("The answers").wait_for()
        kept = one.page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert "secret" not in kept
        assert one.page.input_value("#key") == ""
        one.context.close()
        assert [text for text in one.troubles if REFUSED not in text] == []


def test_hover_and_focus_tell_of_a_slot(page, tiny):
    (answer,) = tiny.generate(PROMPT, **FAST)
    page.run("no")
    slot = 3
    assert not page.page.is_visible("#tip")
    page.page.hover(f"[data-slot='{slot}']")
    told = page.page.inner_text("#tip").split("\n")
    assert told == [
        "Slot 4, block 1", f"“{shown(tiny, answer)[slot]}”", f"committed in pass {answer.committed_at[slot]}",
        f"confidence {answer.confidences[slot]:.3f}",
    ]  # fmt: skip
    page.page.hover("h1")
    assert not page.page.is_visible("#tip")
    page.page.focus("[data-slot='0']")
    for key, at in (("ArrowRight", 1), ("ArrowDown", 9), ("ArrowLeft", 8), ("ArrowUp", 0), ("End", 47), ("Home", 0)):
        page.page.keyboard.press(key)
        assert page.page.evaluate("document.activeElement.dataset.slot") == str(at)
        assert page.page.inner_text("#tip").startswith(f"Slot {at + 1},")
    assert page.page.evaluate("document.activeElement.ariaLabel").startswith("Slot 1, block 1, “")
    page.page.keyboard.press("Escape")
    assert not page.page.is_visible("#tip")
    assert page.page.locator(".canvas [tabindex='0']").count() == 1


def test_keyboard_alone(page):
    keys = page.page.keyboard
    page.fill({"#gen-length": "16"})
    page.page.focus("#prompt")
    keys.press("Control+Enter")
    page.page.get_by_text("The answers").wait_for()
    assert page.page.evaluate("document.activeElement.id") == "prompt"
    page.fill({"#gen-length": "400", "#block-length": "400"})
    page.page.focus("#run")
    keys.press("Enter")
    page.page.locator("#stop:focus").wait_for()  # the focus goes where the next key is of use
    keys.press("Escape")
    page.page.locator("#run:focus").wait_for()
    assert page.status().startswith("Stopped.")
    assert page.page.locator("button, select, input, textarea").evaluate_all(UNNAMED) == []
    assert page.page.get_attribute("#status", "role") == "status"


def test_pickers_follow_the_server(page):
    about = page.page.request.get(f"{page.url}v1/models").json()["data"][0]["fastdllm"]
    names = {one["name"]: one for one in about["decoders"]}
    assert page.page.locator("#decoder-name option").all_text_contents() == list(names)
    for name in ("wino", "klass"):
        page.page.select_option("#decoder-name", name)
        assert page.page.locator("#decoder .parameters label").all_text_contents() == [
            parameter["name"] for parameter in names[name]["parameters"]
        ]
        assert page.page.inner_text("#decoder .about").startswith(names[name]["summary"].replace("`", "")[:20])
    page.page.select_option("#cache-name", "prefix")
    page.fill({"#cache-suffix_window": "16", "#decoder-history": "3"})
    sent: list[Any] = []
    page.page.on("request", lambda request: ASKED.search(request.url) and sent.append(request.post_data_json))
    page.run("no")
    assert sent[0]["fastdllm"]["cache"] == "prefix:suffix_window=16"
    assert sent[0]["fastdllm"]["decoder"] == "klass:threshold=0.9,history=3"
    assert '"klass:threshold=0.9,history=3"' in page.page.locator("#request").text_content()


def test_it_begins_with_what_suits_the_model_or_what_the_server_was_given(browser, server, tiny):
    given = {"gen_length": 96, "block_length": 16, "cache": "prefix", "decoder": "factor:factor=0.5"}
    shapes = []
    with serving(tiny, options=given) as other:
        for url in (server.url, other.url):
            one = Visit(browser, f"{url}/")
            one.page.wait_for_selector("#run:enabled")
            names = ("#gen-length", "#block-length", "#cache-name", "#decoder-name")
            shapes.append([one.page.input_value(name) for name in names])
            one.context.close()
        assert one.troubles == []
    assert shapes == [["64", "8", "dual", "threshold"], ["96", "16", "prefix", "factor"]]


def test_raw_text_goes_to_the_other_path(page, tiny):
    (answer,) = tiny.generate(PROMPT, chat=False, **FAST)
    page.page.select_option("#wrap", "raw")
    page.run("no")
    assert page.answers() == [answer.text.strip()]
    assert sum(url.endswith("/v1/completions") for url in page.requests) == 1


def test_a_phone_shows_it_all(browser, server):
    one = Playground(browser, server.url, **PHONE)
    one.fill({"#gen-length": "400", "#block-length": "8"})
    one.start("after")
    one.page.locator(WRITTEN).first.wait_for()
    for seen in ("#stop", "#status", ".run h2 >> nth=0"):  # what one wants while it runs is on the screen
        box = one.page.locator(seen).bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] <= 740
    one.page.tap("#stop")
    one.ended()
    one.fill({"#gen-length": "16"})
    one.run()
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert one.page.locator("button:visible, select:visible, input[type=number]:visible").evaluate_all(SMALL) == []
    one.page.tap("[data-slot='0'] >> nth=0")
    assert one.page.inner_text("#tip").startswith("Slot 1,")
    one.page.tap(".settings > summary")
    assert not one.page.is_visible("#cache-name")
    one.context.close()
    assert one.troubles == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_tell_passes_apart_and_can_be_read(browser, server, scheme):
    one = Playground(browser, server.url, color_scheme=scheme, reduced_motion="reduce")
    one.run("no")
    found = one.page.locator(".canvas .slot:not(.open):not(.beyond)").evaluate_all(CONTRASTS)
    assert min(contrast for contrast, _ in found) >= 4.5
    passes = one.page.locator(".canvas .slot:not(.open):not(.beyond)").evaluate_all(
        "all => all.map(x => x.style.getPropertyValue('--pass'))"
    )
    assert len({colour for _, colour in found}) == len(set(passes)) > 3
    words = one.page.locator("h1, label:visible, p:visible, dt:visible, dd:visible, button.main").evaluate_all(BACKED)
    assert min(words) >= 4.5
    one.context.close()
    assert one.troubles == []


BACKED = CONTRASTS.replace("style.backgroundColor)", "back(slot))").replace(
    "const style", "const back = x => { const c = getComputedStyle(x).backgroundColor;"
    " return c === 'rgba(0, 0, 0, 0)' && x.parentElement ? back(x.parentElement) : c; }; const style"
).replace("[(high", "(high").replace(", style.backgroundColor];", ";")  # fmt: skip
"""The contrast of text and the first background behind it."""


def test_the_scheme_can_be_chosen_and_is_kept(page):
    back = "getComputedStyle(document.body).backgroundColor"
    light = page.page.evaluate(back)
    page.page.select_option("#theme", "dark")
    dark = page.page.evaluate(back)
    assert light != dark
    page.page.reload()
    assert page.page.evaluate(back) == dark
    assert page.page.input_value("#theme") == "dark"
    page.page.select_option("#theme", "")
    assert page.page.evaluate(back) == light


def test_less_motion_is_honoured(browser, server):
    durations = []
    for motion in ("no-preference", "reduce"):
        one = Playground(browser, server.url, reduced_motion=motion)
        durations.append(one.page.evaluate("getComputedStyle(document.querySelector('.slot')).transitionDuration"))
        one.context.close()
    assert durations[0] != "0s"
    assert durations[1] == "0s"


def drawn(canvas: list[str | None], **parts: Any) -> dict[str, Any]:
    """A frame whose committed slots were all written in its pass."""
    frame = {
        "index": 0, "nfe": 1, "block": 0, "rows_computed": 2, "finish_reason": None, "canvas": canvas, "end": None,
        "committed_at": [int(text is not None) for text in canvas],
        "confidence": [None if text is None else 0.5 for text in canvas], "text": canvas[0] or "",
    }  # fmt: skip
    return {**frame, **parts}


def test_what_a_model_or_server_says_is_text_alone(troubled):
    troubled.answer_with({"fastdllm": drawn([EVIL, "b\n"], finish_reason="length", text=EVIL)})
    troubled.run()
    assert troubled.page.locator(".slot").first.inner_text() == EVIL
    assert troubled.page.locator(".slot").nth(1).inner_text() == "b⏎"
    assert troubled.answers() == [EVIL, EVIL]
    troubled.page.hover(".slot >> nth=0")
    assert EVIL in troubled.page.inner_text("#tip")
    troubled.page.unroute_all()
    troubled.refuse_with(500, {"message": EVIL})
    troubled.run()
    assert EVIL in troubled.trouble()
    assert troubled.page.locator("img").count() == 0
    assert troubled.page.evaluate("typeof boom") == "undefined"


def test_the_policy_forbids_other_hosts_and_inline_code(page):
    refused = """make => new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective), {once: true});
      if (make === 'image') new Image().src = 'http://127.0.0.2:9/x.png';
      else document.body.append(Object.assign(document.createElement('script'), {textContent: 'boom = 1'}));
    })"""
    assert page.page.evaluate(refused, "image") == "img-src"
    assert page.page.evaluate(refused, "script") == "script-src-elem"
    page.troubles.clear()  # of these two the browser tells
    page.requests.clear()


def test_only_cells_that_differ_are_touched(page):
    """Of thousands of slots a pass touches those that it wrote and those that it had written before."""
    touched = page.page.evaluate(
        """async () => {
          const {Canvas, Tip} = await import('/canvas.js');
          const root = document.createElement('div'), scale = document.createElement('p');
          scale.innerHTML = '<span class="last"></span>';
          document.body.append(root, scale);
          const canvas = new Canvas(root, scale, new Tip(document.getElementById('tip')));
          canvas.reset(4096, 32);
          const observer = new MutationObserver(() => {});
          observer.observe(root, {subtree: true, attributes: true, childList: true, characterData: true});
          const frame = {nfe: 0, block: 0, finish_reason: null, end: null, canvas: Array(4096).fill(null),
                         committed_at: Array(4096).fill(0), confidence: Array(4096).fill(null)};
          const counts = [];
          for (let nfe = 1; nfe <= 6; nfe++) {
            for (let slot = 5 * nfe; slot < 5 * nfe + 5; slot++) {
              frame.canvas[slot] = `t${slot}`; frame.committed_at[slot] = nfe; frame.confidence[slot] = 1;
            }
            canvas.show({...frame, nfe});
            const cells = observer.takeRecords().map(({target}) => target.closest ? target : target.parentElement);
            counts.push(new Set(cells.filter(cell => cell.dataset.slot !== undefined)).size);
          }
          canvas.show({...frame, nfe: 6});
          counts.push(observer.takeRecords().filter(({target}) => target.dataset.slot !== undefined).length);
          return counts;
        }"""
    )
    assert touched == [5, 10, 10, 10, 10, 10, 0]


def test_slots_that_open_again_are_shown(page):
    names = """async frames => {
      const {Canvas, Tip} = await import('/canvas.js');
      const root = document.createElement('div'), scale = document.createElement('p');
      scale.append(Object.assign(document.createElement('span'), {className: 'last'}));
      const canvas = new Canvas(root, scale, new Tip(document.getElementById('tip')));
      canvas.reset(4, 2);
      return frames.map(frame => (canvas.show(frame), canvas.cells.map(cell => [cell.className, cell.textContent])));
    }"""
    frames = [
        drawn(["a", "b", None, None]),
        drawn([None, "b", "c", None], nfe=2, committed_at=[0, 1, 2, 0]),
        drawn(["x", "b", "", None], nfe=3, committed_at=[3, 1, 2, 0], end=2, finish_reason="stop"),
    ]
    first, second, third = page.page.evaluate(names, frames)
    assert first == [["slot now", "a"], ["slot now", "b"], ["slot open", ""], ["slot open", ""]]
    assert second == [["slot again", ""], ["slot", "b"], ["slot now", "c"], ["slot open", ""]]
    assert third == [["slot", "x"], ["slot", "b"], ["slot", "∎"], ["slot open beyond", ""]]


def test_events_are_read_wherever_chunks_end(page):
    """At every place where the bytes can be cut, inside characters and line ends too, the events are the same."""
    text = ': hello\n\ndata: {"a": "é漢😀"}\r\n\r\nevent: x\ndata:one\ndata: two\rid: 3\r\rdata\n\ndata: [DONE]\n\n'
    text += "data: lost"
    found = page.page.evaluate(
        """async text => {
          const {eventData} = await import('/sse.js');
          const bytes = new TextEncoder().encode(text), found = [];
          for (let cut = 0; cut <= bytes.length; cut++) {
            const parts = cut ? [bytes.slice(0, cut), bytes.slice(cut)] : [...bytes].map(x => Uint8Array.of(x));
            const stream = new ReadableStream({
              pull(to) { const part = parts.shift(); part ? to.enqueue(part) : to.close(); },
            });
            const events = [];
            for await (const data of eventData(stream)) events.push(data);
            found.push(JSON.stringify(events));
          }
          return [...new Set(found)].map(JSON.parse);
        }""",
        text,
    )
    assert found == [['{"a": "é漢😀"}', "one\ntwo", "[DONE]"]]
