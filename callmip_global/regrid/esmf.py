"""Weights made by ESMF through xESMF, for those who want to compare, or want its other methods.

The weights are bound to the grids, normalised and applied as our own are; only their numbers are
ESMF's. What differs is the geometry: ESMF joins all corners by great circles, also where the
edge is a parallel. A cell of 1 degree then bulges over its parallel by 1e-3 degrees, by more where
cells are wider, and meets the next row of the other grid in a sliver. A mask would turn slivers
into valid cells (838 of them from 0.5 to 1 degree), so they are cut off; see ``esmf_weights``.

xESMF and ESMPy are optional and imported only here, when asked for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem, UsageError
from callmip_global.grid import EdgeModel, Grid
from callmip_global.regrid.mesh import Mesh
from callmip_global.regrid.weightfiles import triples
from callmip_global.regrid.weights import (
    METHOD,
    AnyWeights,
    CellWeights,
    cell_weights,
    conservative_weights,
)

ENGINE = "xesmf"
Method = Literal["conservative", "bilinear", "nearest_s2d", "patch"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

# Slivers, and the drift that great circles cause, as parts of a cell: 1e-3 and 5e-5 where cells are
# 1 degree wide, 1e-2 and 1e-3 where they are 5 degrees wide. More says that cells are lost.
_LARGEST_ERROR = 2e-2

# Fitting ends long before (after 25 rounds from N96 to 1 degree), unless it cannot succeed.
_ROUNDS = 1000

# Corners of neighbours this near to each other [radii of the Earth] (0.6 mm) are one node.
_SAME_NODE = 1e-10


def esmf_weights(
    source: Grid | Mesh,
    target: Grid,
    *,
    method: Method = "conservative",
    edge_model: EdgeModel = "bounds",
) -> CellWeights:
    """Weights from any grid with corners to a rectilinear one, computed by ESMF.

    Made from the cells alone, without a mask, for the cells' own edges (never guessed ones), and
    for "conservative" normalised by the whole area of the target cell.

    Slivers, the weights between cells that by their own edges share nothing, are dropped (our own
    engine knows which). What is left is fitted to the cells' true areas, rows and columns by turns
    (Deming and Stephan 1940, Ann. Math. Stat. 11, 427-444), until every target cell is as covered
    as it truly is and no source cell's integral drifts by more than ESMF let it. So a target cell
    has a value where it has one with our own weights, and the same covered fraction. Where the
    cells of one grid lie whole in those of the other, that leaves no freedom: the weights are our
    own. To compare engines take ``esmf_triples``.

    ``tolerance`` is found from the weights: the largest part of its area that a source cell gains
    or loses on the way (1e-4 for cells of 1 degree: great circles again). It is infinite for the
    other methods, which conserve nothing and whose row sums are no areas. "patch" has negative
    weights, which near missing values make values of any size.

    ``edge_model`` says where the source's edges come from and is only recorded.
    UsageError where xESMF or ESMPy is missing. DataError where ESMF, or our own engine, refuses the
    cells, where they have no corners, or where a sliver or the drift is over 2e-2 of a cell.
    """
    if method not in get_args(Method):
        raise UsageError(
            Problem("method", found=repr(method), wanted=f"one of: {', '.join(get_args(Method))}")
        )
    if isinstance(source, Mesh) and source.lat_corners is None:
        raise DataError(
            Problem(
                "engine xesmf",
                "grid",
                "cells without corners",
                "cells with corners",
                "Use --engine native --method nearest",
            )
        )
    esmpy, xesmf = _libraries()
    conservative = method == "conservative"
    # Our own weights come first: they refuse what is no grid with better words than ESMF's.
    own = conservative_weights(source, target) if conservative else None
    rows, cells, values = esmf_triples(source, target, method)
    version = f"xESMF {xesmf.__version__} on ESMF {esmpy.__version__}"
    text, tolerance = f"{method} of ESMF", math.inf
    if own is not None:
        text = f"{METHOD}, great circles between corners, fitted to the cells' areas"
        rows, cells, values, tolerance = _fitted(own, rows, cells, values, source, target)
    weights = cell_weights(cells, rows, values, source=source, target=target, edge_model=edge_model)
    return replace(weights, engine=ENGINE, version=version, method=text, tolerance=tolerance)


def _libraries() -> tuple[Any, Any]:
    """ESMPy and xESMF; UsageError that names what is missing."""
    found = []
    for name, module in (("ESMPy", "esmpy"), ("xESMF", "xesmf")):
        try:
            found.append(importlib.import_module(module))
        # ESMPy looks for its compiled library at import, and fails in several ways.
        except (ImportError, OSError, ValueError) as error:
            raise UsageError(
                Problem(
                    "engine xesmf",
                    found=f"no {name} ({error})",
                    wanted="xESMF and ESMPy",
                    remedy="ESMPy is on conda-forge only: conda env create -f environment.yml && "
                    "conda activate callmip-global; or use --engine native --method conservative",
                )
            ) from error
    return found[0], found[1]


def esmf_triples(
    source: Grid | Mesh, target: Grid, method: Method = "conservative"
) -> tuple[Index, Index, Array]:
    """Target cell, source cell and weight of every pair, each once, bare as ESMF gives them.

    What the other engine is compared with. UsageError where xESMF or ESMPy is missing; DataError
    where ESMF refuses the cells.
    """
    esmpy, _ = _libraries()
    backend = importlib.import_module("xesmf.backend")
    corners = method == "conservative"
    with _refusals_of_esmf():
        if isinstance(source, Mesh):
            theirs, number = _esmf_mesh(esmpy, source)
        else:
            theirs, number = _esmf_grid(backend, source, corners=corners), None
        onto = _esmf_grid(backend, target, corners=corners, periodic=False)
        regrid = backend.esmf_regrid_build(theirs, onto, method, ignore_degenerate=True)
        found = regrid.get_weights_dict(deep_copy=True)
        backend.esmf_regrid_finalize(regrid)
        theirs.destroy()
        onto.destroy()
    cells = np.asarray(found["col_src"], dtype=np.int64).ravel() - 1
    rows = np.asarray(found["row_dst"], dtype=np.int64).ravel() - 1
    values = np.asarray(found["weights"], dtype=np.float64).ravel()
    if number is not None:
        cells = number[cells]
    # Cells of many corners are cut up, and their parts are weighted one by one.
    n = source.shape[0] * source.shape[1]
    keys, inverse = np.unique(rows * n + cells, return_inverse=True)
    summed = np.bincount(inverse, weights=values, minlength=keys.size).astype(np.float64)
    return keys // n, keys % n, summed


@contextmanager
def _refusals_of_esmf() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise DataError(
            Problem(
                "engine xesmf",
                "grid",
                f"cells that ESMF refuses: {error}",
                remedy="Use --engine native, whose messages say which cell is wrong",
            )
        ) from error


def _esmf_grid(backend: Any, grid: Grid, *, corners: bool, periodic: bool | None = None) -> Any:
    """ESMF's form of a rectilinear grid; its first axis is longitude, in Fortran order."""
    if periodic is None:
        # With corners a grid closes on the sphere; points must be told that the last and the
        # first are neighbours.
        periodic = not corners and bool(np.ptp(grid.lon_edges) > 360.0 - 1e-9)
    lon, lat = np.meshgrid(grid.lon, grid.lat)
    made = backend.Grid.from_xarray(lon.T, lat.T, periodic=periodic)
    if corners:
        lon, lat = np.meshgrid(grid.lon_edges, grid.lat_edges)
        backend.add_corner(made, lon.T, lat.T)
    return made


