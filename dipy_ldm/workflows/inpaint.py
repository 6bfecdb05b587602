"""The workflow behind ``dipy_inpaint_ldm``."""

from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm._utils.checks import InputError, at_least, choose, whole
from dipy_ldm._utils.files import make_folder
from dipy_ldm._utils.values import parse_conditions
from dipy_ldm.data._grid import conform, same_grid
from dipy_ldm.data._nifti import check_headers, read_mask, read_volume
from dipy_ldm.data._paths import choose_files, expand, find_volumes
from dipy_ldm.data._plan import pair_masks
from dipy_ldm.diffusion import masks as holes
from dipy_ldm.workflows import _native_space as healing, _restoring as restoring
from dipy_ldm.workflows._conditions import RequestedConditions
from dipy_ldm.workflows._options import values_of
from dipy_ldm.workflows._outputs import interrupted
from dipy_ldm.workflows._provenance import provenance, write_with_sidecar
from dipy_ldm.workflows._sources import SourcePairs


class InpaintLDMFlow(Workflow):
    """Make parts of volumes anew with a latent diffusion model."""

    written = 0  # volumes

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "inpaint_ldm"

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
        mask_files=None,
        conditions=None,
        source_files=None,
        dilate=0.0,
        n_samples=1,
        sampler="dpm++",
        steps=10,
        resamplings=5,
        eta=0.0,
        seed=0,
        channels=False,
        tile=None,
        strategy="auto",
        devices=None,
        resume=False,
        out_dir="",
        out_inpainted="inpainted",
    ):
        """Make parts of volumes anew with a latent diffusion model.

        What lies in the mask of a volume, a lesion for instance, is filled with what
        the model expects there from all that is around. All other voxels stay what
        they are, to the bit, in the volume's own space and type. Writes a NIfTI file
        each, named after the volume, with a JSON file that tells how it was made, and
        the mask that was used. Of several samples each is written, and their mean and
        standard deviation. Where volumes of several folders have one name, their
        folders are kept.

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
        mask_files : variable string or Path, optional
            Masks, given as the volumes are: one for all of them, or one for each, in
            their order or, where the sub- and ses- of all names tell otherwise, by
            these. What is not 0 is made anew. A mask has the grid of its volume.
        conditions : variable string, optional
            What the volumes shall look like, as name=value: group=control. What is left
            out is not specified.
        source_files : variable string or Path, optional
            What the volumes were made of, where the model has learnt from such: each
            belongs to the volume of the same sub- and ses- in its name or, where names
            have none, in the same order.
        dilate : float, optional
            How much farther than the mask, in mm, the volume is made anew.
        n_samples : int, optional
            How many ways each volume is filled in.
        sampler : string, optional
            How to walk back from noise: ddpm, ddim or dpm++.
        steps : int, optional
            Levels of noise on the way.
        resamplings : int, optional
            How often each step is taken, with the noise put back between.
        eta : float, optional
            Share of fresh noise in each step of ddim, from 0 to 1.
        seed : int, optional
            Seed of the noise, which depends on the name of each volume, too.
        channels : bool, optional
            Take the fourth axis of the files for channels.
        tile : int, optional
            Voxels along a side of the tiles in which large volumes are encoded and
            decoded.
            None is for as large as memory surely allows.
        strategy : string, optional
            How the volumes are shared out: auto (among all workers that Slurm or
            TF_CONFIG names, each of which does its part) or none.
        devices : variable string, optional
            Device of this machine to use, such as GPU:1 or CPU:0. None is for the first
            GPU or, where there is none, for the processor.
        resume : bool, optional
            Go on after an interruption: what is there and whole is left as it is.
        out_dir : string or Path, optional
            Output directory.
        out_inpainted : string, optional
            What is appended to the name of a volume or, where that is a name of BIDS,
            its desc-.
        """
        path, grid, n_channels = restoring.find_model(model_file, "inpaint")
        _check_options(dilate, n_samples, strategy)
        requested = RequestedConditions.of(
            path, parse_conditions(conditions or []), range(1)
        )
        files = find_volumes(input_files)
        files = choose_files(files, suffix, values_of(filter))
        masks = _pair(files, mask_files)
        partners = SourcePairs.of(path, files, source_files)
        inputs = restoring.find_inputs(
            self,
            files,
            lambda name: _outputs(name, n_samples),
            verb="inpaint",
            channels=channels,
            n_channels=n_channels,
            strategy=strategy,
            resume=resume,
            out_dir=out_dir,
            out_inpainted=out_inpainted,
        )
        if inputs is None:
            return
        _check_grids(inputs.infos, masks)
        model, place = restoring.load(path, devices, tile)
        _check_masks(inputs.infos, masks, dilate, grid, model.vqvae.factor)
        options = {
            "sampler": sampler,
            "steps": steps,
            "resamplings": resamplings,
            "eta": eta,
            "seed": seed,
        }
        sampling_facts = requested.facts(requested.numbers) | {
            name.capitalize(): value for name, value in options.items()
        }
        options |= {"tile": tile, "conditions": requested.subset(requested.numbers)}
        facts = provenance(path, Samples=n_samples, DilatedBy=dilate, **sampling_facts)
        noise = restoring.number_noise(files)
        tasks = [
            restoring.Task(
                file,
                paths,
                facts
                | {
                    "Noise": noise[file],
                    "Sources": partners.names(file, masks[file]),
                },
            )
            for file, paths in inputs.outputs.items()
        ]

        def inpaint(task):
            scan = _read(task.file, masks[task.file], dilate, channels)
            sample_options = options | partners.arguments(task.file)
            sample_options |= {"first": task.facts["Noise"]}
            samples = healing.fill_in(model, scan, grid, n_samples, sample_options)
            _write(task, scan, samples)

        restoring.work(
            self, tasks, inpaint, inputs, verb="inpaint", resume=resume, place=place
        )


