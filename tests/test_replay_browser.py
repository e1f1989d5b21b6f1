"""The replay's page in a browser: it plays, tells, can be steered by keys, and asks nobody for anything."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastdllm
from browsing import CONTRASTS, PHONE, SMALL, UNNAMED, Visit
from fastdllm.replay.page import content, page
from fastdllm.replay.recording import Recording, record
from helpers import write_checkpoint
from test_replay import EVIL, evil_page

QUESTIONS = ["Hello", "A second, longer prompt"]
SHAPE: dict[str, Any] = {"gen_length": 24, "block_length": 6, "cache": "dual", "decoder": "saber"}


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> tuple[Recording, Any]:
    engine = fastdllm.load(write_checkpoint(tmp_path_factory.mktemp("toy")))
    return record(engine, engine.encode(QUESTIONS), SHAPE, chat=True), engine.text  # type: ignore[arg-type]


class Opened(Visit):
    """A replay's page."""

    def __init__(self, browser: Any, html: str, folder: Path, **options: Any) -> None:
        file = folder / "replay.html"
        file.write_text(html, encoding="utf-8")
        super().__init__(browser, file.as_uri(), **options)

    def pass_shown(self) -> int:
        return int(re.match(r"Pass (\d+) of", self.page.inner_text("#status")).group(1))  # type: ignore[union-attr]

    def wait_for(self, number: int) -> None:
        """Until that pass is shown."""
        from playwright.sync_api import expect

        expect(self.page.locator("#status")).to_have_text(re.compile(f"^Pass {number} of"))

    def slots(self) -> list[str]:
        return list(self.page.locator("#answer .slot").all_text_contents())

    def filled(self) -> int:
        return int(self.page.locator("#answer .slot:not(.open):not(.opened)").count())


@pytest.fixture
def opened(browser, recording, tmp_path) -> Iterator[Opened]:
    one = Opened(browser, page(*recording), tmp_path)
    yield one
    one.context.close()
    assert one.troubles == []
    assert one.requests == [one.url]


def expected(recording: tuple[Recording, Any], prompt: int, passes: int) -> list[str]:
    """What the slots show after so many passes."""
    told, texts, is_open = content(*recording)["prompts"][prompt]["passes"], [""] * 24, [True] * 24
    for one in told[:passes]:
        for at, text in one["text"]:
            texts[at] = text
        for at, _, _ in one["written"]:
            is_open[at] = False
        for at in one["opened"]:
            is_open[at] = True
    marks = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    shown = ["".join(marks.get(character, character) for character in text) for text in texts]
    return ["·" if is_open[at] else shown[at] for at in range(24)]


def test_each_pass_shows_its_canvas(opened, recording):
    passes = recording[0].passes[0]
    assert opened.slots() == ["·"] * 24
    for number in range(1, len(passes) + 1):
        opened.page.keyboard.press("ArrowRight")
        assert opened.pass_shown() == number
        assert opened.slots() == expected(recording, 0, number)
        now, before = passes[number - 1], len(recording[0].prompts[0])
        marked = opened.page.locator("#answer .slot.computed").evaluate_all("all => all.map(x => +x.dataset.slot)")
        rows = {at for first, last in now.computed for at in range(first, last)}
        assert set(marked) == {at - before for at in rows if at >= before}
        assert opened.page.locator("#prompt .computed").count() == sum(at < before for at in rows)
        again = opened.page.locator("#answer .slot.opened").evaluate_all("all => all.map(x => +x.dataset.slot)")
        assert set(again) == set(now.event.remasked)
        assert f"{now.event.rows_computed} rows computed" in opened.page.inner_text("#status")
    assert any(one.event.remasked for one in passes), "nothing is opened again: that is not tested"


def test_play_runs_to_the_end_and_pauses(opened, recording):
    last = len(recording[0].passes[0])
    opened.page.select_option("#speed", "4")
    opened.page.click("#play")
    assert opened.page.inner_text("#play") == "Pause"
    opened.wait_for(last)
    assert opened.page.inner_text("#play") == "Play"
    assert opened.filled() == sum(token != "·" for token in expected(recording, 0, last))
    opened.page.click("#play")  # from the start again
    opened.wait_for(2)
    opened.page.keyboard.press(".")
    stopped = opened.pass_shown()
    opened.page.wait_for_timeout(400)
    assert opened.pass_shown() == stopped


