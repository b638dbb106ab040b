"""The picture of `forecast_temperature.py`: maps of truth, forecast and error of one year, and the learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")  # a file is written; no display is needed

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm


def draw(
    path: Path,
    *,
    truth: xr.DataArray,
    forecast: xr.DataArray,
    climatology: xr.DataArray,
    title: str,
    history: Mapping[str, Sequence[float]],
    baselines: Mapping[str, float],
) -> None:
    """Write the figure.

    Args:
        path: PNG to write.
        truth: What happened, `[lat, lon]` in kelvin.
        forecast: What the model said a year before, likewise.
        climatology: Mean of the training years, likewise.
        title: What the maps show: run and year.
        history: `train` and `val` loss by epoch.
        baselines: Validation loss of the forecasts that need no learning, drawn as lines.
    """
    figure, axes = plt.subplots(2, 3, figsize=(16, 7.6), layout="constrained")
    figure.suptitle(title, fontsize=14, fontweight="bold")

    celsius = np.arange(-50, 31, 5)
    _map(axes[0, 0], truth - 273.15, "Truth", "annual mean [°C]", "viridis", celsius)
    _map(axes[0, 1], forecast - 273.15, "Forecast, one year ahead", "annual mean [°C]", "viridis", celsius)
    # One symmetric scale for anomalies and error, so that colours can be compared between maps.
    kelvin = np.array([-4, -3, -2, -1.5, -1, -0.5, -0.25, 0.25, 0.5, 1, 1.5, 2, 3, 4])
    _map(axes[0, 2], forecast - truth, "Error (forecast minus truth)", "error [K]", "PuOr_r", kelvin)
    _map(axes[1, 0], truth - climatology, "Truth, departure from climatology", "departure [K]", "RdBu_r", kelvin)
    _map(axes[1, 1], forecast - climatology, "Forecast, departure from climatology", "departure [K]", "RdBu_r", kelvin)
    _learning_curve(axes[1, 2], history, baselines)

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _map(axes: Axes, field: xr.DataArray, title: str, label: str, colours: str, levels: np.ndarray) -> None:
    """One global map with its own colour bar; values beyond the levels are marked by the bar's pointed ends."""
    colormap = plt.get_cmap(colours)
    mesh = axes.pcolormesh(
        field.lon,
        field.lat,
        field,
        cmap=colormap,
        norm=BoundaryNorm(levels, colormap.N, extend="both"),
        shading="nearest",
    )
    axes.set(
        title=title,
        xlabel="longitude [°E]",
        ylabel="latitude [°N]",
        xticks=range(0, 361, 60),
        yticks=range(-90, 91, 30),
        xlim=(field.lon.min(), field.lon.max()),
        ylim=(-90, 90),
    )
    bar = axes.figure.colorbar(mesh, ax=axes, label=label, orientation="horizontal", aspect=45, pad=0.02, ticks=levels)
    bar.ax.set_xticks(levels, [f"{level:g}" for level in levels], fontsize=8)


def _learning_curve(axes: Axes, history: Mapping[str, Sequence[float]], baselines: Mapping[str, float]) -> None:
    """Loss by epoch, training and validation, with the baselines' validation loss as horizontal lines."""
    for name, style in (("train", "tab:grey"), ("val", "tab:blue")):
        axes.plot(np.arange(1, len(history[name]) + 1), history[name], color=style, label=f"model, {name}")
    for (name, loss), colour in zip(baselines.items(), ("tab:red", "tab:orange", "tab:green"), strict=True):
        axes.axhline(loss, color=colour, linestyle="--", linewidth=1.2, label=f"{name.replace('_', ' ')}, val")
    axes.set(title="Learning curve", xlabel="epoch", ylabel="mean squared error [variance units]")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
