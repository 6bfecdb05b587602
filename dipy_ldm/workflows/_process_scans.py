"""Denoise or inpaint volumes in their own space: what both commands share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._conditions import from_saved
from dipy_ldm._native_space import Scan, refuse_full_hole
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.cluster import Cluster
from dipy_ldm._utils.files import make_folder
from dipy_ldm._utils.progress import tqdm, without_repeats
from dipy_ldm.data._bvals_bvecs import makes_series, refuse_series
from dipy_ldm.data._conforming import MeasuredSeries
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import (
    VolumeInfo,
    is_whole,
    refuse_files,
    warn_of_space,
    write_edited,
)
from dipy_ldm.data._pairing import pair_sources, read_series
from dipy_ldm.data._paths import generated_sidecar
from dipy_ldm.data._preprocessing import Origin
from dipy_ldm.data._scans import (
    check_channel_files,
    find_channel_files,
    grid_for_files,
)
from dipy_ldm.data._sidecars import (
    describe,
    fingerprint,
    provenance,
    sidecar,
    sidecar_first,
    write_with_sidecar,
)
from dipy_ldm.data.channels import (
    Channel,
    Unnamed,
    choose_channels,
    from_saved as channels_from,
)
from dipy_ldm.data.volumes import refuse_beside_series
from dipy_ldm.workflows import (
    _bids_dataset as bids,
    _launch as launch,
    _outputs as outputs,
)
from dipy_ldm.workflows._conditions import (
    RequestedConditions,
    parse_conditions,
    read_facts,
)
from dipy_ldm.workflows._config import write_config
from dipy_ldm.workflows._option_table import ScanOptions
from dipy_ldm.workflows._options import parse_channels, parse_filter
from dipy_ldm.workflows._sources import SourceInputs, check_series

if TYPE_CHECKING:  # they take seconds to import
    from dipy_ldm.latent_diffusion import LatentDiffusion

logger = logging.getLogger(__name__)

# Maximum number of volumes in the picture.
_N_SHOWN = 8
_CURE = "add --resume to go on, or --force to overwrite"
_FOREIGN_CURE = (
    "name another --out_dir, or add --force to overwrite what no JSON file of dipy_ldm "
    "describes"
)
_NO_INPAINTING = (
    "from a b = 0 that it can't inpaint; inpaint b = 0, or maps such as FA, with a "
    "model of these"
)
# Entry of sidecars with the hashes of inputs.
_FINGERPRINTS = "SourceFingerprints"


class Part(NamedTuple):
    """A channel of a volume, its file, and its outputs in order."""

    channel: Channel
    file: Path
    outputs: list[Path]


class Task(NamedTuple):
    """A volume, its outputs, and the entries of their sidecars."""

    parts: Sequence[Part]
    facts: dict

    @property
    def file(self):
        """The file of its first channel."""
        return self.parts[0].file

    @property
    def outputs(self):
        """All outputs: ``.nii.gz`` files, each with a JSON file beside it."""
        return [path for part in self.parts for path in part.outputs]

    @property
    def channels(self) -> list[Channel]:
        """All channels."""
        return [part.channel for part in self.parts]

    @property
    def files(self):
        """The files of all channels."""
        return [part.file for part in self.parts]


class Job(NamedTuple):
    """Volumes that a command processes with a model, from their headers.

    ``source_of`` maps each volume to its source image, ``noise`` to the number of its
    first noise; ``infos`` are the headers of valid volumes, ``parts`` the channels of
    each by the file of the first, ``bad`` a sentence on each invalid one; ``end`` is
    the ending of all output names; the workers of ``cluster`` share the volumes.
    """

    verb: str
    options: ScanOptions
    model_path: Path
    grid: Grid
    requested: RequestedConditions
    sources: SourceInputs | None
    source_of: dict[Path, Path]
    noise: dict[Path, int]
    infos: list[VolumeInfo]
    parts: dict[Path, list[Part]]
    bad: dict[Path, InputError]
    end: Path
    cluster: Cluster | None

    def tasks(
        self, sampling: dict, masks: Mapping[Path, Path] | None = None, **details
    ) -> list[Task]:
        """Return a task for each volume, with the entries of its sidecars."""
        metadata = provenance(self.model_path, **details)
        metadata |= self.requested.facts(self.requested.numbers)
        metadata |= {name.capitalize(): value for name, value in sampling.items()}
        tasks, n_assumed = [], 0
        for file, parts in self.parts.items():
            inputs = [*chain(*([p.file, *p.channel.tables] for p in parts))]
            inputs += [] if masks is None else [masks[file]]
            inputs += self.sources.parts[self.source_of[file]] if self.sources else []
            entries = {"Noise": self.noise[file], "Sources": list(map(str, inputs))}
            if tables := parts[0].channel.conditions:
                entries["Conditions"] = metadata["Conditions"] | tables
            if self.options.bids:  # which requires it
                stripped = read_facts(file).get("SkullStripped")
                stripped = self.options.skull_stripped or stripped
                entries["SkullStripped"] = bool(stripped)
                n_assumed += stripped is None
            tasks.append(Task(parts, metadata | entries))
        if n_assumed:
            text = "%d volumes are assumed to have a skull, as no JSON file states it; "
            text += "if they have none, add --skull_stripped."
            logger.info(text, n_assumed)
        return tasks

    def arguments(self, task: Task) -> dict[str, Any]:
        """Return conditions, source image and number of the noise of a volume."""
        conditions = self.requested.subset(self.requested.numbers)
        arguments = {"conditions": conditions, "first": task.facts["Noise"]}
        if self.sources:
            arguments["source"] = self.sources.read(self.source_of[task.file])
        return arguments


def prepare(
    flow: Workflow,
    options: ScanOptions,
    verb: str,
    ends: Sequence[str],
) -> Job | None:
    """Return what this worker processes; refuse bad inputs and existing outputs.

    ``ends`` distinguish the outputs for a volume, in order. Returns None if there are
    more workers than volumes.
    """
    path = _serialization.find(options.model_file)
    document = _serialization.read_document(path, "latent_diffusion")
    conditions = parse_conditions(options.conditions, document)
    of_series = _check_series(document, options, conditions)
    grid, channels = _grid_and_channels(document, options.model_file, verb)
    names = parse_channels(options.channels)
    selected = choose_channels(names, channels)
    sets = find_channel_files(
        options.input_files,
        channels,
        options.suffix,
        parse_filter(options.filter),
        dwi=of_series,
    )
    name = f"out_{_past(verb)}"
    # Each output is named after its own volume, not after the first.
    naming = {"mix_names": False, name: getattr(options, name)}
    (end,) = outputs.output_paths(flow, sets[0][0], options.out_dir, **naming)
    output_files = _name_outputs(options, sets, end, verb, ends)
    # Results of an earlier run may lie among the volumes.
    results = {os.path.abspath(path) for path in chain(*output_files.values())}
    sets = [group for group in sets if os.path.abspath(group[0]) not in results]
    files = [group[0] for group in sets]
    sources = None if of_series else SourceInputs.of(document, options.source_files)
    source_of = pair_sources(files, sources.files) if sources else {}
    end = end.parent / "code" / end.name if options.bids else end
    parts = {
        group[0]: [
            Part(channel, file, output_files[file] if channel in selected else [])
            for channel, file in zip(channels, group, strict=True)
        ]
        for group in sets
    }
    cluster = launch.find_workers(options.strategy)
    share = launch.share_of_worker(cluster, sets)
    if not share:
        return None
    infos, bad, parts = _check_files(parts, share, channels, names is True, of_series)
    if not options.resume:
        _refuse_existing(flow, [*chain(*parts.values())], end)
    requested = RequestedConditions.of(document, conditions, range(1))
    inputs = sources, source_of, outputs.number_noise(files), infos, parts, bad
    return Job(verb, options, path, grid, requested, *inputs, end, cluster)


def _name_outputs(options, sets, end, verb, ends):
    """Return the outputs for each file, in a dataset with ``bids``."""
    files = [*chain(*sets)]
    names = outputs.name_outputs(files, end, verb, outputs.bids_name)
    if options.bids:
        root = end.parent
        bids.refuse_other_dataset(root)
        names = {f: bids.place_in_dataset(root, f, n.name) for f, n in names.items()}
        outputs.refuse_equal(names.values(), verb)
    return {f: [outputs.further_output(n, e) for e in ends] for f, n in names.items()}


def _refuse_existing(flow, parts, end=None):
    """Refuse to overwrite outputs, and the picture of a run; others' files first."""
    _read_sidecars(flow, parts)
    picture = end and end.with_name(f"{end.name}.png")
    files = outputs.list_files(_volumes(parts), picture)
    outputs.refuse_overwriting(flow, files, _CURE)


