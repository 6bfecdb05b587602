"""The workflow behind ``dipy_generate_ldm``."""

from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm import persistence
from dipy_ldm.files import replacing
from dipy_ldm.workflows.outputs import output_paths, refuse_overwriting
from dipy_ldm.workflows.quiet import quiet_start


class GenerateLDMFlow(Workflow):
    """Generate images with a latent diffusion model."""

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "generate_ldm"

    def when_interrupted(self):
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        return "interrupted; nothing was written."

    def run(
        self,
        model_file,
        n_samples=64,
        sampler="dpm++",
        steps=20,
        eta=0.0,
        seed=0,
        first_sample=0,
        batch_size=256,
        out_dir="",
        out_samples="samples",
    ):
        """Generate images with a latent diffusion model.

        Writes the images as an array (.npz) and as a picture (.png). A sample
        depends on the seed and on its number alone.

        Parameters
        ----------
        model_file : string or Path
            A model file that dipy_train_ldm wrote, or the word mnist for the
            packaged model of handwritten digits.
        n_samples : int, optional
            Number of images.
        sampler : string, optional
            How to walk back from noise: ddpm, ddim or dpm++.
        steps : int, optional
            Calls of the network for each image.
        eta : float, optional
            Share of fresh noise in each step of ddim, from 0 to 1.
        seed : int, optional
            Seed of the noise.
        first_sample : int, optional
            Number of the first image; with n_samples 1, that image alone.
        batch_size : int, optional
            Images that are generated at once.
        out_dir : string or Path, optional
            Output directory.
        out_samples : string, optional
            Stem of the names of the array and the picture.
        """
        (stem,) = output_paths(self, model_file, out_dir, out_samples=out_samples)
        # Not with_suffix: a stem may have dots of its own.
        array_path, picture_path = (
            stem.with_name(stem.name + suffix) for suffix in (".npz", ".png")
        )
        refuse_overwriting(self, (array_path, picture_path))
        # Wrong paths are answered before the seconds that Keras takes.
        persistence.read_document(persistence.find(model_file))
        with quiet_start():
            from dipy_ldm import LatentDiffusion, plots

        images = LatentDiffusion.load(model_file).predict(
            n_samples,
            sampler=sampler,
            steps=steps,
            eta=eta,
            seed=seed,
            first=first_sample,
            batch_size=batch_size,
            verbose=True,
        )
        stem.parent.mkdir(parents=True, exist_ok=True)
        numbers = np.arange(first_sample, first_sample + n_samples)
        with replacing(array_path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, images=images, sample=numbers, seed=seed)
        plots.save_montage(picture_path, images[:100])
