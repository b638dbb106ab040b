import numpy as np
import pytest

from astrozoo import accel
from astrozoo.data import LightCurve, read_light_curve
from astrozoo.data.light_curves import QUALITY_MASKS
from astrozoo.errors import DataError, InputError

fits = pytest.importorskip("astropy.io.fits", reason="astropy writes the files")

TIME = np.array([100.0, 100.5, np.nan, 101.5, 102.0, 102.5])
FLUX = np.array([10.0, 20.0, 30.0, np.nan, 40.0, 60.0], "f4")


def write(path, columns, primary, keywords):
    table = fits.BinTableHDU.from_columns(columns, name="LIGHTCURVE")
    table.header.update(keywords)
    first = fits.PrimaryHDU()
    first.header.update(primary)
    fits.HDUList([first, table, fits.ImageHDU(np.zeros((3, 4), "i4"), name="APERTURE")]).writeto(path)
    return path


def spoc(path, quality, quality_column, primary, keywords, flux=FLUX):
    columns = [
        fits.Column("TIME", "D", array=TIME, unit="BJD - 2454833"),
        fits.Column("TIMECORR", "E", array=np.zeros(6)),
        fits.Column("CADENCENO", "J", array=np.arange(6)),
        fits.Column("SAP_FLUX", "E", array=flux + 1, unit="e-/s"),
        fits.Column("SAP_FLUX_ERR", "E", array=np.full(6, 3.0), unit="e-/s"),
        fits.Column("PDCSAP_FLUX", "E", array=flux, unit="e-/s"),
        fits.Column("PDCSAP_FLUX_ERR", "E", array=np.full(6, 2.0), unit="e-/s"),
        fits.Column(quality_column, "J", array=quality),
    ]
    return write(path, columns, primary, {"TIMESYS": "TDB", "EXPOSURE": 2.5, "TIMEDEL": 0.5, **keywords})


@pytest.fixture
def kepler(tmp_path):
    """Cadence 1 was a coarse point; cadence 4 saw a cosmic ray, which is no reason to drop it."""
    primary = {"OBJECT": "KIC 11904151", "MISSION": "Kepler", "TELESCOP": "Kepler", "QUARTER": 4}
    keywords = {"BJDREFI": 2454833, "BJDREFF": 0.0}
    return spoc(tmp_path / "kepler.fits", [0, 4, 0, 0, 128, 0], "SAP_QUALITY", primary, keywords)


@pytest.fixture
def tess(tmp_path):
    """Cadence 4 is an impulsive outlier; cadence 1 has stray light."""
    primary = {"OBJECT": "TIC 25155310", "TELESCOP": "TESS", "SECTOR": 2}
    return spoc(
        tmp_path / "tess.fits", [0, 4096, 0, 0, 512, 0], "QUALITY", primary, {"BJDREFI": 2457000, "BJDREFF": 0.5}
    )


@pytest.fixture(params=["numpy", "default"], autouse=True)
def provider(request, monkeypatch):
    if request.param == "numpy":
        with accel.using("numpy"):
            yield
    else:
        yield


def test_a_kepler_file_gives_its_corrected_flux_without_useless_cadences(kepler):
    curve = read_light_curve(kepler)
    assert isinstance(curve, LightCurve)
    assert (len(curve), curve.time.tolist(), curve.flux.tolist()) == (3, [100.0, 102.0, 102.5], [10.0, 40.0, 60.0])
    assert (curve.flux_err.tolist(), curve.quality.tolist()) == ([2.0] * 3, [0, 128, 0])
    assert (curve.time.dtype, curve.flux.dtype, curve.quality.dtype) == (np.float64, np.float32, np.int32)
    meta = curve.meta
    assert (meta.target, meta.mission, meta.segment) == ("KIC 11904151", "Kepler", 4)
    assert (meta.flux_column, meta.flux_unit) == ("PDCSAP_FLUX", "e-/s")
    assert (meta.time_system, meta.time_zero, meta.exposure, meta.cadence) == ("TDB", 2454833.0, 2.5, 0.5)


def test_a_tess_file_is_masked_by_the_bits_of_tess(tess):
    curve = read_light_curve(tess)
    assert curve.time.tolist() == [100.0, 100.5, 102.5]
    assert (curve.meta.mission, curve.meta.segment, curve.meta.time_zero) == ("TESS", 2, 2457000.5)


def test_a_k2_file_drops_cadences_of_thrusters(tmp_path):
    primary = {"OBJECT": "EPIC 201367065", "MISSION": "K2", "TELESCOP": "Kepler", "CAMPAIGN": 1}
    path = spoc(tmp_path / "k2.fits", [0, 1 << 20, 0, 0, 0, 1 << 19], "SAP_QUALITY", primary, {})
    curve = read_light_curve(path)
    assert curve.time.tolist() == [100.0, 102.0, 102.5]
    assert (curve.meta.mission, curve.meta.segment, curve.meta.time_zero) == ("K2", 1, None)


