"""Wall-clock times and memory sizes: text to numbers with the unit in the name, and back."""

from __future__ import annotations

import re

_WALLTIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def walltime_seconds(value: object) -> int:
    """Seconds of ``"HH:MM:SS"`` or ``"D-HH:MM:SS"``.

    YAML 1.1 reads an unquoted 10:00:00 as the integer 36000, so numbers are refused (ValueError)
    with the remedy instead of being guessed.
    """
    if not isinstance(value, str):
        raise ValueError(f'{value!r} is not quoted text; write it as "HH:MM:SS", with the quotes')
    match = _WALLTIME.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'{value!r} is not "HH:MM:SS" or "D-HH:MM:SS"')
    days, hours, minutes, seconds = (int(g or 0) for g in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < 1:
        raise ValueError(f"{value!r} is no time at all")
    return total


def walltime_text(walltime_s: int) -> str:
    """``HH:MM:SS``, the one form that both Slurm and PBS take (hours may exceed 99)."""
    hours, rest = divmod(walltime_s, 3600)
    return f"{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def memory_bytes(value: object) -> int:
    """Bytes of ``"32GB"``, ``"900MB"``, ``"1.5T"``, in powers of 1024, as Slurm and PBS count.

    A bare number is refused (ValueError): Slurm would take it as MB, PBS as bytes.
    """
    if not isinstance(value, str):
        raise ValueError(f'{value!r} has no unit; write it as text, e.g. "32GB"')
    match = _MEMORY.fullmatch(value.strip())
    if match is None or not match.group(2):
        raise ValueError(f'{value!r} is not a size with a unit, e.g. "32GB" or "900MB"')
    size = int(float(match.group(1)) * 1024 ** _POWER[match.group(2).upper()])
    if size < 1:
        raise ValueError(f"{value!r} is no memory at all")
    return size


def memory_mib(size_bytes: int) -> int:
    """Whole MiB, rounded up: what is asked of a scheduler."""
    return -(-size_bytes // 1024**2)
