"""The report is one file, complete, honest about what is missing; pictures show the right cell."""

from __future__ import annotations

import html
import html.parser
import json
import math
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_cases import benchmark, cycles, write_product, write_run
from benchmark_study import write_study
from hypothesis import given
from hypothesis import strategies as st

from callmip_global.benchmark import report as report_module
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
from callmip_global.benchmark.tables import Score, read_scores, write_scores
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
    return text, script(text, "data"), folder / "out"


def script(text: str, name: str) -> Any:
    """The JSON inside a page."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    assert found is not None, name
    return json.loads(found.group(1))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Folder of a benchmark and its report: 20 models, 14 variables, two products of each."""
    folder = write_study(
        tmp_path_factory.mktemp("study"),
        schemes=("collier2018", "ilamb3"),
        regions=("global", "tropics", "nh_boreal"),
    )
    write_report(folder, out=folder / "report.html")
    return folder


def browsed(page: Path, tmp_path: Path, steps: str, first: str = "") -> Any:
    """What the JavaScript function body ``steps`` returns in a browser that opened the page.

    ``first`` runs before the page and its pictures are loaded, ``steps`` after that.
    No message on the browser's console, and nothing loaded but files. Skipped without a browser.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    probe = """<script>FIRST; addEventListener("load", () => {
      const seconds = performance.now() / 1000;
      const press = (key) => document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
      const set = (id, value) => { $(id).value = value;
        $(id).dispatchEvent(new Event("change", {bubbles: true})); };
      const found = (() => { STEPS })();
      const loaded = performance.getEntriesByType("resource").map((e) => e.name);
      document.title = JSON.stringify({found, loaded, seconds});
    });</script></body>"""
    text = page.read_text(encoding="utf-8").replace(
        "</body>", probe.replace("FIRST", first).replace("STEPS", steps)
    )
    driven = page.with_name("driven.html")
    driven.write_text(text, encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [program, *options.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    run = subprocess.run(
        [*command, "--dump-dom", driven.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert [line for line in run.stderr.splitlines() if ":CONSOLE" in line] == []
    title = re.search(r"<title>(.*?)</title>", run.stdout)
    assert title is not None, run.stderr[-2000:]
    result = json.loads(html.unescape(title.group(1)))
    assert all(name.startswith(("file:", "data:")) for name in result["loaded"])
    return result


def test_twenty_models_and_fourteen_variables_are_there_in_two_seconds(study, tmp_path):
    steps = """return {rows: $("portrait").tBodies[0].rows.length,
      cells: $("portrait").querySelectorAll(".cell").length,
      holes: $("portrait").querySelectorAll("polygon[stroke-dasharray]").length,
      unlike: [...$("portrait").querySelectorAll(".cell")].filter(
        (e) => e.innerHTML.includes("#unlike")).map((e) => +e.dataset.go),
      unsure: $("portrait").querySelectorAll('[fill="url(#unsure)"]').length,
      bars: $("bars").querySelectorAll("tbody tr").length};"""
    result = browsed(study / "report.html", tmp_path, steps)
    found = result["found"]
    assert (found["rows"], found["cells"], found["bars"]) == (28, 560, 28)
    # Four models have no posterior; six miss both products of one variable, one of them both.
    assert found["holes"] == 4 * 28 + 2 * (2 * 6 - 1)
    assert set(found["unlike"]) == {0}
    assert found["unsure"] > 0
    # Other work on the machine may slow one opening down, not all three.
    tries = (browsed(study / "report.html", tmp_path, "return 0;")["seconds"] for _ in range(2))
    assert result["seconds"] < 2 or any(seconds < 2 for seconds in tries)


def test_the_table_is_sorted_and_switched(study, tmp_path):
    steps = """
      const order = () => [...$("portrait").tBodies[0].rows].map((r) => r.cells[0].innerText);
      const shown = () => [...$("portrait").tBodies[0].rows].map(
        (r) => parseFloat(r.querySelector(".wide").innerText.replace("\u2212", "-")
          .replace(/[^-+.0-9].*?(?=[-+0-9])/, "")));
      const was = order(), sort = (k) => $("portrait").querySelector(`[data-sort="${k}"]`);
      sort(1).click();
      const falling = shown(), aria = sort(1).closest("th").getAttribute("aria-sort");
      sort(1).click();
      const rising = shown();
      const before = $("sentence").textContent;
      set("scheme", "ilamb3");
      const scheme = $("sentence").textContent;
      set("region", "nh_boreal");
      const region = $("sentence").textContent;
      set("sort", "file");
      document.querySelector('[name="view"][value="change"]').click();
      return {falling, aria, rising, before, scheme, region, back: order().join() === was.join(),
        polygons: $("portrait").querySelector(".cell").querySelectorAll("polygon").length};"""
    found = browsed(study / "report.html", tmp_path, steps)["found"]
    assert found["falling"] == sorted(found["falling"], reverse=True)
    assert found["rising"] == found["falling"][::-1]
    assert len(set(found["falling"])) > 10
    assert found["aria"] == "descending"
    assert len({found["before"], found["scheme"], found["region"]}) == 3
    assert "high latitudes" in found["region"]
    assert found["back"]
    assert found["polygons"] == 1, "one colour per cell, that of the change"


def test_the_table_is_used_with_the_keyboard_alone(study, tmp_path):
    steps = """
      const table = $("portrait"), there = () => document.activeElement.getAttribute("aria-label");
      const one = table.querySelectorAll('[tabindex="0"]').length;
      table.querySelector('[tabindex="0"]').focus();
      for (const key of ["Home", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"]) press(key);
      const cell = there();
      press("End"); const last = there();
      press("PageDown"); const down = there();
      press("ArrowUp"); press("ArrowLeft");
      document.activeElement.click();
      const now = document.activeElement;
      return {one, cell, last, down, after: table.querySelectorAll('[tabindex="0"]').length,
        section: now.id, drawn: now.querySelectorAll("svg").length, model: $("subject").value,
        unlabelled: [...table.querySelectorAll(".cell")].filter((e) => !e.ariaLabel).length};"""
    found = browsed(study / "report.html", tmp_path, steps)["found"]
    assert (found["one"], found["after"], found["unlabelled"]) == (1, 1, 0)
    assert found["cell"].startswith("nep, nep-upscaled, MODEL-02.v1 S3: prior 0.")
    assert found["last"].startswith("nep, nep-upscaled, MODEL-20.v1 S3: prior 0.")
    assert found["down"].startswith("hfss, hfss-upscaled, MODEL-20.v1")
    assert found["section"] == "product-8"
    assert found["model"] == "18"
    assert found["drawn"] >= 4, "seasonal cycle, annual means, Taylor diagram, all models"


@pytest.fixture(scope="module")
def detailed(tmp_path_factory):
    """Folder of a study with all that a benchmark may hold: three members in each of two models."""
    folder = write_study(
        tmp_path_factory.mktemp("detailed"),
        models=4,
        members=3,
        variables=("gpp", "hfls", "lai"),
        schemes=("collier2018", "ilamb3"),
        regions=("global", "tropics"),
        mapped=1,
    )
    write_report(folder, out=folder / "report.html")
    return folder


def values(folder: Path, **where: str) -> dict[str, dict[str, Score]]:
    """Product -> stage and quantity -> row of scores.csv: global, collier2018 unless said."""
    where = {"region": "global", "scheme": "collier2018"} | where
    found: dict[str, dict[str, Score]] = {}
    for row in read_scores(folder / "scores.csv"):
        if all(getattr(row, name) == value for name, value in where.items()):
            found.setdefault(row.product, {})[f"{row.stage} {row.quantity}"] = row
    return found


def test_models_that_came_together_but_not_nearer_are_flagged(detailed, tmp_path):
    steps = """
      const words = () => [...$("bars").querySelectorAll("tbody tr")].map((r) => [
        r.querySelector("small").innerText, r.querySelector(".words span").innerText]);
      const column = (k) => [...$("bars").querySelectorAll("tbody tr")].map(
        (r) => parseFloat(r.cells[k].innerText));
      const said = words(), spread = column(3), flagged = $("nearness").querySelectorAll(
        'path[fill="var(--more)"]').length, note = $("nearness").innerText;
      const parts = $("bars").querySelector(".parts svg");
      const bars = [...parts.querySelectorAll("rect")].map((e) => +e.getAttribute("width"));
      $("measures").querySelector('[value="total_spread"]').click();
      return {said, spread, flagged, note, bars, title: parts.ariaLabel, total: column(3),
        units: $("bars").querySelector("tbody tr").cells[4].innerText, after: words(),
        reduction: $("bars").querySelector("tbody tr").cells[5].innerText,
        whiskers: $("bars").querySelectorAll('.bar-cell line[stroke="var(--ink)"]').length};"""
    found = browsed(detailed / "report.html", tmp_path, steps)["found"]
    of_all = values(detailed, model="all models")

    def whole(share: float) -> int:
        return math.floor(100 * share + 0.5)

    expected = {}
    for product, rows in of_all.items():
        of = {name: row.value for name, row in rows.items()}
        closer = of["Posterior multi_model_rmse"] < of["Prior multi_model_rmse"]
        reduction = rows["Posterior-Prior spread_reduction"]
        if reduction.low <= 0 <= reduction.high:
            expected[product] = "spread not clearly different"
        elif reduction.value < 0:
            expected[product] = "wider, but mean nearer" if closer else "wider, mean not nearer"
        elif not closer:
            expected[product] = "◆ narrower, but mean not nearer"
        elif whole(of["Posterior range_coverage"]) < whole(of["Prior range_coverage"]):
            expected[product] = "◇ nearer, but outside more often"
        else:
            expected[product] = "narrower and mean nearer"
    assert dict(found["said"]) == expected
    assert len(set(expected.values())) > 2, "a study in which there is something to tell apart"
    assert found["after"] == found["said"], "the verdict is of the standard deviation"
    wrong = [name for name, words in expected.items() if words.startswith("◆")]
    assert found["flagged"] == len(wrong)
    assert f"Narrow but wrong: {len(wrong)} of 6" in found["note"]
    gpp = {name: row.value for name, row in of_all["gpp-satellite"].items()}
    assert found["spread"][0] == pytest.approx(gpp["Posterior spread"] * 86400e3, rel=1e-2)
    assert found["total"][0] == pytest.approx(gpp["Posterior total_spread"], rel=1e-2)
    assert found["units"] == "PgC yr⁻¹"
    assert found["whiskers"] == 6
    change = of_all["gpp-satellite"]["Posterior-Prior total_spread_reduction"]
    ends = (100 * x for x in (change.value, change.low, change.high))
    assert found["reduction"].replace("−", "-") == "{:.0f} % {:.0f} to {:.0f}".format(*ends)
    prior = np.array([gpp[f"Prior spread_{part}"] for part in ("offset", "seasonal", "pattern")])
    shares = np.array(found["bars"][:3]) / sum(found["bars"][:3])
    assert shares == pytest.approx(prior**2 / np.sum(prior**2), abs=0.01)
    assert found["title"].startswith("offset ")


def test_what_is_within_the_uncertainty_is_hatched_and_other_products_are_the_ceiling(
    detailed, tmp_path
):
    steps = """
      const rows = [...$("portrait").tBodies[0].rows];
      const cells = [...rows[0].querySelectorAll(".cell")];
      const section = sections[0], body = section.querySelector(".body");
      show(section);
      const numbers = () => Object.fromEntries([...body.querySelectorAll(".numbers tbody tr")].map(
        (r) => [r.cells[0].innerText, [...r.cells].slice(1).map((c) => c.innerText)]));
      const before = numbers();
      const found = {within: cells.map((e) => e.innerHTML.includes("#within")),
        unsure: cells.map((e) => e.innerHTML.includes("#unsure")),
        names: cells.map((e) => e.ariaLabel),
        keys: ["within-key", "unsure-key", "unlike-key", "ceiling-key"].map((id) => $(id).hidden),
        none: rows[1].querySelectorAll('[fill="url(#within)"]').length,
        ceiling: rows.map((r) => parseFloat(r.querySelector(".ceiling text").textContent)),
        squares: body.querySelectorAll("rect.s-other").length,
        maps: [...body.querySelectorAll(".map img")].map((e) => e.alt), before};
      set("scheme", "ilamb3"); refresh(section);
      return {...found, later: numbers()};"""
    found = browsed(detailed / "report.html", tmp_path, steps)["found"]
    names = [(m, f"r{k}") for m in ("01", "02") for k in (1, 2, 3)] + [("03", ""), ("04", "")]
    gpp: list[dict[str, Score]] = []
    for model, member in names:
        of = values(detailed, model=f"MODEL-{model}.v1", member=member)
        gpp.append(of["gpp-satellite"])
    shares = [of["Posterior-Prior beyond_uncertainty_share"].value for of in gpp]
    assert found["within"] == [share <= 0.5 for share in shares]
    assert any(0.5 < share < 0.9 for share in shares)
    changes = [of["Posterior-Prior overall_score"] for of in gpp]
    assert found["unsure"] == [change.low <= 0 <= change.high for change in changes]
    said = ["within the uncertainty of the product" in name for name in found["names"]]
    assert said == found["within"]
    assert found["keys"] == [False, False, True, False], "nothing here is not like for like"
    assert found["none"] == 0, "a product without an uncertainty"
    others = values(detailed, stage="Reference")
    best = [of["Reference overall_score"].value for of in others.values()]
    assert found["ceiling"] == pytest.approx(best, abs=0.0051)
    assert found["squares"] == 1
    assert "Map: Uncertainty of the product" in found["maps"]
    score = gpp[0]["Posterior uncertain_bias_score"].value
    assert found["before"]["Bias score beyond the uncertainty"][1] == f"{score:.3f}"
    assert found["before"]["Overall score"][3] == f"{best[0]:.3f}"
    bias = [name for name in found["later"] if name.startswith("Bias g")]
    assert found["later"][bias[0]] == found["before"][bias[0]], "the same in both schemes"
    assert found["later"]["Overall score"] != found["before"]["Overall score"]
    assert found["later"]["Overall score"][0] != "–"


def test_an_ensemble_that_is_too_sure_shows_as_such(detailed, tmp_path):
    steps = """
      const table = $("ensembles-table").querySelector("tbody tr").innerText.split("\t");
      const section = sections[0];
      show(section);
      const ranks = [...section.querySelectorAll(".chart")].pop();
      const bars = (cls) => [...ranks.querySelectorAll(cls)].map((e) => +e.getAttribute("height"));
      const flat = [...ranks.querySelectorAll('line[stroke="var(--ink)"]')];
      const model = $("ensembles-text").textContent;
      set("subject", 3); const two = $("ensembles-table").querySelector("thead").innerText;
      set("subject", 6); const other = $("ensembles-text").textContent;
      return {table, prior: bars(".r-pri"), posterior: bars(".r-pos"), flat: flat.length, model,
        two, other, rows: $("ensembles-table").querySelectorAll("tr").length,
        charts: [...section.querySelectorAll(".chart h3")].map((e) => e.innerText)};"""
    found = browsed(detailed / "report.html", tmp_path, steps)["found"]
    of = values(detailed, model="MODEL-01.v1", member="ensemble")["gpp-satellite"]
    before, after = (of[f"{stage} spread_skill"].value for stage in ("Prior", "Posterior"))
    assert found["table"][1].strip() == "3 / 3"
    assert found["table"][2].strip() == f"{before:.2f} → {after:.2f}"
    assert found["table"][3].strip() == "too narrow"
    assert found["table"][4].strip() == "50 % → 30 %"
    summary = json.loads((detailed / "benchmark.json").read_text(encoding="utf-8"))
    shares = {
        e["stage"]: e["rank_histogram"]["global"]
        for e in summary["comparisons"][0]["ensembles"]
        if e["model"] == "MODEL-01.v1"
    }
    for stage in ("Prior", "Posterior"):
        heights = np.array(found[stage.lower()])
        assert heights / heights.sum() == pytest.approx(np.array(shares[stage]), abs=2e-3)
    assert found["flat"] == 1
    assert "within 1 σ" in found["two"], "the second model states an uncertainty as well"
    assert found["other"].endswith("there are some for MODEL-01.v1, MODEL-02.v1, MODEL-04.v1.")
    assert found["rows"] == 0
    assert {"MODELS THROUGH THE YEAR", "SPREAD AND ERROR", "RANK OF THE PRODUCT"} <= {
        " ".join(word for word in title.split() if word.isupper()) for title in found["charts"]
    }


def test_a_benchmark_with_scores_and_a_spread_alone_still_makes_a_report(tmp_path):
    folder = write_study(
        tmp_path,
        models=5,
        variables=("gpp", "mrso"),
        schemes=("collier2018", "ilamb27"),
        regions=("global",),
        plain=True,
    )
    page = write_report(folder, out=folder / "report.html")
    steps = """dispatchEvent(new Event("beforeprint"));
      return {hidden: ["ensembles", "nearness", "measures", "parts-key", "within-key",
          "ceiling-key"].map((id) => $(id).hidden),
        bars: $("bars").querySelectorAll("tbody tr").length, words: $("between-text").textContent,
        charts: [...document.querySelectorAll("section[data-product]")].map(
          (e) => e.querySelectorAll(".chart").length)};"""
    found = browsed(page, tmp_path, steps)["found"]
    assert all(found["hidden"])
    assert found["bars"] == 4
    assert "the table above shows that" in found["words"]
    assert found["charts"] == [4, 4, 3, 3]


def test_a_real_report_draws_its_products_without_a_complaint(report, tmp_path):
    _, _, folder = report
    steps = """dispatchEvent(new Event("beforeprint"));
      return [...document.querySelectorAll("section[data-product] .body")].map((e) => [
        e.querySelectorAll("img").length, e.querySelectorAll(".chart").length,
        e.querySelectorAll("table.numbers tbody tr").length]);"""
    found = browsed(folder / "report.html", tmp_path, steps)["found"]
    assert len(found) == 2
    assert all(images == 6 and charts >= 1 and rows > 4 for images, charts, rows in found)


def test_maps_that_are_too_many_for_the_page_lie_beside_it(tmp_path, monkeypatch):
    folder = write_study(tmp_path, models=3, variables=("gpp",), schemes=("ilamb3",), mapped=2)
    monkeypatch.setattr(report_module, "_MAP_BYTES", 20_000)
    text = write_report(folder, out=folder / "report.html").read_text(encoding="utf-8")
    pictures = script(text, "data")["pictures"].values()
    places = [p[name] for p in pictures for name in ("reference", "uncertainty") if p[name]]
    places += [uri for p in pictures for run in p["runs"].values() for uri in run.values()]
    outside = [place for place in places if not place.startswith("data:")]
    assert outside
    assert len(outside) < len(places)
    assert sorted(outside) == sorted(f"pictures/{p.name}" for p in folder.glob("pictures/*"))
    steps = "return [...document.images].map((image) => [image.naturalWidth, image.src]);"
    everything = 'dispatchEvent(new Event("beforeprint"))'
    shown = browsed(folder / "report.html", tmp_path, steps, everything)["found"]
    assert len(shown) == 2 * 9 + 1, "one of the products has an uncertainty"
    assert {width for width, _ in shown} == {640}
    drawn = {name for p in pictures for run in p["runs"].values() for name in run}
    assert "mean_prior" in drawn
    assert "mean_prior_ilamb27" not in drawn, "that of another scheme, which nothing shows"
    assert {Path(src).name for _, src in shown if src.startswith("file:")} <= {
        Path(place).name for place in outside
    }
    assert any(src.startswith("file:") for _, src in shown)


def test_scores_are_read_as_they_were_written(tmp_path):
    where = ("gpp", "REF", "M, v1", "S3", "Posterior-Prior", "", "global", "mon", "collier2018")
    rows = [
        Score(*where, "rmse_score", 0.125, "1", 7, 24, low=-0.5, high=0.75),
        Score(*where, "bias", float("nan"), "kg m-2 s-1", 0, 24),
    ]
    write_scores(tmp_path / "scores.csv", rows)
    assert repr(list(read_scores(tmp_path / "scores.csv"))) == repr(rows)
    last = (tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert last.endswith(",bias,,kg m-2 s-1,0,24,,"), "what is not defined is an empty field"


def test_scores_are_there_in_the_form_of_cmec(study):
    """The tree that the dashboard of ILAMB opens: region, model, metric, statistic."""
    cmec = json.loads((study / "scalar_database.json").read_text(encoding="utf-8"))
    assert cmec["SCHEMA"] == {"name": "CMEC", "version": "v1", "package": "callmip-global"}
    sizes = cmec["DIMENSIONS"]["dimensions"]
    assert cmec["DIMENSIONS"]["json_structure"] == ["region", "model", "metric", "statistic"]
    assert set(cmec["RESULTS"]) == set(sizes["region"])
    run = cmec["RESULTS"]["global"]["MODEL-02.v1_S3_Posterior"]
    assert set(run) == set(sizes["metric"])
    assert set(run["Monthly::gpp!!gpp-satellite"]) == set(sizes["statistic"]["indices"])
    parts = [run[f"Monthly::gpp!!gpp-{kind}"]["RMSE Score"] for kind in ("satellite", "upscaled")]
    assert run["Monthly::gpp"]["RMSE Score"] == pytest.approx(sum(parts) / 2)
    table = (study / "scores.csv").read_text(encoding="utf-8").splitlines()
    line = "gpp,gpp-satellite,MODEL-02.v1,S3,Posterior,,global,mon,collier2018,rmse_score,"
    value = next(row for row in table if row.startswith(line)).removeprefix(line).split(",")[0]
    assert parts[0] == pytest.approx(float(value), rel=1e-4)


def test_rows_of_no_single_run_stay_out_of_the_runs_and_out_of_cmec(tmp_path):
    folder = write_study(tmp_path, models=2, variables=("gpp",), schemes=("ilamb3",), plain=True)
    write_report(folder, out=folder / "report.html")
    before = (folder / "scalar_database.json").read_text(encoding="utf-8")
    rows = list(read_scores(folder / "scores.csv"))
    row = next(row for row in rows if row.quantity == "rmse_score")
    others = [
        replace(row, model="product gpp-upscaled", simulation="", stage="Reference", value=0.5),
        replace(row, member="ensemble", quantity="ensemble_spread", value=7.0, low=6.0, high=9.0),
        replace(row, model="not a run", stage="Elsewhere"),
    ]
    write_scores(folder / "scores.csv", [*others, *rows])
    text = write_report(folder, out=folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "scalar_database.json").read_text(encoding="utf-8") == before
    of = script(text, "numbers-ilamb3")[0][row.region]
    assert of["r"] == {"gpp-upscaled": {"rmse_score": 0.5}}
    assert of["e"] == {"MODEL-01.v1 S3": {"ensemble_spread": [[7.0, 6.0, 9.0], None, None]}}


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
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text, "what a browser would refuse to load in any case"
    for product in data["pictures"].values():
        for uri in [
            product["reference"],
            *(u for r in product["runs"].values() for u in r.values()),
        ]:
            assert uri.startswith("data:image/png;base64,")


def test_a_name_with_markup_stays_text(report):
    text, data, _ = report
    assert [run["model"] for run in data["runs"]] == ["M.v1", "M.v1", "N</script>.v1"]
    assert text.count("</script>") == 3


def test_problems_synthetic_data_and_the_source_of_the_scheme_are_said(report):
    text, _, _ = report
    assert "LOST" in text.split('id="problems"')[1].split("</section>")[0]
    assert "Synthetic" in text.split("</header>")[0]
    assert "doi:10.1029/2018MS001354" in text
    assert "improve" not in text.lower()


def listed(text: str) -> tuple[str, dict[str, int]]:
    """The banner of problems, and the number of lines under each heading of their list."""
    banner = re.search(r'<div class="banner bad"[^>]*>(.*?)</div>', text, re.S)
    section = text.split('<section class="product" id="problems">')[1].split("</section>")[0]
    parts = re.findall(r"<h3[^>]*>(.*?)</h3><ul>(.*?)</ul>", section)
    words = html.unescape(re.sub(r"<[^>]*>", "", banner.group(1) if banner else ""))
    return words, {title: lines.count("<li>") for title, lines in parts}


def test_products_not_compared_are_counted_apart_from_those_with_a_remark(tmp_path):
    truth = cycles(3)
    gappy = truth.copy()
    gappy[7] = np.nan
    broken = write_run(tmp_path, truth, model="BROKEN.v1")
    broken.write_bytes(broken.read_bytes()[:5000])
    products = [
        write_product(tmp_path, truth),
        write_product(tmp_path, gappy, name="GAPPY"),
        write_product(tmp_path, gappy, name="REF (2)", uncertainty="nowhere"),
        write_product(tmp_path, truth, name="LOST", units="kg"),
    ]
    summary = benchmark([write_run(tmp_path, truth), broken], products, tmp_path / "out")
    assert [len(product["problems"]) for product in summary["products"]] == [0, 1, 2, 1]
    banner, parts = listed(write_report(tmp_path / "out", out=tmp_path / "r.html").read_text())
    titles = ("1 product not compared", "2 products compared, with a remark", "1 line about runs")
    assert parts == dict(zip(titles, (1, 3, 1), strict=True))
    assert banner == f"5 problems {'; '.join(titles)}. All lines are under Problems."


def test_without_problems_there_is_no_banner_and_not_every_product_needs_a_run(tmp_path):
    truth = cycles(3)
    products = [
        write_product(tmp_path, truth),
        write_product(tmp_path, truth, name="B", variable="hfss"),
    ]
    for used, said in ((1, "No problems: every product was compared."), (2, "No problems.")):
        out = tmp_path / str(used)
        benchmark([write_run(tmp_path, truth)], products[:used], out)
        text = write_report(out, out=out / "report.html").read_text()
        assert listed(text) == ("", {})
        assert f"<p>{said}</p>" in text


def test_the_report_holds_the_numbers_of_scores_csv(report):
    text, data, _ = report
    monthly = [c["frequency"] for c in data["comparisons"]].index("mon")
    numbers = script(text, "numbers-collier2018")[monthly]["global"]
    assert data["comparisons"][monthly]["runs"] == [0, 1, 2]
    assert numbers["v"]["bias"] == pytest.approx([5.0, 1.0, -2.0])
    change = numbers["c"]["bias"][1]
    assert (change[0] if isinstance(change, list) else change) == pytest.approx(-4.0)
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
