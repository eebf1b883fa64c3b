"""The report is one file that says what the Run says, and loads nothing."""

from __future__ import annotations

import re
import shlex
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from jola_interp import analysis, cli, models, plots, training
from jola_interp.analysis import recipe
from jola_interp.config import PRESETS
from jola_interp.evidence.card import CHEAP, NAMES, PARTS
from jola_interp.evidence.words import VERDICTS, in_words
from jola_interp.report import report
from jola_interp.runs import Run
from tests.evidence_by_hand import audited, question, stamp
from tests.runs_by_hand import make_run

ABLATIONS: dict[str, dict[str, Any]] = {
    "separate": {},
    "none": {"gates": "none"},
    "shared": {"gates": "shared"},
    "add": {"operations": "add"},
    "multiply": {"operations": "multiply"},
    "mlp": {"sites": ("mlp",)},
    "heads and mlp": {"sites": ("heads", "mlp")},
    "mlp without gates": {"sites": ("mlp",), "gates": "none"},
}
"""Switches of every kind of edit that there is."""


def written(folder: Path, **options: Any) -> str:
    """The report of a Run made by hand, without plotly's own code."""
    text = report(make_run(folder, **options)).read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


def rewritten(run: Run) -> str:
    """The report of a Run as it is now, without plotly's own code."""
    return report(run).read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def evidence_in(text: str) -> str:
    """The section "Is it real?", without its figure."""
    return text.split("<h2>Is it real?</h2>")[1].split("<h2>")[0]


