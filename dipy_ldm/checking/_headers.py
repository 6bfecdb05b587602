"""Checks of headers against each other, and of whether every file can be read."""

from collections import Counter
from collections.abc import Callable, Sequence
import logging
from pathlib import Path

import nibabel as nib
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes
from nibabel.spatialimages import HeaderDataError
import numpy as np

from dipy_ldm._utils.checks import InputError, capitalized
from dipy_ldm._utils.progress import log_filter, tqdm
from dipy_ldm._utils.values import counted, listed
from dipy_ldm.checking._findings import Finding, amber, green, red
from dipy_ldm.data import _pairing as pairing
from dipy_ldm.data._bvals_bvecs import Gradients, describe
from dipy_ldm.data._grid import bounding_box
from dipy_ldm.data._nifti import VolumeInfo
from dipy_ldm.data.volumes import Volumes, conform_volumes, plan_volumes

# Fewer volumes have no majority.
_MIN_VOLUMES = 3
# Ratio of sizes that indicates another unit.
_UNIT_RATIO = 4.0
# Plausible longest sides of volumes, in mm.
_SIDES_OF_PEOPLE = 60.0, 2500.0
_SIDES_OF_ANIMALS = 2.0, 10_000.0
# Voxel widths relative to the median, and to the narrowest side of the voxel.
_COARSE_RATIO, _THICK_RATIO = 1.75, 3.0
# Values in other units relative to those in millimetres.
_UNITS = {1e-3: "metres", 1e-2: "decimetres", 1e-1: "centimetres", 1e3: "micrometres"}
# What is good about masks and sources, and what to do about bad ones.
_PARTNERS = {
    "masks": (
        "masks, on the grids of their volumes",
        "Fix these masks, or resample them to their volumes.",
    ),
    "sources": ("source images with good headers", "Fix these source images."),
}
# Share of series up to which a b-value is rare.
_RARE_SHARE = 0.25


def check_files(
    complaints: Sequence[InputError],
    n: int,
    skip_bad: bool | None = False,
    partly: Sequence[Path] = (),
) -> Finding:
    """Report files that cannot be used; `skip_bad` is None where it is no cure.

    ``partly`` has the file of each bad volume of series with good ones.
    """
    if not complaints:
        return green("files", f"All {counted(n, 'file')} can be read completely.")
    n_series = len(set(partly))
    # Of series without a good volume, each volume has a complaint.
    whole = min(len(complaints) - n_series, n)
    bad = [f"{whole} of {counted(n, 'file')}"] if whole else []
    if partly:
        files = counted(n_series, "other file" if whole else "file")
        bad.append(f"{counted(len(partly), 'volume')} of {files}")
    message = f"{' and '.join(bad)} cannot be used"
    cure = "Fix these files as listed in the table"
    # Of a series, several volumes may be bad.
    problems = InputError(complaints=complaints).complaints
    rows = [(f"{e.problem}.", capitalized(e.cure and f"{e.cure}.")) for e in problems]
    table = [("what is wrong", "what to do"), *rows]
    if skip_bad:
        message += ": left out because of --skip_bad."
        return amber("files", message, f"{cure}, if you need them.", table=table)
    cure += "." if skip_bad is None else ", or train without them (--skip_bad)."
    return red("files", f"{message}.", cure, table=table)


def check_units(infos: Sequence[VolumeInfo]) -> tuple[Finding, list[int]]:
    """Find volumes whose affine is not in millimetres."""
    sizes = np.array([voxel_sizes(info.affine) for info in infos])
    extents = (sizes * [info.shape for info in infos]).max(axis=1)
    # Relative to an actual volume, even if half of them have another unit.
    ratios = [
        np.log(lengths / np.percentile(lengths, 50, method="lower"))
        for lengths in (extents, np.median(sizes, axis=1))
    ]
    larger, smaller = np.minimum(*ratios), np.maximum(*ratios)
    limit = np.log(_UNIT_RATIO)
    bad = np.flatnonzero((larger > limit) | (smaller < -limit)).tolist()
    bad = bad if len(infos) >= _MIN_VOLUMES else []
    typical = float(np.median(np.delete(extents, bad)))
    if not bad:
        return _check_plausible_size(typical), []
    rows = [(str(infos[i].file), extents[i], extents[i] / typical) for i in bad]
    sentences = listed([_sized(*row) for row in rows], 3)
    finding = red(
        "units",
        f"{counted(len(bad), 'volume')} with a different size from most: {sentences}.",
        "Fix the affine of these files (in millimetres), or convert them again.",
        table=[("file", "longest side (mm)", "times the others"), *rows],
    )
    return finding, bad


def _sized(file, extent, ratio):
    """Describe the size of a volume, and the unit that would explain it."""
    near = min(_UNITS, key=lambda factor: abs(np.log(ratio / factor)))
    why = f", as if in {_UNITS[near]}" if 0.4 < ratio / near < 2.5 else ""
    return f"{Path(file).name} has a longest side of {extent:.3g} mm{why}"


