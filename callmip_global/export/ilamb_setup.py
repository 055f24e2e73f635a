"""What ILAMB and ilamb3 are told: names, units, sections, configuration, command, words."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from callmip_global import __version__
from callmip_global.variables import Variable

Tool = Literal["ilamb", "ilamb3"]
TOOLS: tuple[Tool, ...] = ("ilamb", "ilamb3")


@dataclass(frozen=True)
class Shim:
    """The name under which the tools look for a variable, and the sign it has there."""

    name: str
    sign: int
    attributes: Mapping[str, str]


SHIMS: Mapping[str, Shim] = MappingProxyType(
    {
        "nep": Shim(
            "nee",
            -1,
            {
                "long_name": "Net ecosystem exchange",
                "cell_methods": "area: mean where land time: mean",
                "positive": "up",
                "comment": "The negative of nep: positive to the atmosphere.",
            },
        ),
        "cLiveBioAbove": Shim(
            "biomass",
            1,
            {
                "long_name": "Aboveground live biomass carbon",
                "cell_methods": "area: mean where land time: mean",
                "comment": "cLiveBioAbove under ILAMB's name. Above ground only, in carbon.",
            },
        ),
        "hfg": Shim(
            "hfdsl",
            1,
            {
                "long_name": "Ground heat flux",
                "cell_methods": "area: mean where land time: mean",
                "positive": "down",
                "comment": "hfg under the name that ILAMB has for it.",
            },
        ),
    }
)
"""Variables that the tools know by another name, or with another sign."""


def tool_name(variable: Variable) -> str:
    """The name of a variable in the files for the tools."""
    return SHIMS[variable.name].name if variable.name in SHIMS else variable.name


def tool_sign(variable: Variable) -> int:
    """1, or -1 where the tools count a variable the other way round."""
    return SHIMS[variable.name].sign if variable.name in SHIMS else 1


def tool_attributes(variable: Variable, units: str) -> dict[str, str]:
    """Attributes of a variable in the files for the tools, in ``units``."""
    shim = SHIMS.get(variable.name)
    found = variable.cf_attributes() if shim is None else dict(shim.attributes)
    return {**found, "units": units}


def reference_units(variable: Variable) -> tuple[str, float]:
    """Units of a reference, in which the tools score and report, and the factor to them.

    In kg m-2 s-1 a flux of carbon is of the order of 1e-8, and ilamb3 then takes its standard
    deviation for nothing and leaves the spatial score out; per day it is of the order of 1.
    """
    if variable.units != "kg m-2 s-1":
        return variable.units, 1.0
    if variable.upload_units.startswith("kgC"):
        return "g m-2 d-1", 1000.0 * 86400.0
    return "kg m-2 d-1", 86400.0


@dataclass(frozen=True)
class Told:
    """A reference as the configurations name it. ``path``: relative to the export."""

    name: str
    variable: Variable
    path: str


@dataclass(frozen=True)
class Row:
    """A file of a model, as ilamb3's table of models has it."""

    model: str
    stage: str
    member: str
    variable: str
    frequency: str
    path: str


_SECTIONS = {
    "Carbon": ("nep", "gpp", "reco", "ra", "rh", "npp", "lai"),
    "Water": ("tran", "evspsblsoi", "evspsbl", "mrso", "mrsos"),
    "Energy": ("hfls", "hfss", "hfg", "ts"),
}
_COLOURS = {"Carbon": "#ECFFE6", "Water": "#E6F9FF", "Energy": "#FFECE6"}


def _section(variable: Variable) -> str:
    # What is in no list is a carbon pool.
    return next((name for name, those in _SECTIONS.items() if variable.name in those), "Carbon")


def _tree(references: Sequence[Told]) -> dict[str, dict[str, list[Told]]]:
    """Section -> variable -> its references."""
    tree: dict[str, dict[str, list[Told]]] = {name: {} for name in _SECTIONS}
    for told in references:
        name = tool_attributes(told.variable, "")["long_name"].replace(",", "")
        tree[_section(told.variable)].setdefault(name, []).append(told)
    return {section: own for section, own in tree.items() if own}


