"""Conservative regridding from any grid to a rectilinear one: weights, application, stores."""

from callmip_global.regrid.apply import covered_fraction, masked_mean
from callmip_global.regrid.mesh import Mesh
from callmip_global.regrid.pipeline import regrid_dataset, regrid_files, regrid_store
from callmip_global.regrid.weightfiles import read_weights, write_weights
from callmip_global.regrid.weights import AxisWeights, CellWeights, Weights, conservative_weights

__all__ = [
    "AxisWeights",
    "CellWeights",
    "Mesh",
    "Weights",
    "conservative_weights",
    "covered_fraction",
    "masked_mean",
    "read_weights",
    "regrid_dataset",
    "regrid_files",
    "regrid_store",
    "write_weights",
]
