"""Products files and the catalogue: every mistake at once, nothing silent."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from benchmark_cases import cycles, write_product
from typer.testing import CliRunner

from callmip_global.benchmark import KINDS, Product
from callmip_global.benchmark.product_check import RULES
from callmip_global.cli.app import app
from callmip_global.config.products import (
    ProductEntry,
    catalogue_table,
    load_products,
    product_catalogue,
)
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


LEFT_OPEN = {"variable", "kind", "independent_of_towers", "like_for_like"}
"""May be missing in an entry, or be unknown."""


def test_an_entry_says_what_a_product_is_with_the_same_types_and_defaults():
    entry = {n: f.default for n, f in ProductEntry.model_fields.items()}
    product = {f.name: f.default for f in dataclasses.fields(Product)}
    assert entry.keys() - {"catalogue", "path"} == product.keys() - {"name", "paths"}
    types, wanted = get_type_hints(ProductEntry), get_type_hints(Product)
    for name in (entry.keys() & product.keys()) - LEFT_OPEN:
        assert (types[name], entry[name]) == (wanted[name], product[name]), name


TOLD = {
    "variable",
    "source",
    "uncertainty",
    "kind",
    "native_units",
    "factor",
    "sign",
    "independent_of_towers",
    "like_for_like",
    "period",
    "resolution",
    "masks",
    "pattern",
    "url",
    "version",
    "doi",
    "licence",
}


@pytest.mark.parametrize("name", sorted(product_catalogue()))
def test_a_catalogue_entry_tells_everything_and_what_is_unknown_has_a_note(name):
    entry = product_catalogue()[name]
    assert sorted(TOLD - entry.model_fields_set) == []
    if entry.doi == "unknown":
        assert "DOI" in entry.note, "no DOI, and no word about it"
    else:
        assert re.fullmatch(r"10\.\d{4,9}/\S+[^.,;\s]", entry.doi)
    if entry.licence == "unknown":
        assert "icence" in entry.note, "no licence, and no word about it"
    assert entry.url.startswith(("https://", "http://")) or entry.url == "unknown"
    assert (entry.like_for_like is False) == bool(entry.differs), "in what it differs, or not"
    assert entry.pattern != "unknown"


@pytest.mark.parametrize("name", sorted(product_catalogue()))
def test_units_of_a_catalogue_entry_become_those_of_its_variable(name):
    entry = product_catalogue()[name]
    if not entry.gridded:
        pytest.skip("a list of towers or a total is not compared")
    units = entry.units or entry.native_units
    assert units is not None
    conversion = convert_factor(units, variable_table()[entry.variable].units, name, entry.variable)
    assert conversion.factor > 0


def test_every_catalogue_entry_loads_with_a_path_and_what_is_no_map_says_so(tmp_path):
    lines = [
        f"  {name}: {{catalogue: {name}, path: a.nc}}"
        for name, entry in product_catalogue().items()
        if entry.gridded
    ]
    products = load_products(products_file(tmp_path, "products:\n" + "\n".join(lines)))
    assert len(products) == len(lines) > 50
    for product in products:
        said = str(product.missing())
        assert "Get it from http" in said
        assert f"files like {product.pattern}" in said
        assert "\n" not in said
    path = products_file(tmp_path, "products:\n  A: {catalogue: GCP-nbp, path: a.nc}\n")
    with pytest.raises(UsageError, match="global total, no map: it cannot be compared"):
        load_products(path)


@pytest.mark.parametrize(
    ("name", "number", "days", "wanted"),
    [
        ("FLUXCOM-gpp", 8.64, None, 1e-7),
        ("FLUXCOM-X-nep", 8.64, None, -1e-7),
        ("FLUXCOM-hfls", 8.64, None, 100.0),
        ("MOD17-gpp", 0.06912, None, 1e-7),
        ("MOD16-hfls", 8 * 86400 * 100 / 2.45e6, None, 100.0),
        ("CarbonTracker-nep", -1e-5, None, 1.2011e-7),
        ("OCO2-MIP-nep", -44.009 / 12.011 * 365 * 8.64, 365, 1e-7),
        ("ESACCI-biomass", 100.0, None, 4.7),
        ("XuSaatchi-biomass", 100.0, None, 10.0),
        ("SoilGrids2-cSoil", 50.0, None, 5.0),
        ("ESACCI-SM", 0.3, None, 30.0),
        ("GRACE-mrso", -3.0, None, -30.0),
        ("GLEAM-hfls", 31 * 86400 * 100 / 2.45e6, 31, 100.0),
    ],
)
def test_factors_and_signs_by_hand(name, number, days, wanted):
    """``days``: length of the month or year that a sum is over; 12.011 of 44.009 g CO2 are C."""
    entry = product_catalogue()[name]
    conversion = convert_factor(
        entry.units or entry.native_units, variable_table()[entry.variable].units, name, ""
    )
    period = None if days is None else np.array([float(days)])
    got = conversion.apply(np.array([entry.sign * entry.factor * number]), period)
    assert got[0] == pytest.approx(wanted, rel=1e-5)


def test_the_page_of_products_is_that_of_the_catalogue(
    project_root: Path, request: pytest.FixtureRequest
) -> None:
    path = project_root / "docs" / "products.md"
    text = path.read_text(encoding="utf-8")
    start = "<!-- products: pytest tests/benchmark/test_benchmark_products.py --update-golden -->\n"
    end = "<!-- end of products -->"
    before, rest = text.split(start)
    wanted = f"{before}{start}{catalogue_table()}\n{end}{rest.split(end)[1]}"
    if request.config.getoption("--update-golden"):
        path.write_text(wanted, encoding="utf-8")
        pytest.skip(f"{path} written")
    assert text == wanted, "the catalogue has changed; run this test with --update-golden"


def test_the_page_of_products_has_every_rule_of_the_checks(project_root: Path) -> None:
    text = (project_root / "docs" / "products.md").read_text(encoding="utf-8")
    assert [f"| `{rule}` | {said} |" for rule, said in RULES.items()] == [
        line for line in text.splitlines() if line.startswith("| `") and line.count("|") == 3
    ]


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


def test_the_catalogue_is_listed_one_line_for_each_entry():
    listed = CliRunner().invoke(app, ["products", "--variable", "hfg", "--variable", "lai"])
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        name for name, entry in product_catalogue().items() if entry.variable in ("hfg", "lai")
    ]
    assert "doi 10.5194/essd-15-4877-2023; https://zenodo.org/records/8281930" in listed.stdout
    assert len(CliRunner().invoke(app, ["products"]).stdout.splitlines()) == len(
        product_catalogue()
    )


def test_files_of_a_products_file_are_looked_at_and_what_is_missing_is_told(tmp_path):
    write_product(tmp_path, cycles(3))
    path = products_file(
        tmp_path,
        "products:\n  LE: {variable: hfls, kind: synthetic, path: REF.nc}\n"
        "  CLASS: {catalogue: CLASS-hfg, path: class/*.nc}\n",
    )
    looked = CliRunner().invoke(app, ["products", str(path)])
    assert looked.exit_code == 1
    assert looked.stdout == "product LE: hfls: 1 files in order\n"
    (line,) = looked.stderr.splitlines()
    assert line.startswith("product CLASS: hfg: found no file, wanted files at ")
    assert "doi 10.25914/5c872258dc183, files like CLASS_v1-1_YYYY.nc, or obs4MIPs_" in line
    assert line.endswith("(ilamb3) [missing]")
    assert CliRunner().invoke(app, ["products", str(path), "--variable", "hfls"]).exit_code == 0
