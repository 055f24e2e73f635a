"""The demonstration's folder: valid as it is, the same when written again, and called synthetic."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

from callmip_global.config.load import load_experiment
from callmip_global.config.placeholders import render_template, sample_context
from callmip_global.config.products import load_products
from callmip_global.config.validate import validate_experiment
from callmip_global.data import data_path
from callmip_global.demo.experiment import SCHEDULERS, co2_table, write_demo
from callmip_global.demo.model import run
from callmip_global.errors import UsageError


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_writing_the_demo_again_touches_nothing(small_demo: Path) -> None:
    before = state_of(small_demo)
    assert len(before) > 15
    assert write_demo(small_demo, scheduler="local", small=True) == small_demo / "experiment.yaml"
    assert state_of(small_demo) == before


def test_a_damaged_product_and_an_edited_file_are_made_anew(
    small_demo: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    (folder / "products" / "DEMO-LE.nc").write_bytes(b"half a file")
    (folder / "params" / "prior.yaml").write_text("lai_max: 99\n")
    write_demo(folder, scheduler="local", small=True)
    old, new = state_of(small_demo), state_of(folder)
    assert old.keys() == new.keys()
    assert new["params/prior.yaml"][1] == old["params/prior.yaml"][1]
    with xr.open_dataset(folder / "products" / "DEMO-LE.nc") as a:
        xr.testing.assert_identical(a, xr.load_dataset(small_demo / "products" / "DEMO-LE.nc"))


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_experiment_has_no_problems(
    small_demo: Path, tmp_path: Path, size: str, scheduler: str
) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    if size == "full":  # its data differ in their grids alone, and take longer to write
        text = data_path("config", "examples", "demo.yaml").read_text()
        (folder / "experiment.yaml").write_text(text.replace("site: local", f"site: {scheduler}"))
    else:
        write_demo(folder, scheduler=scheduler, small=True)
    loaded = load_experiment(folder / "experiment.yaml")
    assert [str(problem) for problem in validate_experiment(loaded)] == []
    assert loaded.site.scheduler == scheduler
    last = loaded.experiment.run.phases[-1]
    assert loaded.experiment.delivered_years == ((2005, 2024) if size == "full" else (2021, 2024))
    assert last.n_segments == (5 if size == "full" else 2)


def test_an_unknown_scheduler_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found 'sge', wanted one of: local, slurm, pbs"):
        write_demo(tmp_path / "demo", scheduler="sge", small=True)
    assert not (tmp_path / "demo").exists()


def test_the_rendered_namelist_runs_in_an_awkward_folder(
    small_demo: Path, awkward_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = awkward_dir / 'demo "1"'
    shutil.copytree(small_demo, folder)
    context = sample_context(
        phase="spinup",
        climate="recycle",
        climate_first_year=1901,
        climate_last_year=1903,
        first_year=1850,
        last_year=1850,
        n_years=3,
        co2=1850,
        luc=1850,
        tile=None,
        tiles=None,
        first_segment=True,
        write_output=False,
        parameters=folder / "params" / "prior.yaml",
        inputs={"surface": folder / "data" / "surface.nc", "co2": folder / "data" / "co2.txt"},
    )
    template = folder / "templates" / "namelist.j2"
    text = render_template(template.read_text(), context, where=str(template))
    values = yaml.safe_load(text)
    assert values["climate"] == {"recycle": [1901, 1903]}
    assert (values["label_moves"], values["equilibrate"]) == (False, True)
    (awkward_dir / "namelist.yaml").write_text(text)
    monkeypatch.chdir(awkward_dir)
    run(Path("namelist.yaml"))
    assert (awkward_dir / "restart_out" / "demo_restart.nc").is_file()


def test_the_co2_table_has_every_year_once_and_rises() -> None:
    rows = [line.split() for line in co2_table().splitlines()[1:]]
    assert [int(year) for year, _ in rows] == list(range(1700, 2025))
    assert dict(rows)["1955"] == "314.00"  # half-way between 311 and 317
    assert (np.diff([float(ppm) for _, ppm in rows]) >= 0.0).all()


def test_every_product_loads_and_says_that_it_is_synthetic(small_demo: Path) -> None:
    products = load_products(small_demo / "products" / "products.yaml", require_files=True)
    assert len(products) == 9
    for product in products:
        assert product.kind == "synthetic"
        with xr.open_dataset(product.files()[0]) as ds:
            assert ds.attrs["synthetic"] == "true"
            assert ds.attrs["comment"].startswith("Synthetic:")
            assert product.source in ds
            values = ds[product.source]
            assert 0.2 < float(values.notnull().mean()) < 0.35  # no sea, and gaps
            assert ("time" in values.dims) != product.static
            assert np.isfinite(values).sum() > 0
            # Antarctica is no land here, and every map has its northern edge where lat says so.
            assert not values.sel(lat=values.lat < -62.0).notnull().any()
            assert values.sel(lat=values.lat > 62.0).notnull().any()


def test_products_differ_from_the_truth_by_their_errors_only(small_demo: Path) -> None:
    folder = small_demo / "products"
    nee = xr.load_dataset(folder / "DEMO-NEE.nc")["NEE"]
    north = nee.sel(lat=(nee.lat > 40.0) & (nee.lat < 70.0)).mean(["lat", "lon"])
    season = north.groupby("time.month").mean()
    assert float(season.sel(month=7)) < 0.0 < float(season.sel(month=1))  # positive into the air
    lst = xr.load_dataset(folder / "DEMO-LST.nc")["LST"]
    assert 270.0 < float(lst.mean()) < 300.0
    assert (
        float(lst.sel(lat=10, lon=20, method="nearest").mean()) > 295.0
    )  # the grid is not mirrored
    assert float(lst.sel(lat=66, lon=100, method="nearest").mean()) < 275.0
    lai = xr.load_dataset(folder / "DEMO-LAI.nc")["LAI"]
    boreal = lai.sel(lat=slice(60, 75))
    assert not boreal.sel(time=boreal["time.month"] == 12).notnull().any()
    assert boreal.sel(time=boreal["time.month"] == 7).notnull().any()
