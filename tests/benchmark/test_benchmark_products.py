"""Products files and the catalogue: every mistake at once, nothing silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from callmip_global.benchmark import KINDS, Product
from callmip_global.config.products import load_products, product_catalogue
from callmip_global.errors import UsageError
from callmip_global.units import convert_factor
from callmip_global.variables import variable_table


def products_file(folder: Path, text: str) -> Path:
    path = folder / "products.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_catalogue_is_not_empty_and_names_known_variables():
    assert {"FLUXCOM-hfls", "GLEAM-tran", "ESACCI-biomass", "GRACE-mrso"} <= set(
        product_catalogue()
    )
    for name, entry in product_catalogue().items():
        assert entry.variable in variable_table(), name
        assert entry.kind in KINDS, name
        assert entry.path is None, f"{name} names a place on somebody's machine"


@pytest.mark.parametrize("name", sorted(product_catalogue()))
def test_units_of_a_catalogue_entry_become_those_of_its_variable(name):
    entry = product_catalogue()[name]
    units = entry.units or entry.native_units
    assert units is not None
    convert_factor(units, variable_table()[entry.variable].units, name, entry.variable)


def test_a_catalogue_entry_needs_a_path_and_yields_to_what_is_said(tmp_path):
    path = products_file(
        tmp_path,
        "products:\n  LE:\n    catalogue: FLUXCOM-hfls\n    path: d/LE.*.nc\n    version: mine\n",
    )
    (product,) = load_products(path)
    assert (product.name, product.variable, product.kind) == ("LE", "hfls", "upscaled")
    assert (product.version, product.independent_of_towers) == ("mine", False)
    assert product.paths == (str(tmp_path / "d/LE.*.nc"),)


def test_patterns_and_awkward_folder_names_find_their_files(awkward_dir):
    folder = awkward_dir / "data [v1]"
    folder.mkdir()
    for name in ("b.nc", "a.nc", "other.txt"):
        (folder / name).touch()
    whole = Product(name="P", variable="gpp", paths=(str(folder / "a.nc"),), kind="satellite")
    assert whole.files() == (folder / "a.nc",)
    (awkward_dir / "c.nc").touch()
    pattern = Product(name="P", variable="gpp", paths=(f"{awkward_dir}/*.nc",), kind="satellite")
    assert pattern.files() == (awkward_dir / "c.nc",)


def test_all_problems_of_a_products_file_are_told_with_their_lines(tmp_path):
    path = products_file(
        tmp_path,
        """\
products:
  A: {catalogue: FLUXCOM-hfl, path: a.nc}
  B: {variable: gp, kind: satellite, path: b.nc}
  C: {variable: gpp, kind: satellite, path: c.nc, factor: 3}
  D: {variable: gpp, path: d.nc}
""",
    )
    with pytest.raises(UsageError) as caught:
        load_products(path)
    lines = [str(problem) for problem in caught.value.problems]
    assert [line.removeprefix(f"{path}:")[0] for line in lines] == ["2", "3", "4", "5"]
    assert "Did you mean 'FLUXCOM-hfls'?" in lines[0]
    assert "products.B.variable: found 'gp', wanted one of: nep" in lines[1]
    assert "A factor other than 1 needs units" in lines[2]
    assert "products.D.kind: found nothing" in lines[3]


def test_an_unknown_key_lists_the_valid_ones(tmp_path):
    path = products_file(tmp_path, "products:\n  A: {variable: gpp, sing: -1}\n")
    with pytest.raises(UsageError, match=r"products\.A\.sing.*one of: catalogue, variable, path"):
        load_products(path)


def test_absent_files_are_a_problem_only_when_asked_for(tmp_path):
    path = products_file(tmp_path, "products:\n  A: {variable: gpp, kind: satellite, path: a.nc}\n")
    assert len(load_products(path)) == 1
    with pytest.raises(UsageError, match=r"yaml:2: products\.A\.path: found no file"):
        load_products(path, require_files=True)
    (tmp_path / "a.nc").touch()
    assert len(load_products(path, require_files=True)) == 1
