"""The science protocol as data: config/protocols/NAME.yaml.

Variables, delivered years, grids, presets of the simulations, fixed forcings, names and attributes
of the files: all of it may change with the protocol, so none of it is in code.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PrivateAttr, field_validator

from callmip_global.config.schema import (
    Count,
    FilledText,
    FixedForcing,
    Forcing,
    Frequency,
    GridName,
    SimulationName,
    StageName,
    Strictly,
)
from callmip_global.config.yaml_source import Located, load_yaml, try_model
from callmip_global.errors import UsageError
from callmip_global.variables import variable_table


class Scenario(Strictly):
    """A calibration scenario: which observed variables the calibration used."""

    streams: tuple[FilledText, ...] = Field(min_length=1, description="e.g. [NEE, LE, H]")
    required: bool = False


class Preset(Strictly):
    """A named simulation: which forcings vary over time; the others are held at ``fixed``."""

    varies: tuple[Forcing, ...] = Field(description="a list of climate, co2, luc, ndep")
    description: FilledText = Field(description="one line")


class Protocol(Strictly):
    """One version of the protocol. ``min_years``: how many years must be delivered at least.

    ``file_name`` and ``attributes`` are patterns over {model} {version} {resolution} {frequency}
    {first_year} {last_year} {stage} {scenario} {simulation}.
    """

    name: FilledText = Field(description="the protocol's name")
    title: FilledText = Field(description="the protocol's title")
    source: FilledText = Field(description="the documents it was taken from")
    date: FilledText = Field(description='when, as "YYYY-MM-DD"')
    variables: tuple[FilledText, ...] = Field(min_length=1, description="names of variables")
    min_years: Count = Field(description="years that must be delivered at least")
    frequencies: tuple[Frequency, ...] = Field(min_length=1, description="[mon, yr]")
    grids: tuple[GridName, ...] = Field(min_length=1, description="[0.5deg, 1deg, 2deg]")
    stages: tuple[StageName, ...] = Field(min_length=1, description="[Prior, Posterior]")
    simulations: dict[SimulationName, Preset] = Field(min_length=1, description="presets")
    fixed: FixedForcing = Field(description="{climate: {recycle: [..]}, co2, luc, ndep}")
    scenarios: dict[int, Scenario] = Field(min_length=1, description="calibration scenarios")
    file_name: FilledText = Field(description="pattern of the handed-in files' names")
    attributes: dict[FilledText, FilledText] = Field(description="global attributes")

    _path: Path = PrivateAttr(default=Path())

    @property
    def path(self) -> Path:
        """The file the protocol was read from."""
        return self._path

    @field_validator("variables")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in variable_table()]
        if unknown:
            raise ValueError(f"names of config/variables.yaml | Unknown: {', '.join(unknown)}.")
        return value


def load_protocol(path: Path) -> tuple[Protocol, Located]:
    """The protocol of a file and its positions; UsageError with every problem at once."""
    located = load_yaml(path)
    protocol, found = try_model(Protocol, located)
    if protocol is None:
        raise UsageError([problem for _, problem in found])
    protocol._path = path
    return protocol, located
