"""Images that a model is judged by, on its grid and with what is known of them."""

from collections.abc import Sequence
from itertools import groupby
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from nibabel.affines import voxel_sizes
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._conditions import from_saved as conditions_from
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.values import listed
from dipy_ldm.data import load_mnist
from dipy_ldm.data._checks import check_range
from dipy_ldm.data._covariates import read_covariates
from dipy_ldm.data._gradients import refuse_series
from dipy_ldm.data._grid import Grid, same_grid
from dipy_ldm.data._paths import entity, find_volumes, holds_volumes, rows_of_lists
from dipy_ldm.data._scans import require_affine
from dipy_ldm.data._sidecars import fingerprint
from dipy_ldm.data._table_rows import find_subjects
from dipy_ldm.data.channels import from_saved
from dipy_ldm.data.images import read_images
from dipy_ldm.data.volumes import Volumes, conform_volumes, plan_volumes
from dipy_ldm.workflows._conditions import read_facts, requested_conditions_of
from dipy_ldm.workflows._options import parse_filter

logger = logging.getLogger(__name__)


class EvaluationImages(NamedTuple):
    """Images in random order, with their files and conditions.

    ``images`` are ``(n, *space, channels)``, ``names`` say from where each is,
    ``files`` has the file of each or is None for packaged images, ``conditions`` the
    values of the model's conditions (None where they are not known), ``notes`` are
    sentences, ``subjects`` say whose each is (None for packaged images), and
    ``sources`` are their source images, ``(n, *space, channels)`` (None without).
    """

    images: np.ndarray
    names: list[str]
    files: list[Path] | None
    conditions: dict[str, list] | None
    notes: list[str]
    subjects: list[str] | None = None
    sources: np.ndarray | None = None

    @property
    def named(self):
        """Subjects by ``sub-`` of the names; None where there is none."""
        names = self.subjects or []
        return [name if name.startswith("sub-") else None for name in names] or None


def read_for(
    document: dict,
    paths: Sequence[str | Path] | None,
    option: str,
    *,
    split: str = "test",
    channels: bool = False,
    generated: bool = False,
    source_files: Sequence[str | Path] | None = None,
    cache_dir: str | Path | None = None,
    **choice: Any,
) -> EvaluationImages:
    """Read images for a model."""
    refuse_series(conditions_from(document["conditions"]))
    if not paths:
        raise InputError(f"give images to compare with: `{option}`.")
    paths = [str(path) for path in paths]
    of_volumes = len(document["shape"]) == 4
    if not of_volumes and any(choice.values()):
        raise InputError(f"`{next(filter(choice.get, choice))}` is for volumes.")
    if paths == ["mnist"] and not of_volumes:
        return _digits(document, split)
    rows_of_lists(paths)  # says what is not there
    if holds_volumes(paths) != of_volumes:
        kinds = "two-dimensional images", "volumes"
        raise InputError(
            f"the model is of {kinds[of_volumes]}, and `{option}` has "
            f"{kinds[not of_volumes]}; give files like its training data."
        )
    if of_volumes:
        named = from_saved(document.get("channels"))
        choice |= {"channels": named or channels, "generated": generated}
        if source_files is not None:
            labels = bool(document["source"]["labels"])
            choice |= {"source_files": source_files, "source_labels": labels}
        images = _volumes(document, paths, option, choice, cache_dir)
    else:
        images = _images(document, paths, option, generated)
    return _with_refused(images) if generated else images


def read_series(
    document: dict, paths: Sequence[str] | None, options: SimpleNamespace, choice: dict
) -> Volumes:
    """Read diffusion series on the grid of a model."""
    if not paths or options.source_files or options.measurements:
        raise InputError(
            "give measured diffusion series as `real_files`, whose b = 0 are the "
            "sources, and no `source_files` or `measurements`."
        )
    grid = Grid(tuple(document["shape"][:3]), require_affine(document["affine"]))
    plan = plan_volumes(paths, grid=grid, dwi=True, **choice)
    return conform_volumes(plan, cache_dir=options.cache_dir, verbose=True)


def reading_options(options: SimpleNamespace) -> tuple[dict, dict]:
    """Return how images are read, and how real ones are chosen."""
    how = {"channels": options.channels, "cache_dir": options.cache_dir}
    return how, {"suffix": options.suffix, "filter": parse_filter(options.filter)}


def _with_refused(images):
    """Note how many samples were refused as copies and replaced by these."""
    count = sum(read_facts(file).get("Refused", 0) for file in set(images.files))
    note = f"{count} samples were refused as copies when these were made (--no_copies)."
    return images._replace(notes=[*images.notes, note] if count else images.notes)


def _digits(document, split):
    images, labels = load_mnist(split)
    _check_shape(document, images, "mnist")
    order = np.random.default_rng(0).permutation(len(images))
    values = {"label": labels[order].tolist()}
    conditions = values if document["conditions"].keys() == values.keys() else None
    names = [f"MNIST, {split} digit {i}" for i in order]
    return EvaluationImages(images[order], names, None, conditions, [])


