"""The workflow behind ``dipy_denoise_ldm``."""

from functools import partial
from typing import Any, NamedTuple

from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import InputError, at_least, check_shares, choose
from dipy_ldm._utils.files import make_folder
from dipy_ldm._utils.values import parse_conditions
from dipy_ldm.data._grid import Grid
from dipy_ldm.data._nifti import DTYPES
from dipy_ldm.data._paths import choose_files, find_volumes
from dipy_ldm.data._preprocessing import conform_file, restore_file, restore_spread
from dipy_ldm.diffusion import masks as holes
from dipy_ldm.workflows import _native_space as healing, _restoring as restoring
from dipy_ldm.workflows._conditions import RequestedConditions
from dipy_ldm.workflows._options import values_of
from dipy_ldm.workflows._outputs import interrupted
from dipy_ldm.workflows._provenance import provenance, write_with_sidecar
from dipy_ldm.workflows._sources import SourcePairs

_STRENGTH, _THRESHOLD, _DILATED = 0.1, 0.5, 2.0


class DenoiseLDMFlow(Workflow):
    """Reconstruct or denoise volumes with a latent diffusion model."""

    written = 0  # volumes

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "denoise_ldm"

    def when_interrupted(self) -> str:
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        return interrupted(self.written, "; add --resume to go on")

    def run(
        self,
        model_file,
        input_files,
        suffix=None,
        filter=None,
        conditions=None,
        source_files=None,
        strength=_STRENGTH,
        sampler="dpm++",
        steps=None,
        eta=0.0,
        seed=0,
        repeats=1,
        difference=False,
        lesions=False,
        threshold=_THRESHOLD,
        dilate=_DILATED,
        channels=False,
        tile=None,
        strategy="auto",
        devices=None,
        resume=False,
        dtype="float32",
        out_dir="",
        out_denoised="denoised",
    ):
        """Reconstruct or denoise volumes with a latent diffusion model.

        Each volume is brought to the grid of the model and encoded, its latents are
        noised to a level and denoised again, and the decoded result is brought back
        to the volume's own grid and intensities. Writes a NIfTI file each, named
        after the volume, with a JSON file that tells how it was made. Where volumes of
        several folders have one name, their folders are kept.

        Parameters
        ----------
        model_file : string or Path
            A model file that dipy_train_ldm wrote from volumes.
        input_files : variable string or Path
            NIfTI volumes, folders of them, wildcards, or lists of them in text, CSV
            or TSV files.
        suffix : variable string, optional
            Kinds of scans to take, by the ends of their names, such as T1w.
            Needed where they have several. What is in folders derivatives or sourcedata
            is taken only if these are named.
        filter : variable string, optional
            Values that names of files must have, such as task=rest ses=01,02
            for any entity of BIDS.
        conditions : variable string, optional
            What the volumes shall look like, as name=value: group=control. What is left
            out is not specified.
        source_files : variable string or Path, optional
            What the volumes were made of, where the model has learnt from such: each
            belongs to the volume of the same sub- and ses- in its name or, where names
            have none, in the same order.
        strength : float, optional
            Level of the noise, from 0 to 1. At 0 the result is what the autoencoder
            makes of the volume; the higher, the more is made up anew.
        sampler : string, optional
            How to walk back from noise: ddpm, ddim or dpm++.
        steps : int, optional
            Calls of the network on the way back from strength. None is for 1 at the
            default strength, and for up to 20 at strength 1.
        eta : float, optional
            Share of fresh noise in each step of ddim, from 0 to 1.
        seed : int, optional
            Seed of the noise, which depends on the name of each volume, too.
        repeats : int, optional
            Times that each volume is denoised, from other noise each time. The
            result is the mean; of two and more, the standard deviation is written
            too.
        difference : bool, optional
            Write what was taken away, too. Without conditions that is the scan minus
            the result: noise and fine detail as well as what the model would not have
            expected; small lesions do not stand out in it. With conditions it is what
            comes of the same noise without them minus the result: what they changed.
            With lesions it is the scan minus the result: 0 but in lesions.
        lesions : bool, optional
            Make anew only what the model's detector takes for lesions, and what is
            near them, as dipy_inpaint_ldm does with a mask; all else stays as it is, to
            the bit. Which voxels are taken for lesions is written, too. The model must
            have been trained with steps_detector.
        threshold : float, optional
            Probability from which on a voxel is taken for one of a lesion.
        dilate : float, optional
            How much farther than a lesion, in mm, the volume is made anew: edges of
            lesions are soft, and what is left of one would be continued.
        channels : bool, optional
            Take the fourth axis of the files for channels.
        tile : int, optional
            Voxels along a side of the tiles in which large volumes are encoded and
            decoded.
            None is for as large as memory surely allows.
        strategy : string, optional
            How the volumes are shared out: auto (among all workers that Slurm or
            TF_CONFIG names, each of which denoises its part) or none.
        devices : variable string, optional
            Device of this machine to use, such as GPU:1 or CPU:0. None is for the first
            GPU or, where there is none, for the processor.
        resume : bool, optional
            Go on after an interruption: what is there and whole is left as it is.
        dtype : string, optional
            Type of the voxels: float32, float64, or an integer type such as int16 or
            uint8.
        out_dir : string or Path, optional
            Output directory.
        out_denoised : string, optional
            What is appended to the name of a volume or, where that is a name of BIDS,
            its desc-.
        """
        path, grid, n_channels = restoring.find_model(model_file, "denoise")
        _check_options(repeats, dtype, strategy)
        _check_lesions(path, lesions, strength, threshold, dilate)
        requested = RequestedConditions.of(
            path, parse_conditions(conditions or []), range(1)
        )
        files = find_volumes(input_files)
        files = choose_files(files, suffix, values_of(filter))
        partners = SourcePairs.of(path, files, source_files)
        inputs = restoring.find_inputs(
            self,
            files,
            lambda name: _outputs(name, repeats, difference, lesions),
            verb="denoise",
            channels=channels,
            n_channels=n_channels,
            strategy=strategy,
            resume=resume,
            out_dir=out_dir,
            out_denoised=out_denoised,
        )
        if inputs is None:
            return
        model, place = restoring.load(path, devices, tile)
        if steps is None:
            steps = _default_steps(model, sampler, strength, lesions)
        options = {"sampler": sampler, "steps": steps, "eta": eta, "seed": seed}
        sampling_facts = requested.facts(requested.numbers) | {
            name.capitalize(): value for name, value in options.items()
        }
        how = {"Strength": strength}
        if lesions:
            how = {"Threshold": threshold, "DilatedBy": dilate}
        facts = provenance(path, **how, Repeats=repeats, **sampling_facts)
        noise = restoring.number_noise(files)
        tasks = [
            restoring.Task(
                file,
                paths,
                facts | {"Noise": noise[file], "Sources": partners.names(file)},
            )
            for file, paths in inputs.outputs.items()
        ]
        options |= {"tile": tile, "conditions": requested.subset(requested.numbers)}
        shared = model, grid, channels, partners, options, repeats, difference, dtype
        if lesions:
            act = partial(_heal, _Job(*shared), threshold, dilate)
        else:
            act = partial(
                _denoise, _Job(*shared), strength, difference and requested.specified
            )
        restoring.work(
            self, tasks, act, inputs, verb="denoise", resume=resume, place=place
        )


