"""The workflow behind ``dipy_denoise_ldm``."""

from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm.data.conformed import conform_file, restore_file, restore_spread
from dipy_ldm.data.nifti import DTYPES
from dipy_ldm.data.paths import find_volumes
from dipy_ldm.files import make_folder
from dipy_ldm.validation import at_least, choose
from dipy_ldm.values import from_words
from dipy_ldm.workflows import restoring
from dipy_ldm.workflows.asked import Asked
from dipy_ldm.workflows.outputs import interrupted
from dipy_ldm.workflows.seen import Partners
from dipy_ldm.workflows.volumes import provenance, write_with_sidecar


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
        source_files=None,
        strength=0.1,
        sampler="dpm++",
        steps=None,
        eta=0.0,
        seed=0,
        repeats=1,
        difference=False,
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
            Seed of the noise.
        repeats : int, optional
            Times that each volume is denoised, from other noise each time. The
            result is the mean; of two and more, the standard deviation is written
            too.
        difference : bool, optional
            Write what was taken away, too. Without conditions that is the scan minus
            the result: noise and fine detail as well as what the model would not have
            expected; small lesions do not stand out in it. With conditions it is what
            comes of the same noise without them minus the result: what they changed.
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
        path, grid, n_channels = restoring.find_model(model_file, "denoise")
        _check_options(repeats, dtype, strategy)
        asked = Asked.of(path, from_words(conditions or []), range(1))
        files = find_volumes(input_files)
        partners = Partners.of(path, files, source_files)
        inputs = restoring.find_inputs(
            self,
            files,
            lambda name: _outputs(name, repeats, difference),
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
            steps = model.default_denoising_steps(sampler, strength)
        options = {"sampler": sampler, "steps": steps, "eta": eta, "seed": seed}
        told = asked.facts(asked.numbers) | {
            name.capitalize(): value for name, value in options.items()
        }
        facts = provenance(path, Strength=strength, Repeats=repeats, **told)
        tasks = [
            restoring.Task(file, paths, facts | {"Sources": partners.names(file)})
            for file, paths in inputs.outputs.items()
        ]
        options |= {
            "strength": strength,
            "tile": tile,
            "conditions": asked.of_some(asked.numbers),
        }

        def made(image, **given):
            return [
                model.denoise(image[None], first=i, **given)[0] for i in range(repeats)
            ]

        def denoise(task):
            image, origin = conform_file(task.file, grid, channels)
            given = options | partners.given(task.file)
            repeated = made(image, **given)
            before = None
            if difference and asked.specified:
                # Of the same noise, so that all else is alike.
                before = made(image, **(given | {"conditions": None}))
            _write(task, repeated, before, origin, dtype, difference)

        restoring.work(
            self, tasks, denoise, inputs, verb="denoise", resume=resume, place=place
        )


def _check_options(repeats, dtype, strategy):
    at_least("repeats", repeats, 1)
    choose("type of voxels", dtype, DTYPES)
    choose("strategy", strategy, dict.fromkeys(("auto", "none")))


def _outputs(name, repeats, difference):
    """List all volumes that are written of one, in order."""
    further = [
        restoring.beside(name, end)
        for end, wanted in (("_std", repeats > 1), ("_difference", difference))
        if wanted
    ]
    return [name, *further]


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
