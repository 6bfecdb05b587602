"""The workflow behind ``dipy_denoise_ldm``."""

from collections import Counter
from pathlib import Path
import re

from dipy.workflows.workflow import Workflow
import numpy as np
from tqdm import tqdm

from dipy_ldm import persistence
from dipy_ldm.data.grid import Grid
from dipy_ldm.data.nifti import DTYPES, check_headers
from dipy_ldm.data.paths import find_volumes
from dipy_ldm.data.volumes import conform_file, restore_file, restore_spread
from dipy_ldm.files import make_folder
from dipy_ldm.validation import InputError, at_least, choose
from dipy_ldm.workflows.outputs import (
    interrupted,
    output_paths,
    refuse_overwriting,
)
from dipy_ldm.workflows.quiet import quiet_start
from dipy_ldm.workflows.volumes import (
    affine_of,
    provenance,
    sidecar,
    write_with_sidecar,
)


class DenoiseLDMFlow(Workflow):
    """Reconstruct or denoise volumes with a latent diffusion model."""

    written = 0  # volumes

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "denoise_ldm"

    def when_interrupted(self):
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        return interrupted(self.written)

    def run(
        self,
        model_file,
        input_files,
        strength=0.1,
        sampler="dpm++",
        steps=20,
        eta=0.0,
        seed=0,
        repeats=1,
        channels=False,
        tile=None,
        dtype="float32",
        out_dir="",
        out_denoised="denoised",
    ):
        """Reconstruct or denoise volumes with a latent diffusion model.

        Each volume is brought to the grid of the model and encoded, its latents are
        noised to a level and denoised again, and the decoded result is brought back
        to the volume's own grid and intensities. Writes a NIfTI file each, named
        after the volume, with a JSON file that tells how it was made.

        Parameters
        ----------
        model_file : string or Path
            A model file that dipy_train_ldm wrote from volumes.
        input_files : variable string or Path
            NIfTI volumes, folders of them, wildcards, or lists of them in text, CSV
            or TSV files.
        strength : float, optional
            Level of the noise, from 0 to 1. At 0 the result is what the autoencoder
            makes of the volume; the higher, the more is made up anew.
        sampler : string, optional
            How to walk back from noise: ddpm, ddim or dpm++.
        steps : int, optional
            Calls of the network on the whole way from strength 1.
        eta : float, optional
            Share of fresh noise in each step of ddim, from 0 to 1.
        seed : int, optional
            Seed of the noise.
        repeats : int, optional
            Times that each volume is denoised, from other noise each time. The
            result is the mean; of two and more, the standard deviation is written
            too.
        channels : bool, optional
            Take the fourth axis of the files for channels.
        tile : int, optional
            Voxels along a side of the tiles in which large volumes are decoded.
            None is for as large as memory surely allows.
        dtype : string, optional
            Type of the voxels: float32, float64, or an integer type such as int16 or
            uint8.
        out_dir : string or Path, optional
            Output directory.
        out_denoised : string, optional
            What is appended to the name of a volume.
        """
        path, n_channels = _find_model(model_file)
        at_least("repeats", repeats, 1)
        choose("type of voxels", dtype, DTYPES)
        infos, bad = check_headers(find_volumes(input_files), channels, skip_bad=True)
        files = [info.file for info in infos]
        _check_channels(infos[0], n_channels)
        (end,) = output_paths(self, files[0], out_dir, out_denoised=out_denoised)
        names = _names(files, end)
        refuse_overwriting(self, _all_outputs(names, repeats))
        with quiet_start():
            from dipy_ldm import LatentDiffusion

            model = LatentDiffusion.load(path)
        grid = Grid(model.vqvae.shape_[:3], affine_of(model))
        options = {"sampler": sampler, "steps": steps, "eta": eta, "seed": seed}
        facts = provenance(
            path,
            Strength=strength,
            Repeats=repeats,
            **{name.capitalize(): value for name, value in options.items()},
        )
        options |= {"strength": strength, "tile": tile}
        for file, name in zip(tqdm(files, "denoise"), names):
            try:
                image, origin = conform_file(file, grid, channels)
            except InputError as error:
                # What only reading finds must not stop the hours that others take.
                bad[file] = str(error)
                continue
            repeated = [
                model.denoise(image[None], first=i, **options)[0]
                for i in range(repeats)
            ]
            _write(name, repeated, origin, dtype, facts)
            self.written += 1
        _report(bad, self.written)


def _find_model(model_file):
    """Return the path of a model of volumes, and their number of channels."""
    path = persistence.find(model_file)
    shape = persistence.read_document(path, "latent_diffusion")["shape"]
    if len(shape) != 4:
        raise InputError(
            f"{model_file} is a model of two-dimensional images; denoise them with "
            "LatentDiffusion.denoise, or give a model of volumes."
        )
    return path, shape[-1]


def _write(name, repeated, origin, dtype, facts):
    """Write the mean of what was made of a volume, and how far it varies."""
    make_folder(name.parent)
    facts = facts | {"Sources": [str(origin.file)]}
    mean = restore_file(np.mean(repeated, 0), origin)
    write_with_sidecar(name, mean, origin.affine, dtype, facts)
    if len(repeated) > 1:
        spread = restore_spread(np.std(repeated, 0, ddof=1), origin)
        write_with_sidecar(_spread(name), spread, origin.affine, dtype, facts)


def _names(files, end):
    """Name an output after each input."""
    names = [end.with_name(f"{_stem(file)}_{end.name}.nii.gz") for file in files]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} of the volumes would be written to {name}; denoise them one "
            "after the other, with another --out_dir each."
        )
    return names


def _stem(file):
    return re.sub(r"\.nii(\.gz)?$", "", Path(file).name, flags=re.IGNORECASE)


def _all_outputs(names, repeats):
    """List all that is written: volumes and what is beside them."""
    volumes = [*names, *(map(_spread, names) if repeats > 1 else ())]
    return [*volumes, *map(sidecar, volumes)]


def _check_channels(info, n_channels):
    if info.channels != n_channels:
        raise InputError(
            f"the model is of {n_channels} channels, and {info.file} has "
            f"{info.channels}; give files like those that it learnt from."
        )


def _report(bad, n_good):
    if bad:
        others = [f"The {n_good} other volumes are denoised."] if n_good else []
        raise InputError("\n".join([*bad.values(), *others]))


def _spread(name):
    return name.with_name(name.name.replace(".nii.gz", "_std.nii.gz"))
