"""The workflow behind ``dipy_denoise_ldm``."""

from functools import partial

from nibabel.affines import voxel_sizes
import numpy as np

from dipy_ldm._native_space import Scan
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import make_folder
from dipy_ldm.data.channels import channel_slices
from dipy_ldm.diffusion import _inpainting as inpainting
from dipy_ldm.workflows import _launch as launch, _process_scans as process_scans
from dipy_ldm.workflows._option_table import DenoiseOptions
from dipy_ldm.workflows._options import takes_options
from dipy_ldm.workflows._outputs import LDMFlow, write_channel


class DenoiseLDMFlow(LDMFlow):
    """Reconstruct or denoise volumes with a latent diffusion model."""

    example = "brains scan.nii.gz --strength 0.1 --out_dir clean"
    cure = "; add --resume to go on"

    @takes_options
    def run(self, options: DenoiseOptions) -> None:
        """Reconstruct or denoise volumes with a latent diffusion model.

        Each volume is resampled to the grid of the model and encoded, noise is added to
        its latents and removed again, and the decoded result is resampled to the grid
        and intensities of the volume. Writes a NIfTI file for each, named after the
        volume, and a JSON file of how it was made. If volumes have equal names, their
        folders are kept. Models trained with --dwi take diffusion series, with .bval
        and .bvec beside each.
        """
        _check_options(options)
        ends = ["", *["_std"] * (options.repeats > 1)]
        ends += ["_difference"] * options.difference + ["_mask"] * options.lesions
        job = process_scans.prepare(self, options, "denoise", ends)
        if job is None:
            return
        model, device = launch.load(job.model_path, options.devices, options.tile)
        if options.lesions:
            if model.detector_ is None:
                raise InputError(
                    f"the model {job.model_path} has no anomaly detector",
                    "train one with --steps_detector of dipy_train_ldm, or leave "
                    "--lesions out",
                )
            options.steps = options.steps or inpainting.STEPS  # as used
            # Volumes keep their types.
            details: dict = {
                "Threshold": options.threshold,
                "DilatedBy": options.dilate,
            }
        else:
            usual = model.default_denoising_steps(launch.SAMPLER, options.strength)
            options.steps = options.steps or usual
            details = {"Strength": options.strength, "Dtype": options.dtype}
        sampling = {"sampler": launch.SAMPLER, "steps": options.steps}
        sampling["seed"] = options.seed
        tasks = job.tasks(sampling, **details, Repeats=options.repeats)
        process = _inpaint_lesions if options.lesions else _denoise
        process_task = partial(process, model, job, sampling | {"tile": options.tile})
        process_scans.process_all(self, job, tasks, process_task, device)


def _check_options(options):
    """Refuse options without effect."""
    no_maps = options.repeats == 1 and not options.difference
    if options.lesions and no_maps and options.dtype != "float32":
        raise InputError(
            "`dtype` has no effect with `lesions`, which keeps the type of a volume",
            "leave it out",
        )
    if options.strength == 0 and (options.conditions or options.repeats > 1):
        name = "conditions" if options.conditions else "repeats"
        raise InputError(
            f"`{name}` has no effect at `strength` 0, which only reconstructs",
            "leave it out, or give a higher strength",
        )


def _denoise(model, job, sampling, task):
    """Denoise a volume and, to compare, denoise it without conditions."""
    options = job.options
    scan = Scan.read(task.channels, task.files, job.grid)
    arguments = sampling | job.arguments(task) | {"strength": options.strength}
    first = arguments["first"]
    denoise = partial(_denoise_columns, model, task.channels[0])

    def denoise_repeatedly(**changes):
        return [
            denoise(scan.image, **arguments | {"first": first + i} | changes)
            for i in range(options.repeats)
        ]

    repeated = denoise_repeatedly()
    # From the same noise, so that only the conditions differ.
    compare = options.difference and job.requested.specified
    unconditional = denoise_repeatedly(conditions=None) if compare else None
    return [
        _write(part, origin, columns, task, repeated, unconditional, options)
        for part, origin, (_, columns) in zip(
            task.parts, scan.origins, channel_slices(task.channels)
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
    # From the same noise, so that volumes differ only by their directions.
    for i in range(image.shape[-1] - 1):
        of_volume = {name: values[i] for name, values in gradients.items()}
        options["conditions"] = (conditions or {}) | of_volume
        columns.append(model.denoise(image[None, ..., [i + 1]], **options)[0])
    return np.concatenate(columns, -1)


def _inpaint_lesions(model, job, sampling, task):
    """Inpaint the lesions of a volume, and a margin around them."""
    options = job.options
    scan = Scan.read(task.channels, task.files, job.grid)
    detected = process_scans.find_lesions(model, scan, options.threshold, options.tile)
    holes = [
        inpainting.dilated(lesions, options.dilate, voxel_sizes(origin.affine))
        if lesions.any()
        else lesions
        for lesions, origin in zip(detected, scan.origins)
    ]
    scan = scan.masked(holes)
    arguments = sampling | job.arguments(task)
    samples = process_scans.inpaint_samples(model, scan, options.repeats, arguments)
    return [
        _write_inpainted(part, origin, lesions, values, task, options)
        for part, origin, lesions, values in zip(
            task.parts, scan.origins, detected, samples
        )
        if part.outputs
    ]


def _write_inpainted(part, origin, lesions, samples, task, options):
    """Write a volume without lesions, and its maps; return before, after and affine."""
    millilitres = np.count_nonzero(lesions) * abs(np.linalg.det(origin.affine)) / 1000
    entries = task.facts | {"LesionMillilitres": round(float(millilitres), 6)}
    mean = samples.mean(0)
    process_scans.write_inpainted(part.outputs[0], part.channel, origin, mean, entries)
    maps = []
    if len(samples) > 1:
        map_entries = {"Deviation": part.channel.deviation}
        deviation = origin.hole_only(samples.std(0, ddof=1, dtype=float))
        maps.append((deviation, options.dtype, map_entries))
    if options.difference:
        map_entries = {"Difference": "scan minus result"}
        difference = origin.hole_only(origin.measured[origin.hole] - mean)
        maps.append((difference, options.dtype, map_entries))
    maps.append((lesions, "uint8", {"Role": "mask"}))
    process_scans.write_maps(part.outputs[1:], part.channel, origin, maps, entries)
    return origin.measured, origin.with_hole(mean), origin.affine


def _write(part, origin, columns, task, repeated, unconditional, options):
    """Write the mean of repeated results, their spread, and the difference.

    ``unconditional`` are the results without conditions, or None. Returns the volume
    before and after, and its affine.
    """
    channel, path = part.channel, part.outputs[0]
    repeated = [image[..., columns] for image in repeated]
    mean = channel.bring_back(np.mean(repeated, 0), origin)
    dtype = options.dtype
    make_folder(path.parent)
    write_channel(path, channel, mean, origin.affine, dtype, task.facts, origin.space)
    maps = []
    if len(repeated) > 1:
        map_entries = {"Deviation": channel.deviation}
        maps.append((channel.spread(repeated, origin), dtype, map_entries))
    if options.difference:
        name, minuend = "scan", origin.data
        if unconditional is not None:
            name = "result without conditions"
            minuend = np.mean(unconditional, 0)[..., columns]
            minuend = channel.bring_back(minuend, origin)
        map_entries = {"Difference": channel.compared.format(name, "result")}
        maps.append((channel.difference(minuend, mean), dtype, map_entries))
    process_scans.write_maps(part.outputs[1:], channel, origin, maps, task.facts)
    displayed = slice(channel.shown, None)
    return origin.data[..., displayed], mean[..., displayed], origin.affine