def test_the_default_masks_are_those_of_lightkurve():
    assert dict(QUALITY_MASKS) == {"Kepler": 1130799, "K2": 1130799, "TESS": 17087}


def test_gaps_and_flagged_cadences_can_be_kept(kepler):
    whole = read_light_curve(kepler, quality_bitmask="none", drop_nan=False)
    np.testing.assert_array_equal(whole.time, TIME)
    np.testing.assert_array_equal(whole.flux, FLUX)
    assert read_light_curve(kepler, quality_bitmask=128 | 4).time.tolist() == [100.0, 102.5]
    assert len(read_light_curve(kepler, drop_nan=False)) == 5


@pytest.mark.parametrize("flux", ["sap_flux", "SAP_FLUX", "sap"])
def test_another_flux_can_be_chosen_with_its_own_error(kepler, flux):
    curve = read_light_curve(kepler, flux=flux)
    assert (curve.flux.tolist(), curve.flux_err.tolist()) == ([11.0, 41.0, 61.0], [3.0] * 3)
    assert curve.meta.flux_column == "SAP_FLUX"


def test_normalised_flux_has_the_median_one(kepler):
    curve = read_light_curve(kepler, normalise=True)
    assert curve.flux.tolist() == [0.25, 1.0, 1.5]
    np.testing.assert_allclose(curve.flux_err, 0.05, rtol=1e-6)
    assert (curve.flux.dtype, curve.meta.flux_unit) == (np.float32, "")


def test_normalising_needs_a_positive_median(tmp_path):
    primary = {"TELESCOP": "TESS"}
    path = spoc(tmp_path / "dark.fits", [0] * 6, "QUALITY", primary, {}, flux=-FLUX)
    with pytest.raises(DataError, match=r"dark.fits: the median of PDCSAP_FLUX is -30; it cannot be normalised"):
        read_light_curve(path, normalise=True)
    with pytest.raises(DataError, match="no cadence with PDCSAP_FLUX is left"):
        read_light_curve(spoc(tmp_path / "bad.fits", [1] * 6, "QUALITY", primary, {}), normalise=True)


@pytest.mark.parametrize("name", ["KSPSAP_FLUX", "DET_FLUX"])
def test_files_of_the_quick_look_pipeline_are_read(tmp_path, name):
    columns = [
        fits.Column("TIME", "D", array=TIME, unit="BJD - 2457000, days"),
        fits.Column("SAP_FLUX", "E", array=FLUX),
        fits.Column(name, "E", array=FLUX / 30),
        fits.Column(f"{name}_ERR", "E", array=np.full(6, 0.01)),
        fits.Column("QUALITY", "J", array=[0, 1 << 29, 0, 0, 16, 0]),
    ]
    primary = {"OBJECT": "TIC 1", "TELESCOP": "TESS", "SECTOR": 60}
    path = write(tmp_path / "qlp.fits", columns, primary, {"TIMESYS": "TDB", "BJDREFI": 2457000})
    curve = read_light_curve(path)
    assert (curve.meta.flux_column, curve.time.tolist()) == (name, [100.0, 100.5, 102.5])
    assert np.isnan(read_light_curve(path, flux="sap").flux_err).all()


def test_other_tables_are_refused_with_their_columns(tmp_path):
    columns = [fits.Column("RA", "D", array=[1.0]), fits.Column("DEC", "D", array=[2.0])]
    path = write(tmp_path / "catalogue.fits", columns, {"TELESCOP": "Gaia"}, {})
    with pytest.raises(DataError, match=r"catalogue.fits is no light curve of Kepler, .* Its columns are: RA, DEC\."):
        read_light_curve(path)
    path = spoc(tmp_path / "plato.fits", [0] * 6, "QUALITY", {"TELESCOP": "PLATO"}, {})
    with pytest.raises(DataError, match=r"telescope 'PLATO'; expected Kepler, K2 or TESS. Its columns are: TIME, "):
        read_light_curve(path)


def test_what_is_asked_for_wrongly_is_said_so(kepler, tmp_path):
    with pytest.raises(DataError, match=r"no flux 'pdcsap_flx'. Did you mean 'PDCSAP_FLUX'"):
        read_light_curve(kepler, flux="pdcsap_flx")
    for mask in (-1, "hard", True, 1.5):
        with pytest.raises(InputError, match="quality_bitmask is"):
            read_light_curve(kepler, quality_bitmask=mask)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_light_curve(tmp_path / "none.fits")
