"""Pictures of what was measured, drawn without a display."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from astrozoo.errors import BackendUnavailableError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["need_matplotlib", "new_figure"]


def need_matplotlib() -> None:
    """Raise a `BackendUnavailableError` where there is nothing to draw with, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise BackendUnavailableError("--plot draws with matplotlib; pip install 'astrozoo[plot]'.")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that no window will show, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
