"""The workflow behind ``dipy_denoise_ldm``."""

from collections import Counter
from itertools import chain
import json
import logging
import os
from pathlib import Path
import re
from typing import NamedTuple

from dipy.workflows.workflow import Workflow
import numpy as np
from tqdm import tqdm

from dipy_ldm import persistence
from dipy_ldm.data.conformed import conform_file, restore_file, restore_spread
from dipy_ldm.data.grid import Grid
from dipy_ldm.data.headers import check_headers, is_whole
from dipy_ldm.data.nifti import DTYPES
from dipy_ldm.data.paths import find_volumes
from dipy_ldm.files import make_folder
from dipy_ldm.validation import InputError, at_least, choose
from dipy_ldm.values import from_words
from dipy_ldm.workflows import workers
from dipy_ldm.workflows.asked import Asked
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

logger = logging.getLogger(__name__)

_CURE = "add --resume to go on, or --force to overwrite"


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
        conditions=None,
        strength=0.1,
        sampler="dpm++",
        steps=None,
        eta=0.0,
        seed=0,
        repeats=1,
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
        conditions : variable string, optional
            What the volumes shall look like, as name=value: group=control. What is left
            out is not specified.
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
            Seed of the noise.
        repeats : int, optional
            Times that each volume is denoised, from other noise each time. The
            result is the mean; of two and more, the standard deviation is written
            too.
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
            What is appended to the name of a volume.
        """
        path, n_channels = _find_model(model_file)
        _check_options(repeats, dtype, strategy)
        asked = Asked.of(path, from_words(conditions or []), range(1))
        files = find_volumes(input_files)
        (end,) = output_paths(self, files[0], out_dir, out_denoised=out_denoised)
        names = _names(files, end)
        cluster = workers.find(strategy)
        files = list(workers.part_of(cluster, _without_outputs(names, repeats)))
        if not files:
            return  # there are more workers than volumes
        infos, bad = check_headers(files, channels, skip_bad=True)
        _check_channels(infos[0], n_channels)
        names = {info.file: names[info.file] for info in infos}
        if not resume:
            outputs = (_outputs(name, repeats) for name in names.values())
            refuse_overwriting(self, chain(*outputs), _CURE)
        model, place = _load(path, devices, tile)
        usual = model.default_denoising_steps(sampler, strength)
        options = {
            "sampler": sampler,
            "steps": usual if steps is None else steps,
            "eta": eta,
            "seed": seed,
        }
        told = asked.facts(asked.numbers) | {
            name.capitalize(): value for name, value in options.items()
        }
        facts = provenance(path, Strength=strength, Repeats=repeats, **told)
        tasks = [
            _Task(file, name, facts | {"Sources": [str(file)]})
            for file, name in names.items()
        ]
        left = self._left(tasks, repeats) if resume else tasks
        workers.keep_log(cluster, end)
        options |= {
            "strength": strength,
            "tile": tile,
            "conditions": asked.of_some(asked.numbers),
        }
        from dipy_ldm.distribution import spread

        bar = tqdm(left, "denoise", disable=not workers.is_first(cluster))
        with spread(place):
            bad |= self._denoise_all(model, bar, repeats, channels, dtype, options)
        _report(bad, self.written + len(tasks) - len(left))

    def _denoise_all(self, model, tasks, repeats, channels, dtype, options):
        """Denoise and write volume after volume; return a sentence on each bad one."""
        grid = Grid(model.vqvae.shape_[:3], affine_of(model))
        bad = {}
        for task in tasks:
            try:
                image, origin = conform_file(task.file, grid, channels)
            except InputError as error:
                # What only reading finds must not stop the hours that others take.
                bad[task.file] = str(error)
                continue
            repeated = [
                model.denoise(image[None], first=i, **options)[0]
                for i in range(repeats)
            ]
            _write(task, repeated, origin, dtype)
            self.written += 1
        return bad

    def _left(self, tasks, repeats):
        """Return what an interrupted run has not done."""
        left = [task for task in tasks if not self._is_done(task, repeats)]
        done = len(tasks) - len(left)
        logger.info("%d of %d volumes were denoised before.", done, len(tasks))
        return left

    def _is_done(self, task, repeats):
        """Say whether all outputs are there and whole; refuse those of others."""
        outputs = _outputs(task.name, repeats)
        try:
            # What is written last.
            found = json.loads(outputs[-1].read_text("utf-8"))
        except (OSError, ValueError):
            return False
        other = _difference(found, task.facts)
        if other and not self._force_overwrite:
            raise InputError(
                f"{task.name} is of another run ({other}); resume with the same "
                "options, name another --out_dir, or add --force to overwrite."
            )
        return not other and all(map(is_whole, outputs[::2]))


class _Task(NamedTuple):
    """A volume, what is made of it, and what shall be said of that."""

    file: Path
    name: Path
    facts: dict


def _check_options(repeats, dtype, strategy):
    at_least("repeats", repeats, 1)
    choose("type of voxels", dtype, DTYPES)
    choose("strategy", strategy, dict.fromkeys(("auto", "none")))


def _load(path, devices, tile):
    """Load the model; return the device as well, as a strategy or None."""
    with quiet_start():
        from dipy_ldm import LatentDiffusion, distribution

        # Each worker uses its own: they don't meet.
        place = distribution.make_strategy("none", devices, alone=True)
        model = LatentDiffusion.load(path)
        model.check_memory(1, tile, place)
        return model, place


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


def _difference(found, facts):
    """Say in what two runs differ, if that makes a difference."""
    facts = json.loads(json.dumps(facts))  # lists, as in the file
    for name in sorted(facts.keys() - {"GeneratedBy", "Model"}):
        if found.get(name) != facts[name]:
            return f"{name} was {found.get(name)} and is {facts[name]}"
    return ""


def _write(task, repeated, origin, dtype):
    """Write the mean of what was made of a volume, and how far it varies."""
    make_folder(task.name.parent)
    mean = restore_file(np.mean(repeated, 0), origin)
    write_with_sidecar(task.name, mean, origin.affine, dtype, task.facts)
    if len(repeated) > 1:
        spread = restore_spread(np.std(repeated, 0, ddof=1), origin)
        write_with_sidecar(_spread(task.name), spread, origin.affine, dtype, task.facts)


def _names(files, end):
    """Name an output after each input; where names are equal, folders are kept."""
    places = [Path(os.path.abspath(file)).parent for file in files]
    names = [Path(f"{_stem(file)}_{end.name}.nii.gz") for file in files]
    if len(set(names)) < len(names):
        common = os.path.commonpath(places)
        names = [place.relative_to(common) / n for place, n in zip(places, names)]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{count} of the volumes would be written to {end.parent / name}; denoise "
            "them one after the other, with another --out_dir each."
        )
    return {file: end.parent / name for file, name in zip(files, names)}


def _without_outputs(names, repeats):
    """List the inputs, without results that lie among them since an earlier run."""
    results = {os.path.abspath(p) for n in names.values() for p in _outputs(n, repeats)}
    return [file for file in names if os.path.abspath(file) not in results]


def _stem(file):
    return re.sub(r"\.nii(\.gz)?$", "", Path(file).name, flags=re.IGNORECASE)


def _outputs(name, repeats):
    """List all that is written of a volume, in order."""
    volumes = [name, _spread(name)] if repeats > 1 else [name]
    return [path for volume in volumes for path in (volume, sidecar(volume))]


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
