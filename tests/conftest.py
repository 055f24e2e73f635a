"""Fixtures and options that every test may use; what they promise is in the docstrings below."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from slurm_cluster import SlurmCluster, SlurmUnavailableError, start_cluster

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"
# What a user's shell, or an allocation the suite runs in, may have set for the tools under test.
FOREIGN_ENVIRONMENT = ("SLURM_", "SBATCH_", "SQUEUE_", "SCANCEL_", "PBS_", "CALLMIP_")

# Timing says nothing on a busy machine, hence no deadline. CI must not fail by the luck of a draw.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write what the tests got into tests/golden/ instead of comparing; read the diff",
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Derive markers from fixtures, and keep all Slurm tests in one xdist worker: one cluster."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if fixtures & {"slurm_cluster", "strict_slurm"}:
        item.add_marker("slurm")
    if "shared_dir" in fixtures:
        item.add_marker("shared")
    if item.get_closest_marker("slurm") and item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that failed with a Slurm tells what that Slurm had to say, before it is cleared."""
    report = yield
    if report.failed:
        values = getattr(item, "funcargs", {}).values()
        for cluster in {id(v): v for v in values if isinstance(v, SlurmCluster)}.values():
            report.sections.append((f"Slurm in {cluster.root}", cluster.view()))
    return report


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(FOREIGN_ENVIRONMENT)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout: pyproject.toml, config/, scripts/ are here."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The team's folder beside the checkout, read only; the test skips where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared folder beside this checkout")
    return path


@pytest.fixture
def awkward_dir(tmp_path: Path) -> Path:
    """A folder whose path has a space and a quote: what a careless shell line breaks on."""
    path = tmp_path / "a b'c"
    path.mkdir()
    return path


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden("jobs/array.sh", text)``: text is, whole, the file of that name in tests/golden/.

    ``pytest --update-golden`` writes the files instead; the change is then read in ``git diff``.
    """
    update = bool(request.config.getoption("--update-golden"))

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.is_file():
            pytest.fail(f"tests/golden/{name} does not exist; pytest --update-golden writes it")
        wanted = path.read_text(encoding="utf-8")
        assert text == wanted, f"differs from tests/golden/{name}; meant? pytest --update-golden"

    return compare


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A real Slurm of three nodes, private to this session; skips, with the reason, where it
    cannot be had. It touches no environment variable: pass ``slurm_cluster.env`` on."""
    try:
        cluster = start_cluster()
    except SlurmUnavailableError as reason:
        pytest.skip(f"no Slurm for the tests: {reason}")
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The session's Slurm for one test: SLURM_CONF is set; jobs left over are cancelled after."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.conf))
    yield slurm_cluster
    slurm_cluster.cancel_all()


@pytest.fixture(scope="session")
def strict_slurm() -> Iterator[SlurmCluster]:
    """Another Slurm, which ends jobs that use more memory than they asked for."""
    try:
        cluster = start_cluster(enforce_memory=True)
    except SlurmUnavailableError as reason:
        pytest.skip(f"no Slurm that enforces memory: {reason}")
    try:
        yield cluster
    finally:
        cluster.stop()