class _Job(NamedTuple):
    """What is the same for all volumes."""

    model: Any
    grid: Grid
    channels: bool
    partners: SourcePairs
    options: dict
    repeats: int
    difference: bool
    dtype: str


def _default_steps(model, sampler, strength, lesions):
    if not lesions:
        return model.default_denoising_steps(sampler, strength)
    # Which imports Keras.
    from dipy_ldm.diffusion.inpainting import STEPS

    return STEPS


def _check_options(repeats, dtype, strategy):
    at_least("repeats", repeats, 1)
    choose("type of voxels", dtype, DTYPES)
    choose("strategy", strategy, dict.fromkeys(("auto", "none")))


def _check_lesions(path, lesions, strength, threshold, dilate):
    """Refuse what has no effect, and a model without a detector."""
    check_shares(threshold=threshold)
    at_least("dilate", dilate, 0)
    if not lesions:
        for name, value, default in (
            ("threshold", threshold, _THRESHOLD),
            ("dilate", dilate, _DILATED),
        ):
            if value != default:
                raise InputError(f"`{name}` is for lesions alone; add --lesions.")
        return
    if strength != _STRENGTH:
        raise InputError(
            "lesions are made anew altogether, whatever the strength; leave --strength "
            "or --lesions out."
        )
    # Nothing but its document is read.
    if not _serialization.read_document(path).get("lesion_detector"):
        raise InputError(
            f"the model {path} has no detector of lesions; train one with "
            "--steps_detector of dipy_train_ldm, or leave --lesions out."
        )


