"""Products files: YAML to the values the benchmark works with.

A products file is ``products: {NAME: {...}}``. An entry gives everything itself, or says
``catalogue: ENTRY`` and then only what differs from the shipped entry of that name, in
config/products/: at least the ``path``, which is relative to the products file and may be a
pattern or a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from callmip_global.benchmark.product import KINDS, Kind, Product
from callmip_global.config.yaml_source import Located, load_yaml, nearest, validate_model
from callmip_global.data import data_path
from callmip_global.errors import Problem, UsageError
from callmip_global.files import home_path
from callmip_global.variables import variable_table


class ProductEntry(BaseModel):
    """One entry of a products file; the meaning of the keys is that of ``benchmark.Product``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalogue: str | None = None
    variable: str | None = None
    path: str | tuple[str, ...] | None = None
    source: str | None = None
    units: str | None = None
    native_units: str | None = None
    factor: float = 1.0
    sign: Literal[1, -1] = 1
    kind: Kind | None = None
    static: bool = False
    anomaly: bool = False
    window: tuple[int, int] | None = None
    independent_of_towers: bool | Literal["unknown"] = "unknown"
    like_for_like: bool | Literal["unknown"] = "unknown"
    differs: str = ""
    uncertainty: str | None = None
    period: tuple[int, int | None] | None = None
    lacks_months: bool = False
    gridded: bool = True
    resolution: str = "unknown"
    masks: str = ""
    pattern: str = "unknown"
    url: str = "unknown"
    version: str = "unknown"
    doi: str = "unknown"
    licence: str = "unknown"
    note: str = ""


