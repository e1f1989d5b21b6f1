"""The rules that make the embedded model's problems."""

from __future__ import annotations

import re
from itertools import islice

from build_tokenizer import build
from word_problems import TEMPLATES, problems

SOME = [*islice(problems(5, held_out=False), 1500), *islice(problems(5, held_out=True), 500)]


def test_every_sum_in_every_answer_is_right():
    for problem in SOME:
        sums = re.findall(r"(\d+)([-+*/])(\d+)=\$?(\d+)", problem.answer)
        assert 2 <= len(sums) <= 4, problem
        for a, op, b, result in sums:
            x, y = int(a), int(b)
            assert {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[op] == int(result), problem
        assert problem.answer.endswith(f"#### {problem.result}")
        assert sums[-1][3] == str(problem.result)
        assert max(*problem.numbers, problem.result) <= 100


def test_an_answer_uses_only_numbers_of_the_question_or_its_own_results():
    for problem in SOME:
        known = set(re.findall(r"\d+", problem.question))
        for a, _, b, result in re.findall(r"(\d+)([-+*/])(\d+)=\$?(\d+)", problem.answer):
            assert {a, b} <= known, problem
            known.add(result)


def test_the_split_is_by_template_and_numbers_whatever_the_words():
    train, held = ({(p.template, p.numbers) for p in SOME if p.held_out == side} for side in (False, True))
    assert not train & held
    assert {name for name, _ in train} == {name for name, _ in held} == set(TEMPLATES)


def test_the_same_seed_gives_the_same_problems():
    assert [*islice(problems(3, held_out=True), 20)] == [*islice(problems(3, held_out=True), 20)]


def test_every_word_and_number_is_one_token_and_text_survives():
    tokenizer = build()
    for problem in SOME[:200]:
        text = f" {problem.question} {problem.answer}"
        pieces = re.findall(r" ?[A-Za-z]+|\d+", text)
        assert all(len(tokenizer.encode(piece).ids) == 1 for piece in pieces)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    other = "Größe 3.14 & 日本語\n\tcode = [1, 2]"
    assert tokenizer.decode(tokenizer.encode(other).ids) == other