def _outputs(name, repeats, difference, lesions):
    """List all volumes that are written of one, in order."""
    further = [
        restoring.beside(name, end)
        for end, is_written in (
            ("_std", repeats > 1),
            ("_difference", difference),
            ("_mask", lesions),
        )
        if is_written
    ]
    return [name, *further]


def _denoise(job, strength, compare, task):
    """Denoise a volume and, to compare, do so without conditions."""
    image, origin = conform_file(task.file, job.grid, job.channels)
    options = job.options | job.partners.arguments(task.file) | {"strength": strength}

    first = task.facts["Noise"]

    def denoise_repeatedly(**changes):
        return [
            job.model.denoise(image[None], first=first + i, **options | changes)[0]
            for i in range(job.repeats)
        ]

    repeated = denoise_repeatedly()
    # Of the same noise, so that all else is alike.
    before = denoise_repeatedly(conditions=None) if compare else None
    _write(task, repeated, before, origin, job.dtype, job.difference)


def _heal(job, threshold, dilate, task):
    """Make anew what is taken for lesions in a volume, and what is near."""
    tile = job.options["tile"]
    scan = healing.find_lesions(
        job.model, task.file, job.grid, job.channels, threshold, tile
    )
    lesions = scan.hole
    if lesions.any():
        sizes = np.linalg.norm(scan.affine[:3, :3], axis=0)
        scan = scan._replace(hole=holes.dilated(lesions, dilate, sizes))
    options = job.options | job.partners.arguments(task.file)
    options |= {"first": task.facts["Noise"]}
    samples = healing.fill_in(job.model, scan, job.grid, job.repeats, options)
    _write_healed(task, scan, lesions, samples, job.dtype, job.difference)


def _write_healed(task, scan, lesions, samples, dtype, difference):
    """Write a volume with its lesions made anew, and where they are."""
    path, *further, mask = task.outputs
    make_folder(path.parent)
    millilitres = np.count_nonzero(lesions) * abs(np.linalg.det(scan.affine)) / 1000
    facts = task.facts | {"LesionMillilitres": round(float(millilitres), 6)}
    mean = samples.mean(0)
    healing.write(path, scan, mean, facts)
    volumes: list[tuple[np.ndarray, dict]] = []
    if len(samples) > 1:
        volumes.append((samples.std(0, ddof=1, dtype=float), {}))
    if difference:
        extra = {"Difference": "scan minus result"}
        volumes.append((scan.data[scan.hole] - mean, extra))
    for other, (values, extra) in zip(further, volumes, strict=True):
        volume = np.zeros_like(scan.data)
        volume[scan.hole] = values
        write_with_sidecar(other, volume, scan.affine, dtype, facts | extra)
    write_with_sidecar(mask, lesions, scan.affine, "uint8", facts)


def _write(task, repeated, before, origin, dtype, difference):
    """Write the mean of what was made of a volume, how far it varies and what it lacks.

    ``before`` is what was made of it without conditions, or None.
    """
    make_folder(task.outputs[0].parent)
    mean = restore_file(np.mean(repeated, 0), origin)
    volumes: list[tuple[np.ndarray, dict]] = [(mean, {})]
    if len(repeated) > 1:
        volumes.append((restore_spread(np.std(repeated, 0, ddof=1), origin), {}))
    if difference:
        name, minuend = "scan", origin.data
        if before is not None:
            name = "result without conditions"
            minuend = restore_file(np.mean(before, 0), origin)
        volumes.append((minuend - mean, {"Difference": f"{name} minus result"}))
    for path, (volume, more) in zip(task.outputs, volumes, strict=True):
        write_with_sidecar(path, volume, origin.affine, dtype, task.facts | more)