class ProductsFile(BaseModel):
    """``products: {NAME: {...}}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    products: dict[str, ProductEntry] = Field(min_length=1)


@cache
def product_catalogue() -> Mapping[str, ProductEntry]:
    """The shipped entries of config/products/*.yaml by name; they name no path on any machine."""
    entries: dict[str, ProductEntry] = {}
    for path in sorted(data_path("config", "products").glob("*.yaml")):
        parsed = validate_model(ProductsFile, load_yaml(path), path.name)
        entries.update(parsed.products)
    return entries


def catalogue_lines(variables: Collection[str] | None = None) -> Iterator[str]:
    """One line for each entry: name, variable, years, what it is, where groups get which files."""
    for name, entry in product_catalogue().items():
        if variables and entry.variable not in variables:
            continue
        doi = f"doi {entry.doi}" if entry.doi != "unknown" else "no doi known"
        kind = f"{entry.kind}{'' if entry.gridded else ', no map: not compared'}"
        yield (
            f"{name}: {entry.variable}: {_years(entry)}{entry.resolution}; {kind}; "
            f"{doi}; {entry.url}; files like {entry.pattern}"
        )


# It stands in tables, headings and messages.
_NAME_LETTERS = 80

_COLUMNS = (
    *("entry", "years, grid", "in the files", "used as"),
    *("towers", "like for like", "where", "notes"),
)


def catalogue_table() -> str:
    """The catalogue as tables of Markdown, one for each variable, in the order of the protocol."""
    by_variable: dict[str, list[tuple[str, ProductEntry]]] = {}
    for name, entry in product_catalogue().items():
        by_variable.setdefault(entry.variable or "", []).append((name, entry))
    parts = []
    for variable in (name for name in variable_table() if name in by_variable):
        rows = [
            f"### {variable} ({variable_table()[variable].units})",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|" + "---|" * len(_COLUMNS),
        ]
        rows += [
            "| " + " | ".join(_cells(name, entry)) + " |" for name, entry in by_variable[variable]
        ]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _cells(name: str, entry: ProductEntry) -> Iterator[str]:
    yield f"**{name}**<br>{entry.kind}, {entry.version}"
    yield f"{_years(entry)}{entry.resolution}"
    inside = [f"`{entry.source}`" if entry.source else "", f"{entry.native_units}"]
    inside += [f"± `{entry.uncertainty}`"] if entry.uncertainty else []
    yield ", ".join(text for text in inside if text) + f"<br>`{entry.pattern}`"
    used = ["anomalies only"] if entry.anomaly else ["map only"] if entry.static else []
    used += [] if entry.gridded else ["not compared: no map"]
    if entry.factor != 1 or entry.sign != 1:
        used.append(f"× {entry.sign * entry.factor:g}" + (f" {entry.units}" if entry.units else ""))
    yield ", ".join(used) or "as it is"
    towers = {True: "independent", False: "trained on or made of them", "unknown": "unknown"}
    yield towers[entry.independent_of_towers]
    yield f"no: {entry.differs}" if entry.like_for_like is False else "yes"
    doi = f"doi [{entry.doi}](https://doi.org/{entry.doi})"
    yield f"<{entry.url}><br>{doi if entry.doi != 'unknown' else 'doi unknown'}<br>{entry.licence}"
    yield " ".join(text for text in (entry.masks, entry.note) if text and text != "unknown")


def _years(entry: ProductEntry) -> str:
    if entry.period is None:
        return ""
    first, last = entry.period
    return f"{first} on; " if last is None else f"{first}-{last}; "


def load_products(path: Path, *, require_files: bool = False) -> tuple[Product, ...]:
    """All products of a products file, in its order.

    Raises UsageError with every problem of the file at once. ``require_files`` also asks that
    each path names a file that is there (what ``validate`` wants to know); the benchmark itself
    reports an absent product and goes on with the others.
    """
    located = load_yaml(path)
    parsed = validate_model(ProductsFile, located, str(path))
    problems: list[Problem] = []
    products: list[Product] = []
    for name, entry in parsed.products.items():
        found = list(_problems(path, located, name, entry))
        if not found:
            try:
                products.append(_product(path, name, _merged(entry)))
            except ValueError as error:
                text = str(error)
                found = [
                    Problem(
                        _at(path, located, name),
                        f"products.{name}",
                        remedy=f"{text[0].upper()}{text[1:]}.",
                    )
                ]
            else:
                if require_files and not products[-1].files():
                    found = [
                        Problem(
                            _at(path, located, name, "path"),
                            f"products.{name}.path",
                            "no file",
                            f"files at {', '.join(products[-1].paths)}",
                            "Relative paths are relative to the products file.",
                        )
                    ]
        problems.extend(found)
    if problems:
        raise UsageError(problems)
    return tuple(products)


def _at(path: Path, located: Located, *key: str) -> str:
    return f"{path}:{located.line_of(('products', *key))}"


def _merged(entry: ProductEntry) -> ProductEntry:
    """The entry over the catalogue's, where it names one."""
    if entry.catalogue is None:
        return entry
    own = {key: getattr(entry, key) for key in entry.model_fields_set}
    return product_catalogue()[entry.catalogue].model_copy(update=own)


def _problems(path: Path, located: Located, name: str, entry: ProductEntry) -> Iterator[Problem]:
    key = f"products.{name}"
    if not name.isprintable() or not name.strip() or len(name) > _NAME_LETTERS:
        found = f"a name of {len(name)} letters" if name.isprintable() else f"the name {name!r}"
        readable = f"1 to {_NAME_LETTERS} letters on one line"
        yield Problem(_at(path, located, name), "products", found, readable)
        return
    if entry.catalogue is not None and entry.catalogue not in product_catalogue():
        yield Problem(
            _at(path, located, name, "catalogue"),
            f"{key}.catalogue",
            repr(entry.catalogue),
            f"one of: {', '.join(product_catalogue())}",
            nearest(entry.catalogue, product_catalogue()),
        )
        return
    merged = _merged(entry)
    wanted: dict[str, str] = {
        "variable": f"one of: {', '.join(variable_table())}",
        "path": "where the files are on this machine (path, pattern, or a list of them)",
        "kind": f"one of: {', '.join(KINDS)}",
    }
    for field, text in wanted.items():
        if getattr(merged, field) in (None, ()):
            yield Problem(_at(path, located, name), f"{key}.{field}", "nothing", text)
    if merged.variable is not None and merged.variable not in variable_table():
        yield Problem(
            _at(path, located, name, "variable"),
            f"{key}.variable",
            repr(merged.variable),
            wanted["variable"],
        )


def _product(path: Path, name: str, entry: ProductEntry) -> Product:
    patterns = (entry.path,) if isinstance(entry.path, str) else entry.path
    values: dict[str, Any] = entry.model_dump(exclude={"catalogue", "path"})
    for flag in ("independent_of_towers", "like_for_like"):
        if values[flag] == "unknown":
            values[flag] = None
    folder = path.resolve().parent
    paths = tuple(str(folder / home_path(pattern)) for pattern in patterns or ())
    return Product(name=name, paths=paths, **values)
