"""What the commands share that make something of volumes, and write it beside them."""

from collections import Counter
from collections.abc import Callable
import hashlib
import json
import logging
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from tqdm import tqdm

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import VolumeInfo, check_headers, is_whole
from dipy_ldm.data._paths import suffix
from dipy_ldm.workflows import _workers as workers
from dipy_ldm.workflows._outputs import output_paths, refuse_overwriting
from dipy_ldm.workflows._provenance import fingerprint, require_affine, sidecar
from dipy_ldm.workflows._quiet_start import quiet_start

logger = logging.getLogger(__name__)

# What sidecars have of the inputs.
_MARKS = "SourceFingerprints"


class Task(NamedTuple):
    """A volume, what is written of it, in order, and what shall be said of that.

    ``outputs`` are files that end in ``.nii.gz``, each with a JSON file beside it.
    """

    file: Path
    outputs: list[Path]
    facts: dict


def find_model(model_file: str | Path, act: str) -> tuple[Path, Grid, int]:
    """Find a model of volumes; nothing but its document is read."""
    path = _serialization.find(model_file)
    document = _serialization.read_document(path, "latent_diffusion")
    shape, affine = document["shape"], document["affine"]
    if len(shape) != 4:
        raise InputError(
            f"{model_file} is a model of two-dimensional images; {act} them with "
            f"LatentDiffusion.{act}, or give a model of volumes."
        )
    return path, Grid(tuple(shape[:3]), require_affine(affine)), shape[-1]


def load(path: Path, devices: list[str] | None, tile: int | None) -> tuple[Any, Any]:
    """Load a model, if the memory suffices."""
    with quiet_start():
        from dipy_ldm import LatentDiffusion, _backend

        # Each worker uses its own: they don't meet.
        place = _backend.make_strategy("none", devices, alone=True)
        model = LatentDiffusion.load(path)
        model.check_memory(1, tile, place)
        return model, place


class Inputs(NamedTuple):
    """What a command is given, as far as headers tell.

    ``infos`` are what the headers of good volumes say, ``outputs`` what is written of
    each, by its file, ``bad`` a sentence on each bad volume; ``end`` is what all names
    of outputs begin with or end in, and ``cluster`` who shares the work.
    """

    infos: list[VolumeInfo]
    outputs: dict[Path, list[Path]]
    bad: dict[Path, str]
    end: Path
    cluster: Any


def find_inputs(
    flow: Any,
    files: list[Path],
    outputs_of: Callable,
    *,
    verb: str,
    channels: bool,
    n_channels: int,
    strategy: str,
    resume: bool,
    out_dir: str | Path,
    **name: str,
) -> Inputs | None:
    """Find what this worker makes something of, and refuse what is in the way."""
    (end,) = output_paths(flow, files[0], out_dir, **name)
    names = name_outputs(files, end, verb, described)
    outputs = {file: outputs_of(name) for file, name in names.items()}
    cluster = workers.find(strategy)
    files = list(workers.part_of(cluster, _without_outputs(outputs)))
    if not files:
        return None  # there are more workers than volumes
    infos, bad = check_headers(files, channels, skip_bad=True)
    if infos[0].channels != n_channels:
        raise InputError(
            f"the model is of {n_channels} channels, and {infos[0].file} has "
            f"{infos[0].channels}; give files like those that it learnt from."
        )
    outputs = {info.file: outputs[info.file] for info in infos}
    if not resume:
        paths = (
            path
            for volume_outputs in outputs.values()
            for path in _with_sidecars(volume_outputs)
        )
        refuse_overwriting(
            flow, paths, "add --resume to go on, or --force to overwrite"
        )
    return Inputs(infos, outputs, bad, end, cluster)


def _appended(stem, end):
    return f"{stem}_{end}.nii.gz"


def described(stem: str, end: str) -> str:
    """Name an output by the ``desc-`` of BIDS, if its volume has a name of BIDS.

    ``sub-01_T1w`` becomes ``sub-01_desc-denoised_T1w.nii.gz``.
    """
    kind = suffix(stem)
    if kind is None or not end.isalnum():
        return _appended(stem, end)
    entities = stem.removesuffix(f"_{kind}")
    before, is_described, label = entities.partition("_desc-")
    # There is one such entity in a name, and it is the last.
    return f"{before}_desc-{label + _camel(end) if is_described else end}_{kind}.nii.gz"


def _camel(text):
    return text[:1].upper() + text[1:]


def name_outputs(
    files: list[Path], end: Path, verb: str, named: Callable = _appended
) -> dict[Path, Path]:
    """Name an output after each volume; where names are equal, folders are kept."""
    stems = _stems(files)
    names = [stem.with_name(named(stem.name, end.name)) for stem in stems]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} of the volumes would be written to {end.parent / name}; {verb} "
            "them one after the other, with another --out_dir each."
        )
    return {file: end.parent / name for file, name in zip(files, names)}


