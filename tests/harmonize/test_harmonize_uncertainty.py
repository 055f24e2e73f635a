"""Stated uncertainties (`_post_unc`) go from native files to stores and to the files handed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from native_files import field, write_native
from submissions import Submission, World, native_instead_of_regridded, trendy

from callmip_global.errors import DataError
from callmip_global.export import export_upload
from callmip_global.harmonize import harmonize_run
from callmip_global.harmonize.variable_map import VariableMap, VariableSource
from callmip_global.store import StoreName, open_store
from callmip_global.variables import (
    known_variable,
    requested_variables,
    variable_table,
    with_uncertainties,
)

WORLD = World()
LAND = np.where(WORLD.land, 1.0, np.nan) * np.ones((WORLD.months, 1, 1))
DAY = 86400.0


def posterior(top: Path) -> Submission:
    made = Submission(top, extra={"stage": "Posterior", "scenario": 1})
    made.sources(ts={"source": "tsurf"}, nep={"source": "NEE", "sign": -1}, lai={"source": "lai"})
    made.put("X/S3/X_S3_lai.nc", trendy(WORLD, "lai"))
    celsius = WORLD.values("ts") - 273.15
    made.put("X/S3/X_S3_ts.nc", trendy(WORLD, "ts", called="tsurf", values=celsius, units="degC"))
    made.put(
        "X/S3/X_S3_nep.nc",
        trendy(WORLD, "nep", called="NEE", values=-WORLD.values("nep")),
    )
    return made


def test_units_are_converted_without_offset_and_sign_and_all_steps_follow(tmp_path: Path) -> None:
    sub = posterior(tmp_path)
    # One by the native name, the same number all over; one by the protocol's, in other units.
    sub.put(
        "X/S3/X_S3_tsurf_post_unc.nc",
        trendy(WORLD, "ts", called="tsurf_post_unc", values=2.0 * LAND, units="degC"),
    )
    sigma = 0.1 * np.abs(WORLD.values("nep"))
    sub.put(
        "X/S3/X_S3_nep_post_unc.nc",
        trendy(WORLD, "nep", called="nep_post_unc", values=sigma * 1e3 * DAY, units="gC m-2 day-1"),
    )
    outcome = sub.harmonize()
    assert outcome.exit_code == 0, outcome.output
    outcome.accounted()
    assert outcome.held() == {"ts", "nep", "lai", "ts_post_unc", "nep_post_unc"}
    (store,) = outcome.stores
    with open_store(store, "mon") as ds:
        said = ds["ts_post_unc"].attrs
        assert said["units"] == "K"
        assert said["standard_name"] == "surface_temperature standard_error"
        width = ds["ts_post_unc"].values
        np.testing.assert_allclose(width[np.isfinite(width)], 2.0, rtol=1e-6)
        assert np.array_equal(np.isfinite(width), np.isfinite(ds["ts"].values))
        share = ds["nep_post_unc"].values / np.abs(ds["nep"].values)
        # Cells that were not mixed by regridding keep their share; none is negative.
        assert np.nanmedian(share) == pytest.approx(0.1, rel=1e-3)
        assert np.nanmin(ds["nep_post_unc"].values) >= 0.0

    files = export_upload([store], out=tmp_path / "upload")
    with netCDF4.Dataset(files[0]) as nc:
        names = set(nc.variables)
        assert {"ts", "ts_post_unc", "nep_post_unc"} <= names
        assert nc["nep_post_unc"].units == nc["nep"].units
        assert float(nc["ts_post_unc"][:].max()) == pytest.approx(2.0)


@pytest.fixture
def sub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    monkeypatch.setattr("callmip_global.workflow.ingest.regrid_store", native_instead_of_regridded)
    return posterior(tmp_path)


def test_a_negative_uncertainty_is_refused_and_its_variable_goes_on(sub: Submission) -> None:
    values = -0.3 * LAND
    sub.put("X/S3/u.nc", trendy(WORLD, "lai", called="lai_post_unc", values=values))
    outcome = sub.harmonize(twice=False)
    assert outcome.exit_code == 1
    (row,) = outcome.of_variable("lai_post_unc")
    assert row.outcome == "refused"
    assert "wanted values within 0 to" in row.message
    assert outcome.held() == {"ts", "nep", "lai"}


def test_an_uncertainty_of_fewer_years_does_not_narrow_the_run(sub: Submission) -> None:
    file = trendy(WORLD, "lai", called="lai_post_unc", values=0.3 * LAND)
    file.turn("time", slice(0, 12))
    sub.put("X/S3/u.nc", file)
    sub.extra["years"] = None
    outcome = sub.harmonize(twice=False)
    (row,) = outcome.of_variable("lai_post_unc")
    assert row.outcome == "refused"
    assert len(outcome.values("lai")) == WORLD.months


def test_two_fields_that_could_be_it_are_refused_until_one_is_named(sub: Submission) -> None:
    for name in ("ts_post_unc", "tsurf_post_unc"):
        sub.put(f"X/S3/{name}.nc", trendy(WORLD, "ts", called=name, values=2 * LAND, units="K"))
    outcome = sub.harmonize(twice=False)
    assert any("ts_post_unc and tsurf_post_unc" in row.message for row in outcome.rows)
    assert "ts_post_unc" not in outcome.held()
    sub.sources(ts_post_unc={"source": "tsurf_post_unc"})
    assert "ts_post_unc" in sub.harmonize(twice=False).held()


@pytest.mark.parametrize("stage", ["Prior", "Posterior"])
def test_of_an_uncertainty_that_the_map_names_only_a_posterior_can_be_in_want(
    sub: Submission, stage: str
) -> None:
    sub.sources(lai_post_unc={"source": "lai_sd"})
    sub.extra["stage"] = stage
    outcome, checked = sub.harmonize(twice=False), sub.check("--manifest", str(sub.manifest()))
    for said in (outcome, checked):
        assert said.exit_code == (stage == "Posterior"), said.output
        assert len(said.of_variable("lai_post_unc")) == (stage == "Posterior")
    assert outcome.held() == {"ts", "nep", "lai"}


def test_an_experiment_of_both_stages_has_one_map_with_uncertainties(tmp_path: Path) -> None:
    entries = {n: VariableSource(absent="no model") for n in requested_variables()}
    entries["gpp"] = VariableSource(source="GPP", units="gC m-2 day-1")
    entries["gpp_post_unc"] = VariableSource(source="GPP_sd", units="gC m-2 day-1")
    entries["nep_post_unc"] = VariableSource(derive="gpp_post_unc")
    fields = {"GPP": (field(0, 20), {}), "GPP_sd": (field(0, 2), {})}

    def held(stage: Any, *natives: str) -> set[str]:
        name = StoreName("M", "v1", "S3", "native", stage)
        file = write_native(tmp_path / "a.nc", {n: fields[n] for n in natives})
        report = harmonize_run(
            [file],
            variable_map=VariableMap(entries),
            name=name,
            attributes={},
            years=(2001, 2002),
            frequencies=("mon",),
            out=tmp_path / "-".join((*natives, name.text)),
        )
        return set(report["variables"])

    whole = {"gpp", "gpp_post_unc", "nep_post_unc"}
    assert held("Prior", "GPP") == {"gpp"}
    assert held("Prior", "GPP", "GPP_sd") == held("Posterior", "GPP", "GPP_sd") == whole
    with pytest.raises(DataError, match="GPP_sd: found no file that can be used"):
        held("Posterior", "GPP")
    entries["reco"] = VariableSource(derive="gpp + gpp_post_unc")
    with pytest.raises(DataError, match="GPP_sd: found no file that can be used"):
        held("Prior", "GPP")


def test_a_width_has_no_sign() -> None:
    entry = VariableSource(source="u", sign=-1)
    found = VariableMap({"nep_post_unc": entry}).problems([])
    assert [problem.wanted for problem in found] == ["one sigma, which has no sign"]
    assert VariableMap({"nep_post_unc": VariableSource(source="u")}).problems([]) == []
    (unknown,) = VariableMap({"nope_post_unc": VariableSource(source="u")}).problems([])
    assert unknown.found == "an unknown variable"


@pytest.mark.parametrize("name", variable_table())
def test_every_variable_can_have_an_uncertainty_of_its_units(name: str) -> None:
    of, var = known_variable(name), known_variable(f"{name}_post_unc")
    assert of is not None
    assert var is not None
    assert var.units == of.units
    assert var.valid_range == (0.0, of.valid_range[1] - of.valid_range[0])
    assert (var.is_uncertainty, of.is_uncertainty) == (True, False)
    assert known_variable(f"{name}_post_unc_post_unc") is None
    assert with_uncertainties([name]) == (name, f"{name}_post_unc")
