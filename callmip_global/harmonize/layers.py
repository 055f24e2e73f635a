"""Soil layers: which of them make up a wanted depth, from the bounds that the file gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from callmip_global.errors import DataError, Problem
from callmip_global.harmonize.native import NativeFile, open_native
from callmip_global.units import convert_factor
from callmip_global.variables import Variable

EXACT_M = 1e-4
"""Bounds closer than this are the same [m]: files keep them in single precision."""


@dataclass(frozen=True)
class LayerChoice:
    """``indices`` along ``dim`` that make up a depth; the last counts with ``last_share`` of it."""

    dim: str
    indices: tuple[int, ...]
    last_share: float
    words: str


def layer_choice(file: NativeFile, native: str, var: Variable) -> LayerChoice | Problem:
    """The layers of ``native`` that make up the depth ``var`` speaks of, or why there are none.

    Layers must follow each other without gaps from the surface. A layer that reaches below the
    depth counts with the part of its thickness above it: its water is taken as evenly spread.
    """
    assert var.depth_m is not None
    top, bottom = var.depth_m
    known = {*file.grid_dims(), file.time_dim}
    extra = [d for d in file.variables[native].dims if d not in known]
    wanted = f"layers from {top:g} to {bottom:g} m"
    remedy = (
        f"Give the layers their bounds in the file, or say {var.name}: "
        f"{{source: {native}, select: {{{extra[0] if extra else 'layer'}: ...}}, "
        f"depth: [{top:g}, {bottom:g}]}} if some of them make up that depth."
    )

    def refused(found: str) -> Problem:
        return Problem(file.origin, native, found, wanted, remedy, "layers-unbounded")

    if len(extra) != 1:
        return refused(f"the extra dimensions ({', '.join(extra)})" if extra else "no layers")
    try:
        bounds = layer_bounds(file, extra[0])
    except DataError as error:
        return error.problems[0]
    if bounds is None:
        return refused(f"layers of {extra[0]} without bounds")
    order = np.argsort(bounds[:, 0], kind="stable")
    low, high = bounds[order, 0], bounds[order, 1]
    said = ", ".join(f"{a:g}-{b:g}" for a, b in zip(low[:4], high[:4], strict=True))
    follows = np.abs(low[1:] - high[:-1]) <= EXACT_M
    if abs(low[0] - top) > EXACT_M or not follows.all() or not (high > low).all():
        return refused(f"layers of {said} m, not one below the other from the surface")
    count = int((low < bottom - EXACT_M).sum())
    if high[count - 1] < bottom - EXACT_M:
        return refused(f"layers of {said} m, which end above {bottom:g} m")
    share = min(1.0, float((bottom - low[count - 1]) / (high[count - 1] - low[count - 1])))
    share = 1.0 if high[count - 1] - bottom <= EXACT_M else share
    words = f"the first {count} layers of {extra[0]} by their bounds ({said} m)"
    if share < 1.0:
        words += f"; {100 * share:.3g} % of the last one, its water taken as evenly spread"
    return LayerChoice(extra[0], tuple(int(i) for i in order[:count]), share, words)


def layer_bounds(file: NativeFile, dim: str) -> NDArray[np.float64] | None:
    """(layers, 2) top and bottom of each layer [m], positive downwards, or None if not stated.

    DataError where the bounds have no unit of length.
    """
    header = file.variables.get(dim)
    named = () if header is None else (str(header.attributes.get("bounds", "")),)
    for name in (*named, f"{dim}_bnds", f"{dim}_bounds"):
        bounds = file.variables.get(name)
        if (
            bounds is None
            or list(bounds.dims)[:1] != [dim]
            or list(bounds.dims.values())[1:] != [2]
        ):
            continue
        units: Any = bounds.units or (header.units if header is not None else None) or "m"
        conversion = convert_factor(str(units), "m", file.origin, name)
        with open_native(file.path, file.origin)[0] as ds:
            values = conversion.apply(ds[name].values)
        return np.sort(np.abs(values), axis=1)
    return None
