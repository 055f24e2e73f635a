"""Conservative weights: exact overlaps, between rectilinear grids kept apart per axis.

On the sphere the area of a latitude-longitude cell is a product, R^2 (sin p2 - sin p1) (l2 - l1),
so the overlap of two cells is the product of an overlap in sin(latitude) and one in longitude, and
two small sparse matrices replace one large one. First-order conservative remapping after Jones
(1999), Mon. Wea. Rev. 127, 2204-2210, without his line integrals: for these grids the overlaps are
known exactly, poles and periodic wrap included. Cells of other grids are overlapped one by one
(``polygons``), and their weights are one sparse matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from callmip_global import __version__
from callmip_global.errors import DataError, Problem
from callmip_global.grid import EARTH_RADIUS_M, EdgeModel, Grid, sine_difference
from callmip_global.regrid.mesh import Mesh
from callmip_global.regrid.polygons import overlaps

ENGINE = "native"
METHOD = "first-order conservative, destination-area normalised"

# An overlap this small against the smaller of both cells is rounding noise of the edges; kept, it
# would make a cell valid that touches no land (measured with other tools: hundreds of cells).
_NOISE = 1e-9


@dataclass(frozen=True)
class AxisWeights:
    """Sparse (n_target, n_source) overlaps along one axis, in compressed row form.

    Entry (i, j) is the part of target cell i that source cell j covers, in sin(latitude) or in
    longitude; a row sums to the covered part, 1 where the source covers the cell.

    indptr : (n_target+1,) int64;  indices : (nnz,) int64;  values : (nnz,) float64
    """

    n_source: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def n_target(self) -> int:
        """Number of target cells."""
        return self.indptr.size - 1

    def dense(self) -> NDArray[np.float64]:
        """(n_target, n_source), for small grids and tests."""
        matrix = np.zeros((self.n_target, self.n_source))
        matrix[self._rows(), self.indices] = self.values
        return matrix

    def row_sums(self) -> NDArray[np.float64]:
        """(n_target,) covered part of each target cell."""
        sums = np.bincount(self._rows(), weights=self.values, minlength=self.n_target)
        return np.asarray(sums, dtype=np.float64)

    def _rows(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.n_target), np.diff(self.indptr))


@dataclass(frozen=True)
class Weights:
    """A weight set: normalised by target area, never masked, bound to the grids it was made for."""

    lat: AxisWeights
    lon: AxisWeights
    source_digest: str
    target_digest: str
    edge_model: EdgeModel
    engine: str = ENGINE
    version: str = __version__
    tolerance: float = 0.0
    method: str = METHOD

    @property
    def source_shape(self) -> tuple[int, int]:
        """(nlat, nlon) of the source."""
        return self.lat.n_source, self.lon.n_source

    @property
    def target_shape(self) -> tuple[int, int]:
        """(nlat, nlon) of the target."""
        return self.lat.n_target, self.lon.n_target

    def coverage(self) -> NDArray[np.float64]:
        """(nlat, nlon) part of each target cell that the source covers: the row sums."""
        result: NDArray[np.float64] = np.outer(self.lat.row_sums(), self.lon.row_sums())
        return result

    def check(self, source: Grid | Mesh, target: Grid) -> None:
        """DataError when these weights were made for other grids than the two given."""
        _check_grids(self, source, target)

    def provenance(self) -> Mapping[str, str]:
        """What a store records of its weights."""
        return _provenance(self)


@dataclass(frozen=True)
class CellWeights:
    """A weight set from cells known one by one: as ``Weights``, as one sparse matrix.

    Entry (i, j) is the part of target cell i (row by row) that source cell j covers.

    indptr : (n_target+1,) int64;  indices : (nnz,) int64;  values : (nnz,) float64
    tolerance : largest relative drift of an integral that is due to the weights, not to rounding;
        infinite where nothing is promised (``nearest_weights``)
    """

    source_shape: tuple[int, int]
    target_shape: tuple[int, int]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: NDArray[np.float64]
    source_digest: str
    target_digest: str
    edge_model: EdgeModel
    engine: str = ENGINE
    version: str = __version__
    tolerance: float = 0.0
    method: str = METHOD

    def coverage(self) -> NDArray[np.float64]:
        """(nlat, nlon) part of each target cell that the source covers: the row sums."""
        rows = np.repeat(np.arange(self.indptr.size - 1), np.diff(self.indptr))
        sums = np.bincount(rows, weights=self.values, minlength=self.indptr.size - 1)
        return np.asarray(sums, dtype=np.float64).reshape(self.target_shape)

    def check(self, source: Grid | Mesh, target: Grid) -> None:
        """DataError when these weights were made for other grids than the two given."""
        _check_grids(self, source, target)

    def provenance(self) -> Mapping[str, str]:
        """What a store records of its weights."""
        return _provenance(self)


AnyWeights = Weights | CellWeights


def _check_grids(weights: AnyWeights, source: Grid | Mesh, target: Grid) -> None:
    for side, grid, digest in (
        ("source", source, weights.source_digest),
        ("target", target, weights.target_digest),
    ):
        if grid.digest != digest:
            raise DataError(
                Problem(
                    "weights",
                    f"{side} grid",
                    f"edges {grid.digest[:12]} ({grid.name}, {grid.shape})",
                    f"edges {digest[:12]}, for which the weights were made",
                    "Make the weights again for this grid",
                )
            )


def _provenance(weights: AnyWeights) -> Mapping[str, str]:
    return {
        "engine": weights.engine,
        "version": weights.version,
        "method": weights.method,
        "edge_model": weights.edge_model,
        "source_grid_sha256": weights.source_digest,
        "target_grid_sha256": weights.target_digest,
    }


@overload
def conservative_weights(
    source: Grid, target: Grid, *, edge_model: EdgeModel = "bounds"
) -> Weights: ...


@overload
def conservative_weights(
    source: Mesh, target: Grid, *, edge_model: EdgeModel = "bounds"
) -> CellWeights: ...


def conservative_weights(
    source: Grid | Mesh, target: Grid, *, edge_model: EdgeModel = "bounds"
) -> AnyWeights:
    """First-order conservative weights from any grid to a rectilinear one.

    ``edge_model`` says where the source's edges come from and is only recorded. DataError where
    the cells of a mesh cross themselves or lie over each other.
    """
    if isinstance(source, Mesh):
        return _mesh_weights(source, target, edge_model)
    rows, cols, low, high = _overlaps(source.lat_edges, target.lat_edges)
    height = sine_difference(target.lat_edges[:-1], target.lat_edges[1:])
    lat = _compress(rows, cols, sine_difference(low, high) / height[rows], source.shape[0], height)

    # The source is laid beside itself one turn to either side, as often as the target reaches.
    turns = np.floor((target.lon_edges[[0, -1]] - source.lon_edges[[-1, 0]]) / 360.0)
    parts = [
        _overlaps(source.lon_edges + 360.0 * turn, target.lon_edges)
        for turn in range(int(turns[0]), int(turns[1]) + 1)
    ]
    rows, cols, low, high = (np.concatenate(part) for part in zip(*parts, strict=True))
    width = np.diff(target.lon_edges)
    lon = _compress(rows, cols, (high - low) / width[rows], source.shape[1], width)
    return Weights(lat, lon, source.digest, target.digest, edge_model)


def _overlaps(
    source: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Target index, source index, lower and upper end of every overlap of two sets of intervals.

    Both edge arrays ascend. The common refinement of both is cut once, so that the work is
    proportional to the number of overlaps.
    """
    first, last = max(source[0], target[0]), min(source[-1], target[-1])
    cuts = np.unique(np.concatenate([source, target]))
    cuts = cuts[(cuts >= first) & (cuts <= last)]
    low, high = cuts[:-1], cuts[1:]
    middle = 0.5 * (low + high)
    rows = np.searchsorted(target, middle) - 1
    cols = np.searchsorted(source, middle) - 1
    smaller = np.minimum(np.diff(target)[rows], np.diff(source)[cols])
    keep = (high - low) > _NOISE * smaller
    return rows[keep], cols[keep], low[keep], high[keep]


