"""Stores as the files that others ask for.

The heavy parts load when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callmip_global.export.cf import export_cf
    from callmip_global.export.ilamb import export_ilamb
    from callmip_global.export.upload import export_upload

__all__ = ["export_cf", "export_ilamb", "export_upload"]


def __getattr__(name: str) -> Any:
    if name == "export_cf":
        from callmip_global.export.cf import export_cf

        return export_cf
    if name == "export_ilamb":
        from callmip_global.export.ilamb import export_ilamb

        return export_ilamb
    if name == "export_upload":
        from callmip_global.export.upload import export_upload

        return export_upload
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
