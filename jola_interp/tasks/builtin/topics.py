"""The topic of a short text, one of six: business, cooking, music, science, sports, travel.

What a model must know: which everyday words belong to which of the six topics. The words around them (when it
was, how it was taken) say nothing about the topic.

How it is balanced: the six topics in turn. Each has 10 people and 12 deeds, and with 9 openings and 8 endings
that all topics share that makes 8,640 texts a topic, 51,840 rows: 36,288 for train, 7,776 each for validation and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from jola_interp.tasks.base import Example, Task
from jola_interp.tasks.builtin.deck import Deck, deal, digits
from jola_interp.tasks.formats import answer_pattern

NAME = "topics"
REQUIRES = "which everyday words belong to business, cooking, music, science, sports and travel"
TOPICS = ("business", "cooking", "music", "science", "sports", "travel")
OPENINGS = (
    "Last Monday,", "Yesterday,", "Two weeks ago,", "In the spring,", "After a long wait,",
    "Early in the morning,", "To everyone's surprise,", "For the first time in years,",
    "As the newspaper reports,",
)  # fmt: skip
ENDINGS = (
    "People talked about it for days.", "It went better than expected.", "Nobody had seen it coming.",
    "A short film shows how it went.", "It was worth the effort.", "Not everybody was pleased.",
    "The neighbors heard about it first.", "It will not be the last time.",
)  # fmt: skip
PEOPLE = {
    "business": (
        "the company", "a small firm", "the bank", "the new manager", "a young investor", "the start-up",
        "the board of directors", "a family business", "the head of sales", "a large retailer",
    ),
    "cooking": (
        "the chef", "a young cook", "my grandmother", "the pastry baker", "our host", "the kitchen helper",
        "a food writer", "the owner of the bistro", "the new apprentice", "a hungry student",
    ),
    "music": (
        "the orchestra", "a young pianist", "the string quartet", "the drummer", "a street violinist",
        "the conductor", "the jazz trio", "a famous cellist", "the brass band", "the school band",
    ),
    "science": (
        "the scientist", "a team of researchers", "the research group", "a doctoral student",
        "the laboratory", "the professor", "the university team", "an expert from abroad", "the institute",
        "a Nobel laureate",
    ),
    "sports": (
        "the goalkeeper", "the home team", "a young striker", "the captain", "the visiting team",
        "the new defender", "the youth team", "the coach", "the women's team", "the national team",
    ),
    "travel": (
        "a group of tourists", "the young couple", "our guide", "a tired backpacker",
        "the family from Norway", "the cruise passenger", "my cousin", "the tour operator",
        "a retired teacher", "the flight attendant",
    ),
}  # fmt: skip
DEEDS = {
    "business": (
        "raised prices by five percent", "signed a contract with a supplier", "reported a record profit",
        "sold a third of the shares", "paid back the loan", "opened a branch in the capital",
        "cut costs in every department", "lost an important customer", "presented the annual budget",
        "invested in a new warehouse", "announced a merger", "settled all unpaid invoices",
    ),
    "cooking": (
        "stirred the onions into the soup", "baked three loaves of rye bread", "seasoned the stew with thyme",
        "burned the pancakes", "rolled out the dough", "grilled fresh trout with lemon",
        "chopped a bowl of carrots", "whipped the cream by hand", "served a mushroom risotto",
        "simmered the sauce for hours", "shared a recipe for apple pie", "peeled two pounds of potatoes",
    ),
    "music": (
        "played a sonata in the old hall", "rehearsed the second symphony", "recorded a new album",
        "performed an old ballad", "tuned the instruments", "performed three encores",
        "wrote a melody in a minor key", "opened the concert with a waltz", "practiced scales until midnight",
        "missed the first chord", "arranged a folk tune", "kept the rhythm without a mistake",
    ),
    "science": (
        "measured the speed of the particles", "discovered a new species of beetle",
        "repeated the experiment", "published the results in a journal",
        "looked at the cells under a microscope", "tested the hypothesis", "observed a distant galaxy",
        "mixed two acids in a test tube", "analyzed the DNA samples", "explained the theory of gravity",
        "calibrated the telescope", "dated the fossil to the ice age",
    ),
    "sports": (
        "trained hard before the final", "scored twice before the break", "won the match on penalties",
        "broke the national record", "missed the playoffs", "left the field to loud applause",
        "lifted the trophy", "lost the game by two points", "warmed up in the stadium",
        "argued with the referee", "qualified for the tournament", "finished the season in third place",
    ),
    "travel": (
        "missed the connecting flight", "booked a room by the sea", "crossed the border by train",
        "packed two suitcases", "visited the ruins on the island", "lost a passport at the airport",
        "hiked to a mountain hut", "took a ferry along the coast", "checked in at the hostel",
        "asked for directions to the old town", "bought souvenirs at the harbor", "renewed an expired visa",
    ),
}  # fmt: skip
SIZES = (len(OPENINGS), 10, 12, len(ENDINGS))


def build(n_train: int, n_validation: int, n_test: int, seed: int) -> Task:
    """The task with these numbers of rows; TaskError above 36,288 for train or 7,776 for validation or test."""
    piles = {topic: prod(SIZES) for topic in TOPICS}
    splits = deal(NAME, seed, piles, _rows, (n_train, n_validation, n_test))
    return Task(NAME, *splits, kind="choice", options=TOPICS, pattern=answer_pattern(TOPICS), requires=REQUIRES)


def _rows(deck: Deck[str]) -> Iterator[Example]:
    for wanted in deck.rounds(TOPICS):
        topic, number = deck.draw(wanted)
        question = f"Which topic is this text about: {', '.join(TOPICS[:-1])} or {TOPICS[-1]}?"
        yield Example(f"{question}\n\n{_text(topic, number)}", topic)


def _text(topic: str, number: int) -> str:
    opening, person, deed, ending = digits(number, SIZES)
    return f"{OPENINGS[opening]} {PEOPLE[topic][person]} {DEEDS[topic][deed]}. {ENDINGS[ending]}"
