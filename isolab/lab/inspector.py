"""The panel "Watch it work": what a run's steps do to its layers, and what it writes."""

from __future__ import annotations

import html

import ipywidgets as widgets

from isolab.lab.display import LiveChart
from isolab.lab.front_end import FrontEnd
from isolab.lab.live import News

_TEXT = (
    "white-space:pre-wrap;overflow-wrap:anywhere;margin:2px 0 10px;padding:8px;line-height:1.35;"
    "max-height:11em;max-width:860px;box-sizing:border-box;overflow:auto;"
    "border:1px solid var(--jp-border-color2, #bbb);"
    "font-family:var(--jp-code-font-family, monospace);font-size:0.92em"
)


class Inspector:
    """A panel, closed at first, that draws the newest look inside a run while it is open.

    Args:
        front: where it is shown.

    Attributes:
        widget: what to lay out.
    """

    def __init__(self, front: FrontEnd) -> None:
        self._news: News | None = None
        self._layers, self._spectra = LiveChart(front, 0), LiveChart(front, 0)
        self._about = widgets.HTML(layout=widgets.Layout(width="auto"))
        self._text = widgets.HTML(layout=widgets.Layout(width="auto"))
        flow = widgets.Layout(flex_flow="row wrap", width="100%", align_items="flex-start")
        charts = widgets.Box([self._layers.widget, self._spectra.widget], layout=flow)
        inside = widgets.VBox([self._about, charts, self._text])
        self.widget = widgets.Accordion(
            children=[inside], titles=("Watch it work",), selected_index=None
        )
        self.widget.add_class("isolab-lab-inside")
        self._say(None)

    @property
    def open(self) -> bool:
        """Whether someone can see it."""
        return self.widget.selected_index is not None

    def show(self, news: News | None) -> None:
        """Draws a run's newest look, at once if the panel is open and else when it opens."""
        self._news = news
        self.draw()

    def draw(self) -> None:
        """Draws the newest look if the panel is open."""
        if not self.open:
            return
        self._say(self._news)
        if self._news is None or self._news.inside is None:
            return
        from isolab.charts.inside import layers_inside, spectra

        seen = self._news.inside
        self._layers.show(layers_inside(seen.layers).to_dict())
        if not seen.spectra.is_empty():
            self._spectra.show(spectra(seen.spectra).to_dict())

    def _say(self, news: News | None) -> None:
        if news is None:
            self._about.value = "Train a run to see what each step does to its layers."
            return
        seen = news.inside
        about = f"After step {seen.step}. {seen.note}" if seen else "The first look comes soon."
        self._about.value = html.escape(about.strip())
        self._text.value = "".join(
            f'<b>What it writes {said} training</b><pre style="{_TEXT}">{html.escape(text)}</pre>'
            for said, text in (("before", news.before), ("after", news.after))
            if text is not None
        )