def _read_sidecars(flow, parts):
    """Return the sidecars of outputs; refuse to overwrite files without one of ours."""
    sidecars = {path: generated_sidecar(path) for path, _ in _volumes(parts)}
    volumes = [pair for pair in _volumes(parts) if not sidecars[pair[0]]]
    # Tables are written before sidecars, and these before volumes: an interrupted run
    # may have left its tables alone.
    texts = {
        sidecar(path).with_suffix(end): text
        for path, channel in volumes
        for end, text in channel.texts().items()
    }
    foreign = [
        file
        for file in outputs.list_files(volumes)
        if file.exists() and not _holds(file, texts.get(file))
    ]
    outputs.refuse_overwriting(flow, foreign, _FOREIGN_CURE)
    return {path: facts for path, facts in sidecars.items() if facts}


def _holds(file, text):
    """Return whether a file has the text that would be written; None is no text."""
    if text is None or not file.is_file():
        return False
    return file.read_text("utf-8", errors="replace") == text


def _volumes(parts):
    """List all output volumes with their channels."""
    return [(path, part.channel) for part in parts for path in part.outputs]


def _check_series(document, options, conditions):
    """Return whether a model is of series; refuse options that are not for these."""
    learnt = from_saved(document["conditions"])
    if getattr(options, "lesions", True):
        refuse_series(learnt, _NO_INPAINTING)
    if not makes_series(learnt):
        return False
    check_series(document, conditions, "the tables beside each series")
    refuse_beside_series(options.channels, options.source_files)
    return True


