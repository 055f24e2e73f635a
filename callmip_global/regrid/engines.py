"""Which weights are made, and by whom: one choice of engine and method for all callers."""

from __future__ import annotations

from typing import Literal

from callmip_global.errors import Problem, UsageError, one_of
from callmip_global.grid import EdgeModel, Grid
from callmip_global.regrid.esmf import esmf_weights
from callmip_global.regrid.mesh import Mesh
from callmip_global.regrid.nearest import nearest_weights
from callmip_global.regrid.weights import AnyWeights, conservative_weights

Engine = Literal["auto", "native", "xesmf"]
Method = Literal["conservative", "nearest", "bilinear"]


_ENGINES: tuple[Engine, ...] = ("auto", "native", "xesmf")
_METHODS: tuple[Method, ...] = ("conservative", "nearest", "bilinear")


def check_engine(engine: str, method: str) -> tuple[Engine, Method]:
    """The two words, checked. UsageError for others, and for a method the engine does not have."""
    chosen = one_of("--engine", engine, _ENGINES), one_of("--method", method, _METHODS)
    if chosen == ("native", "bilinear"):
        wanted = "conservative or nearest with the native engine"
        raise UsageError(Problem("--method", found="bilinear", wanted=wanted))
    return chosen


def make_weights(
    source: Grid | Mesh,
    target: Grid,
    *,
    engine: Engine = "auto",
    method: Method = "conservative",
    edge_model: EdgeModel = "bounds",
) -> AnyWeights:
    """Weights from any grid to a rectilinear one.

    engine : "auto" takes our own wherever they have the method, so that results never depend on
        what happens to be installed; "xesmf" always ESMF's
    method : "conservative", first order; "nearest" cell centre; "bilinear" (ESMF only). The last
        two conserve nothing: their ``tolerance`` is infinite
    edge_model : where the source's edges come from, recorded
    Raises what ``conservative_weights``, ``nearest_weights`` and ``esmf_weights`` raise.
    """
    if engine == "xesmf" or method == "bilinear":
        theirs = "nearest_s2d" if method == "nearest" else method
        return esmf_weights(source, target, method=theirs, edge_model=edge_model)
    if method == "nearest":
        return nearest_weights(source, target)
    return conservative_weights(source, target, edge_model=edge_model)