def ilamb_cfg(references: Sequence[Told]) -> str:
    """The configuration of ILAMB 2.7.

    It has no line on mass weighting, for ILAMB takes ``mass_weighting = False`` as true.
    """
    lines = [f"# Written by callmip-global {__version__}. References: README.txt.", ""]
    for section, variables in _tree(references).items():
        lines += [f"[h1: {section}]", f'bgcolor = "{_COLOURS[section]}"', ""]
        for title, told in variables.items():
            lines += [f"[h2: {title}]", f'variable = "{tool_name(told[0].variable)}"', ""]
            for one in told:
                units = reference_units(one.variable)[0]
                lines += [f"[{one.name}]", f'source = "{one.path}"']
                lines += [f'table_unit = "{units}"', f'plot_unit = "{units}"', ""]
    return "\n".join(lines)


def ilamb3_yaml(references: Sequence[Told]) -> str:
    """The configuration of ilamb3: section, variable, source, as its dashboard asks for."""
    lines = [f"# Written by callmip-global {__version__}. References: README.txt."]
    for section, variables in _tree(references).items():
        lines.append(f"{section}:")
        for title, told in variables.items():
            lines.append(f"  {json.dumps(title)}:")
            for one in told:
                units = json.dumps(reference_units(one.variable)[0])
                source = f"{{{tool_name(one.variable)}: {json.dumps(one.path)}}}"
                lines += [f"    {json.dumps(one.name)}:", f"      sources: {source}"]
                lines += [f"      table_unit: {units}", f"      plot_unit: {units}"]
    return "\n".join(lines) + "\n"


def models_csv(rows: Sequence[Row]) -> str:
    """ilamb3's table of models; ``run.py`` makes the paths absolute."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("source_id", "member_id", "grid_label", "variable_id", "frequency", "stage", "path")
    writer.writerow(head)
    for row in rows:
        member = row.member or "none"
        writer.writerow((row.model, member, "gr", row.variable, row.frequency, row.stage, row.path))
    return text.getvalue()


RUN_SH = """\
#!/bin/sh
# Runs ILAMB 2.7 on this folder; options are handed on. See README.txt.
#     ./run.sh --skip_plots
#     MPIEXEC="mpiexec -n 4" ./run.sh
set -eu
cd "$(dirname "$0")"
ILAMB_ROOT=$PWD
export ILAMB_ROOT
results=ilamb_results
if ! command -v ilamb-run >/dev/null; then
    echo "run.sh: no ilamb-run on the PATH. Install it: pip install ILAMB==2.7.3" >&2
    exit 2
fi

# ILAMB keeps every result that is there, whatever became of data and options.
now="$(cksum <callmip-export.json) $*"
if [ -f $results/callmip-run.txt ] && [ "$(cat $results/callmip-run.txt)" != "$now" ]; then
    echo "run.sh: data or options have changed, everything is computed anew" >&2
    rm -rf $results
fi
mkdir -p $results
echo "$now" >$results/callmip-run.txt
rm -f $results/scalar_database.csv

${MPIEXEC:-} ilamb-run --config ilamb.cfg --model_root "$PWD/MODELS" --regions global \\
    --build_dir $results "$@"
if [ ! -s $results/scalar_database.csv ]; then
    echo "run.sh: ILAMB wrote no $results/scalar_database.csv; what failed is in" >&2
    echo "run.sh: $results/*.log (ILAMB itself ends with exit code 0)" >&2
    exit 1