def _check_options(dilate, n_samples, strategy):
    at_least("dilate", dilate, 0)
    whole("n_samples", n_samples, 1)
    choose("strategy", strategy, dict.fromkeys(("auto", "none")))


def _pair(files, mask_files):
    """Find the mask of each volume."""
    if not mask_files:
        raise InputError(
            "there is no mask of what shall be made anew; name one with `mask_files`."
        )
    masks = expand(mask_files)
    if len(masks) == 1:
        masks *= len(files)
    return pair_masks(files, masks)


def _check_grids(infos, masks):
    """Refuse masks of another grid than their volumes'; only headers are read."""
    mask_of_volume = {info.file: masks[info.file] for info in infos}
    mask_infos, _ = check_headers(list(dict.fromkeys(mask_of_volume.values())))
    mask_of = {mask.file: mask for mask in mask_infos}
    for info in infos:
        mask = mask_of[mask_of_volume[info.file]]
        if not same_grid(info.shape, info.affine, mask.shape, mask.affine):
            raise InputError(
                f"the mask {mask.file} has another grid (shape or affine) than "
                f"{info.file}; bring it to that of its volume."
            )


def _check_masks(infos, masks, dilate, grid, factor):
    """Look at all masks before the hours that filling volumes may take."""
    # Those of one mask have one grid.
    affine_of = {masks[info.file]: info.affine for info in infos}
    for file, affine in affine_of.items():
        hole = _read_hole(file, affine, dilate)
        on_grid = healing.on_grid(hole, affine, grid)
        if not on_grid.any():
            raise InputError(
                f"the mask {file} has nothing on the grid of the model, which has the "
                f"shape {grid.shape} and begins at "
                f"{np.round(grid.affine[:3, 3], 1).tolist()} mm; align it and its "
                "volume with those that the model learnt from."
            )
        if hole.all() or not _leaves_something(hole, on_grid, affine, grid, factor):
            raise InputError(
                f"the mask {file} covers all that the model sees, as coarsely as its "
                "latents are, and leaves nothing to go by; give a smaller one."
            )


def _leaves_something(hole, on_grid, affine, grid, factor):
    """Say whether a latent is known: the volume reaches there, the hole does not."""
    reached = conform(np.ones((*hole.shape, 1), "float32"), affine, grid)[..., 0] > 0.5
    touched, visible = holes.hole_shares(np.stack([on_grid, reached]), factor)
    return bool(((touched == 0) & (visible > 0)).any())


def _read_hole(file, affine, dilate):
    """Read where a volume is made anew."""
    hole = read_mask(file)[..., 0] > 0
    return holes.dilated(hole, dilate, np.linalg.norm(affine[:3, :3], axis=0))


def _read(file, mask_file, dilate, channels):
    data, affine = read_volume(file, channels)
    return healing.Scan(file, data, affine, _read_hole(mask_file, affine, dilate))


def _outputs(name, n_samples):
    """List all volumes that are written of one, in order."""
    mask = restoring.beside(name, "_mask")
    if n_samples == 1:
        return [name, mask]
    samples = [restoring.beside(name, f"-{i:04d}") for i in range(n_samples)]
    return [
        *samples,
        restoring.beside(name, "_mean"),
        restoring.beside(name, "_std"),
        mask,
    ]


def _write(task, scan, samples):
    """Write samples, their mean and spread, and the mask."""
    *volumes, mask = task.outputs
    make_folder(mask.parent)
    n_samples = len(samples)
    for number, (path, values) in enumerate(zip(volumes, samples)):
        healing.write(path, scan, values, task.facts | {"Sample": number})
    if n_samples > 1:
        mean, std = volumes[n_samples:]
        healing.write(mean, scan, samples.mean(0), task.facts)
        spread = np.zeros_like(scan.data)
        spread[scan.hole] = samples.std(0, ddof=1, dtype=float)
        write_with_sidecar(std, spread, scan.affine, "float32", task.facts)
    write_with_sidecar(mask, scan.hole, scan.affine, "uint8", task.facts)
