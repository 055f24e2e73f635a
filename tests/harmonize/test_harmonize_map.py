"""Variable maps: where each variable comes from, and everything that can be wrong with a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.config.variable_map import load_variable_map, variable_map_path
from callmip_global.errors import UsageError
from callmip_global.harmonize.derive import parse_expression
from callmip_global.harmonize.variable_map import VariableMap, VariableSource, substance_of
from callmip_global.variables import requested_variables, variable_table


def problems_of(path: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_variable_map(path)
    return [str(p).removeprefix(str(path)) for p in caught.value.problems]


@pytest.mark.parametrize("name", ["template", "classic", "colm", "ctsm", "jules", "orchidee"])
def test_every_shipped_map_has_no_problem(name: str, project_root: Path) -> None:
    loaded = load_variable_map(project_root / "config" / "models" / f"{name}.yaml")
    assert set(requested_variables()) <= set(loaded.entries)
    assert loaded.closure(loaded.delivered)


def test_every_problem_of_a_map_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(
        "variables:\n"
        "  gpp: {source: GPP, units: mm/day, per: land}\n"
        "  hfls: {source: LE}\n"
        "  hfss: {source: H, derive: a + b, per: land}\n"
        "  nep: {derive: gpp - Reco}\n"
        "  ra: {derive: rh + 0}\n"
        "  rh: {derive: ra + 0}\n"
        "  ts: {source: T, units: furlong, per: land}\n"
        "  mrsos: {source: M, units: kg m-2, depth: [0, 0.07], per: land}\n"
        "  lai: {derive: 'exp(gpp)'}\n"
        "  Tran: {absent: not there}\n"
    )
    found = problems_of(path)
    wanted = {
        "hfls.per": (3, "never guessed"),
        "hfss.": (4, "found source and derive"),
        "gpp.units": (2, "no mass of carbon"),
        "nep.derive": (5, "'Reco', which has no entry"),
        "ra.derive": (6, "circular"),
        "rh.derive": (7, "circular"),
        "ts.units": (8, "furlong"),
        "mrsos": (9, "found depth 0 to 0.07 m, wanted 0 to 0.1 m"),
        "lai.derive": (10, "'exp(gpp)' is not understood"),
        "Tran": (11, "unknown variable"),
        "variables": (None, "none for reco, tran"),
    }
    for key, (line, words) in wanted.items():
        place = f":{line}:" if line else ":"
        assert any(p.startswith(place) and key in p and words in p for p in found), (key, found)
    assert len(found) == len(wanted)


def test_the_names_of_trendy_belong_to_one_variable_each(project_root: Path) -> None:
    loaded = load_variable_map(project_root / "config" / "models" / "trendy.yaml")
    assert loaded.well_known
    assert not loaded.entries
    names = [n for var in variable_table().values() for n in (var.name, *var.known_as)]
    assert len(names) == len(set(names))
    known = {n: var.name for var in variable_table().values() for n in var.known_as}
    assert known["evapotrans"] == "evspsbl"
    assert known["shflx"] == "hfss"
    assert known["transpft"] == "tran"
    assert known["msl"] == known["mls"] == "mrsos"
    # Soil temperature by layer is no skin temperature, and nbp has land use in it.
    assert not {"tsl", "nbp", "cVeg"} & set(known)


def test_what_a_map_may_leave_open_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(
        "cover: landCoverFrac\n"
        "variables:\n"
        "  lai: {source: [lai, LAI]}\n"
        "  nep: {source: nee, sign: 1, per: cell, cover: tiles}\n"
    )
    loaded = load_variable_map(path, requested=(), submitted=True)
    lai, nep = loaded.entries["lai"], loaded.entries["nep"]
    assert (lai.source, lai.names, lai.per, lai.sign_stated) == ("lai", ("LAI",), None, False)
    assert (nep.sign, nep.sign_stated, nep.per, nep.cover) == (1, True, "cell", "tiles")
    assert loaded.native_names == ("lai", "LAI", "nee", "tiles", "landCoverFrac")
    with pytest.raises(UsageError, match="never guessed"):
        load_variable_map(path, requested=())
    path.write_text("per: land\n")
    with pytest.raises(UsageError, match="well_known: true"):
        load_variable_map(path)


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("variables:\n  gpp: {sorce: GPP, per: land}\n")
    (problem,) = problems_of(path)
    assert problem.startswith(":2: variables.gpp.sorce: found an unknown key")
    assert "Did you mean 'source'?" in problem


def test_a_derivation_from_an_absent_variable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("variables:\n  nep: {derive: gpp - reco}\n  gpp: {absent: x}\n")
    assert any("'gpp', declared absent" in p for p in problems_of(path))


def test_sources_come_before_what_is_derived_from_them() -> None:
    table = {
        "nep": VariableSource(derive="gpp - reco"),
        "reco": VariableSource(derive="ra + rh"),
        "gpp": VariableSource(source="GPP"),
        "ra": VariableSource(source="Ra"),
        "rh": VariableSource(source="Rh"),
        "hfg": VariableSource(absent="no such flux"),
    }
    loaded = VariableMap(entries=table)
    assert loaded.closure(["nep"]) == ("gpp", "ra", "rh", "reco", "nep")
    assert loaded.delivered == ("nep", "gpp", "reco", "ra", "rh")
    assert loaded.native_names == ("GPP", "Ra", "Rh")


def test_a_map_is_found_beside_the_experiment_first_and_shipped_second(tmp_path: Path) -> None:
    shipped = variable_map_path("models/colm.yaml", tmp_path)
    assert shipped.name == "colm.yaml"
    assert shipped == variable_map_path("colm.yaml", tmp_path)
    (tmp_path / "colm.yaml").write_text("")
    assert variable_map_path("colm.yaml", tmp_path) == tmp_path / "colm.yaml"
    assert variable_map_path("none.yaml", tmp_path) == tmp_path / "none.yaml"


def test_masses_are_of_carbon_or_of_water() -> None:
    carbon = {n for n, v in variable_table().items() if substance_of(v) == "carbon"}
    water = {n for n, v in variable_table().items() if substance_of(v) == "water"}
    pools = {"cLiveBioAbove", "cSoil", "cLeaf", "cStem", "cWood"}
    assert carbon == {"nep", "gpp", "reco", "ra", "rh", "npp", *pools}
    assert water == {"tran", "evspsblsoi", "mrso", "mrsos", "evspsbl"}


numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
names = st.sampled_from(["a", "b", "c"])
leaves = st.one_of(names, st.integers(1, 99).map(str), st.just("2.5e6"))
texts = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda t: f"-({t})"),
    ),
    max_leaves=8,
)


@given(texts, numbers, numbers, numbers)
def test_expressions_mean_what_python_arithmetic_means(
    text: str, a: float, b: float, c: float
) -> None:
    text = f"a + {text}"
    values = {"a": np.array([a]), "b": np.array([b]), "c": np.array([c])}
    wanted = eval(text, {"__builtins__": {}}, values)
    np.testing.assert_array_equal(parse_expression(text).evaluate(values), wanted)


@pytest.mark.parametrize(
    "text",
    ["", "1 + 2", "a.b", "a[0]", "__import__('os')", "a ** b", "a if b else c", "True * a", "a; b"],
)
def test_anything_but_arithmetic_on_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_expression(text)
