"""What ``validate`` finds before a job is submitted: one line per mistake, and no false alarm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from callmip_global.config.load import load_experiment
from callmip_global.config.validate import (
    check_experiment,
    load_valid_experiment,
    number_ranges,
    read_table,
    validate_experiment,
)
from callmip_global.config.yaml_source import load_yaml
from callmip_global.errors import UsageError

Problems = Callable[..., list[str]]


def test_a_complete_experiment_has_no_problem(group) -> None:
    loaded = load_valid_experiment("experiment.yaml")
    assert validate_experiment(loaded) == []


def test_a_path_with_spaces_and_quotes_is_no_problem(group, awkward_dir: Path, problems) -> None:
    (group.folder / "params" / "prior.txt").rename(awkward_dir / "it's {p}.txt")
    group.edit(("params/prior.txt}", f'"{awkward_dir}/it\'s {{{{p}}}}.txt"}}'))
    assert problems() == []


# change, then what is printed (after "experiment.yaml:")
EDITS: dict[str, tuple[tuple[str, str], str]] = {
    "parameter-file-missing": (
        ("params/prior.txt", "params/prio.txt"),
        "5: stages.Prior.parameters: found no file params/prio.txt, wanted a parameter file",
    ),
    "one-file-for-all-members": (
        ("posterior_{member:03d}", "posterior_001"),
        "6: stages.Posterior.parameters: found 'params/posterior_001.txt' for 3 members, wanted a"
        ' file for each member. For example "params/posterior_{member:03d}.yaml".',
    ),
    "member-without-members": (
        (", members: 3", ""),
        "6: stages.Posterior.parameters: found '{member:03d}', wanted a name with a value here;"
        " member has none. Give the stage members, or leave {member} out.",
    ),
    "posterior-without-scenario": (
        ("scenario: 1, ", ""),
        "6: stages.Posterior.scenario: found nothing, wanted one of: 1 (NEE+LE+H), 2 (NEE), 3 (LE),"
        " 4 (H), 5 (NEE+LE), 6 (LE+H). It says which observations the calibration used.",
    ),
    "unknown-scenario": (
        ("scenario: 1", "scenario: 7"),
        "6: stages.Posterior.scenario: found 7, wanted one of: 1 (NEE+LE+H), 2 (NEE), 3 (LE),"
        " 4 (H), 5 (NEE+LE), 6 (LE+H)",
    ),
    "template-missing": (
        ("namelist.j2}", "namelists.j2}"),
        "8: run.files.namelist.txt: found no file namelists.j2, wanted a jinja2 template",
    ),
    "input-missing": (
        ("forcing/co2.txt", "forcing/c02.txt"),
        "11: run.inputs.co2: found no file forcing/c02.txt",
    ),
    "input-with-variable": (
        ("forcing/co2.txt", "$DATA/co2.txt"),
        "11: run.inputs.co2: found no file $DATA/co2.txt. Environment variables are not expanded"
        " here.",
    ),
    "climate-years-not-there": (
        ("[1901, 1930]", "[1901, 1932]"),
        "10: run.inputs.climate: found no file for 1931-1932: forcing/{var}_{year}.nc, wanted a"
        " file for each of the years 1901-1932 that the phases use",
    ),
    "recycled-years-not-there": (
        (
            "  fixed: {climate: {recycle: [1901, 1904]}}",
            "  fixed: {climate: {recycle: [1899, 1904]}}",
        ),
        "10: run.inputs.climate: found no file for 1899-1900: forcing/{var}_{year}.nc, wanted a"
        " file for each of the years 1899-1930 that the phases use",
    ),
    "co2-years-not-covered": (
        (
            "cycles: 2, climate: {recycle: [1901, 1904]}, co2: 1700",
            "cycles: 2, climate: {recycle: [1901, 1904]}, co2: 1650",
        ),
        "11: run.inputs.co2: found no value for 1650 in forcing/co2.txt (it has 1700-1935), wanted"
        " all years that the phases use: 1650, 1701-1930. A year that is held comes from"
        " run.phases, run.fixed or the protocol.",
    ),
    "unknown-placeholder": (
        ("txt {first_year}", "txt {firstyear}"),
        "12: run.command: found '{firstyear}', wanted one of: model, version, simulation, stage,",
    ),
    "no-such-input": (
        ("txt {first_year}", "txt {inputs.cO2}"),
        "12: run.command: found '{inputs.cO2}', wanted one of: inputs.climate, inputs.co2."
        " Did you mean 'co2'?",
    ),
    "shell-variable-in-braces": (
        ("txt {first_year}", "txt ${TMPDIR}"),
        "12: run.command: found '${TMPDIR}', wanted a placeholder {name}. For a shell variable"
        " write $TMPDIR or ${{TMPDIR}}.",
    ),
    "silent-about-land-use": (
        ("txt {first_year}", "txt {luc}"),
        "12: run.command: found '{luc}', wanted a name with a value here; luc has none. Say luc in"
        " every phase.",
    ),
    "placeholder-of-outputs": (
        ("out/{variable}_{year}", "out/{variable}_{tile}"),
        "14: run.outputs.mon: found '{tile}', wanted one of: variable, year, frequency, first_year,"
        " last_year",
    ),
    "no-restart": (
        ("restart: [restart.nc]", "restart: []"),
        "13: run.restart: found nothing, but 6 segments that follow each other, wanted the names of"
        " the restart files, e.g. [rsFile.nc]. The command leaves each in restart_out/ and finds"
        " those of the segment before in restart_in/.",
    ),
    "gap-between-phases": (
        ("[1701, 1900]", "[1701, 1899]"),
        "18: run.phases.2.years: found historical from 1901 after transient to 1899, wanted 1900,"
        " the next year. Only after a spin-up (recycled climate, nothing yearly) may years go"
        " back.",
    ),
    "overlapping-phases": (
        ("[1701, 1900]", "[1701, 1901]"),
        "18: run.phases.2.years: found historical from 1901 after transient to 1901, wanted 1902,"
        " the next year. Only after a spin-up (recycled climate, nothing yearly) may years go"
        " back.",
    ),
    "too-few-years-run": (
        ("[1901, 1930]", "[1901, 1930], cycles: 2"),
        "24: output.years: found 20 (1911-1930), wanted a last phase with cycles: 1, not 2",
    ),
    "delivered-years-not-run": (
        ("years: 20}", "years: 400}"),
        "24: output.years: found 400 (1531-1930), wanted years that one phase after the other runs"
        " once: 1701-1930",
    ),
    "walltime-over-the-limit": (
        ("10:00:00", "30:00:00"),
        "23: resources.run.walltime: found 30:00:00, wanted at most 24:00:00, the limit of queue"
        " normal on cluster. Set a smaller segment_years in the phases.",
    ),
    "memory-over-the-limit": (
        ("16GB", "65GB"),
        "23: resources.run.memory: found 65GB per node, wanted at most 64GB, the limit of queue"
        " normal on cluster",
    ),
    "nodes-over-the-limit": (
        ("tasks: 4", "nodes: 5, tasks: 5"),
        "23: resources.run.nodes: found 5, wanted at most 4, the limit of queue normal on cluster",
    ),
    "cores-over-the-limit": (
        ("tasks: 4", "tasks: 9, cpus: 2"),
        "23: resources.run.tasks: found 18 cores per node (tasks x cpus / nodes), wanted at most"
        " 16, the limit of queue normal on cluster",
    ),
    "unknown-queue": (
        ("tasks: 4", "tasks: 4, queue: norml"),
        "23: resources.run.queue: found 'norml', wanted one of: normal. site.yaml lists them.",
    ),
    "workers-of-a-model-run": (
        ("tasks: 4", "tasks: 4, workers: 3"),
        "23: resources.run.workers: found 3, wanted 1: only harmonize, regrid and"
        " benchmark have workers",
    ),
    "pieces-for-another-failure": (
        ("years: 20}", "years: 20}\nretry: {node: {times: 1, segment_years: 5}}"),
        "25: retry.node.segment_years: found 5, wanted it under retry.walltime alone",
    ),
    "monthly-output-missing": (
        ('mon: "out/', 'yr: "out/'),
        '24: output.frequencies: found mon, wanted mon: "..." in run.outputs',
    ),
    "variable-map-missing": (
        ("models/template.yaml", "models/none.yaml"),
        "20: variables: found no file models/none.yaml, wanted a file of yours or one of: models/",
    ),
    "products-missing": (
        ("years: 20}", "years: 20}\nbenchmark: {products: products.yaml}"),
        "25: benchmark.products: found no file products.yaml, wanted a products file",
    ),
    "regions-without-products": (
        ("years: 20}", "years: 20}\nbenchmark: {regions: [ipcc]}"),
        "25: benchmark.regions: found regions, but no products, wanted benchmark.products",
    ),
    "tiles-that-do-not-know-themselves": (
        ("  phases:", '  tiles: {count: 4, merge: "cat {inputs} {output}"}\n  phases:'),
        "15: run.tiles: found 4 tiles, but no command or template that uses {tile}, wanted a run"
        " that knows which tile it is. Use it in run.command or in a template of run.files.",
    ),
    "merge-with-a-run-name": (
        ('{first_year}"', '{tile}"\n  tiles: {count: 4, merge: "cat {inputs} {output} {phase}"}'),
        "13: run.tiles.merge: found '{phase}', wanted one of: model, version, simulation, stage,",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_one_mistake_is_one_line_of_validate(group, problems: Problems, case: str) -> None:
    change, line = EDITS[case]
    group.edit(change)
    (problem,) = problems()
    assert problem.startswith(f"experiment.yaml:{line}")
    if not line.endswith((",", "models/")):
        assert problem == f"experiment.yaml:{line}"


def test_output_named_by_its_segment_is_refused_where_segments_may_be_cut(group, problems) -> None:
    group.edit(
        ("{variable}_{year}.nc", "{variable}_{first_year}.nc"),
        ("years: 20}", "years: 20}\nretry: {walltime: {times: 1, segment_years: 5}}"),
    )
    (problem,) = problems()
    assert problem.startswith("experiment.yaml:25: retry.walltime.segment_years: found run.outputs")


def test_the_missing_file_of_one_member_is_named(group, problems: Problems) -> None:
    (group.folder / "params" / "posterior_002.txt").unlink()
    assert problems() == [
        "experiment.yaml:6: stages.Posterior.parameters: found no file for member 2:"
        " params/posterior_002.txt, wanted each of 3 parameter files"
    ]


def test_prior_and_posterior_that_would_be_the_same_run_are_refused(group, problems) -> None:
    group.edit(("p = {{ parameters }}\n", ""), file="namelist.j2")
    (problem,) = problems()
    assert problem.startswith(
        "experiment.yaml:12: run.command: found 4 parameter files, but no command or template that"
        " uses {parameters}"
    )


def test_a_template_that_does_not_render_is_named_with_its_line(group, problems: Problems) -> None:
    group.edit(("{{ first_year }}", "{{ firstyear }}"), file="namelist.j2")
    (problem,) = problems()
    assert problem.startswith(
        "namelist.j2:2: found 'firstyear' is undefined. The names are: model,"
    )


def test_units_that_do_not_convert_and_variables_without_a_source_are_named(
    group, problems: Problems
) -> None:
    (group.folder / "models").mkdir()
    text = (
        "per: land\nvariables:\n  gpp: {source: GPP, units: W m-2}\n"
        "  lai: {source: LAI, units: '1'}\n"
    )
    (group.folder / "models" / "template.yaml").write_text(text)
    units, missing = sorted(problems(), reverse=True, key=lambda p: "template.yaml:3" in p)
    assert units.startswith("models/template.yaml:3: ")
    assert "gpp" in units
    assert "W m-2" in units
    assert missing.startswith("models/template.yaml: variables: found none for nep, hfls, hfss,")


def test_a_product_whose_file_is_absent_is_named(group, problems: Problems) -> None:
    group.edit(("years: 20}", "years: 20}\nbenchmark: {products: products.yaml}"))
    text = "products:\n  A: {variable: gpp, path: a_*.nc, units: gC m-2 day-1, kind: upscaled}\n"
    (group.folder / "products.yaml").write_text(text)
    (problem,) = problems()
    assert problem.startswith("products.yaml:2: products.A.path: found no file")


def test_regions_are_known_and_their_files_are_there(group, problems: Problems) -> None:
    (group.folder / "products.yaml").write_text("products: {}\n")
    group.edit(
        ("years: 20}", "years: 20}\nbenchmark: {products: products.yaml, regions: [nh, ipcc, neu]}")
    )
    about = [p for p in problems() if "regions" in p]
    assert len(about) == 1
    assert about[0].startswith("experiment.yaml:25: benchmark.regions: found neu, wanted global")
    assert about[0].endswith("Did you mean NEU?")
    group.edit(("regions: [nh, ipcc, neu]", 'regions: ["mine=masks/none.nc:inside"]'))
    assert "masks/none.nc: found no such file, wanted a NetCDF file" in problems()


def test_a_spin_up_may_count_its_years_as_it_likes(group, problems: Problems) -> None:
    """CABLE labels its spin-up 1841-1860 and then begins the transient in 1700."""
    group.edit(("years: [1700, 1700]", "years: [1841, 1860]"), ("[1701, 1900]", "[1700, 1900]"))
    assert problems() == []


def test_a_gap_after_a_spin_up_is_still_a_gap(group, problems: Problems) -> None:
    group.edit(("[1701, 1900]", "[1702, 1900]"))
    (problem,) = problems()
    assert problem.startswith("experiment.yaml:17: run.phases.1.years: found transient from 1702")


def test_a_co2_file_by_year_is_needed_for_the_years_of_the_co2(group, problems: Problems) -> None:
    group.edit(("forcing/co2.txt", '"forcing/co2_{year}.txt"'))
    (problem,) = problems()
    assert "no file for 1700-1930: forcing/co2_{year}.txt" in problem


def test_forcing_in_a_folder_per_variable_is_found(group, problems: Problems) -> None:
    folder = group.folder / "forcing" / "v3" / "tas"
    folder.mkdir(parents=True)
    for year in range(1901, 1931):
        (group.folder / "forcing" / f"tas_{year}.nc").rename(folder / f"x_{year}.nc")
    group.edit(("forcing/{var}_{year}.nc", "forcing/v3/{var}/x_{year}.nc"))
    assert problems() == []
    (folder / "x_1917.nc").unlink()
    (problem,) = problems()
    assert "no file for 1917: " in problem


def test_what_the_site_requires_is_asked_for_once(group, problems: Problems) -> None:
    text = 'requires: {account: "the project that pays", "-l storage=": "file systems"}\n'
    path = group.folder / "site.yaml"
    path.write_text(path.read_text() + text)
    assert problems() == [
        "experiment.yaml:22: resources.default.account: found nothing, which cluster needs, wanted"
        " the project that pays",
        "experiment.yaml:22: resources.default.directives: found no directive '-l storage=', which"
        " cluster needs, wanted file systems",
    ]
    group.edit(
        ("  run: {tasks: 4,", '  run: {account: ab1, tasks: 4, directives: ["-l storage=x"],')
    )
    assert [p.partition(". It is")[2] for p in problems()] == [
        " missing for harmonize, regrid, export.",
        " missing for harmonize, regrid, export.",
    ]
    given = '  default: {account: ab1, directives: ["-l storage=x"]}\n  run:'
    group.edit(("  run:", given))
    assert problems() == []


def test_larger_jobs_get_less_time_where_the_site_says_so(group, problems: Problems) -> None:
    steps = (
        'max_walltime_by_cpus: [{cpus: 4, walltime: "10:00:00"}, {cpus: 8, walltime: "05:00:00"}]'
    )
    group.edit(('max_walltime: "24:00:00"', steps), file="site.yaml")
    assert problems() == []
    (problem,) = problems("resources.run.tasks=5")
    assert "wanted at most 05:00:00, the limit of queue normal on cluster for 5 cores" in problem
    (problem,) = problems("resources.run.tasks=9", "resources.run.walltime=05:00:00")
    assert "resources.run.tasks: found 9 cores, wanted at most 8" in problem


def test_every_problem_is_an_error_of_wrong_use(group) -> None:
    group.edit(("forcing/co2.txt", "forcing/none.txt"), ("grid: 1deg", "grid: 7deg"))
    with pytest.raises(UsageError) as caught:
        load_valid_experiment("experiment.yaml")
    assert caught.value.exit_code == 2
    assert [p.key for p in caught.value.problems] == ["run.inputs.co2", "output.grid"]
    assert validate_experiment(load_experiment("experiment.yaml", overrides=["output.grid=1deg"]))


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3000)
    | st.floats(allow_nan=True)
    | st.dates()
    | st.sampled_from(["", "x", "{x}", "{member}", "yearly", "../x", "/", "~", "\0", "S3", "a: b"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["S3", "run", "recycle", 1, True, "a.b"]), inner)
    ),
    max_leaves=3,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=ODD)
def test_whatever_stands_anywhere_gives_lines_and_never_a_traceback(
    group, data: st.DataObject, value: object
) -> None:
    tree = load_yaml("experiment.yaml")
    key = data.draw(st.sampled_from(sorted((k for k in tree.marks if k), key=str)))
    text = yaml.safe_dump(tree.replaced(key, value, {}).value, sort_keys=False)
    Path("odd.yaml").write_text(text, encoding="utf-8")
    _, problems = check_experiment("odd.yaml")
    assert all(p.where and "\n" not in str(p) for p in problems)


# Tables

VALUES = st.floats(0, 1e4, allow_nan=False)
FORMATS = ["{y} {v!r}", "{y},{v!r}", "\t{y}\t{v!r}\textra", "Annee_{y}={v!r}", "{y}.5 {v!r}"]


@given(
    table=st.dictionaries(st.integers(1, 9999), VALUES, min_size=1),
    row=st.sampled_from(FORMATS),
    head=st.sampled_from(["", "# CO2\n", "year CO2(ppm)\n", "CO2, annual mean\n\n"]),
)
def test_a_table_is_read_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, table: dict[int, float], row: str, head: str
) -> None:
    path = tmp_path_factory.mktemp("table") / "co2.txt"
    path.write_text(head + "".join(row.format(y=y, v=v) + "\n" for y, v in table.items()))
    assert read_table(path) == table


def test_a_line_within_a_table_that_is_no_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "co2.txt"
    path.write_text("1700 276.6\n1701 n/a\n")
    with pytest.raises(UsageError, match=r"co2.txt:2: found '1701 n/a', wanted a year and a value"):
        read_table(path)


def test_what_is_no_text_is_no_table(tmp_path: Path) -> None:
    for name, content in (("a.nc", b"1700 1\n"), ("b.txt.gz", b"x"), ("c.txt", b"\xff\xfe\0")):
        (tmp_path / name).write_bytes(content)
        assert read_table(tmp_path / name) is None


def test_a_missing_value_in_the_middle_of_the_table_is_named(group, problems: Problems) -> None:
    group.edit(("Annee_1750=277.57", "Annee_1750=-99.9"), file="forcing/co2.txt")
    (problem,) = problems()
    assert problem == (
        "experiment.yaml:11: run.inputs.co2: found -99.9 for 1750 in forcing/co2.txt, wanted values"
        " of 0 or more"
    )


def test_the_co2_table_that_trendy_distributes_is_read(shared_dir: Path) -> None:
    table = read_table(shared_dir / "data" / "CO2_1700_2024_TRENDYv2025.txt")
    assert table is not None
    assert sorted(table) == list(range(1700, 2025))
    assert (table[1700], table[1850], table[2024]) == (277.57, 287.43, 422.77)


@given(st.sets(st.integers(1, 40)))
def test_number_ranges_name_exactly_the_numbers(numbers: set[int]) -> None:
    text = number_ranges(numbers)
    found: set[int] = set()
    for part in text.split(", ") if text else []:
        if part.startswith("and "):
            assert len(found) < len(numbers)
            assert found < numbers
            return
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == numbers