def _images(document, paths, option, generated):
    images, files = read_images(paths)
    _check_shape(document, images, f"`{option}`")
    check_range(images, document["intensity"], range(len(images)), f"`{option}` image")
    order = np.random.default_rng(0).permutation(len(images))
    places = [(file, i) for file, own in groupby(files) for i, _ in enumerate(own)]
    places = [places[i] for i in order]
    names = [f"{file.name}, image {number}" for file, number in places]
    conditions, notes = _conditions(document, places, {}, generated)
    files = [file for file, _ in places]
    subjects = find_subjects(files)
    return EvaluationImages(images[order], names, files, conditions, notes, subjects)


def _check_shape(document, images, option):
    shape = tuple(document["shape"])
    if images.shape[1:] != shape:
        raise InputError(
            f"the model is of images of shape {shape}, and those of {option} have "
            f"{images.shape[1:]}; give images like its training data."
        )


def _volumes(document, paths, option, choice, cache_dir):
    shape = document["shape"]
    grid = Grid(tuple(shape[:3]), require_affine(document["affine"]))
    plan = plan_volumes(paths, grid=grid, shuffle=True, **choice)
    n_channels = plan.columns
    if n_channels != shape[3]:
        raise InputError(
            f"the model is of {shape[3]} channels, and the volumes of `{option}` have "
            f"{n_channels}; give files like its training data."
        )
    other = [info for info in plan.infos if not same_grid(info, grid)]
    notes = []
    if other:
        size = " x ".join(map(str, grid.shape))
        notes.append(
            f"{len(other)} of {len(plan.infos)} volumes of --{option} were on other "
            f"grids than the model's ({size}), and were brought to it."
        )
        logger.info("%s", notes[0])
    if labels := [c.name for c in plan.channels if not c.continuous]:
        notes.append(
            f"Figures are of all channels together; each label of {listed(labels)} "
            "counts as a channel of 0 and 1."
        )
    volumes = conform_volumes(plan, cache_dir=cache_dir, verbose=True)
    files = [Path(file) for file in volumes.files]
    places = [(file, 0) for file in files]
    generated = choice["generated"]
    conditions, further = _conditions(document, places, plan.listed, generated)
    names = [file.name for file in files]
    details = conditions, notes + further, plan.subjects, volumes.sources
    return EvaluationImages(volumes.images, names, files, *details)


def _conditions(document, places, rows, generated):
    """Look up the model's conditions in the images' files or in tables."""
    names = list(document["conditions"])
    if not names:
        return None, []
    if generated and (requested := requested_conditions_of(names, places)):
        return requested, []
    files = [file for file, _ in places]
    try:
        return read_covariates(names, files, rows).values, []
    except InputError as error:
        if generated:
            return None, []
        # Which may name subjects, and pages are published.
        logger.info("%s", error)
        note = "The conditions of the real images are unknown."
        return None, [note]


def refuse_same_subjects(train: EvaluationImages, held_out: EvaluationImages) -> None:
    """Refuse an audit with a subject among training and held-out images.

    Another scan of a training subject is near to it: copies of training images would
    be no nearer than held-out images are.
    """
    both = set(train.subjects or ()) & set(held_out.subjects or ())
    if both:
        raise InputError(
            f"training and held-out images are of the same subjects "
            f"({listed(sorted(both))}), which hides copies of them; leave these out of "
            "`held_out` or, if they are other people of the same names, rename them."
        )


def refuse_unnamed(source_files: Sequence[str] | None, *groups: Sequence[str]) -> None:
    """Refuse source files that names can't assign to groups of volumes."""
    if source_files is None:
        return
    named = [*source_files, *(path for group in groups for path in group or ())]
    for file in find_volumes(named):
        if entity(file, "sub") is None:
            raise InputError(
                f"{file} has no sub- in its name, by which volumes and source images "
                "are paired; rename it."
            )


def reference_document(
    path: Path, document: dict, reference: str | Path | None
) -> dict | None:
    """Read the document of a reference model, whose losses can stand beside others."""
    if reference is None:
        return None
    file = _serialization.find(reference)
    other = _serialization.read_document(file, "latent_diffusion")
    if fingerprint(file) == fingerprint(path):
        raise InputError(
            "`reference` is the audited model itself; give one that was trained on "
            "others."
        )
    if other["source"] is not None or document["source"] is not None:
        raise InputError(
            "a model conditioned on source images can't be compared with a reference; "
            "leave `reference` out."
        )
    kinds = _kind(document), _kind(other)
    if kinds[0] != kinds[1]:
        raise InputError(
            f"the model is of {kinds[0]}, and the reference of {kinds[1]}; give as "
            "`reference` a model of images like those that it learnt from."
        )
    # Conditions are of no use to it.
    return other | {"conditions": {}}


def _kind(document):
    """Describe the images of a model, as far as those of a reference must be alike."""
    *space, channels = document["shape"]
    if len(space) == 2:
        return f"images of shape {(*space, channels)}"
    sizes = voxel_sizes(require_affine(document["affine"]))
    widths = " x ".join(f"{size:.3g}" for size in sizes)
    return f"volumes of {channels} channels and voxels of {widths} mm"