def _check_files(parts, sets, channels, along_axis, of_series):
    """Read headers, and tables of series; return valid headers, errors, and parts."""
    if not of_series:
        infos, bad = check_channel_files(sets, channels, along_axis, skip_bad=True)
        return infos, bad, {info.file: parts[info.file] for info in infos}
    tasks, bad = read_series([file for (file,) in sets])
    refuse_files(bad, len(tasks), skip_bad=True)
    infos = [task.info for task in tasks]
    warn_of_space(infos)
    parts_of = {}
    for info, series in zip(infos, map(MeasuredSeries.of, tasks)):
        of_file = parts[info.file]
        parts_of[info.file] = [part._replace(channel=series) for part in of_file]
    return infos, bad, parts_of


def _grid_and_channels(document, model_file, verb):
    """Return the grid and the channels of a model of volumes; refuse another model."""
    shape = document["shape"]
    if len(shape) != 4:
        raise InputError(
            f"{model_file} is a model of two-dimensional images",
            f"{verb} them with LatentDiffusion.{verb}, or give a model of volumes",
        )
    channels = channels_from(document.get("channels")) or (Unnamed(n=shape[-1]),)
    return grid_for_files(shape, document["affine"], document["intensity"]), channels


def _begin_dataset(job):
    """Create the dataset of the outputs of all workers, unless it exists."""
    files = outputs.list_files(_volumes([*chain(*job.parts.values())]))
    ignored = bids.ignored_names(files)
    bids.begin_dataset(job.end.parents[1], ignored, of_scans=True)