def _esmf_mesh(esmpy: Any, mesh: Mesh) -> tuple[Any, Index]:
    """ESMF's form of a mesh, and the cell that each of its elements is.

    ESMF wants nodes that neighbours share, cells counter-clockwise and no corner twice. Cells with
    fewer than three corners left have no area and are left out.
    """
    assert mesh.lat_corners is not None
    assert mesh.lon_corners is not None
    lat, lon = np.deg2rad(mesh.lat_corners), np.deg2rad(mesh.lon_corners)
    vectors = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    places = np.round(vectors.reshape(-1, 3) / _SAME_NODE).astype(np.int64)
    _, first, node = np.unique(places, axis=0, return_index=True, return_inverse=True)
    node = node.reshape(lat.shape)
    around = np.cross(vectors, np.roll(vectors, -1, axis=1)).sum(axis=1)
    clockwise = np.einsum("ij,ij->i", around, vectors.sum(axis=1)) < 0.0
    node[clockwise] = node[clockwise, ::-1]
    kept = node != np.roll(node, 1, axis=1)
    whole = np.flatnonzero(kept.sum(axis=1) >= 3)
    node, kept = node[whole], kept[whole]
    made = esmpy.Mesh(parametric_dim=2, spatial_dim=2, coord_sys=esmpy.CoordSys.SPH_DEG)
    made.add_nodes(
        first.size,
        np.arange(first.size) + 1,
        _pairs(mesh.lon_corners.ravel()[first], mesh.lat_corners.ravel()[first]),
        np.zeros(first.size, dtype=np.int32),
    )
    made.add_elements(
        whole.size,
        np.arange(whole.size) + 1,
        kept.sum(axis=1),
        node[kept],
        element_coords=_pairs(mesh.lon_points[whole], mesh.lat_points[whole]),
    )
    return made, whole