fi
"""

RUN_PY = '''\
#!/usr/bin/env python3
"""Runs ilamb3 on this folder. See README.txt. Results: ilamb3_results/."""

import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# References are named relative to this folder. ilamb3 asks for it when it is imported.
os.environ["ILAMB_ROOT"] = str(HERE)

try:
    import ilamb3
    import ilamb3.meta
    import ilamb3.run
    import pandas as pd
except ImportError as error:
    sys.exit(f"run.py: no ilamb3 here ({error}). Install it: pip install ilamb3 'pandas<3'")


def main() -> int:
    out = HERE / "ilamb3_results"
    # Everything is computed anew; what is left of models that went would be in the dashboard.
    shutil.rmtree(out, ignore_errors=True)
    models = pd.read_csv(HERE / "models.csv", dtype=str, keep_default_na=False)
    models["path"] = [str(HERE / path) for path in models["path"]]
    references = pd.read_csv(HERE / "references.csv", dtype=str)
    references["path"] = [str(HERE / path) for path in references["path"]]
    ilamb3.conf.set(
        regions=[None],
        # A result is used again as long as its file is there, whatever became of the data.
        use_cached_results=False,
        comparison_groupby=["source_id", "grid_label"],
        model_name_facets=["source_id"],
    )
    # The command "ilamb run" fails with KeyError where no data come from ilamb3's own registry.
    ilamb3.run.run_study(
        str(HERE / "ilamb.yaml"),
        models,
        ref_datasets=references.set_index("key"),
        output_path=out,
    )
    try:
        ilamb3.meta.generate_dashboard_page(out, page_title="CalLMIP")
    except AttributeError as error:
        # Path.walk came with Python 3.12.
        print(f"run.py: no dashboard, it needs Python 3.12 or newer ({error})", file=sys.stderr)
    found = sorted(path for path in out.rglob("*.csv") if "score" in path.read_text())
    if not found:
        print(f"run.py: ilamb3 wrote no scores in {out}; see its *.log files", file=sys.stderr)
        return 1
    for path in found:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
'''


def references_csv(references: Sequence[Told]) -> str:
    """What ``run.py`` hands to ilamb3 as its table of references."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "path"))
    for told in references:
        writer.writerow((told.name, told.path))
    return text.getvalue()


_COMMANDS: Mapping[Tool, str] = MappingProxyType(
    {
        "ilamb": """\
Run it with ILAMB 2.7.3 (pip install ILAMB==2.7.3; it needs an MPI with its launcher, such as
Debian's openmpi-bin):

    ./run.sh                                  everything, on one core
    MPIEXEC="mpiexec -n 4" ./run.sh           on four
    ./run.sh --skip_plots                     without network: plots ask for coastlines
    ./run.sh --rmse_score_basis series        the RMSE score of Collier et al. (2018)

Results are in ilamb_results/: scalar_database.csv has every number; index.html needs a web server
(python3 -m http.server). The overall score is made together with the plots: with --skip_plots, or
where the coastlines cannot be had, there is none and scores.csv holds dashes. A pair that fails is
named in ilamb_results/*.log alone. A run that was stopped goes on; after a new export, or with
other options, run.sh removes ilamb_results/ first, for ILAMB would keep what is there.
""",
        "ilamb3": """\
Run it with ilamb3 (pip install ilamb3 "pandas<3": with pandas 3 the releases for Python 3.11 leave
the annual cycle out without a word):

    python3 run.py

No network is needed for the scores; maps and the page of a data set ask for coastlines. Results are
in ilamb3_results/, which is made anew each time: a CSV file per reference and model, and
scalar_database.json for the dashboard.
""",
    }
)


def readme(
    tool: Tool,
    models: Sequence[str],
    references: Sequence[Told],
    notes: Sequence[str],
) -> str:
    """What is in the folder, and the exact commands."""
    title = {"ilamb": "ILAMB 2.7", "ilamb3": "ilamb3"}[tool]
    names = [f"  {model}" for model in models]
    said = [
        f"  {told.name}: {tool_name(told.variable)} [{reference_units(told.variable)[0]}], "
        f"{told.path}"
        for told in references
    ] or ["  none: write a configuration for the references that you have"]
    lines = [
        f"CalLMIP runs and reference products for {title}",
        f"Written by callmip-global {__version__}.",
        "",
        _COMMANDS[tool],
        "Models (MODELS/; prior and posterior are two models, for the tools have no notion of a "
        "pair):",
        *names,
        "",
        "References (DATA/):",
        *said,
        "",
        "Renamed for the tools: nep is nee with the sign turned, cLiveBioAbove is biomass, hfg is "
        "hfdsl.",
    ]
    if notes:
        lines += ["", "To know:", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