def number_noise(files: list[Path]) -> dict[Path, int]:
    """Return the number of each volume's first noise, by its name within the inputs.

    So that no two volumes have the same noise, and each keeps its own in another order,
    under ``resume``, and on several workers.
    """
    return {
        # Names of files need not be text.
        file: int.from_bytes(hashlib.sha256(os.fsencode(stem.as_posix())).digest()[:6])
        for file, stem in zip(files, _stems(files), strict=True)
    }


def _stems(files):
    """Return the volumes' names without their ends; with folders if any are equal."""
    stems = [Path(_stem(file)) for file in files]
    if len(set(stems)) == len(stems):
        return stems
    places = [Path(os.path.abspath(file)).parent for file in files]
    common = os.path.commonpath(places)
    return [place.relative_to(common) / s for place, s in zip(places, stems)]


def _without_outputs(outputs):
    """List the volumes, without results that lie among them since an earlier run."""
    results = {os.path.abspath(path) for paths in outputs.values() for path in paths}
    return [file for file in outputs if os.path.abspath(file) not in results]


def _with_sidecars(outputs):
    """List all files that are written of a volume, in order."""
    return [path for output in outputs for path in (output, sidecar(output))]


def _stem(file):
    return re.sub(r"\.nii(\.gz)?$", "", Path(file).name, flags=re.IGNORECASE)


def beside(name: Path, end: str) -> Path:
    """Name a further output of a volume."""
    match = re.fullmatch(r"(.*_desc-[A-Za-z0-9]+)(_[A-Za-z0-9]+\.nii\.gz)", name.name)
    if match:
        return name.with_name(match[1] + _camel(end.strip("_-")) + match[2])
    return name.with_name(f"{name.name.removesuffix('.nii.gz')}{end}.nii.gz")


def work(
    flow: Any,
    tasks: list[Task],
    make: Callable,
    inputs: Inputs,
    *,
    verb: str,
    resume: bool,
    place: Any,
) -> None:
    """Make something of one volume after the other, whatever becomes of some."""
    from dipy_ldm._backend import spread

    bad = inputs.bad
    workers.keep_log(inputs.cluster, inputs.end)
    remaining = _remaining(flow, tasks, verb) if resume else tasks
    with spread(place):
        for task in tqdm(remaining, verb, disable=not workers.is_first(inputs.cluster)):
            try:
                make(_identified(task))
            except InputError as error:
                # What only reading finds must not stop the hours that others take.
                bad[task.file] = str(error)
            else:
                flow.written += 1
    if bad:
        good = flow.written + len(tasks) - len(remaining)
        summary = [f"The {good} other volumes are {_past(verb)}."] if good else []
        raise InputError("\n".join([*bad.values(), *summary]))


def _past(verb):
    return f"{verb.removesuffix('e')}ed"


def _remaining(flow, tasks, verb):
    """Return what an interrupted run has not done."""
    remaining = [task for task in tasks if not _is_done(task, flow._force_overwrite)]
    done = len(tasks) - len(remaining)
    logger.info("%d of %d volumes were %s before.", done, len(tasks), _past(verb))
    return remaining


def _is_done(task, force):
    """Say whether all outputs are there and whole; refuse those of others."""
    try:
        sidecars = [json.loads(sidecar(o).read_text("utf-8")) for o in task.outputs]
    except (OSError, ValueError):
        return False
    differences = (_difference(document, task.facts) for document in sidecars)
    # Which reads the inputs, so that it comes last.
    other = next(filter(None, differences), "") or _changed(sidecars, task)
    if other and not force:
        raise InputError(
            f"{task.outputs[0]} is of another run ({other}); resume with the same "
            "options, name another --out_dir, or add --force to overwrite."
        )
    return not other and all(map(is_whole, task.outputs))


def _difference(earlier, facts):
    """Say in what two runs differ, if that makes a difference."""
    facts = json.loads(json.dumps(facts))  # lists, as in the file
    for name in sorted(facts.keys() - {"GeneratedBy", "Model"}):
        if earlier.get(name) != facts[name]:
            return f"{name} was {earlier.get(name)} and is {facts[name]}"
    return ""


def _identified(task):
    """Add to what is said of a task what its inputs hold now."""
    try:
        marks = [fingerprint(file) for file in task.facts["Sources"]]
    except OSError as error:
        raise InputError(
            f"{error.filename} can't be read ({error.strerror}); copy it anew."
        ) from error
    return task._replace(facts=task.facts | {_MARKS: marks})


def _changed(sidecars, task):
    """Say which input has changed since outputs were made, if any has."""
    marks = _identified(task).facts[_MARKS]
    for document in sidecars:
        before = document.get(_MARKS) or [None] * len(marks)
        for file, old, new in zip(task.facts["Sources"], before, marks):
            if old != new:
                return f"{file} has changed"
    return ""
