"""Light curves of Kepler, K2 and TESS, as their archives offer them: files of SPOC, and of the quick-look pipeline.

    curve = read_light_curve("kplr011904151-2009350155506_llc.fits", normalise=True)
    curve.time, curve.flux, curve.meta.target          # days, median 1, "KIC 11904151"

Formats: Kepler Archive Manual (KDMC-10008, Thompson et al. 2016), TESS Science Data Products Description Document
(EXP-TESS-ARC-ICD-0014), quick-look pipeline: Huang et al. 2020 (RNAAS 4, 204). Trends are left in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from astrozoo.accel import FitsTable, read_fits_columns
from astrozoo.errors import DataError, InputError
from astrozoo.registry.names import suggest

__all__ = ["QUALITY_MASKS", "LightCurve", "LightCurveMeta", "read_light_curve"]

_KEPLER = {
    "attitude tweak": 1,
    "safe mode": 2,
    "coarse point": 4,
    "Earth point": 8,
    "desaturation of a reaction wheel": 32,
    "excluded by hand": 256,
    "detector anomaly": 16384,
    "no data": 65536,
    "thrusters fire": 1048576,  # K2
}
_TESS = {
    "attitude tweak": 1,
    "safe mode": 2,
    "coarse point": 4,
    "Earth point": 8,
    "Argabrightening": 16,
    "desaturation of a reaction wheel": 32,
    "excluded by hand": 128,
    "impulsive outlier": 512,
    "bad calibration": 16384,
}
Mission: TypeAlias = Literal["Kepler", "K2", "TESS"]

QUALITY_MASKS: Mapping[Mission, int] = MappingProxyType(
    {"Kepler": sum(_KEPLER.values()), "K2": sum(_KEPLER.values()), "TESS": sum(_TESS.values())}
)
"""Bits of cadences that are of no use, by mission: what Lightkurve calls `default` (1130799 and 17087).

