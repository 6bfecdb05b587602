"""The workflow behind ``dipy_inpaint_ldm``."""

from nibabel.affines import voxel_sizes
import numpy as np

from dipy_ldm._native_space import Scan, check_on_grid, warn_of_probabilities
from dipy_ldm._utils.checks import InputError, check_each
from dipy_ldm._utils.progress import warning_once
from dipy_ldm.data._grid import Grid, coverage
from dipy_ldm.data._nifti import read_mask, refuse_files
from dipy_ldm.data._pairing import Task, find_masks, match_masks
from dipy_ldm.diffusion import _inpainting as inpainting
from dipy_ldm.workflows import _launch as launch, _process_scans as process_scans
from dipy_ldm.workflows._option_table import InpaintOptions
from dipy_ldm.workflows._options import takes_options
from dipy_ldm.workflows._outputs import LDMFlow


class InpaintLDMFlow(LDMFlow):
    """Inpaint parts of volumes with a latent diffusion model."""

    example = "brains scan.nii.gz --mask_files lesion.nii.gz --out_dir filled"
    cure = "; add --resume to go on"

    @takes_options
    def run(self, options: InpaintOptions) -> None:
        """Inpaint parts of volumes with a latent diffusion model.

        The masked part of each volume, such as a lesion, is filled with what the model
        predicts from its surroundings. All other voxels stay identical, to the bit, in
        the volume's own space and data type. Writes a NIfTI file for each, named after
        the volume, a JSON file of how it was made, and the mask that was used. Several
        samples are all written, with their mean and standard deviation. If volumes have
        equal names, their folders are kept.
        """
        if not options.mask_files:
            raise InputError(
                "there is no mask of the voxels to inpaint",
                "name one with `mask_files`",
            )
        ends, n_samples = [""], options.n_samples
        if n_samples > 1:
            ends = [*(f"-{i:04d}" for i in range(n_samples)), "_mean", "_std"]
        job = process_scans.prepare(self, options, "inpaint", [*ends, "_mask"])
        if job is None:
            return
        masks = find_masks(list(job.noise), options.mask_files)
        _check_grids(job.infos, masks)
        model, device = launch.load(job.model_path, options.devices, options.tile)
        dilate, factor = options.dilate, model.vqvae.factor
        _check_masks(job.infos, masks, dilate, job.grid, factor)
        sampling = {"sampler": launch.SAMPLER, "steps": options.steps}
        sampling |= {"resamplings": options.resamplings, "seed": options.seed}
        tasks = job.tasks(sampling, masks, Samples=n_samples, DilatedBy=dilate)
        affine_of = {info.file: info.affine for info in job.infos}

        def inpaint(task):
            affine = affine_of[task.file]
            # _check_masks has already warned.
            mask = read_mask(masks[task.file], warn=False)
            hole = _hole(mask, affine, dilate)
            scan = Scan.read_masked(task.channels, task.files, hole, affine, job.grid)
            arguments = sampling | {"tile": options.tile} | job.arguments(task)
            samples = process_scans.inpaint_samples(model, scan, n_samples, arguments)
            return [
                _write(part, origin, values, task.facts)
                for part, origin, values in zip(task.parts, scan.origins, samples)
                if part.outputs
            ]

        process_scans.process_all(self, job, tasks, inpaint, device)


def _check_grids(infos, masks):
    """Refuse masks on other grids than their volumes; only headers are read."""
    mask_of = {info.file: masks[info.file] for info in infos}
    _, complaints = match_masks([Task.of(info) for info in infos], mask_of)
    refuse_files(complaints, 0, skip_bad=None)


def _check_masks(infos, masks, dilate, grid, factor):
    """Refuse masks that are empty or leave no context, before hours of work."""
    # All volumes of a mask have its grid.
    affine_of = {masks[info.file]: info.affine for info in infos}

    def check(file):
        mask, affine = read_mask(file), affine_of[file]
        warn_of_probabilities(file, mask)
        hole = _hole(mask, affine, dilate)
        unknown = check_on_grid(file, hole, affine, grid)
        inside = coverage(Grid(hole.shape, affine), grid) > 0.5
        masks_on_grid = np.stack([unknown, inside[..., 0]])
        touched, visible = inpainting.hole_shares(masks_on_grid, factor)
        # A known latent lies inside the volume, and outside the hole.
        if not ((touched == 0) & (visible > 0)).any():
            raise InputError(
                f"the mask {file} covers the whole image at the resolution of the "
                "latents",
                "give a smaller mask",
            )

    with warning_once("dipy_ldm"):
        check_each(check, affine_of)


def _hole(mask, affine, dilate):
    """Return the inside of a mask ``(x, y, z, 1)``, dilated."""
    return inpainting.dilated(mask[..., 0] > 0, dilate, voxel_sizes(affine))


def _write(part, origin, samples, entries):
    """Write samples, summaries and mask; return before, after and affine."""
    write, channel = process_scans.write_inpainted, part.channel
    for number, (path, values) in enumerate(zip(part.outputs, samples)):
        write(path, channel, origin, values, entries | {"Sample": number})
    maps = [(origin.hole, "uint8", {"Role": "mask"})]
    if len(samples) > 1:
        mean, deviation = channel.summarise(samples)
        write(part.outputs[-3], channel, origin, mean, entries)
        map_entries = {"Deviation": channel.deviation}
        maps.insert(0, (origin.hole_only(deviation), "float32", map_entries))
    further = part.outputs[-len(maps) :]
    process_scans.write_maps(further, channel, origin, maps, entries)
    return origin.measured, origin.with_hole(samples[0]), origin.affine