class Strict(HTMLParser):
    """Fails on tags that do not close, and collects what would be fetched."""

    void = {"meta", "br", "link", "img", "input"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_it_is_one_complete_file_that_fetches_nothing(tmp_path: Path) -> None:
    text = written(tmp_path)
    parser = Strict()
    parser.feed(text)
    assert not parser.open and not parser.fetched
    assert "http" not in text and "cdn" not in text.lower() and "@import" not in text
    assert (tmp_path / "report.html").stat().st_size < 8_000_000


def test_it_says_scores_with_intervals_and_heads_with_their_rule(tmp_path: Path) -> None:
    text, run = written(tmp_path), make_run(tmp_path)
    assert "BLEU: 11.0 [10.0, 12.0] → 52.0 [51.0, 53.0]" in text
    summary = analysis.gate_summary(run)
    assert f"{summary.selected} of 12 heads are selected" in text and "p_open&gt;0.5" in text
    assert f"{summary.acting} heads have a gate that is not 0" in text


def test_it_warns_where_gates_have_not_decided(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert analysis.gate_summary(run).decided_share < 0.95
    assert "An undecided gate is not a selected head" in " ".join(report(run).read_text(encoding="utf-8").split())
    for value in run.edit.log_alphas().values():
        value.copy_(20 * value.sign())
    assert analysis.gate_summary(run).decided_share == 1
    assert "An undecided gate" not in report(run).read_text(encoding="utf-8")


def test_text_from_data_is_text(tmp_path: Path) -> None:
    text = written(tmp_path, names=("<img src=x onerror=alert(1)>", "</script><b>task"))
    assert "<script>alert" not in text and "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp;" in text
    assert "Say &lt;b&gt;hello&lt;/b&gt;" in text
    assert "<img" not in text and "</script><b>" not in text
    assert "m" * 700 + " …" in text and "m" * 701 not in text


def test_it_has_the_gallery_and_follows_dark_and_light(tmp_path: Path) -> None:
    text = written(tmp_path)
    found = re.findall(r'<div id="([\w-]+)" class="plotly-graph-div"', text)
    drawn = [f"figure-{entry.name}" for entry, _ in plots.gallery(Run.load(tmp_path))]
    assert found == drawn and {"figure-heads", "figure-gate_snapshots", "figure-loss"} <= set(found)
    assert text.count("prefers-color-scheme: dark") == 2


def test_equal_runs_give_equal_reports(tmp_path: Path) -> None:
    assert written(tmp_path / "a") == written(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gates": "none"}, "no gates: nothing was selected"),
        ({"evaluated": False}, "Not evaluated"),
        ({"gates": "shared"}, "JoLA with shared gates"),
        ({"sites": ("heads", "mlp")}, "3 MLPs are selected"),
        ({"sites": ("mlp",)}, "3 MLPs are selected"),
        ({"operations": "add"}, "of 12 heads are selected"),
        ({"operations": "multiply"}, "of 12 heads are selected"),
        ({"sites": ("mlp",), "gates": "none"}, "no gates: nothing was selected"),
        ({"layers": 1, "heads": 1, "kv_heads": 1, "steps": 3}, "of 1 heads are selected"),
    ],
    ids=["no gates", "no scores", "shared", "both sites", "mlp", "add", "multiply", "mlp without gates", "one head"],
)
def test_it_is_written_for_every_kind_of_run(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    assert said in written(tmp_path, **options)


def test_the_evidence_follows_the_scores_with_its_verdict_and_an_answer_a_part(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    card = question(run)
    text = rewritten(run)
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:3] == ["Scores", "Is it real?", "Gains beside their controls"]
    shown = evidence_in(text)
    assert f"<strong>{card.verdict.capitalize()}</strong>" in shown and escape(VERDICTS[card.verdict]) in shown
    rows = re.findall("<tr><td><code>(.*?)</code></td><td>(.*?)</td><td>(.*?)</td></tr>", shown)
    answers = [escape(in_words(name, card.parts[name])) for name in NAMES]
    assert [list(row) for row in rows] == [
        [part.name, escape(part.question), answer] for part, answer in zip(PARTS, answers, strict=True)
    ]
    parser = Strict()
    parser.feed(text)
    assert not parser.open and not parser.fetched
    assert 'id="controls" class="plotly-graph-div"' in text


def test_parts_that_were_not_run_stand_with_their_commands(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    question(run, CHEAP)
    shown = evidence_in(rewritten(run))
    told = re.findall(r"Not run: <code[^>]*>jola-interp evidence RUN --part (\w+)</code>", shown)
    assert told == [name for name in NAMES if name not in CHEAP]
    assert "<strong>Open</strong>" in shown


def test_without_evidence_it_says_that_nothing_was_checked(tmp_path: Path) -> None:
    shown = evidence_in(written(tmp_path / "a"))
    assert "Nothing here was checked against a null" in shown and "jola-interp evidence RUN" in shown
    assert "<table" not in shown and 'id="controls"' not in shown
    ungated = evidence_in(written(tmp_path / "b", gates="none"))
    assert "Nothing here was checked" in ungated and "jola-interp evidence" not in ungated  # it would be refused


def test_evidence_without_a_gain_has_no_figure(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    question(run, ["convergence", "scope"])
    assert 'id="controls"' not in rewritten(run)


def test_evidence_about_another_edit_is_not_passed_off_as_this_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    question(run)
    assert "about another edit" not in rewritten(run)
    next(iter(run.edit.log_alphas().values())).add_(1)
    assert "about another edit" in rewritten(run)


def test_text_from_evidence_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=("<img src=x>", "</script><b>task"))
    question(run, causal={"sentence": "<script>alert(1)</script> & so on"})
    text = rewritten(run)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in text
    assert "<script>alert" not in text and "<img" not in text and "</script><b>" not in text


def test_no_head_is_said_to_add_what_the_audit_gives_to_others_as_well(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    question(run)
    text = re.sub("<.*?>", "", rewritten(run))
    adding = set(re.findall(r"(L\d+H\d+) adds", text))
    assert adding == {head.label for head in audited().heads if head.effect is not None and head.identified}
    assert "L1H2: an offset of layer 1 that other heads could host as well" in text
    assert "Of the 3 selected heads with an offset, 2 are not identified" in text


def test_the_convergence_stamp_is_in_the_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "No convergence stamp" in rewritten(run)
    found = stamp(run)
    text = rewritten(run)
    assert escape(found.sentence()) in text and "Not converged" not in text
    failed = stamp(run, decided=300, gap=0.2)
    warned = re.search('<div class="warning"><strong>Not converged:</strong> (.*?)</div>', rewritten(run))
    assert warned and len(failed.reasons) == 2 and all(escape(reason) in warned[1] for reason in failed.reasons)
    assert "convergence stamp" not in written(tmp_path / "none", gates="none")


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.config["status"] = "diverged"
    (tmp_path / "metrics.jsonl").write_text("")
    del run.metrics
    run.gates.truncate(-1)
    text = report(run, tmp_path / "new" / "other.html").read_text(encoding="utf-8")
    assert "This Run is diverged" in text and 'id="figure-loss"' not in text
    assert not (tmp_path / "report.html").exists()


def test_settings_that_are_not_the_presets_stand_out(tmp_path: Path) -> None:
    text = written(tmp_path, train={"epochs": 3, "patience": None})
    assert "<dt>epochs</dt><dd><strong>3</strong></dd>" in text
    assert "<dt>patience</dt><dd><strong>None</strong></dd>" in text
    assert "<dt>seed</dt><dd>42</dd>" in text


def test_the_recipe_names_what_differs_from_the_preset(tmp_path: Path) -> None:
    changed = {"epochs": 3, "patience": None, "bucketed": False, "adam_betas": [0.8, 0.9]}
    run = make_run(tmp_path, names=("tiny", "restaurants"), gates="shared", train=changed)
    assert recipe.command(run) == (
        "jola-interp fit --model tiny --dtype float32 --task restaurants --n-train 9 --n-validation 3 --n-test 2 "
        "--option gates=shared --preset paper --backend lens --epochs 3 --no-bucketed --adam-betas 0.8 0.9 --patience 0"
    )
    lines = recipe.python_lines(run)
    assert "ji.load_task('restaurants', n_train=9, n_validation=3, n_test=2)" in lines
    assert "gates='shared'" in lines and "epochs=3, bucketed=False" in lines
    compile(lines, "recipe", "exec")


@pytest.mark.parametrize("switches", ABLATIONS.values(), ids=ABLATIONS)
def test_the_recipes_command_is_one_that_the_command_line_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switches: dict[str, Any]
) -> None:
    train = {"epochs": 3, "patience": None, "bucketed": False, "adam_betas": [0.8, 0.9], "clip": None}
    run = make_run(tmp_path, names=("tiny", "restaurants"), train=train, **switches)
    run.config["model"]["dtype"] = "bfloat16"
    taken = trained_by(run, monkeypatch)
    assert (taken["name"], taken["dtype"]) == ("tiny", "bfloat16")
    assert taken["settings"].to_dict() == run.config["train"]
    assert taken["edit"].settings() == run.edit.settings()
    assert taken["task"].sizes == run.config["task"]["sizes"]


def test_the_recipe_keeps_a_penalty_that_its_schedule_would_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, reference = PRESETS["reference"].edit, PRESETS["reference"].train
    train = {**reference.to_dict(), "penalty_schedule": "linear"}  # with the preset's penalty, not the schedule's
    run = make_run(tmp_path, names=("tiny", "restaurants"), train=train, **edit)
    run.config["preset"] = "reference"
    assert trained_by(run, monkeypatch)["settings"].to_dict() == train


def trained_by(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line hands to load_model and fit, given the command of the Run's recipe."""
    taken: dict[str, Any] = {}

    class Model:
        head_shape = run.edit.shape

    def load_model(name: str, dtype: str) -> Any:
        taken.update(name=name, dtype=dtype)
        return Model()

    def fit(*given: Any, **_: Any) -> Any:
        taken.update(zip(("model", "task", "method", "settings"), given, strict=True))
        taken["edit"] = taken["method"].make(taken["model"], PRESETS[run.config["preset"]].edit)
        return run

    monkeypatch.setattr(models, "load_model", load_model)
    monkeypatch.setattr(training, "fit", fit)
    result = CliRunner().invoke(cli.app, shlex.split(recipe.command(run) or "")[1:])
    assert result.exit_code == 0, result.output
    return taken


def test_edits_that_the_command_line_cannot_name_are_left_to_python(tmp_path: Path) -> None:
    hard = make_run(tmp_path / "a", inference="hard")
    assert recipe.command(hard) is None and "inference='hard'" in recipe.python_lines(hard)
    layers = make_run(tmp_path / "b", only={"layers": [0, 2]})
    assert recipe.command(layers) is None and "layers=[0, 2]" in recipe.python_lines(layers)
    heads = make_run(tmp_path / "c", only={"heads": ["L0H1", "L2H3"]})
    assert "heads=['L0H1', 'L2H3']" in recipe.python_lines(heads)


def test_the_recipe_of_a_method_names_it_with_its_options(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=("tiny", "restaurants"), gates="none", train={"gate_share": 1.0, "lr": 2e-2})
    run.config["method"] = {"name": "attention", "options": {}}
    assert "ji.fit(model, task, 'attention', preset='paper'" in recipe.python_lines(run)
    assert "--method attention --preset paper" in (recipe.command(run) or "")
    assert recipe.changed_training(run) == {}
    run.config["method"] = {"name": "of another version", "options": {}}
    assert "ji.JoLA(" in recipe.python_lines(run)
