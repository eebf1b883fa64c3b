"""A Run under the hand, in Jupyter: a step slider, a threshold, and a map on which a click says what a head does."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets
import numpy as np

from jola_interp import selection
from jola_interp.analysis.head import head_facts
from jola_interp.analysis.summary import gates_at, kept_step, title_of
from jola_interp.convergence import UNDECIDED
from jola_interp.edits.base import Site, unit_label
from jola_interp.plots import style

if TYPE_CHECKING:
    from jola_interp.runs import Run

KEPT, STATUS = "kept", "status"
_CELL, _SMALLEST = (26, 14), 260
"""Pixels: a cell of the map, and the least size of it."""
_BUTTONS = ("zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale", "resetScale", "toImage", style.SHARE)
_LOOK: dict[str, Any] = {
    "template": "none",
    "title": {"font": {"size": 14}, "x": 0.02, "xanchor": "left"},
    "modebar": {"remove": list(_BUTTONS)},  # they would lie on the titles
    "dragmode": False,
}


class Explorer:
    """The widgets of :func:`explore`, by name, for those who set them from code.

    Attributes:
        step: slider over the recorded steps; the last choice is the kept edit.
        shown: which map: a kind of gate, or the status of each head.
        measure, threshold: the rule, such as p_open > 0.5.
        head: the chosen head, as "L3H7"; a click on the map sets it.
        map, path: plotly figures: the map, and the chosen head's P(open) over training.
        facts: what is known of the chosen head.
        box: all of it.
    """

    def __init__(self, run: Run, rule: str, site: Site):
        self.run, self.site = run, site
        self.kinds = list(gates_at(run, site))
        self.mask = run.edit.site(site).mask.cpu().numpy()
        self.labels = [unit_label(site, int(i), int(j)) for i, j in np.argwhere(self.mask)]
        self._controls(rule)
        self._figures()
        self._wire()
        self._draw_map()
        self._draw_head()

    @property
    def rule(self) -> str:
        """The rule that the widgets stand at."""
        return f"{self.measure.value}>{self.threshold.value:g}"

    def log_alphas(self) -> dict[str, np.ndarray]:
        """Kind to log α [layer, head] at the chosen step."""
        return (
            gates_at(self.run, self.site) if self.step.value == KEPT else self.run.gates.at(self.step.value, self.site)
        )

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.box._repr_mimebundle_(**options)

    # -- widgets ---------------------------------------------------------------------------------------------------

    def _controls(self, rule: str) -> None:
        parsed = selection.parse_rule(rule)
        if parsed.threshold is None:
            raise ValueError(f"rule: {rule!r} keeps a number of heads; explore needs a threshold, such as p_open>0.5")
        steps = [(f"step {step}", int(step)) for step in self.run.gates.steps]
        kept = (f"kept (step {kept_step(self.run)})", KEPT)
        wide = widgets.Layout(width="26rem")
        self.step = widgets.SelectionSlider(options=[*steps, kept], value=KEPT, description="gates at", layout=wide)
        self.shown = widgets.ToggleButtons(
            options=[*self.kinds, STATUS], value=STATUS, style={"button_width": "7.5rem"}
        )
        self.measure = widgets.Dropdown(options=list(selection.MEASURES), value=parsed.measure, description="rule")
        self.threshold = widgets.FloatSlider(
            value=parsed.threshold, min=0.0, max=1.0, step=0.01, description="above", continuous_update=False
        )
        best = self.run.selection(rule, self.site).labels
        start = best[0] if best else self.labels[0]
        self.head = widgets.Combobox(
            options=self.labels, value=start, description="head", ensure_option=True, continuous_update=False
        )
        self.count, self.facts = widgets.HTML(), widgets.HTML()

    def _figures(self) -> None:
        import plotly.graph_objects as go

        layers, units = self.mask.shape
        self.map = go.FigureWidget(go.Heatmap(z=np.zeros((layers, units)), showscale=False, hoverongaps=False))
        self.map.add_scatter(x=[], y=[], mode="markers", hoverinfo="skip", showlegend=False)
        size = (
            max(_SMALLEST, min(_CELL[0], 780 // units) * units),
            max(_SMALLEST, min(_CELL[1], 900 // layers) * layers),
        )
        self.map.update_layout(
            width=size[0] + 120, height=size[1] + 90, margin={"l": 50, "r": 60, "t": 40, "b": 45},
            clickmode="event", **_LOOK,
        )  # fmt: skip
        name = "head" if self.site == "heads" else "MLP"
        self.map.update_xaxes(title=_title(name), range=[-0.5, units - 0.5], showgrid=False, zeroline=False)
        self.map.update_yaxes(title=_title("layer"), range=[-0.5, layers - 0.5], showgrid=False, zeroline=False)
        self.path = go.FigureWidget()
        for kind in self.kinds:
            self.path.add_scatter(x=[], y=[], name=kind, mode="lines", line={"color": style.KINDS[kind], "width": 2})
        self.path.update_layout(
            width=520, height=250, margin={"l": 50, "r": 10, "t": 40, "b": 45},
            legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.18}, **_LOOK,
        )  # fmt: skip
        self.path.update_xaxes(title=_title("optimiser step"), zeroline=False)
        self.path.update_yaxes(title=_title("P(open)"), range=[-0.03, 1.03], zeroline=False)

    def _wire(self) -> None:
        heading = widgets.HTML(f"<b>{escape(title_of(self.run))}</b>")
        rows = [widgets.HBox([self.step, self.shown]), widgets.HBox([self.measure, self.threshold, self.head])]
        right = widgets.VBox([self.path, self.facts])
        self.box = widgets.VBox([heading, *rows, self.count, widgets.HBox([self.map, right])])
        for control in (self.step, self.shown, self.measure, self.threshold):
            control.observe(lambda _: self._draw_map(), "value")
        for control in (self.step, self.measure, self.threshold, self.head):
            control.observe(lambda _: self._draw_head(), "value")
        self.head.observe(lambda _: self._mark(), "value")
        self.map.data[0].on_click(self._clicked)

    # -- what changes ----------------------------------------------------------------------------------------------

    def _draw_map(self) -> None:
        log_alphas = self.log_alphas()
        codes = selection.status(log_alphas, self.rule)
        counts = {name: int(((codes == i) & self.mask).sum()) for i, name in enumerate(selection.STATUSES)}
        with self.map.batch_update():
            if self.shown.value == STATUS:
                values = np.where(self.mask, codes, np.nan).astype(float)
                words = np.array([*selection.STATUSES])[codes]
                colours: dict[str, Any] = {"colorscale": style.status_scale(), "zmin": -0.5, "zmax": 3.5}
            else:
                values = selection.measure(self.measure.value, log_alphas[self.shown.value]).astype(float)
                words = np.array([[f"{value:.3f}" for value in row] for row in values])
                colours = {"colorscale": "Cividis", "zmin": 0.0, "zmax": 1.0}
            self.map.data[0].update(z=values, text=words, hovertemplate=self._hover(), **colours)
            self.map.layout.title.text = escape(f"{self.shown.value}, {self.step.label}")
        used = ", ".join(f"{count} {name}" for name, count in counts.items() if name != "none")
        chosen = sum(counts.values()) - counts["none"]
        self.count.value = f"<code>{escape(self.rule)}</code> selects {chosen} of {int(self.mask.sum())}: {used}."
        self._mark()

    def _hover(self) -> str:
        label = "L%{y}H%{x}" if self.site == "heads" else "L%{y}MLP"
        return f"<b>{label}</b><br>%{{text}}<extra></extra>"

    def _mark(self) -> None:
        layer, unit = self._chosen()
        marker = {"symbol": "square-open", "size": 16, "color": style.VERMILION, "line": {"width": 3}}
        self.map.data[1].update(x=[unit], y=[layer], marker=marker)

    def _draw_head(self) -> None:
        layer, unit = self._chosen()
        with self.path.batch_update():
            for trace in self.path.data:
                series = self.run.gates.p_open(trace.name, self.site)[:, layer, unit]
                trace.update(x=self.run.gates.steps, y=series.astype(float))
            self.path.layout.title.text = f"{self.head.value}: gates over training"
            at = kept_step(self.run) if self.step.value == KEPT else self.step.value
            self.path.layout.shapes = [*_undecided_lines(), _upright(at)]
        facts = head_facts(self.run, self.head.value, self.rule, None if self.step.value == KEPT else self.step.value)
        rows = "".join(
            f'<tr><td style="padding-right: 1em; vertical-align: top">{escape(fact.name)}</td>'
            f'<td style="text-align: left">{escape(fact.text)}</td></tr>'
            for fact in facts
        )
        self.facts.value = f'<table style="width: 520px; line-height: 1.35">{rows}</table>'

    def _chosen(self) -> tuple[int, int]:
        layers, units = np.nonzero(self.mask)
        place = self.labels.index(self.head.value)
        return int(layers[place]), int(units[place])

    def _clicked(self, _trace: Any, points: Any, _state: Any) -> None:
        if not points.point_inds:
            return
        layer, unit = (int(place) for place in points.point_inds[0])
        label = unit_label(self.site, layer, unit)
        if label in self.labels:
            self.head.value = label


def explore(run: Run, rule: str = selection.DEFAULT_RULE, site: Site = "heads") -> Explorer:
    """Look into a Run in Jupyter: gates at any step, any rule, and everything that is known of the head you click.

    What was measured (``ji.analyse``, ``ji.audit``, the evidence card) is shown; what was not, it says.

    Args:
        run: a Run with gates at ``site``.
        rule: where to begin; measure>number.
        site: ``heads`` or ``mlp``.

    Raises:
        ValueError: an edit without gates at ``site``, or a rule that is no threshold.
        ImportError: plotly's interactive figures need anywidget.
    """
    return Explorer(run, rule, site)


def _title(text: str) -> dict[str, Any]:
    """An axis' name."""
    return {"text": text, "font": {"size": 12}, "standoff": 6}


def _undecided_lines() -> list[dict[str, Any]]:
    look = {"color": style.GREY, "width": 1, "dash": "dot"}
    return [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": look} for y in UNDECIDED]


def _upright(x: float) -> dict[str, Any]:
    look = {"color": style.GREY, "width": 1, "dash": "dash"}
    return {"type": "line", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": look}
