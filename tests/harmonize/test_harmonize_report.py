"""The page of the report: one file with every entry in it, the same bytes for the same entries."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from callmip_global.harmonize.report import write_report
from callmip_global.harmonize.rules import RULES
from callmip_global.harmonize.submission import Entry, refusals, remarks

TOP = "/data/in"


def row(path: str, variable: str, outcome: str = "accepted", **more: Any) -> dict[str, Any]:
    said = {"run": "M.v1_S3_Prior", "rules": [], "message": "", **more}
    return {"path": path, "variable": variable, "outcome": outcome, **said}


ROWS = [
    row(f"{TOP}/M/gpp.nc", "gpp", "fixed", rules=["units"], message="units: gC to kg"),
    row(f"{TOP}/M/ts.nc", "ts", "refused", rules=["range"], message=f"{TOP}/M/ts.nc: ts: found 1"),
    row(f"{TOP}/N/ts.nc", "ts", run="N.v1_S3_Prior"),
    row(f"{TOP}/M/README", "", rules=["not-data"], message="text; not read"),
    row("", "reco", "fixed", rules=["derived"], message="derived: reco = ra + rh"),
    row(f"{TOP}/M/odd.nc", "extra", rules=["not-mapped"], message="</script><b>&\"'"),
]


def data_of(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    found: dict[str, Any] = json.loads(match[1])
    return found


def test_every_entry_is_in_the_page_once_and_as_it_was(tmp_path: Path) -> None:
    data = data_of(write_report(ROWS, out=tmp_path / "r.html"))
    assert data["top"] == f"{TOP}/"
    back = [
        {
            "run": data["runs"][run],
            "path": data["top"] + data["paths"][path] if data["paths"][path] else "",
            "variable": data["variables"][variable][0],
            "outcome": ("accepted", "fixed", "refused")[outcome],
            "rules": [data["rules"][rule][0] for rule in rules],
            "message": data["messages"][message],
        }
        for run, path, variable, outcome, rules, message in data["rows"]
    ]
    without = [{**r, "message": r["message"].replace(f"{TOP}/", "")} for r in ROWS]
    assert back == without
    assert [r[:2] for r in data["rules"]] == [
        [name, RULES[name].kind] for name in sorted({n for r in ROWS for n in r["rules"]})
    ]


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    found: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("link", "img", "iframe"):
                found.append(tag)
            found.extend(v or "" for k, v in attrs if k in ("src", "href") and (v or "")[:1] != "#")

    Links().feed(write_report(ROWS, out=tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found == []


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_report(ROWS, out=tmp_path / name) for name in ("a.html", "b.html"))
    assert first.read_bytes() == second.read_bytes()


def test_five_thousand_entries_are_less_than_a_megabyte(tmp_path: Path) -> None:
    many = [
        row(f"{TOP}/M{m}/S3/out/gpp_monthly_{y}.nc", "gpp", "fixed", rules=["units"], run=f"M{m}")
        for m in range(20)
        for y in range(250)
    ]
    page = write_report(many, out=tmp_path / "r.html")
    assert page.stat().st_size < 1_000_000
    assert len(data_of(page)["rows"]) == len(many) == 5000
    assert data_of(page)["runs"][:3] == ["M0", "M1", "M2"], "M2 before M10"


def test_a_report_without_entries_is_a_page_too(tmp_path: Path) -> None:
    assert data_of(write_report([], out=tmp_path / "r.html"))["rows"] == []


def test_a_browser_draws_matrix_and_list(tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    page = write_report(ROWS, out=tmp_path / "r.html")
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [program, *options.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    got = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert got.count('scope="row"') >= 14, "a row of the matrix for every requested variable"
    assert 'aria-label="ts, M.v1_S3_Prior: refused, 1 entry"' in got
    assert "&lt;/script&gt;&lt;b&gt;&amp;" in got
    listed = got.split('<tbody id="rows">')[1].split("</tbody>")[0]
    assert listed.count("<tr>") == len(ROWS)


def test_a_reason_that_holds_for_many_variables_is_said_once() -> None:
    entries = [
        Entry("a.nc", name, "refused", ("time",), "a.nc: time: found days")
        for name in ("nep", "gpp")
    ]
    entries.append(Entry("b.nc", "", "refused", ("unreadable",), "b.nc: found nothing"))
    entries.append(Entry("c.nc", "lai", "accepted", (), ""))
    assert refusals(entries) == {
        "a.nc: time: found days": ["gpp", "nep"],
        "b.nc: found nothing": [],
    }


def test_a_reason_that_holds_for_many_files_is_said_once_with_the_first() -> None:
    entries = [
        Entry(f"{n}.nc", n, "refused", ("time",), f"{n}.nc: {n}: found no calendar")
        for n in ("ts", "gpp", "lai")
    ]
    entries += [
        Entry(f"{n}.nc", n, "refused", ("units",), f"{n}.nc: time.units: found ''")
        for n in ("ts", "ra")
    ]
    entries.append(Entry("nep.nc", "nep", "refused", ("range",), "nep.nc: nep: found 1 to 2"))
    entries += [
        Entry("", n, "refused", ("no-file",), f"m.yaml:{i}: {n}: found no file")
        for i, n in enumerate(("ra", "rh"))
    ]
    assert refusals(entries) == {
        "m.yaml: found no file": ["ra", "rh"],
        "gpp.nc and 2 more: found no calendar": ["gpp", "lai", "ts"],
        "ra.nc and 1 more: time.units: found ''": ["ra", "ts"],
        "nep.nc: nep: found 1 to 2": ["nep"],
    }


def test_what_was_fixed_or_wants_a_look_is_said_once_for_all_variables() -> None:
    turned, looked = "latitude-order: turned", "total-unusual: 20 PgC"
    entries = [Entry(f"{n}.nc", n, "fixed", ("latitude-order",), turned) for n in ("ts", "gpp")]
    entries += [Entry(f"{y}.nc", "lai", "fixed", ("latitude-order",), turned) for y in (2001, 2002)]
    entries.append(Entry("", "reco", "fixed", ("derived",), "derived: reco = ra + rh"))
    entries.append(Entry("nep.nc", "nep", "accepted", ("total-unusual",), looked))
    entries.append(Entry("x.nc", "x", "accepted", ("not-mapped",), "not used"))
    entries.append(Entry("y.nc", "y", "refused", ("range",), "y.nc: found 1"))
    assert remarks(entries) == [
        ("fixed", ["reco"], 0, "derived: reco = ra + rh"),
        ("fixed", ["lai", "gpp", "ts"], 4, turned),
        ("kept", ["nep"], 1, looked),
    ]
