"""Grade-school word problems with worked answers ending in ``#### N``, made by rule.

Eight templates, each with two wordings of the question and two of the answer, so that an answer
is never a pure function of its question. A problem is held out by the hash of (template, numbers):
no held-out combination of numbers is ever trained on under any names, nouns or wording.

    python scripts/word_problems.py --split heldout --count 1000 --seed 7 --out FILE
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

GIRLS = ("Mia", "Ana", "Zoe", "Ivy", "Ella", "Nora", "Lucy", "Ruth")
BOYS = ("Leo", "Sam", "Tom", "Noah", "Max", "Omar", "Hugo", "Finn")
GOODS = (
    "apples",
    "pears",
    "pens",
    "books",
    "cards",
    "shells",
    "stamps",
    "cookies",
    "muffins",
    "candles",
    "marbles",
    "stickers",
)
FLOWERS = ("tulips", "roses", "lilies", "daisies", "beans", "carrots")
WISHES = ("bike", "kite", "guitar", "camera", "scooter", "tent")
TRIPS = ("train", "bus", "boat", "truck")
KIN = ("aunt", "uncle", "teacher", "coach")
MEALS = ("pizzas", "cakes", "pies", "loaves")
COPIED = {*GIRLS, *BOYS, *GOODS, *FLOWERS, *WISHES, *TRIPS, *KIN, *MEALS}  # words an answer takes from its question

HELD_OUT_OF = 10  # one combination of numbers in ten is never trained on


@dataclass(frozen=True)
class Problem:
    template: str
    numbers: tuple[int, ...]
    question: str
    answer: str
    result: int

    @property
    def held_out(self) -> bool:
        key = f"{self.template}:{','.join(map(str, self.numbers))}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % HELD_OUT_OF == 0


Made = tuple[tuple[int, ...], tuple[str, str], tuple[str, str], int]


def person(rng: random.Random) -> tuple[str, str, str]:
    """A name with its pronouns, as subject and as possessive."""
    if rng.random() < 0.5:
        return rng.choice(GIRLS), "She", "Her"
    return rng.choice(BOYS), "He", "His"


def change(rng: random.Random) -> Made:
    a, p, c, q = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 6)
    first, second = a * p, c * q
    bill = rng.choice([b for b in (20, 50, 100) if b > first + second])
    name, she, _ = person(rng)
    x, y = rng.sample(GOODS, 2)
    total = first + second
    questions = (
        f"{name} buys {a} {x} at ${p} each and {c} {y} at ${q} each. {she} pays with ${bill}. How much change does {name} get?",
        f"At the market {name} takes {a} {x} for ${p} each and {c} {y} for ${q} each. {she} hands over ${bill}. What is the change?",
    )
    work = f"{a}*{p}=${first}", f"{c}*{q}=${second}", f"{first}+{second}=${total}", f"{bill}-{total}=${bill - total}"
    answers = (
        f"The {x} cost {work[0]}. The {y} cost {work[1]}. Together that is {work[2]}. {name} gets {work[3]} back.",
        f"{name} pays {work[0]} for the {x} and {work[1]} for the {y}. That makes {work[2]}. The change is {work[3]}.",
    )
    return (a, p, c, q, bill), questions, answers, bill - total


def give(rng: random.Random) -> Made:
    friends, each = rng.randint(2, 6), rng.randint(2, 6)
    start = friends * each + rng.randint(3, 40)
    extra = rng.randint(2, 12)
    name, she, _ = person(rng)
    x = rng.choice(GOODS)
    given, left = friends * each, start - friends * each
    questions = (
        f"{name} has {start} {x}. {she} gives {each} {x} to each of {friends} friends and then finds {extra} more. How many {x} does {name} have now?",
        f"There are {start} {x} in a box. {name} hands {each} to each of {friends} friends and then puts {extra} new {x} in. How many {x} are in the box?",
    )
    answers = (
        f"{name} gives away {friends}*{each}={given} {x}. {she} keeps {start}-{given}={left}. With the new ones there are {left}+{extra}={left + extra} {x}.",
        f"The friends get {friends}*{each}={given} {x}, so {start}-{given}={left} are left. After that {name} has {left}+{extra}={left + extra} {x}.",
    )
    return (start, friends, each, extra), questions, answers, left + extra


def save(rng: random.Random) -> Made:
    weeks, pay, gift = rng.randint(2, 8), rng.randint(2, 6), rng.randint(2, 20)
    earned = weeks * pay
    have = earned + gift
    price = have + rng.randint(2, 30)
    name, she, _ = person(rng)
    wish = rng.choice(WISHES)
    questions = (
        f"{name} saves ${pay} a week for {weeks} weeks and gets ${gift} as a gift. A {wish} costs ${price}. How much more does {name} need?",
        f"A {wish} costs ${price}. {name} has a gift of ${gift} and saves ${pay} each week for {weeks} weeks. How much is missing?",
    )
    answers = (
        f"In {weeks} weeks {name} saves {weeks}*{pay}=${earned}. With the gift that is {earned}+{gift}=${have}. {she} needs {price}-{have}=${price - have} more.",
        f"{name} saves {weeks}*{pay}=${earned} and has {earned}+{gift}=${have} with the gift. For the {wish} {price}-{have}=${price - have} are missing.",
    )
    return (weeks, pay, gift, price), questions, answers, price - have


def trip(rng: random.Random) -> Made:
    speed, hours = rng.randint(3, 9), rng.randint(2, 6)
    slow, more = rng.randint(2, 6), rng.randint(2, 6)
    first, second = speed * hours, slow * more
    ride = rng.choice(TRIPS)
    questions = (
        f"A {ride} goes {speed} miles an hour for {hours} hours and then {slow} miles an hour for {more} hours. How far does it go?",
        f"For {hours} hours a {ride} does {speed} miles an hour, and for {more} hours it does {slow} miles an hour. How many miles is that?",
    )
    answers = (
        f"First the {ride} goes {hours}*{speed}={first} miles. Then it goes {more}*{slow}={second} miles. In all that is {first}+{second}={first + second} miles.",
        f"The first part is {hours}*{speed}={first} miles and the second part is {more}*{slow}={second} miles. The {ride} goes {first}+{second}={first + second} miles.",
    )
    return (speed, hours, slow, more), questions, answers, first + second


def garden(rng: random.Random) -> Made:
    rows, each = rng.randint(3, 8), rng.randint(3, 6)
    total = rows * each
    eaten, more = rng.randint(2, min(12, total - 1)), rng.randint(2, 20)
    name, she, _ = person(rng)
    x = rng.choice(FLOWERS)
    left = total - eaten
    questions = (
        f"{name} plants {rows} rows of {each} {x}. Rabbits eat {eaten} of them, and {name} plants {more} more. How many {x} are in the garden?",
        f"In a garden stand {rows} rows with {each} {x} each. {eaten} {x} dry out and {name} adds {more} new ones. How many {x} are there now?",
    )
    answers = (
        f"{name} starts with {rows}*{each}={total} {x}. Then {total}-{eaten}={left} are left. After planting there are {left}+{more}={left + more} {x}.",
        f"The rows hold {rows}*{each}={total} {x}. Without the lost ones that is {total}-{eaten}={left}. {she} ends with {left}+{more}={left + more} {x}.",
    )
    return (rows, each, eaten, more), questions, answers, left + more


def slices(rng: random.Random) -> Made:
    cakes, cut = rng.randint(2, 6), rng.choice((4, 5, 6, 8))
    total = cakes * cut
    guests = rng.randint(2, min(6, (total - 1) // 2))
    each = rng.randint(2, min(6, (total - 1) // guests))
    name, she, her = person(rng)
    x = rng.choice(MEALS)
    eaten = guests * each
    questions = (
        f"{name} cuts {cakes} {x} into {cut} slices each. {guests} guests eat {each} slices each. How many slices are left?",
        f"{guests} guests come to {name}. {her} {cakes} {x} have {cut} slices each, and every guest eats {each} slices. How many slices stay?",
    )
    answers = (
        f"The {x} give {cakes}*{cut}={total} slices. The guests eat {guests}*{each}={eaten} slices. So {total}-{eaten}={total - eaten} slices are left.",
        f"{name} has {cakes}*{cut}={total} slices and the guests eat {guests}*{each}={eaten} of them. {she} keeps {total}-{eaten}={total - eaten} slices.",
    )
    return (cakes, cut, guests, each), questions, answers, total - eaten


def ages(rng: random.Random) -> Made:
    age, times, years = rng.randint(4, 12), rng.randint(2, 4), rng.randint(2, 10)
    old = age * times
    name, _, her = person(rng)
    kin = rng.choice(KIN)
    later, now = old + years, age + years
    questions = (
        f"{name} is {age} years old. {her} {kin} is {times} times as old. How old will the two be together in {years} years?",
        f"The {kin} of {name} is {times} times as old as {name}, who is {age}. What do their ages add up to in {years} years?",
    )
    answers = (
        f"The {kin} is {age}*{times}={old} now. In {years} years {name} is {age}+{years}={now} and the {kin} is {old}+{years}={later}. Together they are {now}+{later}={now + later}.",
        f"Now the {kin} is {age}*{times}={old}. Later the {kin} is {old}+{years}={later} and {name} is {age}+{years}={now}. The sum is {now}+{later}={now + later}.",
    )
    return (age, times, years), questions, answers, now + later


def boxes(rng: random.Random) -> Made:
    size, count, price = rng.randint(2, 6), rng.randint(2, 8), rng.randint(2, 6)
    total, earned = size * count, count * price
    cost = rng.randint(1, min(12, earned - 1))
    name, she, _ = person(rng)
    x = rng.choice(GOODS)
    questions = (
        f"{name} packs {total} {x} into boxes of {size} and sells each box for ${price}. The stand costs ${cost}. How much does {name} keep?",
        f"{total} {x} go into boxes of {size}. {name} sells every box for ${price} and pays ${cost} for the stand. How much money is left?",
    )
    answers = (
        f"There are {total}/{size}={count} boxes. {name} earns {count}*{price}=${earned}. {she} keeps {earned}-{cost}=${earned - cost} after paying for the stand.",
        f"{name} fills {total}/{size}={count} boxes and sells them for {count}*{price}=${earned}. Without the stand that is {earned}-{cost}=${earned - cost}.",
    )
    return (total, size, price, cost), questions, answers, earned - cost


TEMPLATES: dict[str, Callable[[random.Random], Made]] = {
    "change": change,
    "give": give,
    "save": save,
    "trip": trip,
    "garden": garden,
    "slices": slices,
    "ages": ages,
    "boxes": boxes,
}


def make(rng: random.Random, templates: tuple[str, ...] = tuple(TEMPLATES)) -> Problem:
    """One problem; deterministic in the state of ``rng``."""
    template = rng.choice(templates)
    numbers, questions, answers, result = TEMPLATES[template](rng)
    return Problem(template, numbers, rng.choice(questions), f"{rng.choice(answers)} #### {result}", result)


def problems(seed: int, *, held_out: bool) -> Iterator[Problem]:
    """An endless stream of problems of one side of the split."""
    rng = random.Random(seed)
    while True:
        problem = make(rng)
        if problem.held_out == held_out:
            yield problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stream = problems(args.seed, held_out=args.split == "heldout")
    lines = [json.dumps(asdict(next(stream))) for _ in range(args.count)]
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
