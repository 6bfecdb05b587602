"""The workflow behind ``dipy_denoise_ldm``."""

from functools import partial

from nibabel.affines import voxel_sizes
import numpy as np

from dipy_ldm import _serialization
from dipy_ldm._utils.checks import (
    InputError,
    at_least,
    check_counts,
    check_seed,
    check_shares,
)
from dipy_ldm._utils.files import make_folder
from dipy_ldm.data._conforming import conform_channels
from dipy_ldm.data._nifti import DTYPES, space_of
from dipy_ldm.data._sidecars import write_with_sidecar
from dipy_ldm.data.channels import channel_slices
from dipy_ldm.diffusion import _inpainting as inpainting
from dipy_ldm.workflows import _launch as launch, _process_scans as process_scans
from dipy_ldm.workflows._options import gather, share_descriptions
from dipy_ldm.workflows._outputs import LDMFlow, further_output, write_channel

_STRENGTH, _THRESHOLD, _DILATE = 0.1, 0.5, 2.0


class DenoiseLDMFlow(LDMFlow):
    """Reconstruct or denoise volumes with a latent diffusion model."""

    example = "brains scan.nii.gz --strength 0.1 --out_dir clean"
    cure = "; add --resume to go on"
    choices = {"strategy": ("auto", "none"), "dtype": DTYPES}

    @share_descriptions
    def run(
        self,
        model_file,
        input_files,
        suffix=None,
        filter=None,
        conditions=None,
        source_files=None,
        strength=_STRENGTH,
        steps=None,
        seed=0,
        repeats=1,
        difference=False,
        lesions=False,
        threshold=_THRESHOLD,
        dilate=_DILATE,
        channels=None,
        tile=None,
        strategy="auto",
        devices=None,
        resume=False,
        dtype="float32",
        bids=False,
        skull_stripped=False,
        out_dir="",
        out_denoised="denoised",
    ):
        """Reconstruct or denoise volumes with a latent diffusion model.

        Each volume is resampled to the grid of the model and encoded, its latents are
        noised to a level and denoised again, and the decoded result is brought back to
        the grid and intensities of the volume. Writes a NIfTI file each, named after
        the volume, with a JSON file of how it was made. Where volumes of several
        folders have the same name, their folders are kept. Models of --dwi take
        diffusion series, with .bval and .bvec beside each.

        Parameters
        ----------
        model_file : string or Path
            Model file that dipy_train_ldm wrote from volumes, or the packaged brains
            (T1-like, without skull, at the place of the MNI template).
        strength : float, optional
            Noise level, from 0 to 1. At 0 the result is the reconstruction by the
            autoencoder; the higher, the more is generated.
        steps : int, optional
            Network evaluations. Default: 1 at the default strength, up to 20 at
            strength 1; 10 with --lesions.
        seed : int, optional
            Seed of the noise, which depends on the name of each volume, too.
        repeats : int, optional
            Times that each volume is denoised, from different noise. The result is the
            mean; with two and more, the standard deviation is written, too.
        difference : bool, optional
            Write the difference, too. Without conditions it is the scan minus the
            result: noise and fine detail as well as what the model did not expect;
            small lesions do not stand out in it. With conditions it is the result
            without them, from the same noise, minus the result: their effect. With
            --lesions it is the scan minus the result: 0 outside lesions.
        lesions : bool, optional
            Inpaint only what the model's anomaly detector takes for lesions, and what
            is near them; all other voxels stay as they are, to the bit. The mask of
            lesions is written, too. The model must have been trained with
            --steps_detector.
        threshold : float, optional
            Probability from which on a voxel belongs to a lesion.
        dilate : float, optional
            Margin around lesions, in mm, that is inpainted, too: edges of lesions are
            soft, and what is left of one would be continued.
        channels : variable string, optional
            Models of named channels, whose files are put together by the sub- and ses-
            of their names: the channels that are written. Default: all. Without
            names: the fourth axis of the files holds channels.
        out_denoised : string, optional
            What is appended to the name of a volume or, where that is a name of BIDS,
            its desc-.
        """
        options = gather(locals())
        _check_options(options)
        outputs_of = partial(_outputs, options)
        job = process_scans.prepare(self, options, "denoise", outputs_of)
        if job is None:
            return
        if lesions:
            _require_detector(job.model_path)
        model, device = launch.load(job.model_path, devices, tile)
        if lesions:
            options.steps = steps or inpainting.STEPS  # as used
            how = {"Threshold": threshold, "DilatedBy": dilate}  # volumes keep types
        else:
            usual = model.default_denoising_steps(launch.SAMPLER, strength)
            options.steps = steps or usual
            how = {"Strength": strength, "Dtype": dtype}
        sampling = {"sampler": launch.SAMPLER, "steps": options.steps, "seed": seed}
        tasks = job.tasks(sampling, **how, Repeats=repeats)
        process = _inpaint_lesions if lesions else _denoise
        act = partial(process, model, job, sampling | {"tile": tile})
        process_scans.work(self, job, tasks, act, device)


