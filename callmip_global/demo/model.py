"""The demonstration land model: light-use-efficiency carbon, bucket water, a closed energy balance.

    python -m callmip_global.demo.model namelist.yaml

It stands for "somebody else's model": it reads one namelist, a parameter file, a surface file, a
table of CO2 and a restart file, writes a restart file and monthly output under its own names, units
and grid, and shares no code with the rest of the package. Monthly step, noleap calendar, one kind
of vegetation per cell, every operation element by element over land cells: a run cut into segments,
or into tiles, equals the whole run bit for bit.

Namelist keys, all of them wanted:

    surface, parameters     paths
    first_year, n_years     model years of this run
    label_moves             false when all years carry the label of the first, as in a spin-up
    climate                 actual | {recycle: [first, last]}
    co2                     {table: path, year: yearly | YYYY}
    luc                     yearly | YYYY
    tile, tiles             1 .. tiles
    restart_in, restart_out path or null, path
    equilibrate             put wood and soil carbon to their fixed point at the end of the run, so
                            that two passes are a spin-up (idea: Xia et al. 2012, GMD 5, 1259)
    output                  path or null

Exit code 0, or 1 with one line on stderr that begins with "demonstration model:".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from callmip_global.demo import SYNTHETIC
from callmip_global.demo.climate import MONTH_DAYS, Climate

Array = NDArray[np.float64]

FILL = -9999.0
SECONDS_PER_DAY = 86400.0
LATENT_HEAT_J_KG = 2.45e6
STEFAN_BOLTZMANN = 5.670374e-8
PSYCHROMETRIC_KPA_K = 0.066
GAS_CONSTANT = 8.314
# Ground as one slab: heat capacity of about 2 m of moist soil, exchange with the air above it.
GROUND_CAPACITY_J_M2_K = 4.5e6
GROUND_EXCHANGE_W_M2_K = 1.1
TOP_LAYER_MM = 36.0
SNOW_LIMIT_MM = 800.0
ORIGIN_YEAR = 1700

# Native name: (units, long name). Directions are the model's own: sensible heat points down.
OUTPUTS = {
    "GPP_tot": ("gC m-2 day-1", "gross photosynthesis"),
    "AutoResp": ("gC m-2 s-1", "autotrophic respiration"),
    "HetResp": ("gC m-2 s-1", "heterotrophic respiration"),
    "Harvest": ("gC m-2 day-1", "carbon carried off cropland"),
    "LatentHeat": ("W/m2", "latent heat flux, positive upwards"),
    "SensHeat": ("W/m2", "sensible heat flux, positive downwards"),
    "GroundHeat": ("W/m2", "heat flux into the ground"),
    "totEvap": ("mm/day", "evapotranspiration"),
    "transp": ("mm/day", "transpiration"),
    "soilEvap": ("mm/day", "evaporation from soil and snow"),
    "Tskin": ("degC", "surface temperature"),
    "LAI": ("m2/m2", "leaf area index"),
    "leafC": ("gC m-2", "leaf carbon"),
    "stemC": ("gC m-2", "above-ground wood carbon"),
    "soilC": ("gC m-2", "soil and litter carbon"),
    "SoilWater": ("mm", "water in the whole soil column"),
    "SoilWaterTop": ("mm", "water in the uppermost 0.1 m"),
}


class ModelError(Exception):
    """Something given to the model that it cannot run with."""


@dataclass(frozen=True)
class Parameters:
    """What a calibration may change."""

    light_use_efficiency: float  # gC per MJ of absorbed PAR at the optimum and 400 ppm
    optimum_temperature_c: float
    vpd_half_kpa: float  # vapour pressure deficit that halves photosynthesis
    extinction: float  # light extinction coefficient per unit of leaf area
    lai_max: float  # m2 m-2 where neither water nor warmth is short
    growth_respiration: float  # share of photosynthesis
    maintenance_respiration: float  # share of leaf carbon per day at 15 degC
    respiration_q10: float
    wood_lifetime_yr: float
    soil_lifetime_yr: float  # at 15 degC, moist
    priestley_taylor: float
    soil_capacity_mm: float
    critical_wetness: float  # relative soil water below which plants are short of it

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise ModelError(
                    f"parameter {field.name}: found {value!r}, wanted a number above 0"
                )


def read_parameters(path: Path) -> Parameters:
    """The parameter file (YAML mapping, all names given, no others)."""
    values = _read_yaml(path, "parameter file")
    names = {field.name for field in fields(Parameters)}
    if wrong := sorted(values.keys() ^ names):
        verb = "unknown" if wrong[0] in values else "missing"
        raise ModelError(f"{path}: {verb} parameter {wrong[0]}; wanted exactly: {sorted(names)}")
    try:
        return Parameters(**values)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


@dataclass
class State:
    """What is carried from month to month; every array is (n_cells,)."""

    leaf_gc_m2: Array
    wood_gc_m2: Array  # stems and coarse roots
    soil_gc_m2: Array
    top_water_mm: Array
    deep_water_mm: Array
    snow_mm: Array
    ground_c: Array

    @classmethod
    def cold_start(cls, temperature_c: Array) -> State:
        """Bare, half wet ground at the annual mean temperature (``temperature_c``: (n,))."""
        ones = np.ones_like(temperature_c)
        return cls(
            20.0 * ones,
            1000.0 * ones,
            8000.0 * ones,
            15.0 * ones,
            60.0 * ones,
            0.0 * ones,
            temperature_c.copy(),
        )

    def check(self, year: int) -> None:
        """ModelError when a number is no longer one."""
        for field in fields(self):
            if not np.isfinite(getattr(self, field.name)).all():
                raise ModelError(f"{field.name} is not finite after year {year}: check parameters")


@dataclass(frozen=True)
class Cells:
    """The land cells of this run: flat indices into the (nlat, nlon) grid, in rising order."""

    index: NDArray[np.int32]
    lat: Array
    lon: Array
    fraction: Array
    interior: Array
    grid_lat: Array
    grid_lon: Array


def read_cells(path: Path, tile: int = 1, tiles: int = 1) -> Cells:
    """Land cells of ``tile`` (1 .. ``tiles``): dealt out in turn, so that tiles cost the same."""
    import netCDF4

    if not 1 <= tile <= tiles:
        raise ModelError(f"tile {tile} of {tiles} does not exist")
    with netCDF4.Dataset(_existing(path, "surface file")) as file:
        lat, lon = (np.asarray(file[name][:], np.float64) for name in ("lat", "lon"))
        fraction, interior = (np.asarray(file[n][:], np.float64) for n in ("land_frac", "interior"))
    index = np.flatnonzero(fraction > 0.0)[tile - 1 :: tiles]
    row, column = np.divmod(index, len(lon))
    return Cells(
        index.astype(np.int32),
        lat[row],
        lon[column],
        fraction.ravel()[index],
        interior.ravel()[index],
        lat,
        lon,
    )


class Model:
    """The model on given cells with given parameters."""

    def __init__(self, cells: Cells, parameters: Parameters) -> None:
        self.cells = cells
        self.p = parameters
        self.climate = Climate(cells.lat, cells.lon, cells.interior)
        # Where people farm: temperate to warm, not too dry.
        annual_c = _mean_year(self.climate.temperature_c)
        annual_mm = _mean_year(self.climate.precipitation_mm_day)
        self.farmland = (
            0.65 * np.exp(-(((annual_c - 14.0) / 11.0) ** 2)) * annual_mm / (annual_mm + 1.0)
        )

    def start(self) -> State:
        """State of a run that has no restart file."""
        return State.cold_start(_mean_year(self.climate.temperature_c))

    def year(
        self, state: State, *, climate_year: int, co2_ppm: float, luc_year: int
    ) -> tuple[dict[str, Array], Transfer]:
        """Advance ``state`` by one year, in place.

        Returns the native output, {name: (12, n)}, and how the slow pools were carried.
        """
        p = self.p
        w = self.climate.weather(climate_year)
        crop = self.farmland * crop_history(luc_year)
        # Everything that depends on the weather alone, for all twelve months at once.
        air = w.temperature_c
        saturation_kpa = 0.6108 * np.exp(17.27 * air / (air + 237.3))
        slope = 4098.0 * saturation_kpa / ((air + 237.3) * (air + 237.3))
        equilibrium = slope / (slope + PSYCHROMETRIC_KPA_K)
        vapour_kpa = w.relative_humidity * saturation_kpa
        dryness = p.vpd_half_kpa / (p.vpd_half_kpa + saturation_kpa - vapour_kpa)
        kelvin = air + 273.15
        kelvin2 = kelvin * kelvin
        # Net loss after Brunt; less of it over the inversions of a cold winter.
        longwave = (
            (0.38 - 0.13 * np.sqrt(vapour_kpa))
            * (1.0 - 0.7 * w.cloud)
            * (0.6 + 0.4 * np.clip((air + 15.0) / 25.0, 0.0, 1.0))
            * (STEFAN_BOLTZMANN * kelvin2 * kelvin2)
        )
        warmth = np.exp(-(((air - p.optimum_temperature_c) / 15.0) ** 2))
        warmth *= np.clip((air + 3.0) / 8.0, 0.0, 1.0)
        # Photosynthesis limited by light: (ci - G) / (ci + 2 G), G after Bernacchi et al. (2001).
        compensation = 42.75 * np.exp(37830.0 * (air - 25.0) / (298.15 * GAS_CONSTANT * kelvin))
        carboxylation = (0.7 * co2_ppm - compensation) / (0.7 * co2_ppm + 2.0 * compensation)
        carboxylation = np.maximum(carboxylation, 0.0) / ((280.0 - 42.75) / (280.0 + 2.0 * 42.75))
        potential = (
            p.light_use_efficiency
            * warmth
            * dryness
            * carboxylation
            * (0.5 * w.shortwave_w_m2 * SECONDS_PER_DAY * 1e-6)
        )
        respiration_warmth = np.exp(np.log(p.respiration_q10) * (air - 15.0) / 10.0)
        freezing = np.clip((1.5 - air) / 4.0, 0.0, 1.0)
        melting = 3.0 * np.maximum(air, 0.0)
        stomata = np.clip(1.0 - 0.2 * (co2_ppm / 380.0 - 1.0), 0.5, 1.2) * (0.6 + 0.4 * dryness)

        out = {name: np.empty_like(air) for name in OUTPUTS}
        s = state
        carried = Transfer.identity(s)
        specific_leaf_area = 0.016  # m2 per gC
        for month, days in enumerate(MONTH_DAYS):
            seconds = days * SECONDS_PER_DAY
            before = (s.leaf_gc_m2, s.wood_gc_m2, s.soil_gc_m2, s.top_water_mm, s.deep_water_mm)
            lai = specific_leaf_area * s.leaf_gc_m2
            cover = 1.0 - np.exp(-p.extinction * lai)
            snow_cover = s.snow_mm / (s.snow_mm + 25.0)

            # Energy.
            albedo = 0.13 + 0.17 * (1.0 - cover) + 0.42 * snow_cover * (1.0 - 0.6 * cover)
            net_radiation = (1.0 - albedo) * w.shortwave_w_m2[month] - longwave[month]
            ground = air[month] + (s.ground_c - air[month]) * np.exp(
                -GROUND_EXCHANGE_W_M2_K * seconds / GROUND_CAPACITY_J_M2_K
            )
            into_ground = GROUND_CAPACITY_J_M2_K * (ground - s.ground_c) / seconds
            s.ground_c = ground
            available = np.maximum(net_radiation - into_ground, 0.0)
            demand = (
                p.priestley_taylor * equilibrium[month] * available * (seconds / LATENT_HEAT_J_KG)
            )  # mm in the month

            # Water, in mm over the month.
            rain = w.precipitation_mm_day[month] * days
            snowfall = rain * freezing[month]
            rain = rain - snowfall
            intercepted = np.minimum(0.18 * cover * rain, 0.35 * cover * demand)
            snow = s.snow_mm + snowfall
            sublimation = np.minimum(0.4 * snow_cover * (1.0 - cover) * demand, snow)
            snow = snow - sublimation
            melt = np.minimum(melting[month] * days, snow)
            snow = snow - melt
            avalanche = np.maximum(snow - SNOW_LIMIT_MM, 0.0)
            s.snow_mm = snow - avalanche
            top = s.top_water_mm + rain - intercepted + melt
            wet = np.minimum(top / TOP_LAYER_MM, 1.0)
            evaporation = np.minimum(
                0.65 * (1.0 - cover) * (1.0 - snow_cover) * wet * demand, 0.9 * top
            )
            top = top - evaporation
            # A tenth of a millimetre stays, or frozen deserts would decay into denormal numbers.
            drained = 0.3 * np.maximum(top - 0.1, 0.0) + 0.65 * np.maximum(top - TOP_LAYER_MM, 0.0)
            s.top_water_mm = top - drained
            deep = s.deep_water_mm + drained
            wetness = np.minimum(deep / p.soil_capacity_mm, 1.0)
            shortage = np.minimum(wetness / p.critical_wetness, 1.0)
            transpired = np.minimum(
                0.95 * (cover * demand - intercepted) * stomata[month] * shortage, 0.8 * deep
            )
            deep = deep - transpired
            runoff = 0.9 * np.maximum(deep - p.soil_capacity_mm, 0.0)
            deep = deep - runoff
            s.deep_water_mm = deep - 0.12 * deep * wetness * wetness
            evapotranspiration = intercepted + sublimation + evaporation + transpired
            latent = evapotranspiration * (LATENT_HEAT_J_KG / seconds)
            sensible = net_radiation - latent - into_ground

            # Carbon, in gC m-2 over the month.
            light = 1.0 - np.exp(-p.extinction * np.maximum(lai, 0.1))
            photosynthesis = potential[month] * light * shortage * days
            growth_loss = p.growth_respiration * photosynthesis
            npp = photosynthesis - growth_loss
            maintenance = s.leaf_gc_m2 * (
                1.0 - np.exp(-p.maintenance_respiration * respiration_warmth[month] * days)
            )
            leaf = s.leaf_gc_m2 - maintenance
            leafing = 0.3 + 0.7 * np.clip((0.5 * (ground + air[month]) - 2.0) / 12.0, 0.0, 1.0)
            wanted = (
                (p.lai_max / specific_leaf_area)
                * leafing
                * (0.08 + 0.92 * shortage)
                * (1.0 - 0.3 * crop)
            )
            growth = np.clip(0.45 * (wanted - leaf), 0.0, 0.6 * npp)
            shed = 0.03 * leaf + 0.45 * np.maximum(0.97 * leaf - wanted, 0.0)
            s.leaf_gc_m2 = leaf + growth - shed
            wood_kept = np.exp(-days / (365.0 * p.wood_lifetime_yr) * (1.0 + 5.0 * crop))
            # Root and litter moisture let soil carbon go; cold and drought keep it.
            soil_warmth = np.exp(np.log(p.respiration_q10) * (ground - 15.0) / 10.0)
            rate = soil_warmth * (0.15 + 0.85 * wetness) / (365.0 * p.soil_lifetime_yr)
            soil_kept = np.exp(-rate * days)
            litter_kept = 1.0 - 0.3 * crop  # the rest is harvested
            wood_in = npp - growth
            dead_wood = s.wood_gc_m2 * (1.0 - wood_kept)
            decomposed = s.soil_gc_m2 * (1.0 - soil_kept)
            s.wood_gc_m2 = s.wood_gc_m2 - dead_wood + wood_in
            s.soil_gc_m2 = s.soil_gc_m2 - decomposed + litter_kept * (shed + dead_wood)
            carried.advance(wood_kept, soil_kept, litter_kept)

            wood_mean = 0.5 * (before[1] + s.wood_gc_m2)
            leaf_mean = 0.5 * (before[0] + s.leaf_gc_m2)
            top_mean = 0.5 * (before[3] + s.top_water_mm)
            out["GPP_tot"][month] = photosynthesis / days
            out["AutoResp"][month] = (growth_loss + maintenance) / seconds
            out["HetResp"][month] = decomposed / seconds
            out["Harvest"][month] = (1.0 - litter_kept) * (shed + dead_wood) / days
            out["LatentHeat"][month] = latent
            out["SensHeat"][month] = -sensible
            out["GroundHeat"][month] = into_ground
            out["totEvap"][month] = evapotranspiration / days
            out["transp"][month] = transpired / days
            out["soilEvap"][month] = (evaporation + sublimation) / days
            out["Tskin"][month] = air[month] + 0.045 * sensible
            out["LAI"][month] = specific_leaf_area * leaf_mean
            out["leafC"][month] = leaf_mean
            out["stemC"][month] = 0.75 * wood_mean
            out["soilC"][month] = 0.5 * (before[2] + s.soil_gc_m2)
            out["SoilWater"][month] = top_mean + 0.5 * (before[4] + s.deep_water_mm)
            out["SoilWaterTop"][month] = top_mean
        return out, carried


@dataclass
class Transfer:
    """How wood and soil carbon at the end depend on those at the start of a period.

    Both are linear: wood_end = ww wood + ..., soil_end = ws wood + ss soil + ...; arrays (n,).
    """

    wood_start: Array
    soil_start: Array
    ww: Array
    ws: Array
    ss: Array

    @classmethod
    def identity(cls, state: State) -> Transfer:
        """Before the first month."""
        one = np.ones_like(state.wood_gc_m2)
        return cls(state.wood_gc_m2, state.soil_gc_m2, one, 0.0 * one, one)

    def advance(self, wood_kept: Array, soil_kept: Array, litter_kept: Array) -> None:
        """One month more."""
        self.ws = soil_kept * self.ws + litter_kept * (1.0 - wood_kept) * self.ww
        self.ww = wood_kept * self.ww
        self.ss = soil_kept * self.ss

    def then(self, later: Transfer) -> Transfer:
        """This period and the next as one."""
        return Transfer(
            self.wood_start,
            self.soil_start,
            later.ww * self.ww,
            later.ws * self.ww + later.ss * self.ws,
            later.ss * self.ss,
        )

    def settle(self, state: State) -> None:
        """Put wood and soil carbon where a repeat of the period would bring them back to."""
        # Where nothing grows the fixed point is 0, and rounding must not make it less.
        wood = np.maximum(state.wood_gc_m2 - self.ww * self.wood_start, 0.0) / (1.0 - self.ww)
        added = state.soil_gc_m2 - self.ws * self.wood_start - self.ss * self.soil_start
        state.soil_gc_m2 = np.maximum(added + self.ws * wood, 0.0) / (1.0 - self.ss)
        state.wood_gc_m2 = wood


def crop_history(year: int) -> float:
    """Share of today's cropland that was in use in ``year``: an idealised history."""
    return float(np.interp(year, (1700, 1850, 1950, 2000, 2024), (0.18, 0.33, 0.8, 0.97, 1.0)))


