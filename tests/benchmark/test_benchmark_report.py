"""The report is one file, complete, honest about what is missing; pictures show the right cell."""

from __future__ import annotations

import html.parser
import json
import re
import zlib

import numpy as np
import pytest
from benchmark_cases import benchmark, cycles, write_product, write_run
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark import write_report
from callmip_global.benchmark.pictures import (
    RAMPS,
    Projection,
    Scale,
    map_png,
    nice_limit,
    range_scale,
    symmetric_scale,
)
from callmip_global.cli.benchmark import benchmark as benchmark_command
from callmip_global.errors import DataError


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Text and data of the report of two models, one without a posterior."""
    folder = tmp_path_factory.mktemp("report")
    truth = cycles(3)
    runs = [
        write_run(folder, truth + 5),
        write_run(folder, truth + 1, stage="Posterior"),
        write_run(folder, truth - 2, model="N</script>.v1"),
    ]
    products = [
        write_product(folder, truth),
        write_product(folder, truth.mean(axis=0), name="MAP", static=True),
        write_product(folder, truth, name="LOST", units="kg"),
    ]
    benchmark(runs, products, folder / "out")
    path = write_report(folder / "out", out=folder / "out" / "report.html")
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return text, json.loads(data.group(1)), folder / "out"


class Links(html.parser.HTMLParser):
    """Collects everything a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "href", "data") and value and not value.startswith("#"):
                self.loaded.append(value)


def test_the_report_loads_nothing_from_anywhere(report):
    text, data, _ = report
    links = Links()
    links.feed(text)
    assert links.loaded == []
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    for product in data["pictures"].values():
        for uri in [
            product["reference"],
            *(u for r in product["runs"].values() for u in r.values()),
        ]:
            assert uri.startswith("data:image/png;base64,")


def test_a_name_with_markup_stays_text(report):
    text, data, _ = report
    assert [run["model"] for run in data["runs"]] == ["M.v1", "M.v1", "N</script>.v1"]
    assert text.count("</script>") == 2


def test_problems_synthetic_data_and_the_source_of_the_scheme_are_said(report):
    text, _, _ = report
    assert "LOST" in text.split('id="problems"')[1].split("</section>")[0]
    assert "Synthetic" in text.split("</header>")[0]
    assert "doi:10.1029/2018MS001354" in text
    assert "improve" not in text.lower()


def test_the_report_holds_the_numbers_of_scores_csv(report):
    _, data, _ = report
    monthly = next(c for c in data["comparisons"] if c["frequency"] == "mon")
    assert monthly["values"]["global"]["0"]["bias"] == pytest.approx(5.0)
    assert monthly["changes"]["global"]["1"]["bias"] == pytest.approx(-4.0)
    subject = data["subjects"][1]
    assert (subject["prior"], subject["posterior"]) == (2, None)


def test_a_run_of_one_stage_alone_is_said_to_be_alone(report):
    text, _, _ = report
    assert "only the ${alone} is here, so there is no change to show." in text


def test_the_same_benchmark_gives_the_same_report(report):
    text, _, folder = report
    again = write_report(folder, out=folder / "again.html").read_text(encoding="utf-8")
    assert again == text


def test_a_folder_without_a_benchmark_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"found no benchmark\.json"):
        write_report(tmp_path, out=tmp_path / "report.html")


def test_the_command_does_the_rest_and_then_fails_on_a_bad_product(tmp_path, capsys):
    truth = cycles(3)
    run = write_run(tmp_path, truth)
    write_product(tmp_path, truth)
    products = tmp_path / "products.yaml"
    products.write_text(
        "products:\n"
        "  REF: {variable: hfls, path: REF.nc, kind: synthetic}\n"
        "  GONE: {variable: hfls, path: gone.nc, kind: satellite}\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    with pytest.raises(DataError) as caught:
        benchmark_command([run.parent], products, out)
    assert caught.value.exit_code == 1
    assert len(caught.value.problems) == 1
    assert str(caught.value.problems[0]).startswith("product GONE: hfls: found no file")
    assert capsys.readouterr().out.splitlines() == [
        str(out / "scores.csv"),
        str(out / "report.html"),
    ]
    assert (out / "report.html").is_file()


def pixels_of(png: bytes) -> np.ndarray:
    """Palette indices of a PNG written with filter 0."""
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    data, at = b"", 8
    while at < len(png):
        size, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += size + 12
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


@pytest.mark.parametrize("west", [-180.0, 0.0, -2.5], ids=["-180", "0", "-2.5"])
def test_a_map_shows_each_cell_where_it_is_however_the_grid_starts(west):
    """The middle row crosses the equator: from longitude -180 at the left to 180 at the right."""
    lat_edges, lon_edges = np.linspace(-90, 90, 19), west + np.linspace(0, 360, 37)
    middle = np.mod(0.5 * (lon_edges[:-1] + lon_edges[1:]) + 180.0, 360.0) - 180.0
    field = np.broadcast_to(middle, (18, 36))
    projection = Projection.of(lat_edges, lon_edges, 360)
    row = pixels_of(map_png(field, projection, Scale("sequential", -180.0, 180.0)))[87]
    longitude = np.arange(360) - 179.5
    shown = (row.astype(float) - 2) / 119 * 360 - 180
    inner = np.abs(longitude) < 170
    assert np.abs(shown - longitude)[inner].max() < 5 + 360 / 119


def test_outside_the_globe_is_transparent_and_missing_cells_are_marked():
    lat_edges, lon_edges = np.linspace(-90, 90, 3), np.linspace(-180, 180, 3)
    field = np.array([[np.nan, 1.0], [np.nan, 1.0]])
    png = map_png(field, Projection.of(lat_edges, lon_edges, 100), Scale("sequential", 0, 1))
    pixels = pixels_of(png)
    assert pixels[0, 0] == 0
    assert pixels[24, 25] == 1
    assert pixels[24, 75] == 121


@given(st.floats(1e-12, 1e12))
def test_a_limit_is_round_and_not_much_larger(value):
    limit = nice_limit(value)
    assert 0.999 * value <= limit <= 1.51 * value


def test_scales_suit_fluxes_signed_fields_and_temperatures():
    assert range_scale([np.linspace(0, 9.7, 50)]) == Scale("sequential", 0.0, 10.0)
    assert range_scale([np.linspace(-3, 2.9, 50)]) == Scale("diverging", -3.0, 3.0)
    kelvin = range_scale([np.linspace(251, 299, 50)])
    assert 240 <= kelvin.low <= 251.5
    assert 298.5 <= kelvin.high <= 310
    assert symmetric_scale([np.array([-2.0, np.nan, 1.0])], "change") == Scale("change", -2.0, 2.0)
    assert range_scale([np.full(3, np.nan)]).low == 0.0


@pytest.mark.parametrize("name", sorted(RAMPS))
def test_a_ramp_keeps_its_order_in_grey(name):
    """Lightness alone orders a sequential ramp, and each half of a diverging one."""
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMPS[name]])
    grey = rgb @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(grey)
    if name == "sequential":
        assert np.all(steps < 0)
    else:
        assert np.all(steps[:3] > 0)
        assert np.all(steps[3:] < 0)