def _check_options(options):
    """Refuse numbers that make no sense, and options that have no effect."""
    check_seed(options.seed)
    check_counts(steps=options.steps)
    at_least("repeats", options.repeats, 1)
    check_shares(strength=options.strength, threshold=options.threshold)
    at_least("dilate", options.dilate, 0)
    if options.lesions and options.strength != _STRENGTH:
        raise InputError(
            "--strength has no effect with --lesions, which are inpainted entirely; "
            "leave one of them out."
        )
    alone = options.repeats == 1 and not options.difference
    if options.lesions and alone and options.dtype != "float32":
        raise InputError(
            "--dtype has no effect with --lesions, which keeps the type of a volume; "
            "leave it out."
        )
    if options.strength == 0 and (options.conditions or options.repeats > 1):
        name = "conditions" if options.conditions else "repeats"
        raise InputError(
            f"`{name}` has no effect at --strength 0, which only reconstructs; leave "
            "it out, or give a higher strength."
        )
    for name, default in (("threshold", _THRESHOLD), ("dilate", _DILATE)):
        if not options.lesions and getattr(options, name) != default:
            raise InputError(f"`{name}` has no effect without --lesions; add it.")


def _require_detector(path):
    """Refuse to look for lesions with a model that has not learnt what they are."""
    if not _serialization.read_document(path).get("lesion_detector"):
        raise InputError(
            f"the model {path} has no anomaly detector; train one with "
            "--steps_detector of dipy_train_ldm, or leave --lesions out."
        )


def _outputs(options, name):
    """List all volumes that are written of one, in order."""
    ends = ["_std"] * (options.repeats > 1) + ["_difference"] * options.difference
    ends += ["_mask"] * options.lesions
    return [name, *(further_output(name, end) for end in ends)]


def _denoise(model, job, sampling, task):
    """Denoise a volume and, to compare, do so without conditions."""
    options, parts = job.options, zip(task.channels, task.files)
    image, origins = conform_channels(parts, job.grid)
    arguments = sampling | job.arguments(task) | {"strength": options.strength}
    first = arguments["first"]
    denoise = partial(_denoise_columns, model, task.channels[0])

    def denoise_repeatedly(**changes):
        return [
            denoise(image, **arguments | {"first": first + i} | changes)
            for i in range(options.repeats)
        ]

    repeated = denoise_repeatedly()
    # Of the same noise, so that all else is alike.
    compare = options.difference and job.requested.specified
    before = denoise_repeatedly(conditions=None) if compare else None
    return [
        _write(part, origin, columns, task, repeated, before, options)
        for part, origin, (_, columns) in zip(
            task.parts, origins, channel_slices(task.channels)
        )
        if part.outputs
    ]


