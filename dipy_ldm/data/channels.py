"""Kinds of channels: scans, quantitative maps and segmentations.

Networks get float32 from 0 to 1, one column or several for each channel. The record of
a channel defines the rest: its files, the conversion of voxels to columns and back, how
reconstructions are measured, and entries of headers and sidecars. Channels without
names have no records, and each is scaled by itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import colorsys
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import chain
import logging
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from dipy_ldm._utils.checks import InputError, choose, naming_files, plain
from dipy_ldm._utils.values import listed
from dipy_ldm.data._grid import Grid, conform
from dipy_ldm.data._nifti import read_volume, read_voxels, refuse_files
from dipy_ldm.data._paths import choose_named, stem, suffix
from dipy_ldm.data._preprocessing import (
    IntensityRange,
    Origin,
    conform_voxels,
    read_labels,
    refuse_off_grid,
    unscale_intensities,
)
from dipy_ldm.data._sources import refuse_unknown_labels
from dipy_ldm.data._tables import read_table

__all__ = ["Channel", "Labels", "Map", "as_channels", "split_channels"]

logger = logging.getLogger("dipy_ldm")

# Each takes a column in networks and in the cache.
MAX_LABELS = 64
# Factor from which the mean of a map is odd, and the share of volumes up to which a
# label is.
_SCALE_FACTOR, _RARE_SHARE = 4.0, 0.05
# Shares of the range of a map: excess by rounding, and noise of decoded background.
_ROUNDING, _BACKGROUND_NOISE = 1e-3, 0.01
_UNSCALED = IntensityRange(np.zeros(1, "float32"), np.ones(1, "float32"))


@dataclass(frozen=True)
class Channel:
    """A scan, scaled in each volume: 0 becomes 0, and the 99.5th percentile 1.

    Parameters
    ----------
    name : str
        BIDS suffix of its files, such as T1w, or an entity, such as desc-FA.
    suffix : str, optional
        BIDS suffix of the files of an entity.
    """

    name: str
    suffix: str | None = None

    kind: ClassVar[str] = "intensity"
    # NIfTI intent code, and the name of a loss in ``CHANNEL_LOSSES``.
    intent: ClassVar[str] = "none"
    loss: ClassVar[str | None] = None
    # Whether brightness and contrast are arbitrary, and may be augmented.
    brightens: ClassVar[bool] = True
    # Whether values can be interpolated, and the type of columns in the cache.
    continuous: ClassVar[bool] = True
    column_dtype: ClassVar[str] = "float32"
    # Captions of the results of spread and summarise, and of difference.
    deviation: ClassVar[str] = "standard deviation"
    compared: ClassVar[str] = "{} minus {}"
    # What to do about the outliers of find_odd.
    cure: ClassVar[str] = "Review these files, and remove wrong ones."
    # Conditions of its columns, the files that hold them, and the volume to display.
    conditions: ClassVar[Mapping[str, Sequence]] = MappingProxyType({})
    tables: ClassVar[Sequence[Path]] = ()
    shown: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Refuse an invalid name or suffix, such as that of a damaged file."""
        named = isinstance(self.name, str) and self.name
        if not named or not isinstance(self.suffix, str | None):
            raise InputError(f"a channel needs a name, such as T1w, not {self.name!r}")

    @property
    def width(self) -> int:
        """Number of its columns."""
        return 1

    @property
    def empty(self) -> float:
        """Value of its columns where a file has no voxels."""
        return 0.0

    @property
    def dtype(self) -> str | None:
        """Type of the voxels of its files; None if the user chooses it."""
        return None

    def learn(self, files: Sequence[Path]) -> Self:
        """Return the channel fitted to all of its files."""
        return replace(self, suffix=suffix(files[0]))

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read the voxels of a file, ``(x, y, z, 1)``, and their affine."""
        return read_volume(file)

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Conform voxels to columns from 0 to 1 on a grid; return their origin, too."""
        return conform_voxels(file, data, affine, grid)

    def read(self, file: Path, grid: Grid) -> tuple[np.ndarray, Origin]:
        """Read a file as columns ``(*grid.shape, width)``; return their origin, too."""
        with naming_files(file):
            return self.conform(file, *self.load(file), grid)

    def bring_back(self, images: np.ndarray, origin: Origin) -> np.ndarray:
        """Return columns as values in the space of their file, ``(x, y, z, 1)``."""
        values = unscale_intensities(images, origin.intensities)
        return origin.restore(values, origin.data)

    def spread(self, repeated: np.ndarray, origin: Origin) -> np.ndarray:
        """Return the standard deviation of repetitions, in the space of their file."""
        low, high = origin.intensities
        return origin.restore(np.std(repeated, 0, ddof=1) * (high - low), 0.0)

    def difference(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return values before minus those after."""
        return before - after

    def summarise(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean of samples of values, and their standard deviation."""
        return samples.mean(0), samples.std(0, ddof=1, dtype=float)

    def harden(self, images: np.ndarray) -> np.ndarray:
        """Return the nearest columns that a file can hold, of the same shape."""
        return images

    def to_values(self, images: np.ndarray) -> np.ndarray:
        """Return the values of columns, ``(..., width)`` to ``(...)``."""
        return images[..., 0]

    def picture(self, images: np.ndarray) -> np.ndarray:
        """Return columns as colours, ``(..., width)`` to ``(..., 3)``."""
        return np.repeat(images, 3, -1)

    def measure(self, image: np.ndarray, millilitres: float) -> dict[str, float]:
        """Measure columns ``(*grid.shape, width)`` with the given voxel volume."""
        return {}

    def compare(
        self, image: np.ndarray, reconstruction: np.ndarray
    ) -> dict[str, float]:
        """Compare an image with its reconstruction; NaN for what neither has."""
        return {}

    def find_odd(
        self, measured: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> list[str]:
        """Describe outliers among the measurements ``(n,)`` of volumes."""
        return []

    @property
    def ending(self) -> str:
        """End of the names of its files: suffix, or entity and suffix."""
        is_suffix = self.suffix in (None, self.name)
        return self.name if is_suffix else f"{self.name}_{self.suffix}"

    def sidecar_entries(self) -> dict:
        """Return its entries for the sidecar of a file."""
        return {"Channel": self.name, "ChannelKind": self.kind} if self.name else {}

    def name_entry(self) -> dict:
        """Return its entry for the sidecar of a file that does not hold its values."""
        return {"Channel": self.name} if self.name else {}

    def texts(self) -> dict[str, str]:
        """Return the text files to write beside each file, by extension."""
        return {}

    def to_saved(self) -> dict:
        """Return the record as JSON data."""
        return {"kind": self.kind} | plain(asdict(self))


@dataclass(frozen=True)
class Map(Channel):
    """A quantitative map, which has the same range in all volumes.

    Parameters
    ----------
    name, suffix
        As of :class:`Channel`.
    low, high : float
        Values that become 0 and 1; none may lie outside.
    unit : str
        Unit of the values.
    background : float
        Value where a file has no voxels.
    """

    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    background: float = 0.0

    kind: ClassVar[str] = "map"
    intent: ClassVar[str] = "estimate"
    brightens: ClassVar[bool] = False
    cure: ClassVar[str] = (
        "Check the unit and scale of these maps, or remove wrong ones."
    )

    def __post_init__(self) -> None:
        """Refuse an invalid range or background."""
        super().__post_init__()
        for name in ("low", "high", "background"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        low, high = self.low, self.high
        if not (_is_finite(low) and _is_finite(high) and low < high):
            raise InputError(
                f"the range of {self.name} must be two numbers, the lower first, not "
                f"{low} and {high}"
            )
        if not (_is_finite(self.background) and low <= self.background <= high):
            raise InputError(
                f"the `background` of {self.name} must lie in its range, {low} to "
                f"{high}, and not be {self.background}"
            )

    @property
    def empty(self) -> float:
        """Value of its column where a file has no voxels: that of the background."""
        return (self.background - self.low) / (self.high - self.low)

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read a map; refuse one beyond its range, and warn of one that uses none."""
        data, affine = read_voxels(file, channels=False)
        low, high = float(data.min()), float(data.max())
        margin = _ROUNDING * (self.high - self.low)
        if low < self.low - margin or high > self.high + margin:
            # With four digits, so that rounding is within the margin.
            wider = f"{min(low, self.low):.4g}:{max(high, self.high):.4g}"
            raise InputError(
                f"{file} has values from {low:g} to {high:g}, outside of the range of "
                f"{self.name}, {self.low:g} to {self.high:g}",
                "clip them, or, in a training, name "
                f"{self.name}={wider}{':UNIT' if self.unit else ''}",
            )
        self._warn_of_small_values(file, data)
        return data, affine

    def _warn_of_small_values(self, file, data):
        """Warn of a map that looks empty, and is not."""
        deviation = float(np.abs(data - self.background).max())
        if 0 < deviation <= self._noise:
            text = (
                "%s has values within %.2g of the background (%g), almost nothing of "
                "the range of %s, %g to %g (another unit?); scale them, or train with "
                "another range."
            )
            place = self.background, self.name, self.low, self.high
            logger.warning(text, file, deviation, *place)

    @property
    def _noise(self):
        """Largest deviation from the background that may be noise of a decoder."""
        return _BACKGROUND_NOISE * (self.high - self.low)

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Scale a map by its range."""
        width = self.high - self.low
        image = conform((data - self.background) / width, affine, grid)
        limits = IntensityRange(*np.array([[self.low], [self.high]], "float32"))
        image = np.clip(image + self.empty, 0, 1)
        refuse_off_grid(file, image, data, affine, grid)
        return image, Origin(Path(file), data, affine, grid, limits)

    def bring_back(self, images: np.ndarray, origin: Origin) -> np.ndarray:
        """Return columns as values in the space of their file, within the range."""
        return super().bring_back(images, origin).clip(self.low, self.high)

    def to_values(self, images: np.ndarray) -> np.ndarray:
        """Return values in the unit of the map, within its range."""
        values = self.low + images[..., 0] * (self.high - self.low)
        return values.clip(self.low, self.high).astype("float32")

    def measure(self, image: np.ndarray, millilitres: float) -> dict[str, float]:
        """Measure the mean outside the background."""
        values = self.to_values(image)
        inside = values[np.abs(values - self.background) > self._noise]
        mean = float(inside.mean(dtype=float)) if inside.size else self.background
        return {f"mean, {self.unit}" if self.unit else "mean": mean}

    def find_odd(
        self, measured: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> list[str]:
        """Describe volumes of another scale than most, or most if they seem empty."""
        means = next(iter(measured.values()))
        sizes = np.abs(means - self.background)
        most = float(np.median(sizes))
        if most == 0:
            n = np.count_nonzero(sizes == 0)
            text = f"{n} of {len(names)} volumes use almost nothing of the range"
            return [f"{text} {self.low:g} to {self.high:g}"]
        if self.low < self.background < self.high:
            return []  # means of both signs have no scale
        return [
            f"{name} has a mean of {mean:.4g}, the median is {np.median(means):.4g}"
            for name, mean, size in zip(names, means, sizes)
            if size > _SCALE_FACTOR * most or size * _SCALE_FACTOR < most
        ]

    def sidecar_entries(self) -> dict:
        """Return the range and the unit, too."""
        unit = {"Units": self.unit} if self.unit else {}
        return super().sidecar_entries() | {"Range": [self.low, self.high]} | unit


@dataclass(frozen=True)
class Labels(Channel):
    """A segmentation: one column for each label except 0, which is the rest.

    On another grid, each voxel gets the label that covers the largest part of it.

    Parameters
    ----------
    name, suffix
        As of :class:`Channel`.
    labels : sequence of int
        The labels, without 0.
    table : dict of str to dict
        Names, colours and so on of labels, as in a BIDS ``dseg.tsv``.
    """

    labels: Sequence[int] = ()
    table: dict[str, dict[str, str]] = field(default_factory=dict)

    kind: ClassVar[str] = "labels"
    intent: ClassVar[str] = "label"
    loss: ClassVar[str | None] = "dice"
    brightens: ClassVar[bool] = False
    continuous: ClassVar[bool] = False
    deviation: ClassVar[str] = "share with another label than most"
    compared: ClassVar[str] = "1 where the labels of {} and {} differ"
    cure: ClassVar[str] = (
        "Merge rare labels, which are hardly learnt, or remove wrong files."
    )

    def __post_init__(self) -> None:
        """Refuse labels that are not whole numbers, and an invalid table."""
        super().__post_init__()
        labels = tuple(plain(list(self.labels)))
        # Voxels are read as float32.
        if not all(type(x) is int and 0 < abs(x) < 2**24 for x in labels):
            raise InputError(
                f"the labels of {self.name} must be integers except 0, not {labels}"
            )
        rows = self.table.values() if isinstance(self.table, dict) else [None]
        if not all(isinstance(row, dict) for row in rows):
            raise InputError(f"the table of {self.name} must have rows for its labels")
        object.__setattr__(self, "labels", labels)

    @property
    def width(self) -> int:
        """Number of labels except 0."""
        return len(self.labels)

    @property
    def dtype(self) -> str:
        """The smaller of two types that hold all labels."""
        return "int16" if max(map(abs, self.labels)) < 2**15 else "int32"

    def learn(self, files: Sequence[Path]) -> Self:
        """Read all files for their labels, and the table that names them."""
        labels_of, complaints = {}, {}
        for file in files if not self.labels else ():
            try:
                values = np.unique(self._read(file)[0]).astype(int)
                labels_of[file] = {*values.tolist()} - {0}
            except InputError as error:
                complaints[file] = error
        if not labels_of:
            refuse_files(complaints, 0, skip_bad=False)
        # If some are good, bad ones are refused later, with those of other channels.
        labels = set(self.labels).union(*labels_of.values())
        if not 0 < len(labels) <= MAX_LABELS:
            fullest = sorted(labels_of, key=lambda file: -len(labels_of[file]))
            most = listed([f"{len(labels_of[file])} in {file}" for file in fullest], 3)
            raise InputError(
                f"{self.name} has {len(labels)} labels beside "
                f"0{most and f' ({most})'}, and must have 1 to {MAX_LABELS}",
                "merge some, or give other files",
            )
        table = self.table or _read_label_tables(files, labels)
        return replace(super().learn(files), labels=tuple(sorted(labels)), table=table)

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read a segmentation, and refuse one with other labels."""
        data, affine = self._read(file)
        refuse_unknown_labels(file, data, [0, *self.labels])
        return data, affine

    def _read(self, file):
        return read_labels(file, f"name {self.name}=intensity in a training")

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Give each voxel of the grid the label that covers the largest part of it."""
        present = set(np.unique(data).tolist())
        shares = (
            (i, conform((data == label).astype("float32"), affine, grid)[..., 0])
            for i, label in enumerate(self.labels, 1)
            if label in present
        )
        numbers = _largest_share(shares, grid.shape)
        refuse_off_grid(file, numbers, data, affine, grid)
        return self._one_hot(numbers), Origin(Path(file), data, affine, grid, _UNSCALED)

    def bring_back(self, images: np.ndarray, origin: Origin) -> np.ndarray:
        """Give each voxel of a file the label that covers the largest part of it."""
        # Outside the grid, labels stay as they were.
        outside = ((origin.data == label).astype("float32") for label in self.labels)
        shares = (
            (i + 1, origin.restore(images[..., [i]], outside_share)[..., 0])
            for i, outside_share in enumerate(outside)
        )
        return self._labels_of(_largest_share(shares, origin.data.shape[:3]))[..., None]

    def spread(self, repeated: np.ndarray, origin: Origin) -> np.ndarray:
        """Return the share of repetitions with another label than most."""
        mean = np.mean(repeated, 0)
        other = np.minimum(mean.sum(-1), 1 - mean.max(-1))[..., None]
        return origin.restore(other, 0.0)

    def difference(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return where labels differ."""
        return before != after

    def summarise(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the most frequent label, and the share of samples with another."""
        values = self._labels_of(np.arange(self.width + 1))
        shares = np.stack([(samples == value).mean(0) for value in values])
        return values[shares.argmax(0)], 1 - shares.max(0)

    def harden(self, images: np.ndarray) -> np.ndarray:
        """Give each voxel one label, or none."""
        return self._one_hot(self._indices(images))

    def _one_hot(self, numbers):
        columns = np.arange(1, self.width + 1)
        return (numbers[..., None] == columns).astype("float32")

    def to_values(self, images: np.ndarray) -> np.ndarray:
        """Return the label of each voxel."""
        return self._labels_of(self._indices(images))

    def _labels_of(self, numbers):
        return np.array([0, *self.labels], "int32")[numbers]

    def _indices(self, images):
        """Return the column with the largest share, from 1 on; 0 for none."""
        rest = 1 - images.sum(-1, keepdims=True)
        return np.concatenate([rest, images], -1).argmax(-1)

    def picture(self, images: np.ndarray) -> np.ndarray:
        """Return labels in the colours of their table, or in default ones."""
        colours = [(0.0, 0.0, 0.0), *map(self._colour, range(self.width))]
        return np.array(colours, "float32")[self._indices(images)]

    def _colour(self, number):
        text = self.table.get(str(self.labels[number]), {}).get("color", "")
        with suppress(ValueError):
            return tuple(int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
        # The golden ratio spreads the hues of any number of labels.
        return colorsys.hsv_to_rgb(0.618 * number % 1, 0.7, 0.95)

    def measure(self, image: np.ndarray, millilitres: float) -> dict[str, float]:
        """Measure the volume of each label."""
        counts = self._count(self._indices(image)) * millilitres
        return {f"{name}, ml": n for name, n in zip(self._titles(), counts.tolist())}

    def compare(
        self, image: np.ndarray, reconstruction: np.ndarray
    ) -> dict[str, float]:
        """Measure the Dice coefficient of each label."""
        labels, reconstructed_labels = (
            self._indices(image),
            self._indices(reconstruction),
        )
        both = self._count(labels[labels == reconstructed_labels])
        total = self._count(labels) + self._count(reconstructed_labels)
        dice = np.where(total, 2 * both / np.maximum(total, 1), np.nan)
        return {f"{name}, Dice": n for name, n in zip(self._titles(), dice.tolist())}

    def find_odd(
        self, measured: Mapping[str, np.ndarray], names: Sequence[str]
    ) -> list[str]:
        """Describe labels that few volumes have."""
        counts = {title: int(np.sum(sizes > 0)) for title, sizes in measured.items()}
        few = max(1, _RARE_SHARE * len(names))
        return [
            f"{title.removesuffix(', ml')} is in {n} of {len(names)} volumes"
            for title, n in counts.items()
            if n <= few
        ]

    def _count(self, numbers):
        """Count the voxels of each label."""
        return np.bincount(numbers.ravel(), minlength=self.width + 1)[1:]

    def _titles(self):
        """Return labels with their names."""
        names = (self.table.get(str(x), {}).get("name") for x in self.labels)
        return [f"{x} ({n})" if n else str(x) for x, n in zip(self.labels, names)]

    def sidecar_entries(self) -> dict:
        """Return the labels, too."""
        return super().sidecar_entries() | {"Labels": list(self.labels)}

    def texts(self) -> dict[str, str]:
        """Return the table of the labels, as BIDS has it."""
        columns = list(dict.fromkeys(chain(*self.table.values())))
        rows = [{"index": str(x)} | self.table.get(str(x), {}) for x in self.labels]
        names = ["index", *columns]
        lines = [names, *([row.get(n, "n/a") for n in names] for row in rows)]
        text = "".join("\t".join(line) + "\n" for line in lines)
        return {".tsv": text} if columns else {}


@dataclass(frozen=True)
class Unnamed(Channel):
    """Channels without names, along the fourth axis of one file; not in ``KINDS``."""

    name: str = ""
    n: int = 1
    # Whether 0 stays 0 even if values are negative, as in b = 0 volumes.
    from_zero: bool = False

    def __post_init__(self) -> None:
        """Accept the empty name."""

    @property
    def width(self) -> int:
        """Number of channels."""
        return self.n

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read the voxels of a file, ``(x, y, z, n)``, and their affine."""
        return read_volume(file, self.n > 1)

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Scale each channel by itself."""
        return conform_voxels(file, data, affine, grid, from_zero=self.from_zero)

    def to_values(self, images: np.ndarray) -> np.ndarray:
        """Return columns as they are."""
        return images


@dataclass(frozen=True)
class LabelNumbers(Unnamed):
    """A segmentation as one column of label numbers, which are not interpolated.

    Without ``labels``, all are accepted.
    """

    labels: Sequence[int] = ()

    kind: ClassVar[str] = "label numbers"
    column_dtype: ClassVar[str] = "int32"

    def load(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Read a segmentation, ``(x, y, z, 1)``, and its affine."""
        return read_labels(file, "leave `source_labels` out in a training", self.n > 1)

    def conform(
        self, file: Path, data: np.ndarray, affine: np.ndarray, grid: Grid
    ) -> tuple[np.ndarray, Origin]:
        """Give each voxel of the grid the nearest label."""
        image = conform(data, affine, grid, nearest=True)
        refuse_off_grid(file, image, data, affine, grid)
        if self.labels:
            refuse_unknown_labels(file, image, list(self.labels))
        origin = Origin(Path(file), data, affine, grid, _UNSCALED)
        return image.astype(self.column_dtype), origin


def _is_finite(number):
    return isinstance(number, int | float) and math.isfinite(number)


def _largest_share(shares, shape):
    """Return for each voxel the number with the largest share; 0 is the rest."""
    numbers = np.zeros(shape, "uint8")
    largest, total = np.zeros((2, *shape), "float32")
    # One by one: together they take gigabytes.
    for i, share in shares:
        numbers[share > largest] = i
        largest, total = np.maximum(largest, share), total + share
    numbers[1 - total >= largest] = 0
    return numbers


def _read_label_tables(files, labels):
    """Read the tables of labels beside files, or in folders above them (BIDS)."""
    in_folder = cache(lambda folder, end: sorted(folder.glob(f"*_{end}")))
    paths = dict.fromkeys(_find_label_table(file, in_folder) for file in files)
    table: dict = {str(label): {} for label in labels}
    tables: dict = {}
    for row in (row for path in paths if path for row in read_table(path)):
        cells = {key: text for key, text in row.cells.items() if text != "n/a"}
        if (index := cells.pop("index", None)) not in table:
            continue
        own, name = table[index], cells.get("name")
        first = tables.setdefault(index, row.table)
        if name and own.get("name", name).lower() != name.lower():
            raise InputError(
                f"the label {index} is {own['name']} in {first}, and {name} in "
                f"{row.table}",
                "use one label for each name, and correct the tables",
            )
        table[index] = cells | own
    return {index: own for index, own in table.items() if own}


def _find_label_table(file, in_folder):
    """Return the path of the table of labels of a file; None without one."""
    end = f"{suffix(file) or 'dseg'}.tsv"
    beside = file.with_name(f"{stem(file)}.tsv")
    entities = set(stem(file).split("_"))
    above = [
        path
        for folder in file.absolute().parents[:4]
        for path in [*in_folder(folder, end), folder / end]
        if entities.issuperset(path.name.split("_")[:-1])
    ]
    return next(filter(Path.is_file, [beside, *above]), None)


KINDS: dict[str, type[Channel]] = {kind.kind: kind for kind in (Channel, Map, Labels)}
# Kinds of common names, in lower case; diffusivities to a little above free water's.
_DIFFUSIVITY: dict[str, Any] = {"high": 0.004, "unit": "mm^2/s"}
_KINDS_BY_NAME: dict[str, tuple[type[Channel], dict[str, Any]]] = {
    "dseg": (Labels, {}),
    "mask": (Labels, {}),
    "probseg": (Map, {}),
    "fa": (Map, {}),
    **dict.fromkeys(("md", "ad", "rd"), (Map, _DIFFUSIVITY)),
}


def as_channels(
    names: Iterable[str | Channel], files: Sequence[Path] = ()
) -> tuple[Channel, ...]:
    """Return the records of channels that are given by name.

    Parameters
    ----------
    names : str, or sequence of str or Channel
        BIDS suffixes, such as T1w and dseg, or entities, such as desc-FA. A kind that
        the name does not imply follows it: ``aparc=labels``, ``mask=intensity``,
        ``CBF=0:200`` for the range of a map, ``CBF=0:200:mL/100g/min`` for its unit,
        too.
    files : sequence of Path
        Files whose suffix gives an entity its kind: desc-aseg of
        ``sub-01_desc-aseg_dseg.nii.gz`` is of labels.

    Returns
    -------
    tuple of Channel
        Their records.

    Raises
    ------
    InputError
        If a name is repeated, or its kind or range is invalid.
    """
    names = [names] if isinstance(names, str) else names
    channels = [n if isinstance(n, Channel) else _parse(n, files) for n in names]
    every = [channel.name for channel in channels]
    if twice := sorted({name for name in every if every.count(name) > 1}):
        raise InputError(f"the channel {twice[0]} is repeated", "name it once")
    return tuple(channels)


def _parse(text, files):
    name, equals, choice = text.partition("=")
    kind, options = _KINDS_BY_NAME.get(name.rpartition("-")[2].lower(), (Channel, {}))
    if not equals:
        if files and "-" in name:
            end = suffix(choose_named(files, name)[0]) or ""
            kind, options = _KINDS_BY_NAME.get(end.lower(), (kind, options))
        return kind(name, **options)
    low, colon, rest = choice.partition(":")
    if not colon:
        requested_kind = choose("kind of channel", choice, KINDS)
        return requested_kind(name, **(options if requested_kind is kind else {}))
    high, _, unit = rest.partition(":")
    try:
        low, high = float(low), float(high)
    except ValueError as error:
        raise InputError(
            f"the range of a map must be two numbers, as in {name}=0:1, not {choice!r}"
        ) from error
    # A range of another scale is in another unit.
    usual = options.get("high", high)
    if not unit and usual / 10 <= high <= 10 * usual:
        unit = options.get("unit", "")
    background = min(max(low, 0.0), high)
    return Map(name, low=low, high=high, unit=unit, background=background)


def choose_channels(
    names: Sequence[str] | bool | None, channels: Sequence[Channel]
) -> tuple[Channel, ...]:
    """Choose channels of a model by name; without names, all."""
    if names is None or isinstance(names, bool):
        return tuple(channels)
    every = {channel.name: channel for channel in channels}
    if "" in every:
        raise InputError("this model's channels have no names", "leave out `channels`")
    names = [names] if isinstance(names, str) else names
    return tuple(choose("channel", name, every) for name in names)


def chosen_columns(
    names: Sequence[str] | None, channels: Sequence[Channel]
) -> np.ndarray:
    """Return a mask of the columns of chosen channels, ``(columns,)``."""
    selected = choose_channels(names, channels)
    return _by_column(channels, lambda c: c in selected)


def continuous_columns(channels: Sequence[Channel], n_columns: int) -> np.ndarray:
    """Return a mask of the columns that are not of labels, ``(columns,)``."""
    return _by_column(channels or (Unnamed(n=n_columns),), lambda c: c.continuous)


def empty_columns(channels: Sequence[Channel], n_columns: int) -> np.ndarray:
    """Return the values of columns where files have no voxels, ``(columns,)``."""
    values = _by_column(channels or (Unnamed(n=n_columns),), lambda c: c.empty)
    return values.astype("float32")


def _by_column(channels, value_of):
    """Return a value of each channel for each of its columns, ``(columns,)``."""
    return np.concatenate([np.full(c.width, value_of(c)) for c in channels])


def channel_slices(channels: Sequence[Channel]) -> Iterator[tuple[Channel, slice]]:
    """Yield each channel with the slice of its columns."""
    start = 0
    for channel in channels:
        yield channel, slice(start, start + channel.width)
        start += channel.width


def scan_column(channels: Sequence[Channel]) -> int | None:
    """Return the column of the first scan, or else map; None if all are labels."""
    columns = [
        (not channel.brightens, columns_of_channel.start)
        for channel, columns_of_channel in channel_slices(channels)
        if channel.continuous
    ]
    return min(columns)[1] if columns else None if channels else 0


def check_columns(channels: Sequence[Channel], n_columns: int) -> None:
    """Refuse channels that have another number of columns."""
    n = sum(channel.width for channel in channels)
    if channels and n != n_columns:
        raise InputError(
            f"the channels {listed(c.name for c in channels)} take {n} columns, but "
            f"the images have {n_columns}",
            "give what load_volumes returned",
        )


def check_same(channels: Sequence[Channel], expected: Sequence[Channel]) -> None:
    """Refuse images of other channels than an autoencoder's; unnamed ones are scans."""
    text, expected_text = _describe(channels), _describe(expected)
    both_named = channels and expected
    scans = not both_named and all(c.brightens for c in (*channels, *expected))
    if text != expected_text and not scans:
        raise InputError(
            f"the images have other channels, labels or ranges ({text}) than the "
            f"autoencoder ({expected_text})",
            "give its channels, fine-tune it, or use another",
        )


def check_same_sources(
    channels: Sequence[Channel], expected: Sequence[Channel], whose: str
) -> None:
    """Refuse sources of other named channels, or in another order."""
    text, expected_text = _describe(channels), _describe(expected)
    if channels and expected and text != expected_text:
        raise InputError(
            f"the sources have other channels, labels or ranges ({text}) than those "
            f"of {whose} ({expected_text})",
            "give the same, in the same order",
        )


def _describe(channels):
    """Describe channels by names, kinds, labels, ranges and units."""
    entries = (channel.sidecar_entries().values() for channel in channels)
    return (
        "; ".join(", ".join(map(str, values)) for values in entries) or "without names"
    )


def require_intensity_channels(channels: Sequence[Channel]) -> None:
    """Refuse labels and maps, in which lesions can't be detected."""
    if refused := [f"{c.name} ({c.kind})" for c in channels if not c.brightens]:
        raise InputError(
            f"an anomaly detector is for scans, not for the channel {refused[0]}",
            "leave it out, or train a model of scans only",
        )


def harden(images: np.ndarray, channels: Sequence[Channel]) -> np.ndarray:
    """Return the nearest ``(..., columns)`` that files of their channels can hold."""
    if not channels:
        return images
    parts = [c.harden(images[..., columns]) for c, columns in channel_slices(channels)]
    return np.concatenate(parts, -1)


def split_channels(
    images: np.ndarray, channels: Sequence[Channel]
) -> dict[str, np.ndarray]:
    """Split images into their channels, with values as in files.

    Parameters
    ----------
    images : ndarray
        Images as network input, ``(..., columns)``.
    channels : sequence of Channel
        Their channels, such as ``model.channels_``.

    Returns
    -------
    dict of str to ndarray
        Values ``(...)`` by channel: intensities from 0 to 1, maps in their units,
        labels as whole numbers.

    Raises
    ------
    InputError
        If the images have another number of columns.
    """
    check_columns(channels, np.shape(images)[-1])
    return {
        c.name: c.to_values(images[..., columns])
        for c, columns in channel_slices(channels)
    }


def to_saved(channels: Sequence[Channel]) -> list | None:
    """Return records as JSON data; None without any."""
    return [channel.to_saved() for channel in channels] or None


def from_saved(saved: list[dict] | None) -> tuple[Channel, ...]:
    """Build records from the data of :func:`to_saved`."""
    try:
        records = [{**entries} for entries in saved or ()]
        kinds = [choose("kind of channel", own.pop("kind"), KINDS) for own in records]
        return tuple(kind(**own) for kind, own in zip(kinds, records))
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError("its channels are unknown to this version") from error
