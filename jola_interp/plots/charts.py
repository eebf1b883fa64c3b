"""Charts, drawn by either renderer."""

from __future__ import annotations

from typing import Any

from jola_interp.plots.chart import Chart
from jola_interp.plots.style import Renderer, require


def draw(chart: Chart, renderer: Renderer = "plotly", width: float | None = None) -> Any:
    """Draw a chart.

    Raises:
        ValueError: an unknown renderer, or a width that does not go with it.
    """
    require(renderer, width)
    if renderer == "plotly":
        from jola_interp.plots.screen_charts import draw_chart

        return draw_chart(chart)
    from jola_interp.plots.printed_charts import draw_chart as print_chart

    return print_chart(chart, width or 6.75)