def _denoise_columns(model, channel, image, conditions, **options):
    """Denoise ``(*space, columns)``; of a series, each volume from its b = 0."""
    gradients = channel.conditions
    if not gradients:
        return model.denoise(image[None], conditions=conditions, **options)[0]
    columns = [image[..., :1]]
    options["source"] = image[None, ..., :1]
    # Of the same noise: with others, volumes would differ by more than directions.
    for i in range(image.shape[-1] - 1):
        own = {name: values[i] for name, values in gradients.items()}
        options["conditions"] = (conditions or {}) | own
        columns.append(model.denoise(image[None, ..., [i + 1]], **options)[0])
    return np.concatenate(columns, -1)


def _inpaint_lesions(model, job, sampling, task):
    """Inpaint the lesions of a volume, and what is near them."""
    options = job.options
    detected = process_scans.find_lesions(
        model, task.channels, task.files, job.grid, options.threshold, options.tile
    )
    scans = [_dilated(scan, options.dilate) for scan in detected]
    arguments = sampling | job.arguments(task)
    samples = process_scans.fill_in(model, scans, job.grid, options.repeats, arguments)
    return [
        _write_healed(part, scan, lesions.hole, own, task, options)
        for part, scan, lesions, own in zip(task.parts, scans, detected, samples)
        if part.outputs
    ]


def _dilated(scan, dilate):
    if not scan.hole.any():
        return scan
    hole = inpainting.dilated(scan.hole, dilate, voxel_sizes(scan.affine))
    return scan._replace(hole=hole)


def _write_healed(part, scan, lesions, samples, task, options):
    """Write a healed volume and its lesions; return before, after and affine."""
    path, *further, mask = part.outputs
    millilitres = np.count_nonzero(lesions) * abs(np.linalg.det(scan.affine)) / 1000
    facts = task.facts | {"LesionMillilitres": round(float(millilitres), 6)}
    mean = samples.mean(0)
    process_scans.write_inpainted(path, scan, mean, facts)
    facts |= part.channel.name_entry()
    write = partial(write_with_sidecar, space=space_of(scan.file))
    maps = []
    if len(samples) > 1:
        extra = {"Deviation": part.channel.deviation}
        maps.append((samples.std(0, ddof=1, dtype=float), extra))
    if options.difference:
        extra = {"Difference": "scan minus result"}
        maps.append((scan.data[scan.hole] - mean, extra))
    for other, (values, extra) in zip(further, maps, strict=True):
        volume = scan.hole_only(values)
        write(other, volume, scan.affine, options.dtype, facts | extra)
    write(mask, lesions, scan.affine, "uint8", facts | {"Role": "mask"})
    return scan.data, scan.filled(mean), scan.affine


def _write(part, origin, columns, task, repeated, before, options):
    """Write the mean of repeated results, their spread, and the difference.

    ``before`` are the results without conditions, or None. Returns the volume before
    and after, and its affine.
    """
    channel, _, (path, *further) = part
    repeated = [image[..., columns] for image in repeated]
    mean = channel.bring_back(np.mean(repeated, 0), origin)
    how, space = (origin.affine, options.dtype), space_of(origin.file)
    make_folder(path.parent)
    write_channel(path, channel, mean, *how, task.facts, space)
    maps = []
    if len(repeated) > 1:
        extra = {"Deviation": channel.deviation}
        maps.append((channel.spread(repeated, origin), extra))
    if options.difference:
        name, minuend = "scan", origin.data
        if before is not None:
            name = "result without conditions"
            unconditional = np.mean(before, 0)[..., columns]
            minuend = channel.bring_back(unconditional, origin)
        extra = {"Difference": channel.compared.format(name, "result")}
        maps.append((channel.difference(minuend, mean), extra))
    for other, (volume, extra) in zip(further, maps, strict=True):
        facts = task.facts | channel.name_entry() | extra
        write_with_sidecar(other, volume, *how, facts, space=space)
    shown = slice(channel.shown, None)
    return origin.data[..., shown], mean[..., shown], origin.affine