def _check_plausible_size(extent):
    """Check whether a size that all volumes have is plausible."""
    message = f"The volumes have a longest side of {extent:.3g} mm (median)"
    cure = (
        "Make sure that the affines are in millimetres, whatever unit the headers "
        "state, and that the voxel sizes are correct."
    )
    if not _SIDES_OF_ANIMALS[0] < extent < _SIDES_OF_ANIMALS[1]:
        return red("units", f"{message}.", cure)
    if not _SIDES_OF_PEOPLE[0] < extent < _SIDES_OF_PEOPLE[1]:
        return amber("units", f"{message}, implausible for a person.", cure)
    return green("units", f"{message}, without differences in unit.")


def check_places(infos: Sequence[VolumeInfo]) -> tuple[Finding, list[int]]:
    """Find volumes that lie far from the others."""
    boxes = np.array([bounding_box(info.shape, info.affine) for info in infos])
    centres, sides = boxes.mean(axis=1), boxes[:, 1] - boxes[:, 0]
    # The centre of an actual volume, even if there are two groups.
    away = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    typical = centres[away.argmin()]
    # Boxes that do not contain the common centre.
    apart = (np.abs(centres - typical) > sides / 2).any(axis=1)
    bad = np.flatnonzero(apart).tolist() if len(infos) >= _MIN_VOLUMES else []
    middle = " x ".join(f"{mm:.0f}" for mm in np.median(sides, axis=0))
    if not bad:
        return green("places", f"The volumes overlap; most are {middle} mm."), []
    far = np.linalg.norm(centres - typical, axis=1)
    rows = [(str(infos[i].file), far[i]) for i in bad]
    names = _names(infos[i] for i in bad)
    finding = red(
        "places",
        f"{counted(len(bad), 'volume')} in a different place from most: {names}.",
        "Align them with the others, or fix the last column of their affines.",
        table=[("file", "from the others (mm)"), *rows],
    )
    return finding, bad


def _names(infos):
    return listed([info.file.name for info in infos], 5)


def check_sizes(infos: Sequence[VolumeInfo]) -> Finding:
    """Compare voxel sizes and shapes."""
    sizes = np.array([voxel_sizes(info.affine) for info in infos])
    shapes = np.array([info.shape for info in infos])
    widest = sizes.max(axis=1)
    coarse = widest > _COARSE_RATIO * np.median(widest)
    thick = widest / sizes.min(axis=1) > _THICK_RATIO
    bad = np.flatnonzero(coarse | thick).tolist()
    message = (
        f"Voxels are {_range(sizes)} mm wide (median {np.median(sizes):.3g}), volumes "
        f"{_range(shapes)} voxels a side."
    )
    if not bad:
        return green("sizes", message)
    rows = [(str(infos[i].file), *map(float, sizes[i])) for i in bad]
    return amber(
        "sizes",
        f"{message} {counted(len(bad), 'file')} with much larger voxels than most, or "
        f"thick slices: {_names(infos[i] for i in bad)}.",
        "The model learns their blur: remove them, or use a larger --voxel_size.",
        table=[("file", "x (mm)", "y (mm)", "z (mm)"), *rows],
    )


def _range(values):
    low, high = f"{values.min():.3g}", f"{values.max():.3g}"
    return low if low == high else f"{low} to {high}"


def check_axes(infos: Sequence[VolumeInfo]) -> Finding:
    """Check the orientations of headers, and whether sform and qform agree."""
    title = "orientation in the headers"
    axes = ["".join(aff2axcodes(info.affine)) for info in infos]
    counts = Counter(axes).most_common()
    sentences = [f"Axes of the files: {', '.join(f'{a} ({n})' for a, n in counts)}."]
    unsure = [info.file.name for info in infos if not info.oriented]
    double = [
        f"{info.file.name} ({axes_of_file}, {other})"
        for info, axes_of_file in zip(tqdm(infos, "headers"), axes)
        if (other := _conflicting_qform_axes(info.file, axes_of_file))
    ]
    odd = {
        "with neither sform nor qform (left and right are assumed)": unsure,
        "whose qform is invalid or has other axes than the sform (used here)": double,
    }
    sentences += [
        f"{counted(len(files), 'file')} {problem}: {listed(files, 5)}."
        for problem, files in odd.items()
        if files
    ]
    if len(sentences) == 1:
        return green(title, sentences[0])
    cure = "Convert these files again from DICOM, or find out which side is left."
    return amber(title, " ".join(sentences), cure)


def _conflicting_qform_axes(file, axes):
    """Return the axes of the qform if they differ from those of the sform."""
    header = nib.load(file).header
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return ""
    try:
        qform_axes = "".join(aff2axcodes(header.get_qform()))
    except (ValueError, HeaderDataError):  # rounded quaternions are common
        return "invalid"
    return "" if qform_axes == axes else qform_axes


