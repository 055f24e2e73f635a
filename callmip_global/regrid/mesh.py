"""Grids whose cells are known one by one: curvilinear, unstructured, vectors of land points."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from callmip_global.grid import EARTH_RADIUS_M, EdgeModel
from callmip_global.landpoints import PointSource as PointSource
from callmip_global.landpoints import scattered as scattered
from callmip_global.regrid.polygons import cell_areas

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Mesh:
    """Cells on the sphere, in rows and columns as a file has them (one row where it has a list).

    shape : (rows, columns), n = rows * columns cells in all
    lat_points, lon_points : (n,) [degrees] the places the cells are labelled with
    lat_corners, lon_corners : (n, m) [degrees], in order round each cell, shorter ones padded with
        repeats; None where the cells' edges are unknown
    areas : (n,) [m2] or None; needed where there are no corners
    parallels : whether the cells are latitude-longitude boxes; else great circles join the corners
    precision : error [degrees] of the corners as the file stores them, 0 for float64

    Two meshes are equal when their cells are.
    """

    shape: tuple[int, int]
    lat_points: Array = field(repr=False)
    lon_points: Array = field(repr=False)
    lat_corners: Array | None = field(default=None, repr=False)
    lon_corners: Array | None = field(default=None, repr=False)
    areas: Array | None = field(default=None, repr=False)
    parallels: bool = False
    precision: float = 0.0
    name: str = "native"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mesh):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """sha256 over the corners (the points and areas without them): the mesh's identity."""
        digest = hashlib.sha256(f"mesh {self.shape} {self.parallels}".encode())
        arrays = (
            (self.lat_corners, self.lon_corners)
            if self.lat_corners is not None
            else (self.lat_points, self.lon_points, self.areas)
        )
        for values in arrays:
            if values is not None:
                digest.update((values + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    @cached_property
    def cell_area(self) -> Array:
        """(rows, columns) [m2], exact for the corners and what joins them."""
        if self.areas is not None:
            return self.areas.reshape(self.shape)
        if self.lat_corners is None or self.lon_corners is None:
            raise ValueError("cells without corners have no area")
        area = cell_areas(self.lat_corners, self.lon_corners, parallels=self.parallels)
        result: Array = EARTH_RADIUS_M**2 * area.reshape(self.shape)
        return result


@dataclass(frozen=True)
class MeshSource:
    """The mesh of a file and how the file's dimensions map onto it (see ``grid.SourceGrid``).

    dims : the dimension of the cells, or the two of a curvilinear grid, slowest first
    corner_dims : dimensions of corners, nodes and edges, which data do not have
    described : variables that describe the mesh and are no data
    """

    grid: Mesh
    edge_model: EdgeModel
    dims: tuple[Hashable, ...]
    corner_dims: frozenset[Hashable]
    described: frozenset[str]

    @property
    def lat_dim(self) -> Hashable:
        """The slower dimension."""
        return self.dims[0]

    @property
    def lon_dim(self) -> Hashable:
        """The faster dimension; the same one for a list of cells."""
        return self.dims[-1]

    @property
    def own_names(self) -> frozenset[str]:
        """Variables that describe the mesh."""
        return self.described

    @property
    def own_dims(self) -> frozenset[Hashable]:
        """Dimensions of the mesh."""
        return frozenset(self.dims) | self.corner_dims

    def on_grid(self, da: xr.DataArray) -> bool:
        """Whether ``da`` has a value for each cell."""
        return (
            set(self.dims) <= set(da.dims)
            and not self.corner_dims & set(da.dims)
            and da.name not in self.described
        )

    def to_grid_order(self, da: xr.DataArray) -> xr.DataArray:
        """``da`` as (..., lat, lon), or (..., cell) for a list of cells; stays lazy.

        Raises ValueError when ``da`` is not on this mesh.
        """
        if not self.on_grid(da):
            raise ValueError(f"{da.name}: dimensions {da.dims} lack {self.dims}")
        da = da.transpose(..., *self.dims)
        own = [name for name, coord in da.coords.items() if set(self.dims) & set(coord.dims)]
        da = da.drop_vars(own)
        new = ("cell",) if len(self.dims) == 1 else ("lat", "lon")
        renames = {dim: name for dim, name in zip(self.dims, new, strict=True) if dim != name}
        clashes = [name for name in renames.values() if name in da.coords]
        return da.drop_vars(clashes).rename(renames) if renames else da