def _pairs(lon: Array, lat: Array) -> Array:
    """(2n,) longitude and latitude by turns."""
    return np.stack([lon, lat], axis=-1).ravel()


def _fitted(
    own: AnyWeights, rows: Index, cells: Index, values: Array, source: Grid | Mesh, target: Grid
) -> tuple[Index, Index, Array, float]:
    """The weights without slivers, fitted to the areas that truly overlap, and their tolerance."""
    area, size = target.cell_area.ravel(), source.cell_area.ravel()
    true_rows, true_cells, true_values = triples(own)
    covered = np.bincount(true_rows, weights=true_values, minlength=area.size)
    carried = np.bincount(true_cells, weights=true_values * area[true_rows], minlength=size.size)

    def carried_by(weights: Array) -> Array:
        sums = np.bincount(cells, weights=weights * area[rows], minlength=size.size)
        return np.asarray(sums, dtype=np.float64)

    def drift_of(carried_now: Array) -> float:
        return _largest_share(np.abs(carried_now - carried), size)

    touching = np.isin(rows * size.size + cells, true_rows * size.size + true_cells)
    overlaps = np.where(touching, 0.0, values * area[rows])
    error = _largest_share(overlaps, np.minimum(area[rows], size[cells]))
    enough = 1.001 * drift_of(carried_by(values))
    kept = touching & (values > 0.0)
    rows, cells, values = rows[kept], cells[kept], values[kept]
    drift = 1.0
    for _ in range(_ROUNDS):
        sums = np.bincount(rows, weights=values, minlength=area.size)
        values = values * (covered[rows] / sums[rows])
        now = carried_by(values)
        drift = drift_of(now)
        if drift <= enough:
            break
        values = values * (carried[cells] / now[cells])
    reached = np.bincount(rows, weights=values, minlength=area.size)
    error = max(error, drift, float(np.max(np.abs(covered - reached))))
    if error > _LARGEST_ERROR:
        raise DataError(
            Problem(
                "engine xesmf",
                "weights",
                f"weights of ESMF that are off by {100 * error:.2g} % of a cell",
                f"at most {100 * _LARGEST_ERROR:g} %",
                "Cells are too large for great circles, or ESMF left some out: --engine native",
            )
        )
    return rows, cells, values, drift


def _largest_share(parts: Array, whole: Array) -> float:
    """The largest part of its cell, cells without an area left out."""
    shares = np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 0.0)
    return float(np.max(shares, initial=0.0))