def test_keys(opened, recording):
    last = len(recording[0].passes[0])
    keys = opened.page.keyboard
    for key, shown in (("End", last), ("ArrowLeft", last - 1), (",", last - 2), (".", last - 1), ("Home", 0)):
        keys.press(key)
        assert opened.pass_shown() == shown
    keys.press("ArrowLeft")
    assert opened.pass_shown() == 0
    keys.press("Space")
    opened.wait_for(1)
    keys.press("Space")
    assert opened.page.inner_text("#play") == "Play"


def test_controls_that_the_keyboard_reaches(opened, recording):
    keys = opened.page.keyboard
    opened.page.focus("#slider")
    keys.press("ArrowRight")
    assert opened.pass_shown() == 1  # the slider moved, and the page did not move on top of it
    assert opened.page.get_attribute("#slider", "aria-valuetext") == f"pass 1 of {len(recording[0].passes[0])}"
    opened.page.focus("#next")
    keys.press("Space")
    keys.press("Enter")
    assert opened.pass_shown() == 3
    opened.page.focus("[data-slot='0']")
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    assert opened.page.evaluate("document.activeElement.dataset.slot") == "7"
    assert opened.pass_shown() == 3
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Slot 8, ")
    assert opened.page.is_visible("#tip")
    keys.press("Escape")
    assert not opened.page.is_visible("#tip")
    assert opened.page.locator("#answer [tabindex='0']").count() == 1
    assert opened.page.locator("button, select, input").evaluate_all(UNNAMED) == []


def test_hover_tells_pass_and_confidence(opened, recording):
    opened.page.keyboard.press("End")
    passes = recording[0].passes[0]
    slot, number, sure = next(
        (at, number, sure)
        for number, one in reversed([*enumerate(passes, start=1)])
        for at, sure in zip(one.event.positions, one.event.confidences, strict=True)
    )
    assert not opened.page.is_visible("#tip")
    opened.page.hover(f"[data-slot='{slot}']")
    told = opened.page.inner_text("#tip")
    assert f"committed in pass {number}" in told
    assert f"confidence {sure:.3f}" in told
    opened.page.hover("h1")
    assert not opened.page.is_visible("#tip")


def test_prompts_of_a_batch_can_be_chosen(opened, recording):
    opened.page.keyboard.press("End")
    opened.page.select_option("#prompt-number", "1")
    assert opened.pass_shown() == 0
    assert QUESTIONS[1] in opened.page.inner_text("#prompt")
    opened.page.focus("#next")
    opened.page.keyboard.press("End")
    assert opened.slots() == expected(recording, 1, len(recording[0].passes[1]))


def test_colours_tell_passes_apart_and_can_be_read(browser, recording, tmp_path):
    """Text on every slot has a contrast of 4.5 at least (WCAG 2.2, 1.4.3), in the light and in the dark."""
    backs = []
    for scheme in ("light", "dark"):
        one = Opened(browser, page(*recording), tmp_path, color_scheme=scheme)
        one.page.keyboard.press("End")
        found = one.page.locator("#answer .slot:not(.open):not(.opened)").evaluate_all(CONTRASTS)
        assert min(contrast for contrast, _ in found) >= 4.5
        commits = {at: n for n, p in enumerate(recording[0].passes[0]) for at in p.event.positions}
        assert len({colour for _, colour in found}) == len(set(commits.values()))
        backs.append(one.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        one.context.close()
        assert one.troubles == []
    assert len(set(backs)) == 2


def test_a_phone_shows_it_all(browser, recording, tmp_path):
    recorded, text = recording
    long = [[*prompt, *([text.encode("m")[0]] * 300)] for prompt in recorded.prompts]
    wide = Recording(**{**recorded.__dict__, "prompts": long})
    one = Opened(browser, page(wide, text), tmp_path, **PHONE)
    one.page.tap("#next")
    one.page.tap("[data-slot='0']")
    assert "Slot 1" in one.page.inner_text("#tip")
    one.page.keyboard.press("End")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360
    assert one.page.locator("button, select").evaluate_all(SMALL) == []
    one.context.close()
    assert one.troubles == []


def test_tokens_are_text_and_the_policy_holds(browser, tmp_path):
    one = Opened(browser, evil_page(), tmp_path)
    one.page.keyboard.press("End")
    assert one.slots()[0] in (EVIL, "·", "∎")
    assert EVIL in one.slots()
    assert one.page.locator("img").count() == 0
    assert one.page.evaluate("typeof boom") == "undefined"
    assert one.troubles == []
    assert one.requests == [one.url]
    refused = one.page.evaluate(
        """() => new Promise(done => {
          document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
          const image = new Image(); image.src = 'http://127.0.0.1:9/x.png';
        })"""
    )
    assert refused == "img-src"
    one.context.close()
