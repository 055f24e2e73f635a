"""The demonstration: a small land model run as an external command, its inputs, and its experiment.

Nothing here is science: the climate is idealised and every file that comes of it says so. It exists
so that the whole chain can be tried, tested and broken without anybody's data.
"""

SYNTHETIC = (
    "Synthetic: made by the demonstration model of callmip-global with an idealised climate. "
    "For trying the software only; not a result."
)
