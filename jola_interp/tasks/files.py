"""A task from a directory: `train.jsonl`, `validation.jsonl`, `test.jsonl` and perhaps `task.json`.

Each line of a `.jsonl` file is one JSON object in UTF-8; `Example.from_row` says which keys are read. Blank
lines are passed over. train and test must be there. Where validation is missing, it is cut from the training
rows that the seed did not choose.

`task.json` may hold kind, options, pattern and metric, and no other key; what it leaves open is read off the
rows, see `answer_format`.

An instruction must not stand both in train and in test, whichever rows are chosen in the end, and letter case
and white space make no difference. This is the strictest of the rules that were tried (same instruction and
answer; same instruction; same instruction with case and white space levelled): all twenty folders of real
benchmark data at hand (commonsense, MMLU-Pro, GEM) keep it in full, and a model that was trained on a test
question scores it from memory even where the answer is worded differently. The same overlap with validation
makes early stopping too trusting, but no score false: it is a warning. An id may stand in two splits, not
twice in one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jola_interp._log import logger
from jola_interp.tasks.base import SPLITS, Example, Splits, Task, TaskError, shared_rows
from jola_interp.tasks.formats import answer_format, check_answer

MOST_VALIDATION = 200


class Row(NamedTuple):
    """A row and the line of its file."""

    line: int
    example: Example


def load_folder(folder: Path, n_train: int, n_validation: int | None, n_test: int | None, seed: int) -> Task:
    """The task in a directory, named after it.

    Args:
        folder: the directory.
        n_train: training rows, a seeded sample; more than there are is an error.
        n_validation: validation rows, a seeded sample; None for 200. What is missing is logged.
        n_test: test rows, a seeded sample; None for all, in the order of the file. What is missing is logged.
        seed: of the samples. A larger sample begins with the rows of a smaller one.

    Raises:
        TaskError: a file that is missing or cannot be used; the message names file, line and reason.
    """
    _check_folder(folder)
    rows = {split: _read_split(folder, split) for split in SPLITS}
    _check_overlaps(folder, rows)
    form = _format(folder, rows)
    train = _sample(rows["train"], seed, "train")
    if n_train > len(train):
        raise TaskError(f"{folder / 'train.jsonl'}: n_train is {n_train}, but there are only {len(train)} rows")
    validation = _sample(rows["validation"], seed, "validation") or _cut(folder, train, n_train)
    validation = _take(folder, "validation", validation, n_validation)
    test = _sample(rows["test"], seed, "test")
    test = test if n_test is None else _take(folder, "test", test, n_test)
    splits = Splits(*(tuple(_examples(chosen)) for chosen in (train[:n_train], validation, test)))
    return Task(folder.resolve().name, *splits, **form)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise TaskError(f"{folder} is a file; a task is a directory of train.jsonl and test.jsonl")
    if not folder.is_dir():
        # From where a relative path was looked up is half of such mistakes.
        whole = "" if folder.is_absolute() else f" (looked for {folder.absolute()})"
        raise TaskError(f"{folder}: no such directory{whole}")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file, one at a time.

    Raises:
        TaskError: a line that is not UTF-8, not JSON or not a row; the message names file, line and reason.
    """
    # Bytes, because a text file would report a bad byte without its line.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                example = Example.from_row(_parse(raw), f"{path.stem}-{number}")
            except TaskError as error:
                raise TaskError(f"{path}:{number}: {error}") from None
            yield Row(number, example)


def _parse(raw: bytes) -> Any:
    try:
        # utf-8-sig: some editors put a byte order mark before the first line.
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise TaskError(f"not UTF-8 (byte {error.start + 1} of the line)") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise TaskError(f"not JSON ({error})") from None


def _read_split(folder: Path, split: str) -> list[Row]:
    """All rows of a split, ids unique; an empty list only for a validation file that is not there."""
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        if split == "validation":
            return []
        raise TaskError(f"{path}: no such file; a task has train.jsonl and test.jsonl, and may have validation.jsonl")
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for row in read_rows(path):
        if row.example.id in lines:
            before = lines[row.example.id]
            raise TaskError(f"{path}:{row.line}: id {row.example.id!r} stands already on line {before}")
        lines[row.example.id] = row.line
        rows.append(row)
    if not rows:
        raise TaskError(f"{path}: no rows")
    return rows


def _check_overlaps(folder: Path, rows: dict[str, list[Row]]) -> None:
    """An error where train meets test, a warning where validation meets either."""
    for first, second in (("train", "test"), ("train", "validation"), ("validation", "test")):
        shared = list(shared_rows(_examples(rows[first]), _examples(rows[second])))
        if not shared:
            continue
        i, j = shared[0]
        message = (
            f"{folder / second}.jsonl:{rows[second][j].line}: same instruction as line {rows[first][i].line} "
            f"of {first}.jsonl (rows of {second} of which this is so: {len(shared)})"
        )
        if second == "test" and first == "train":
            raise TaskError(message)
        logger.warning("%s", message)


def _format(folder: Path, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """kind, options, pattern and metric, with every answer checked against the options."""
    path = folder / "task.json"
    given = _read_settings(path) if path.is_file() else {}
    everything = [row.example for split in SPLITS for row in rows[split]]
    try:
        form, why = answer_format(everything, given)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
    logger.info("task %s: kind %s, metric %s (%s)", folder.resolve().name, form["kind"], form["metric"], why)
    if form["kind"] == "choice":
        for split in SPLITS:
            _check_answers(folder / f"{split}.jsonl", rows[split], form["options"])
    return form


def _check_answers(path: Path, rows: Sequence[Row], options: tuple[str, ...]) -> None:
    for line, example in rows:
        try:
            check_answer(example, example.options or options)
        except TaskError as error:
            raise TaskError(f"{path}:{line}: {error}") from None


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = _parse(path.read_bytes())
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
    if not isinstance(settings, dict):
        raise TaskError(f"{path}: must be an object, not {type(settings).__name__}")
    return settings


def _sample(rows: Sequence[Row], seed: int, split: str) -> list[Row]:
    """All rows in a seeded order, so that any number of them is a prefix of any larger number."""
    shuffled = list(rows)
    random.Random(f"{split}:{seed}").shuffle(shuffled)
    return shuffled


def _cut(folder: Path, train: Sequence[Row], n_train: int) -> list[Row]:
    """Validation rows from the training rows that are not used, the last of their seeded order first.

    Training takes the first ones, so a larger n_train leaves validation as it was until the rows run short.
    """
    used = {row.example.key for row in train[:n_train]}
    spare = [row for row in reversed(train[n_train:]) if row.example.key not in used]
    if not spare:
        raise TaskError(
            f"{folder / 'validation.jsonl'}: no such file, and n_train {n_train} leaves none of the "
            f"{len(train)} rows of train.jsonl for validation: lower n_train or add the file"
        )
    logger.info("%s: no validation.jsonl; cut from the rows of train.jsonl that are not trained on", folder)
    return spare


def _take(folder: Path, split: str, rows: list[Row], n: int | None) -> list[Row]:
    """The first n rows (of validation: 200 where n is None), or what there is, which is logged."""
    wanted = MOST_VALIDATION if n is None else n
    if len(rows) < wanted:
        logger.info("%s: %d rows of %s, not %d: no more there are", folder, len(rows), split, wanted)
    return rows[:wanted]


def _examples(rows: Sequence[Row]) -> list[Example]:
    return [row.example for row in rows]