def process_all(
    flow: Workflow,
    job: Job,
    tasks: list[Task],
    process: Callable[[Task], list[tuple[np.ndarray, ...]]],
    device: object,
) -> None:
    """Process one volume after the other, even if some fail.

    ``process`` returns the values before and after, and their affine, for each written
    channel.
    """
    from dipy_ldm import plots
    from dipy_ldm._backend import distributed

    launch.log_to_file(job.cluster, job.end)
    resume = job.options.resume
    if job.options.bids:
        _begin_dataset(job)
    remaining = _remaining(flow, tasks, job.verb) if resume else tasks
    quiet = not launch.is_chief(job.cluster)
    rows: list[plots.Comparison] = []
    with distributed(device), ExitStack() as stack:
        stack.callback(_summarise, flow, job, rows)  # even if interrupted
        for task in tqdm(remaining, job.verb, disable=quiet):
            try:
                with (
                    outputs.claimed_output(task.outputs[0]),
                    without_repeats("dipy_ldm.latent_diffusion", f"{task.file}: "),
                ):
                    if _is_written(flow, task, resume):
                        continue
                    pictures = process(_with_fingerprints(task))
            except (InputError, BlockingIOError) as error:
                # A volume that is damaged, or that another run is writing, must not
                # stop hours of work on others.
                job.bad[task.file] = _as_input_error(error)
                continue
            flow.written += 1
            flow.outputs = [*flow.outputs, *task.outputs]
            names = [part.file.name for part in task.parts if part.outputs]
            pairs = zip(names, pictures[: _N_SHOWN - len(rows)])
            rows += [plots.Comparison.of(name, *images) for name, images in pairs]
    if job.bad:
        good = flow.written + len(tasks) - len(remaining)
        rest = f"the {good} other volumes were {_past(job.verb)}" if good else ""
        raise InputError(rest, complaints=job.bad.values())


def _as_input_error(error):
    return error if isinstance(error, InputError) else InputError(str(error))


def _summarise(flow, job, rows):
    """Write the options and a picture of the results, if there are any."""
    from dipy_ldm.plots import save_comparison

    if not (rows and launch.is_chief(job.cluster)):
        return
    path = write_config(flow, job.end, job.options).with_suffix(".png")
    # The picture of a resumed run already shows its first volumes.
    resumed = job.options.resume and not flow._force_overwrite
    if not (resumed and path.exists()):
        save_comparison(path, rows, _caption(job))
        flow.outputs = [*flow.outputs, path]


_CAPTION = "conditions", "strength", "lesions", "dilate", "steps", "resamplings", "seed"


def _caption(job):
    """Describe the run by its options."""
    without_effect = "strength" if getattr(job.options, "lesions", True) else "dilate"
    values = {name: getattr(job.options, name, None) for name in _CAPTION}
    texts = (
        f"{name} {' '.join(value) if isinstance(value, list) else value}"
        for name, value in values.items()
        if not (value is None or value is False or name == without_effect)
    )
    return f"{_past(job.verb)} by {job.model_path.name}: {', '.join(texts)}"


def _past(verb):
    return f"{verb.removesuffix('e')}ed"


def _remaining(flow, tasks, verb):
    """Return the tasks that an interrupted run did not complete."""
    remaining = [task for task in tasks if not _is_done(flow, task)]
    done = len(tasks) - len(remaining)
    logger.info("%d of %d volumes were already %s.", done, len(tasks), _past(verb))
    return remaining


def _is_written(flow, task, resume):
    """Return whether another run has just written a volume; refuse to overwrite it."""
    if resume:
        return _is_done(flow, task)
    _refuse_existing(flow, task.parts)
    return False


def _is_done(flow, task):
    """Return whether all outputs are complete; refuse those of another run."""
    sidecars = _read_sidecars(flow, task.parts)
    output, other = _find_difference(sidecars, task)
    if other and not flow._force_overwrite:
        raise InputError(
            f"{output} is of another run ({other})",
            "resume with the same options, name another --out_dir, or add --force to "
            "overwrite",
        )
    is_complete = sidecars.keys() == set(task.outputs)
    return is_complete and not other and all(map(is_whole, sidecars))