Bits: Kepler Archive Manual, table 2-3; TESS Science Data Products Description Document, table 28. Cosmic rays, stray
light and the quick-look pipeline's own bits are not among them.
"""

_FLUXES = ("PDCSAP_FLUX", "KSPSAP_FLUX", "DET_FLUX", "SAP_FLUX")  # what `auto` prefers
_SEGMENTS = ("QUARTER", "CAMPAIGN", "SECTOR")


@dataclass(frozen=True, kw_only=True, slots=True)
class LightCurveMeta:
    """Where a light curve comes from; None where the file does not say.

    Attributes:
        target: `KIC 11904151`, `EPIC 201367065`, `TIC 25155310`, ...
        mission: `Kepler`, `K2` or `TESS`.
        segment: Quarter, campaign or sector.
        flux_column: The column that the flux was read from.
        flux_unit: As in the file; an empty string after normalising, or where there is none.
        time_system: Time scale, `TDB` at the barycentre for all pipelines.
        time_zero: Julian date that times count from [d]: 2454833 (BKJD) for Kepler and K2, 2457000 (BTJD) for TESS.
        exposure: Time on source of the whole light curve [d].
        cadence: Time from one cadence to the next [d].
    """

    target: str | None
    mission: Mission
    segment: int | None
    flux_column: str
    flux_unit: str
    time_system: str | None
    time_zero: float | None
    exposure: float | None
    cadence: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LightCurve:
    """Brightness of a star over time.

    Attributes:
        time: `[cadence]` [d], float64, counted from `meta.time_zero`.
        flux: `[cadence]`, in the precision of the file: electrons per second, or in units of its median.
        flux_err: `[cadence]`, one standard deviation; NaN where the file has none.
        quality: `[cadence]` bits, integers; 0 is good.
        meta: Where it comes from.
    """

    time: np.ndarray
    flux: np.ndarray
    flux_err: np.ndarray
    quality: np.ndarray
    meta: LightCurveMeta

    def __len__(self) -> int:
        return len(self.time)


def read_light_curve(
    path: str | os.PathLike[str],
    *,
    flux: str = "auto",
    quality_bitmask: int | Literal["default", "none"] = "default",
    drop_nan: bool = True,
    normalise: bool = False,
) -> LightCurve:
    """Read a light curve of Kepler, K2 or TESS.

    Args:
        path: A FITS file of SPOC (PDCSAP_FLUX) or the quick-look pipeline (KSPSAP_FLUX, later DET_FLUX).
        flux: Column, such as `sap_flux`, or `sap` for short. `auto`: the flux that its pipeline corrected, else
            SAP_FLUX.
        quality_bitmask: Cadences with any of these bits are dropped. `default`: those of `QUALITY_MASKS`; `none`: all
            cadences are kept.
        drop_nan: Whether cadences without time or flux are dropped as well.
        normalise: Whether flux and error are divided by the median of the flux that is left.

    Raises:
        InputError: A mask that is none.
        DataError: The file is none of these, lacks the column, is damaged, or cannot be normalised.
    """
    names = _names(read_fits_columns(path, []))
    chosen = _flux_column(path, flux, names)
    quality_column = next((names[name] for name in ("SAP_QUALITY", "QUALITY") if name in names), None)
    if "TIME" not in names or quality_column is None:
        raise _unknown(path, names)
    error_column = names.get(f"{chosen.upper()}_ERR")
    wanted = [names["TIME"], chosen, quality_column, *([error_column] if error_column else [])]
    table = read_fits_columns(path, wanted)
    time, values, quality = (table.columns[name] for name in wanted[:3])
    if any(column.ndim != 1 for column in table.columns.values()):
        raise DataError(f"{path}: {', '.join(wanted)} hold arrays in each row; this is no light curve.")
    errors = table.columns[error_column] if error_column else np.full_like(values, np.nan)
    meta = _meta(path, table, chosen, names)
    quality = np.nan_to_num(quality).astype(np.int64) if quality.dtype.kind == "f" else quality
    kept = (quality & _bitmask(quality_bitmask, meta.mission)) == 0
    if drop_nan:
        kept &= ~(np.isnan(time) | np.isnan(values))
    time, values, errors, quality = time[kept], values[kept], errors[kept], quality[kept]
    if normalise:
        values, errors = _normalised(path, values, errors, chosen)
        meta = replace(meta, flux_unit="")
    return LightCurve(time.astype(np.float64, copy=False), values, errors, quality, meta)


def _names(table: FitsTable) -> dict[str, str]:
    """Columns as written, by their name in capitals."""
    count = table.header.get("TFIELDS")
    names = [table.header.get(f"TTYPE{i}") for i in range(1, (count if isinstance(count, int) else 0) + 1)]
    return {name.strip().upper(): name.strip() for name in names if isinstance(name, str) and name.strip()}


def _flux_column(path: str | os.PathLike[str], flux: str, names: Mapping[str, str]) -> str:
    if flux == "auto":
        found = next((names[name] for name in _FLUXES if name in names), None)
        if found is None:
            raise _unknown(path, names)
        return found
    for name in (flux.upper(), f"{flux.upper()}_FLUX"):
        if name in names:
            return names[name]
    raise DataError(f"{path}: there is no flux {flux!r}.{suggest(flux.upper(), names)} {_listed(names)}")


def _unknown(path: str | os.PathLike[str], names: Mapping[str, str]) -> DataError:
    return DataError(
        f"{path} is no light curve of Kepler, K2 or TESS: expected TIME, a flux ({', '.join(_FLUXES)}), and "
        f"SAP_QUALITY or QUALITY. {_listed(names)}"
    )


def _listed(names: Mapping[str, str]) -> str:
    return f"Its columns are: {', '.join(names.values()) or 'none'}."


def _meta(path: str | os.PathLike[str], table: FitsTable, flux: str, names: Mapping[str, str]) -> LightCurveMeta:
    # Keywords stand in the HDU of the table, those of the whole file in the primary one.
    keywords = {**table.primary, **table.header}

    def number(key: str) -> float | None:
        value = keywords.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def text(key: str) -> str | None:
        value = keywords.get(key)
        return value if isinstance(value, str) and value else None

    known = {name.lower(): name for name in QUALITY_MASKS}
    mission = next(
        (known[name] for key in ("MISSION", "TELESCOP") if (name := (text(key) or "").lower()) in known), None
    )
    if mission is None:
        raise DataError(
            f"{path} is of mission {text('MISSION')!r} and telescope {text('TELESCOP')!r}; expected Kepler, K2 or "
            f"TESS. {_listed(names)}"
        )
    segment = next((int(value) for key in _SEGMENTS if (value := number(key)) is not None), None)
    whole, fraction = number("BJDREFI"), number("BJDREFF")
    return LightCurveMeta(
        target=text("OBJECT"),
        mission=mission,
        segment=segment,
        flux_column=flux,
        flux_unit=table.units.get(flux, ""),
        time_system=text("TIMESYS"),
        time_zero=None if whole is None else whole + (fraction or 0.0),
        exposure=number("EXPOSURE"),
        cadence=number("TIMEDEL"),
    )


def _bitmask(quality_bitmask: int | str, mission: Mission) -> int:
    if quality_bitmask == "default":
        return QUALITY_MASKS[mission]
    if quality_bitmask == "none":
        return 0
    if isinstance(quality_bitmask, bool) or not isinstance(quality_bitmask, int) or not 0 <= quality_bitmask < 1 << 31:
        raise InputError(f"quality_bitmask is {quality_bitmask!r}; expected 'default', 'none' or bits as a number.")
    return quality_bitmask


def _normalised(
    path: str | os.PathLike[str], flux: np.ndarray, flux_err: np.ndarray, column: str
) -> tuple[np.ndarray, np.ndarray]:
    known = flux[~np.isnan(flux)].astype(np.float64)
    median = float(np.median(known)) if known.size else 0.0
    if not (np.isfinite(median) and median > 0):
        why = f"the median of {column} is {median:g}" if known.size else f"no cadence with {column} is left"
        raise DataError(f"{path}: {why}; it cannot be normalised.")
    return (flux / median).astype(flux.dtype), (flux_err / median).astype(flux_err.dtype)