class _NothingLeftError(InputError):
    """No file is left to plan."""


class _Review:
    """Collects what headers show, and drops files that would distort the grid."""

    def __init__(self, skip_bad: bool) -> None:
        self.skip_bad = skip_bad
        self.findings: list[Finding] = []
        self.complaints: list[InputError] = []
        self.n_files = 0

    def __call__(
        self, kind: str, files: Sequence[Path], read: Callable[[], pairing.Headers]
    ) -> list[pairing.Task]:
        """Read headers, and report bad files."""
        headers = _read_and_fit(kind, read)
        tasks = headers.tasks
        if kind != "volumes":
            self.findings.append(self._check_partners(kind, headers))
        else:
            errors = headers.complaints.values()
            self.complaints += InputError(complaints=errors).complaints
            n_read = len(headers.infos) + len(headers.complaints)
            self.n_files = n_read if tasks else len(files)
            findings, tasks = _check_headers(headers) if tasks else ([], [])
            self.findings += findings
        if not tasks:
            raise _NothingLeftError
        return tasks

    def _check_partners(self, kind, headers):
        """Report bad masks or sources."""
        good, cure = _PARTNERS[kind]
        if not headers.complaints:
            return green(kind, f"{len(headers.tasks)} {good}.")
        find = amber if self.skip_bad and headers.tasks else red
        return find(kind, "\n".join(map(str, headers.complaints.values())), cure)

    def report(self, skip_bad: bool | None, partly: Sequence[Path] = ()):
        """Return all findings, that on bad files first."""
        files = check_files(self.complaints, self.n_files, skip_bad, partly)
        return [files, *self.findings]


def _read_and_fit(kind, read):
    """Read headers, and fit channels; an error of all files is a complaint."""
    headers = pairing.Headers([], [], {})
    try:
        headers = read()
        if kind != "masks":
            headers = headers._replace(tasks=pairing.fit_channels(headers.tasks))
    except InputError as error:
        complaints = headers.complaints | {Path(): error}
        return pairing.Headers([], [], complaints)
    return headers


def read_volumes(
    paths: Sequence[str | Path],
    *,
    skip_bad: bool = False,
    cache_dir: str | Path | None = None,
    cache_limit: float | None = None,
    **options,
) -> tuple[list[Finding], Volumes | None]:
    """Read all volumes except those that are unusable or would distort the grid.

    They are planned as for a training, whose cache is filled.
    """
    review = _Review(skip_bad)
    try:
        plan = plan_volumes(
            paths, **options, skip_bad=True, shuffle=True, review=review
        )
    except _NothingLeftError:
        return review.report(skip_bad=None), None
    try:
        # Findings repeat its warnings.
        with log_filter("dipy_ldm", lambda record: record.levelno < logging.WARNING):
            volumes = conform_volumes(plan, cache_dir, cache_limit, verbose=True)
    except InputError as error:
        review.complaints += error.complaints or [error]
        return review.report(skip_bad=None), None
    review.complaints += volumes.complaints
    return review.report(skip_bad, _partly_used(plan, volumes)), volumes


def check_series(series: Sequence[Gradients]) -> Finding:
    """Compare the b-values and the numbers of directions of diffusion series."""
    shells: dict[float, list[int]] = {}
    for gradients in series:
        for b, n in gradients.shells.items():
            shells.setdefault(b, []).append(n)
    head = "b (s/mm^2)", "series", "fewest directions", "most directions"
    rows = [(b, len(n), min(n), max(n)) for b, n in sorted(shells.items())]
    few = [f"{b:g}" for b, n, *_ in rows if n <= _RARE_SHARE * len(series)]
    message = f"{describe(series)}."
    if not few:
        return green("series", message, table=[head, *rows])
    return amber(
        "series",
        f"{message} Few series have b-values of about {listed(few)}.",
        "Remove these volumes: so few are hardly learnt.",
        table=[head, *rows],
    )


def _check_headers(headers):
    """Compare headers of all channels; drop volumes that would distort the grid."""
    findings, infos = [], headers.infos
    for check in (check_units, check_places):
        finding, bad = check(infos)
        findings.append(finding)
        infos = [info for i, info in enumerate(infos) if i not in bad]
    findings += [check_sizes(infos), check_axes(infos)]
    good = {info.file for info in infos}
    tasks = [t for t in headers.tasks if good.issuperset(f for _, f in t.parts)]
    if tasks and tasks[0].gradients:
        findings.append(check_series([task.gradients for task in tasks]))
    return findings, tasks


def _partly_used(plan, volumes):
    """Return the file of each bad volume, where others of the file are used."""
    kept, used = {*volumes.kept}, {*volumes.files}
    bad = (info.file for i, info in enumerate(plan.infos) if i not in kept)
    return [file for file in bad if file in used]
