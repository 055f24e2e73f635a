"""Join the tile files of the demonstration model to one global file.

    python -m callmip_global.demo.merge tile1.nc tile2.nc ... global.nc

Land cells are put back to where the tiles' ``cell`` says; the result equals, number for number, the
file of a run without tiles. Exit code 0, or 1 with one line on stderr.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from callmip_global.demo.model import (
    FILL,
    ORIGIN_YEAR,
    OUTPUTS,
    ModelError,
    add_field,
    create_output,
)


def merge(inputs: list[Path], output: Path) -> None:
    """Write ``output`` from the tiles' files; ModelError where these do not belong together."""
    import netCDF4

    with ExitStack() as stack:
        try:
            tiles = [stack.enter_context(netCDF4.Dataset(path)) for path in inputs]
        except OSError as error:
            raise ModelError(f"cannot read a tile: {error}") from None
        cells = [tile["cell"][:].filled() for tile in tiles]
        every = np.concatenate(cells)
        if len(np.unique(every)) != len(every):
            raise ModelError(f"{inputs[0]} and the others share cells: are they of the same tile?")
        times = tiles[0]["time"][:].filled()
        for path, tile in zip(inputs, tiles, strict=True):
            for axis in ("time", "latitude", "longitude"):
                if not np.array_equal(tile[axis][:], tiles[0][axis][:]):
                    raise ModelError(f"{path}: its {axis} is not that of {inputs[0]}")
        lat, lon = (np.asarray(tiles[0][axis][:]) for axis in ("latitude", "longitude"))
        first_year = ORIGIN_YEAR + int(times[0] // 365)
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(f".{output.name}.tmp")
        with create_output(temporary, lat, lon, len(times), first_year) as merged:
            for name in ("land_frac", *OUTPUTS):
                records = 1 if name == "land_frac" else len(times)
                whole = np.full((records, len(lat) * len(lon)), FILL, dtype=np.float32)
                for tile, cell in zip(tiles, cells, strict=True):
                    whole[:, cell] = tile[name][:]
                shape = (records, len(lat), len(lon))
                add_field(merged, name, ("time", "latitude", "longitude"), whole.reshape(shape))
    temporary.replace(output)


def main() -> int:
    """Entry point: the tiles' files, then the file to write."""
    if len(sys.argv) < 3:
        print("demonstration model: wanted the tiles' files and one output", file=sys.stderr)
        return 1
    *inputs, output = map(Path, sys.argv[1:])
    try:
        merge(inputs, output)
    except ModelError as error:
        print(f"demonstration model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
