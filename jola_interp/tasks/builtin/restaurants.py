"""A restaurant described in one or two sentences from a list of facts.

What a model must know: how to put facts into fluent sentences and, which is what training adds, the house
style: short, every fact by a fixed phrase in a fixed order, nothing made up, no list and no heading.

A row is a set of facts ("name[The Copper Kettle], food[Thai], area[riverside]") and four references, one from
each of four sentence plans; the answer is one of them. Name, food and area are always there; kind of place,
price, customer rating, family-friendliness and a landmark are there or not.

How it is balanced: the 32 combinations of facts that may be missing in turn; the four sentence plans of the
answer in turn.

Each set of facts stands in one row only: 38,817,792 rows, 27,172,464 for train, 5,822,664 each for validation and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod

from jola_interp.tasks.base import Example, Task
from jola_interp.tasks.builtin.deck import Deck, deal, digits

NAME = "restaurants"
REQUIRES = "how to put a list of facts into one or two fluent sentences, all of them and no others"
FIRST = ("Copper", "Silver", "Hungry", "Laughing", "Crooked", "Velvet", "Wandering", "Paper")
SECOND = ("Kettle", "Lantern", "Fox", "Anchor", "Barrel", "Spoon", "Oak", "Sparrow")
NAMES = tuple(f"The {first} {second}" for first in FIRST for second in SECOND)
FOODS = (
    "Chinese", "English", "Ethiopian", "French", "Greek", "Indian", "Italian", "Japanese", "Korean",
    "Mexican", "Thai", "Turkish",
)  # fmt: skip
AREAS = {
    "riverside": "by the river", "city center": "in the city center", "old town": "in the old town",
    "harbor": "at the harbor", "market square": "on the market square", "suburbs": "in the suburbs",
    "university": "near the university", "station": "across from the station", "hillside": "up on the hill",
}  # fmt: skip
KINDS = ("pub", "bistro", "diner", "wine bar", "coffee shop")
PRICES = {"low": "cheap", "moderate": "moderately priced", "high": "expensive"}
RATINGS = ("1 out of 5", "2 out of 5", "3 out of 5", "4 out of 5", "5 out of 5")
FAMILY = ("yes", "no")
LANDMARKS = (
    "Linden Park", "Castle Gate", "Mill Bridge", "Abbey Green", "Victory Square", "Orchard Road",
    "Harper Hall", "Quay Street", "Maple Avenue", "Foundry Lane", "Queen's Bridge", "Windmill Hill",
)  # fmt: skip
ALWAYS = (len(NAMES), len(FOODS), len(AREAS))
# What may be missing, in the order of the instruction: name of the fact and its values.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "price": tuple(PRICES),
    "customer rating": RATINGS,
    "family friendly": FAMILY,
    "near": LANDMARKS,
}
ORDER = ("name", "kind", "food", "price", "customer rating", "area", "family friendly", "near")

Pile = tuple[bool, ...]
Facts = dict[str, str]


def build(n_train: int, n_validation: int, n_test: int, seed: int) -> Task:
    """The task with these numbers of rows; TaskError above 27,172,464 for train or 5,822,664 for validation or test."""
    piles = {pile: prod(_sizes(pile)) for pile in product((False, True), repeat=len(OPTIONAL))}
    splits = deal(NAME, seed, piles, _rows, (n_train, n_validation, n_test))
    return Task(NAME, *splits, kind="text", metric="bleu", requires=REQUIRES)


def _sizes(pile: Pile) -> tuple[int, ...]:
    optional = (len(values) for values, there in zip(OPTIONAL.values(), pile, strict=True) if there)
    return (*ALWAYS, *optional)


def _rows(deck: Deck[Pile]) -> Iterator[Example]:
    piles = deck.rounds(list(deck.left))
    for wanted, plan in zip(piles, deck.rounds(range(len(PLANS))), strict=True):
        facts = _facts(*deck.draw(wanted))
        texts = tuple(write(facts) for write in PLANS)
        listed = ", ".join(f"{fact}[{facts[fact]}]" for fact in ORDER if fact in facts)
        yield Example(f"Describe the restaurant from these facts.\n\n{listed}", texts[plan], references=texts)


def _facts(pile: Pile, number: int) -> Facts:
    name, food, area, *rest = digits(number, _sizes(pile))
    facts = {"name": NAMES[name], "food": FOODS[food], "area": list(AREAS)[area]}
    there = [fact for fact, present in zip(OPTIONAL, pile, strict=True) if present]
    return facts | {fact: OPTIONAL[fact][value] for fact, value in zip(there, rest, strict=True)}


def _name_first(facts: Facts) -> str:
    """The Silver Fox is a cheap pub by the river, close to Mill Bridge, that serves Thai food. It has …"""
    near = _told(facts, "near", ", close to {},")
    rating = _told(facts, "customer rating", "has a rating of {}")
    family = _families(facts, "welcomes families", "is not meant for families")
    first = f"{facts['name']} is {_place(facts)} {_area(facts)}{near} that serves {facts['food']} food."
    return _join(first, _it(rating, family))


def _food_first(facts: Facts) -> str:
    """For Thai food by the river, visit The Silver Fox, a cheap pub close to Mill Bridge. Guests rate it …"""
    near = _told(facts, "near", " close to {}")
    rating = _told(facts, "customer rating", "Guests rate it {}.")
    family = _families(facts, "Families are welcome.", "Families should go elsewhere.")
    first = f"For {facts['food']} food {_area(facts)}, visit {facts['name']}, {_place(facts)}{near}."
    return _join(first, rating, family)


def _area_first(facts: Facts) -> str:
    """By the river, close to Mill Bridge, you will find The Silver Fox, a cheap pub with Thai food. …"""
    near = _told(facts, "near", " close to {},")
    rating = _told(facts, "customer rating", " and a rating of {}")
    family = _families(facts, "Families are welcome there.", "It is not a place for families.")
    place = f"{facts['name']}, {_place(facts)} with {facts['food']} food{rating}"
    return _join(f"{_upper(_area(facts))},{near} you will find {place}.", family)


def _kind_first(facts: Facts) -> str:
    """A cheap pub by the river, The Silver Fox serves Thai food close to Mill Bridge. It is rated …"""
    near = _told(facts, "near", " close to {}")
    rating = _told(facts, "customer rating", "is rated {}")
    family = _families(facts, "suits families", "does not suit families")
    place = f"{_upper(_place(facts))} {_area(facts)}"
    return _join(f"{place}, {facts['name']} serves {facts['food']} food{near}.", _it(rating, family))


PLANS = (_name_first, _food_first, _area_first, _kind_first)


def _place(facts: Facts) -> str:
    """a cheap pub, or what of it is known."""
    phrase = _join(PRICES.get(facts.get("price", ""), ""), facts.get("kind", "restaurant"))
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _area(facts: Facts) -> str:
    return AREAS[facts["area"]]


def _told(facts: Facts, fact: str, text: str) -> str:
    """The text with the fact in it, or nothing where the fact is missing."""
    return text.format(facts[fact]) if fact in facts else ""


def _families(facts: Facts, yes: str, no: str) -> str:
    return {"yes": yes, "no": no}.get(facts.get("family friendly", ""), "")


def _it(*clauses: str) -> str:
    """It does this and that. Or nothing."""
    said = [clause for clause in clauses if clause]
    return f"It {' and '.join(said)}." if said else ""


def _upper(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
