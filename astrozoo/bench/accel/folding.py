"""Views of all candidates of one star, four years of Kepler."""

from __future__ import annotations

import numpy as np

from astrozoo import accel
from astrozoo.bench.accel.case import Case, Floor, Peer, Setup

__all__ = ["CASES"]

_CADENCES, _CANDIDATES = 65_000, 32
_WHY = (
    "it groups cadences side by side: its global bins are ours, before normalisation, but for cadences within rounding "
    "of an edge; its local bins do not overlap, so it puts each cadence into one where ours put it into four"
)


def _fold_views(threads: int) -> Setup:
    import pandas as pd
    import polars as pl

    generator = np.random.default_rng(0)
    time = 131.5 + 0.0204344 * np.sort(generator.choice(int(1.08 * _CADENCES), _CADENCES, replace=False))
    flux = generator.normal(1.0, 1e-4, _CADENCES).astype(np.float32)
    periods = np.geomspace(0.7, 200.0, _CANDIDATES)
    epochs = 131.5 + periods * generator.random(_CANDIDATES)
    durations = 0.08 * np.cbrt(periods)

    def groups() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each candidate: global bin of each cadence; local bins and fluxes of those near the transit."""
        result = []
        for period, epoch, duration in zip(periods, epochs, durations, strict=True):
            phase = np.mod(time + (period / 2 - epoch), period)
            half = min(4 * duration, period / 2)
            nearby = np.abs(phase - period / 2) < half
            places = np.minimum((phase * (2001 / period)).astype(np.int32), 2000)
            local = np.minimum(((phase[nearby] - (period / 2 - half)) * (201 / (2 * half))).astype(np.int32), 200)
            result.append((places, local, flux[nearby]))
        return result

    def with_pandas() -> list[np.ndarray]:
        views = []
        for places, local, nearby in groups():
            views.append(pd.Series(flux).groupby(places, sort=False).median().reindex(range(2001)).to_numpy())
            pd.Series(nearby).groupby(local, sort=False).median()
        return views

    def with_polars() -> list[np.ndarray]:
        def medians(places: np.ndarray, values: np.ndarray) -> pl.LazyFrame:
            return pl.LazyFrame({"bin": places, "flux": values}).group_by("bin").agg(pl.col("flux").median())

        queries = [
            query for places, local, nearby in groups() for query in (medians(places, flux), medians(local, nearby))
        ]
        views = []
        for frame in pl.collect_all(queries)[::2]:
            view = np.full(2001, np.nan, np.float32)
            view[frame["bin"].to_numpy()] = frame["flux"].to_numpy()
            views.append(view)
        return views

    plain = accel.fold_views(time, flux, periods, epochs, durations, normalise=False).global_view

    def difference(_: accel.FoldedViews, theirs: list[np.ndarray]) -> float:
        """The share of bins that differ, among those that have cadences."""
        views = np.stack(theirs)
        return float(np.mean((np.abs(views - plain) > 1e-7)[~np.isnan(views)]))

    peers = {"pandas": with_pandas, "polars": with_polars}
    return Setup(
        ours=lambda: accel.fold_views(time, flux, periods, epochs, durations, threads=threads),
        peers={
            name: Peer(call, name, target=3.0, difference=difference, error=0.01, why=_WHY)
            for name, call in peers.items()
        },
        floor=Floor(read=_CANDIDATES * _CADENCES * 12, written=_CANDIDATES * _CADENCES * 8),
    )


CASES = [
    Case(
        "fold_views",
        "65,000 cadences, 32 candidates, 2001 global and 201 local bins",
        _fold_views,
        needs={"pandas": "pandas", "polars": "polars"},
    ),
]
