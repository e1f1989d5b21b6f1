"""The list of methods: complete, and the same in the documentation as in the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastdllm.caches import CACHES
from fastdllm.catalogue import catalogue, first_sentence
from fastdllm.cli.methods import REGENERATE
from fastdllm.config import describe, parse_cache, parse_decoder
from fastdllm.decoders import DECODERS
from helpers import refused, run

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == run("methods", "--markdown").stdout, f"run: {REGENERATE}"


def test_every_method_is_listed_with_its_parameters():
    shown = run("methods").stdout
    listed = json.loads(run("methods", "--json").stdout)
    for heading, registry in (("Caches", CACHES), ("Decoders", DECODERS)):
        assert [entry["name"] for entry in listed[heading]] == list(registry)
        for name in registry:
            assert f"\n{name} " in shown


def test_listed_defaults_are_those_of_the_objects():
    """A spec with every parameter as listed means the same as the bare name."""
    parsers = {"Caches": parse_cache, "Decoders": parse_decoder}
    for heading, entries in catalogue().items():
        for entry in entries:
            given = ",".join(f"{p.name}={p.spelt}" for p in entry.parameters)
            assert entry.what.endswith("."), f"{entry.name} has no sentence that says what it does"
            if not given.endswith("="):  # else a parameter that must be given
                parse = parsers[heading]
                assert describe(parse(f"{entry.name}:{given}")) == describe(parse(entry.name))


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("The ``k`` best\nslots; plain. More of it.\n\nAnd more.", "The `k` best slots; plain."),
        ("What it does (arXiv 2505.22618, section 3.3).", "What it does."),
        ("Above 0.5 (a guess) it goes. Then not.", "Above 0.5 (a guess) it goes."),
    ],
)  # fmt: skip
def test_first_sentence(doc, sentence):
    assert first_sentence(doc) == sentence


def test_one_format_at_a_time():
    assert "cannot be given together" in refused("methods", "--markdown", "--json")