def _find_difference(sidecars, task):
    """Return an output of another run and how that differed; empty if there is none."""
    if not sidecars:
        return None, ""
    # As files have them.
    entries = json.loads(json.dumps(_with_fingerprints(task).facts))
    hashes = entries.pop(_FINGERPRINTS)
    # Inputs may have moved: they are compared by their content.
    names = entries.keys() - {"GeneratedBy", "Model", "Sources"}
    for output, earlier in sidecars.items():
        before = earlier.get(_FINGERPRINTS) or [None] * len(hashes)
        for file, old, new in zip(entries["Sources"], before, hashes):
            if old != new:
                return output, f"{file} has changed"
        # Segmentations have a type of their own.
        ignored = {"Dtype"} if "Labels" in earlier else set()
        # After files: the conditions of series are long tables, and not readable.
        for name in sorted(names - ignored):
            if earlier.get(name) != entries[name]:
                return output, f"{name} was {earlier.get(name)} and is {entries[name]}"
    return None, ""


def _with_fingerprints(task):
    """Add the hashes of a task's inputs to its facts."""
    try:
        hashes = [fingerprint(file) for file in task.facts["Sources"]]
    except OSError as error:
        raise InputError(
            f"{error.filename} can't be read ({error.strerror})", "copy it again"
        ) from error
    return task._replace(facts=task.facts | {_FINGERPRINTS: hashes})


# Maximum share of the foreground: beyond it, too little context remains to inpaint.
_MAX_LESION_SHARE = 0.5


def find_lesions(
    model: "LatentDiffusion", scan: Scan, threshold: float, tile: int | None
) -> list[np.ndarray]:
    """Return the detected lesions of each channel, ``(x, y, z)`` of its file."""
    likely = model.detect(scan.image[None], tile=tile)[0, ..., None]
    lesions = [o.restore(likely, 0.0)[..., 0] >= threshold for o in scan.origins]
    first = scan.origins[0]
    if lesions[0].sum() > _MAX_LESION_SHARE * (first.data != 0).any(-1).sum():
        raise InputError(
            f"most of {first.file} is detected as lesion",
            "give a higher `threshold`, or volumes like the training data",
        )
    for origin, hole in zip(scan.origins, lesions):
        refuse_full_hole(origin.file, hole)
    return lesions


def inpaint_samples(
    model: "LatentDiffusion", scan: Scan, n_samples: int, options: dict
) -> list[np.ndarray]:
    """Return inpainted values of each channel, ``(n_samples, voxels, channels)``."""
    image, hole = scan.image[None], cast(np.ndarray, scan.hole)[None]
    samples = []
    for first in range(options["first"], options["first"] + n_samples):
        inpainted = None
        if hole.any():
            inpainted = model.inpaint(image, hole, **options | {"first": first})[0]
        pairs = zip(scan.inpainted(inpainted), scan.origins)
        samples.append([volume[origin.hole] for volume, origin in pairs])
    return [np.stack(values) for values in zip(*samples)]


def write_inpainted(
    path: Path, channel: Channel, origin: Origin, values: np.ndarray, entries: dict
) -> None:
    """Write a volume with inpainted values in its hole, and its sidecar."""
    make_folder(path.parent)
    if channel.dtype:
        # The data type of its file may not represent all labels.
        volume = origin.with_hole(values).astype(channel.dtype)
        where = origin.affine, channel.dtype, entries, origin.space
        outputs.write_channel(path, channel, volume, *where)
        return
    entries = entries | channel.sidecar_entries()
    hole = cast(np.ndarray, origin.hole)
    with sidecar_first(path, entries) as ready:
        write_edited(path, origin.file, hole, values, describe(entries), ready)


def write_maps(
    paths: Sequence[Path],
    channel: Channel,
    origin: Origin,
    maps: Sequence[tuple[np.ndarray, str, dict]],
    facts: dict,
) -> None:
    """Write maps of a channel: each volume, its type, and entries of its sidecar."""
    facts = facts | channel.name_entry()
    for path, (volume, dtype, map_entries) in zip(paths, maps, strict=True):
        about = facts | map_entries
        write_with_sidecar(
            path, volume, origin.affine, dtype, about, space=origin.space
        )