def _compress(
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    values: NDArray[np.float64],
    n_source: int,
    target: NDArray[np.float64],
) -> AxisWeights:
    """Compressed rows; overlaps of one pair (a source cell met on both sides) are added."""
    keys, inverse = np.unique(rows * n_source + cols, return_inverse=True)
    summed = np.asarray(np.bincount(inverse, weights=values, minlength=keys.size), dtype=np.float64)
    counts = np.bincount(keys // n_source, minlength=target.size)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return AxisWeights(n_source, indptr, (keys % n_source).astype(np.int64), summed)


# Cells that lie over each other by more than this part of a target cell count twice.
_COVERED_TWICE = 1e-3


def _mesh_weights(source: Mesh, target: Grid, edge_model: EdgeModel) -> CellWeights:
    if source.lat_corners is None or source.lon_corners is None:
        raise ValueError("cells without corners have no overlaps")
    found = overlaps(source.lat_corners, source.lon_corners, target, parallels=source.parallels)
    crossed = np.flatnonzero(found.smallest < -1e-6 * found.cell_areas)
    if crossed.size:
        raise DataError(
            Problem(
                "grid",
                "corners",
                f"{crossed.size} cells whose edges cross; the first is cell {crossed[0] + 1}",
                "corners in order round each cell",
                "Mend the bounds",
            )
        )
    boxes = (target.cell_area / EARTH_RADIUS_M**2).ravel()
    smaller = np.minimum(found.cell_areas[found.cells], boxes[found.boxes])
    blur = np.deg2rad(source.precision)
    keep = found.areas > _NOISE * smaller + blur * np.sqrt(smaller)
    cells, into, areas = found.cells[keep], found.boxes[keep], found.areas[keep]
    # What was rounding noise, or a sliver that the file's digits cannot tell, stays in its cell.
    n = found.cell_areas.size
    whole = np.bincount(found.cells, weights=found.areas, minlength=n)
    kept = np.bincount(cells, weights=areas, minlength=n)
    scale = np.divide(whole, kept, out=np.ones(n), where=kept > 0.0)
    weights = cell_weights(
        cells,
        into,
        areas * scale[cells] / boxes[into],
        source=source,
        target=target,
        edge_model=edge_model,
    )
    coverage = weights.coverage()
    if coverage.max() > 1.0 + _COVERED_TWICE:
        j, i = np.unravel_index(int(np.argmax(coverage)), coverage.shape)
        raise DataError(
            Problem(
                "grid",
                "corners",
                f"cells that lie over each other: {coverage[j, i]:.3g} of the cell at "
                f"{target.lat[j]:g} N, {target.lon[i]:g} E is covered",
                "each place in one cell",
                "Cut off repeated rows and columns first (ncks -d DIM,FIRST,LAST)",
            )
        )
    return weights


def cell_weights(
    cells: NDArray[np.int64],
    into: NDArray[np.int64],
    values: NDArray[np.float64],
    *,
    source: Grid | Mesh,
    target: Grid,
    edge_model: EdgeModel,
) -> CellWeights:
    """Weights from (source cell, target cell, covered part of the target cell), in any order."""
    order = np.argsort(into, kind="stable")
    n_target = target.shape[0] * target.shape[1]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(into, minlength=n_target))])
    return CellWeights(
        source.shape,
        target.shape,
        indptr.astype(np.int64),
        np.ascontiguousarray(cells[order], dtype=np.int64),
        np.ascontiguousarray(values[order], dtype=np.float64),
        source.digest,
        target.digest,
        edge_model,
    )
