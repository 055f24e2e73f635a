"""Conservative regridding between rectilinear grids: weights, their application, whole stores."""

from callmip_global.regrid.apply import covered_fraction, masked_mean
from callmip_global.regrid.pipeline import regrid_dataset, regrid_files, regrid_store
from callmip_global.regrid.weights import AxisWeights, Weights, conservative_weights

__all__ = [
    "AxisWeights",
    "Weights",
    "conservative_weights",
    "covered_fraction",
    "masked_mean",
    "regrid_dataset",
    "regrid_files",
    "regrid_store",
]