def climate_year_of(climate: Any, first_year: int, position: int, label_moves: bool) -> int:
    """Calendar year whose weather is used in the ``position``-th year of a run.

    Recycled years keep step with the calendar: the year before the recycled period has the weather
    of the period's last year, so that actual climate follows on without a seam. Where the label
    stands still the recycled period is gone through from its beginning.
    """
    if climate == "actual":
        return first_year + position
    first, last = climate["recycle"]
    if not label_moves:
        return int(first + position % (last - first + 1))
    return int(first + (first_year + position - first) % (last - first + 1))


def read_table(path: Path) -> dict[int, float]:
    """A table ``year value`` (one pair a line, # begins a comment)."""
    table = {}
    for number, line in enumerate(_existing(path, "CO2 table").read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        try:
            if words:
                table[int(words[0])] = float(words[1])
        except (ValueError, IndexError):
            raise ModelError(f"{path}:{number}: found {line!r}, wanted: year value") from None
    return table


def integrate(
    model: Model, state: State, namelist: Mapping[str, Any]
) -> Iterator[dict[str, Array]]:
    """Run the namelist's years, moving ``state``; yields the output of each, {name: (12, n)}."""
    table = read_table(Path(namelist["co2"]["table"]))
    first_year, moves = namelist["first_year"], namelist["label_moves"]
    total: Transfer | None = None
    for position in range(namelist["n_years"]):
        year = first_year + position if moves else first_year
        co2_year = year if namelist["co2"]["year"] == "yearly" else namelist["co2"]["year"]
        if co2_year not in table:
            raise ModelError(f"{namelist['co2']['table']}: has no year {co2_year}")
        out, carried = model.year(
            state,
            climate_year=climate_year_of(namelist["climate"], first_year, position, moves),
            co2_ppm=table[co2_year],
            luc_year=year if namelist["luc"] == "yearly" else namelist["luc"],
        )
        state.check(year)
        total = carried if total is None else total.then(carried)
        yield out
    if namelist["equilibrate"] and total is not None:
        total.settle(state)
        state.check(first_year)


def read_restart(path: Path, cells: Cells, first_year: int, label_moves: bool) -> State:
    """The state of a restart file; ModelError when it is of other cells or another year."""
    import netCDF4

    with netCDF4.Dataset(_existing(path, "restart file")) as file:
        if not np.array_equal(file["cell"][:], cells.index):
            raise ModelError(f"{path}: is of other cells than this run")
        end = int(file.last_year)
        if end != first_year - 1 and not (not label_moves and end == first_year):
            raise ModelError(f"{path}: ends with {end}, but the namelist starts with {first_year}")
        return State(**{f.name: np.asarray(file[f.name][:], np.float64) for f in fields(State)})


def write_restart(path: Path, state: State, cells: Cells, last_year: int) -> None:
    """Write all of ``state`` in full precision."""
    import netCDF4

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with netCDF4.Dataset(temporary, "w") as file:
        file.setncatts({"title": "Restart of the demonstration model", "comment": SYNTHETIC})
        file.last_year = np.int32(last_year)
        file.createDimension("land", len(cells.index))
        file.createVariable("cell", "i4", ("land",))[:] = cells.index
        for field in fields(State):
            file.createVariable(field.name, "f8", ("land",))[:] = getattr(state, field.name)
    temporary.replace(path)


def write_output(
    path: Path, output: Mapping[str, Array], cells: Cells, first_year: int, tiles: int
) -> None:
    """Write monthly output, {name: (months, n)}.

    A whole globe goes to (time, latitude, longitude); a tile to (time, land), the land cells alone
    with their place in the grid in ``cell``, as CF's compression by gathering has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    months = len(next(iter(output.values())))
    with create_output(temporary, cells.grid_lat, cells.grid_lon, months, first_year) as file:
        if tiles > 1:
            file.createDimension("land", len(cells.index))
            place = file.createVariable("cell", "i4", ("land",))
            place.compress = "latitude longitude"
            place[:] = cells.index
        for name, values in {"land_frac": cells.fraction[None], **output}.items():
            narrow = values.astype(np.float32)
            if tiles > 1:
                add_field(file, name, ("time", "land"), narrow)
            else:
                shape = (len(values), len(cells.grid_lat), len(cells.grid_lon))
                whole = np.full((len(values), shape[1] * shape[2]), FILL, dtype=np.float32)
                whole[:, cells.index] = narrow
                add_field(file, name, ("time", "latitude", "longitude"), whole.reshape(shape))
    temporary.replace(path)


def create_output(path: Path, lat: Array, lon: Array, months: int, first_year: int) -> Any:
    """An open output file with its axes; time stamps are the middles of the months."""
    import netCDF4

    file = netCDF4.Dataset(path, "w")
    file.setncatts({"title": "Output of the demonstration land model", "comment": SYNTHETIC})
    file.createDimension("time", months)
    file.createDimension("latitude", len(lat))
    file.createDimension("longitude", len(lon))
    ends = np.cumsum(np.tile(MONTH_DAYS, months // 12))
    middle = (first_year - ORIGIN_YEAR) * 365.0 + ends - 0.5 * np.tile(MONTH_DAYS, months // 12)
    for name, values, units in (
        ("time", middle, f"days since {ORIGIN_YEAR}-01-01 00:00:00"),
        ("latitude", lat, "degrees_north"),
        ("longitude", lon, "degrees_east"),
    ):
        variable = file.createVariable(name, "f8", (name,))
        variable.units = units
        variable[:] = values
    file["time"].calendar = "noleap"
    return file


def add_field(file: Any, name: str, dims: tuple[str, ...], values: NDArray[Any]) -> None:
    """Add one field, (time, ...); ``land_frac`` has one record and loses its time."""
    units, words = OUTPUTS.get(
        name, ("1", "fraction of the cell that is land; fields are per land area")
    )
    if name == "land_frac":
        dims, values = dims[1:], values[0]
        chunks: tuple[int, ...] = values.shape
    else:
        chunks = (12, *values.shape[1:])
    variable = file.createVariable(
        name,
        "f4",
        dims,
        zlib=len(chunks) > 1 and "land" not in dims,
        complevel=1,
        shuffle=True,
        chunksizes=chunks,
        fill_value=np.float32(FILL),
        # By default every open variable keeps a cache of its own, of many MB.
        chunk_cache=2**20,
    )
    variable.setncatts({"units": units, "long_name": words})
    variable[...] = values


def run(path: Path) -> None:
    """Run one namelist."""
    namelist = _read_yaml(path, "namelist")
    wanted = {
        "surface",
        "parameters",
        "first_year",
        "n_years",
        "label_moves",
        "climate",
        "co2",
        "luc",
        "tile",
        "tiles",
        "restart_in",
        "restart_out",
        "equilibrate",
        "output",
    }
    if wrong := sorted(namelist.keys() ^ wanted):
        raise ModelError(f"{path}: unknown or missing: {', '.join(wrong)}")
    cells = read_cells(Path(namelist["surface"]), namelist["tile"], namelist["tiles"])
    model = Model(cells, read_parameters(Path(namelist["parameters"])))
    first_year, moves = namelist["first_year"], namelist["label_moves"]
    if namelist["restart_in"] is None:
        state = model.start()
    else:
        state = read_restart(Path(namelist["restart_in"]), cells, first_year, moves)
    years = namelist["n_years"]
    print(f"demonstration model: {len(cells.index)} cells, {years} years from {first_year}")
    kept: list[dict[str, NDArray[np.float32]]] = []
    for position, out in enumerate(integrate(model, state, namelist)):
        if namelist["output"] is not None:
            kept.append({name: values.astype(np.float32) for name, values in out.items()})
        if position % 10 == 9:
            print(f"  {position + 1} years", flush=True)
    if namelist["output"] is not None:
        output = {name: np.concatenate([out[name] for out in kept]) for name in OUTPUTS}
        write_output(Path(namelist["output"]), output, cells, first_year, namelist["tiles"])
    last_year = first_year + namelist["n_years"] - 1 if moves else first_year
    write_restart(Path(namelist["restart_out"]), state, cells, last_year)
    print("demonstration model: done")


def _mean_year(monthly: Array) -> Array:
    """(12, n) -> (n,), summed month by month so that the order never depends on n."""
    total = np.zeros_like(monthly[0])
    for month, days in enumerate(MONTH_DAYS):
        total = total + monthly[month] * days
    return np.asarray(total / 365.0)


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such {what}")
    return path


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(_existing(path, what).read_text())
    except yaml.YAMLError as error:
        raise ModelError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: a {what} is a mapping of names to values")
    return values


def main() -> int:
    """Entry point: one argument, the namelist."""
    if len(sys.argv) != 2:
        print("demonstration model: wanted one argument, the namelist", file=sys.stderr)
        return 1
    try:
        run(Path(sys.argv[1]))
    except ModelError as error:
        print(f"demonstration model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
