"""Manifests: what a handed-in submission is, so that its files can be harmonized.

One manifest describes one simulation, stage and member. Everything it does not deliver may be
left out of its variable map, or declared absent there with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from callmip_global.config.schema import (
    Count,
    Frequency,
    GridName,
    ModelInfo,
    RelativePath,
    SimulationName,
    StageName,
    Strictly,
    YearRange,
)
from callmip_global.config.variable_map import (
    build_variable_map,
    load_variable_map,
    variable_map_path,
)
from callmip_global.config.yaml_source import load_yaml, validate_model
from callmip_global.errors import Problem, UsageError
from callmip_global.harmonize.variable_map import VariableMap


class ManifestFile(Strictly):
    """The manifest as written.

    ``files``: patterns inside each submission folder. ``years``: first and last year to take
    (default: all whole years that every variable has). ``variables``: a map file, or the map.
    """

    model: ModelInfo = Field(description="{name, version, institution, contact}")
    simulation: SimulationName = Field(description="S3, CO2, ...")
    stage: StageName = Field(description="Prior or Posterior")
    scenario: Count | None = None
    member: Count | None = None
    files: tuple[RelativePath, ...] = Field(("**/*.nc",), min_length=1)
    years: YearRange | None = None
    frequencies: tuple[Frequency, ...] = Field(("mon", "yr"), min_length=1)
    grids: tuple[GridName, ...] = Field(min_length=1, description="[0.5deg, 1deg, 2deg]")
    variables: Any = Field(description="a variable map: its file, or its content")
    comment: str = ""

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Manifest:
    """A manifest with its variable map, checked."""

    file: ManifestFile
    path: Path
    variable_map: VariableMap

    @property
    def attributes(self) -> dict[str, str]:
        """Global attributes of the stores beside their name."""
        found = {
            "institution": self.file.model.institution,
            "contact": self.file.model.contact,
            "scenario": "" if self.file.scenario is None else str(self.file.scenario),
            "comment": self.file.comment,
        }
        return {name: text for name, text in found.items() if text}


def load_manifest(path: Path) -> Manifest:
    """The manifest of a file; UsageError with every problem at once, with file and line."""
    located = load_yaml(path)
    parsed = validate_model(ManifestFile, located)
    if isinstance(parsed.variables, str):
        source = variable_map_path(parsed.variables, path.parent)
        variable_map = load_variable_map(source, requested=())
    elif isinstance(parsed.variables, dict):
        inner = located.sub(("variables",))
        variable_map = build_variable_map(inner, prefix=("variables",), requested=())
    else:
        wanted = "a file (models/mymodel.yaml), or {per: ..., variables: {...}}"
        raise UsageError(Problem(located.where(("variables",)), "variables", wanted=wanted))
    if not variable_map.delivered:
        raise UsageError(
            Problem(located.where(("variables",)), "variables", "nothing delivered", "a variable")
        )
    return Manifest(parsed, path, variable_map)
