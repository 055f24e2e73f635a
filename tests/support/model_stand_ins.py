"""Stand-ins for the models of config/examples: they read and leave what the real ones do.

Each refuses to run (exit 1) when a file is missing that the model would read then, and leaves just
the files that it would write. A restart file holds how many runs made it. What is read and written
when is from the sources that each example names. Called by name: python model_stand_ins.py NAME ...
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

CASA = ("biome", "met", "pool", "phen", "flux", "bal")


def settings(text: str) -> dict[str, str]:
    """Names and values of a namelist or a .def file; the last one of a name counts."""
    rows = (line.partition("!")[0].partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip().lower(): value.strip().strip("'\"") for name, _, value in rows}


def need(path: str | Path, why: str = "") -> Path:
    if not Path(path).is_file():
        sys.exit(f"{path}: no such file {why}")
    return Path(path)


def count(path: str | Path) -> int:
    return int(need(path).read_text())


def cable() -> None:
    """CABLE-POP_TRENDY, offline/cable_driver.F90: CASA alone leaves no physics and no climate."""
    text = need("cable.nml").read_text()
    if not text.startswith("&cablenml") or text.rstrip()[-1:] != "/" or text.count("\n/") != 1:
        sys.exit("cable.nml is no namelist")
    nml = settings(text)
    true = {name for name, value in nml.items() if value == ".true."}
    casa_only = int(nml["icycle"]) > 10
    climate_from_zero = "cable_user%climate_fromzero" in true
    if nml["filename%restart_in"]:
        need(nml["filename%restart_in"])
    if not climate_from_zero:
        need(nml["cable_user%climate_restart_in"])
    runs = 0
    if "cable_user%casa_fromzero" not in true:
        for part in CASA:
            runs = count(f"{nml['casafile%cnpipool']}_{part}_rst.nc")
    if "cable_user%pop_fromzero" not in true:
        need(nml["cable_user%pop_restart_in"])
    land_use = nml["cable_user%popluc_runtype"] if "cable_user%popluc" in true else "off"
    if land_use != "off":
        need(settings(need("luc.nml").read_text())["climatefile"])
    if land_use == "restart":
        need(nml["cable_user%luc_restart_in"])
    met = settings(need("cru.nml").read_text())
    for name in ("landmaskfile", "co2file", "ndepfile"):
        need(met[name])
    need("met_names.nml")
    dumps = [f"{nml['casafile%c2cdumppath']}c2c_{year}_dump.nc" for year in range(1841, 1861)]
    if casa_only:
        for dump in dumps:
            need(dump)
    left = [f"{nml['casafile%cnpepool']}_{part}_rst.nc" for part in CASA]
    left.append(nml["cable_user%pop_restart_out"])
    if land_use not in ("off", "static"):
        left.append(nml["cable_user%luc_restart_out"])
    if not casa_only:
        left += [nml["filename%restart_out"], nml["cable_user%climate_restart_out"]]
        left.append(nml["filename%out"])
        if "cable_user%casa_dump_write" in true:
            left += dumps
    for path in left:
        Path(path).write_text(str(runs + 1))


def classic(job_options: str, domain: str) -> None:
    """namelist joboptions; the restart file is a copy of the initial one, overwritten in place."""
    nml = settings(need(job_options).read_text())
    for name, value in nml.items():
        if name.startswith("metfile") or name in (
            "co2file",
            "lucfile",
            "runparams_file",
            "xmlfile",
        ):
            need(value)
    if int(nml["readmetendyear"]) < int(nml["readmetstartyear"]) or not domain:
        sys.exit("no years")
    state = need(nml["init_file"]).read_text()
    if need(nml["rs_file_to_overwrite"]).read_text() != state:
        sys.exit("the restart file is no copy of the initial file")
    Path(nml["rs_file_to_overwrite"]).write_text(str(int(state or 0) + 1))
    if nml["domonthoutput"] == ".true.":
        Path("out/gpp_monthly.nc").touch()


def jules(folder: str) -> None:
    """User guide: dumps at the start and the end of the main run; lists of files."""
    nml = Path(folder)
    times = settings(need(nml / "timesteps.nml").read_text())
    end = int(times["main_run_end"][:4])
    years = end - int(times["main_run_start"][:4])
    for name in ("drive", "prescribed_data"):
        blocks = need(nml / f"{name}.nml").read_text().split("\n&")
        for block in (settings(text) for text in blocks if "read_list" in text):
            rows = need(block["file"]).read_text().splitlines()
            if len(rows) != int(block["nfiles"]) or len(rows) != years + 1:
                sys.exit(f"{block['file']}: {len(rows)} rows")
            for row in rows:
                path = row.split("'")[1].replace("%vv", "pre")
                need(path)
    initial = settings(need(nml / "initial_conditions.nml").read_text())
    runs = count(initial["file"]) if initial["dump_file"] == ".true." else 0
    vegetation = need(nml / "jules_vegetation.nml").read_text()
    if vegetation.count("\n/") != 1 or "l_trif_eq" not in vegetation:
        sys.exit("jules_vegetation.nml is no namelist")
    need(nml / "pft_params.nml")
    Path(f"out/jules.dump.{end - years}0101.0.nc").write_text(str(runs))
    Path(f"out/jules.dump.{end}0101.0.nc").write_text(str(runs + 1))
    if "&JULES_OUTPUT_PROFILE" in (nml / "output.nml").read_text():
        Path("out/jules.mon.nc").touch()


def orchidee() -> None:
    """run.def: each key once; restart files all there or all NONE."""
    text = need("run.def").read_text()
    keys = re.findall(r"^ *([A-Za-z_0-9]+) *=", text, flags=re.MULTILINE)
    if len(keys) != len(set(keys)):
        sys.exit("a key twice")
    values = settings(text)
    for path in (values["forcing_file"], "PFTmap.nc", "ndep.nc", "iodef.xml"):
        need(path)
    if not 270 < float(values["atm_co2"]) < 500 or values["vcmax25__02"] != "45.0":
        sys.exit("no CO2 or no parameters")
    states = [
        values[f"{name}"]
        for name in ("restart_filein", "sechiba_restart_in", "stomate_restart_filein")
    ]
    if states != ["NONE"] * 3 and "NONE" in states:
        sys.exit("restart files for a part of the model only")
    runs = 0 if "NONE" in states else max(count(state) for state in states)
    for part in ("driver", "sechiba", "stomate"):
        Path(f"{part}_rest_out.nc").write_text(str(runs + 1))
    for part in ("sechiba", "stomate"):
        Path(f"{part}_history.nc").touch()


def create_clone(*words: str) -> None:
    """A case whose tools are this file."""
    options = dict(zip(words[::2], words[1::2], strict=False))
    case = Path(options["--case"])
    if not Path(options["--clone"], "env_build.xml").is_file() or "--keepexe" not in words:
        sys.exit("not the base case")
    case.mkdir(parents=True)
    rundir = Path(options["--cime-output-root"]) / case.name / "run"
    (case / "env").write_text(f"RUNDIR={rundir}\nDATM_PRESNDEP=hist_cmip6\n")
    (case / "user_nl_clm").write_text("! of the base case\n")
    for tool in ("xmlchange", "xmlquery", "case.setup", "case.submit"):
        script = case / tool
        script.write_text(f'#!/bin/bash\nexec "{sys.executable}" -I -S "{__file__}" {tool} "$@"\n')
        script.chmod(0o755)


def _env() -> dict[str, str]:
    rows = (row.partition("=") for row in Path("env").read_text().splitlines())
    return {name: value for name, _, value in rows}


def xmlchange(changes: str) -> None:
    with Path("env").open("a") as file:
        file.writelines(f"{item}\n" for item in changes.split(","))


def xmlquery(flag: str, name: str) -> None:
    print(_env()[name] if flag == "--value" else f"{name}: {_env()[name]}")


def case_setup(flag: str) -> None:
    if flag != "--reset":
        sys.exit("the settings of the clone are older than its changes")


def case_submit(flag: str) -> None:
    """startup: nothing is read; hybrid: finidat; branch: pointers and all restart files."""
    env, lines = _env(), settings(need("user_nl_clm").read_text())
    if flag != "--no-batch" or env["DOUT_S"] != "FALSE" or env["RESUBMIT"] != "0":
        sys.exit("it would submit a job or move its files away")
    rundir, first = Path(env["RUNDIR"]), int(env["RUN_STARTDATE"][:4])
    runs = 0
    if env["RUN_TYPE"] == "hybrid":
        runs = count(lines["finidat"])
    elif env["RUN_TYPE"] == "branch":
        date = f"{env['RUN_REFDATE']}-00000"
        runs = count(rundir / f"{env['RUN_REFCASE']}.clm2.r.{date}.nc")
        need(rundir / f"rpointer.lnd.{date}")
        if env["RUN_REFDATE"] != env["RUN_STARTDATE"] or env["BRNCH_RETAIN_CASENAME"] != "TRUE":
            sys.exit("a branch run begins where the other ended")
    for name in ("paramfile", "fsurdat"):
        need(lines[name])
    if (env["CLM_CO2_TYPE"] == "constant") != ("CCSM_CO2_PPMV" in env):
        sys.exit("no CO2")
    for year in (first, first + int(env["STOP_N"])):
        date = f"{year:04d}-01-01-00000"
        for part in ("clm2.r", "cpl.r", "datm.r"):
            (rundir / f"callmip.{part}.{date}.nc").write_text(str(runs + (year > first)))
        for part in ("lnd", "cpl", "atm"):
            (rundir / f"rpointer.{part}.{date}").write_text(f"callmip.{part}.{date}.nc\n")
    if "hist_fincl1" in lines:
        (rundir / f"callmip.clm2.h0a.{first:04d}-01.nc").touch()


def last_from_first(*words: str) -> None:
    """ncap2, ncrcat, cdo, to_grid.py: the last file is made of one before it."""
    need(words[-2])
    Path(words[-1]).touch()


if __name__ == "__main__":
    tools = {
        "case.setup": case_setup,
        "case.submit": case_submit,
        **dict.fromkeys(("ncap2", "ncrcat", "cdo", "to_grid"), last_from_first),
    }
    tool = tools.get(sys.argv[1]) or globals()[sys.argv[1]]
    tool(*sys.argv[2:])
