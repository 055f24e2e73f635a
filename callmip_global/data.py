"""Where the data folders (config/, jobs/, regrid/) are: in the package or in the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(*parts: str) -> Path:
    """Path of a shipped data file or folder, e.g. ``data_path("config", "variables.yaml")``.

    The wheel carries the folders under ``callmip_global/_data``; a checkout (or an editable
    install) has them beside the package. Raises FileNotFoundError naming both places.
    """
    candidates = [root.joinpath(*parts) for root in (_PACKAGE / "_data", _PACKAGE.parent)]
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is in neither {candidates[0]} nor {candidates[1]}")
