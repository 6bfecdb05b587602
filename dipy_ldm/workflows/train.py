"""The workflow behind ``dipy_train_ldm``."""

import csv
import io
import math

from dipy.workflows.workflow import Workflow
import numpy as np

from dipy_ldm.data import load_images, load_mnist
from dipy_ldm.files import replacing
from dipy_ldm.validation import InputError
from dipy_ldm.workflows.outputs import output_paths, refuse_overwriting
from dipy_ldm.workflows.quiet import quiet_start


class TrainLDMFlow(Workflow):
    """Train a latent diffusion model from images."""

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "train_ldm"

    def when_interrupted(self):
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        if any(path.exists() for path in getattr(self, "checkpoints", ())):
            return "interrupted; add --resume to go on from the last whole epoch."
        return "interrupted before the end of an epoch; nothing is there to resume."

    def run(
        self,
        input_files,
        epochs_vqvae=5,
        epochs_ldm=14,
        batch_size=64,
        learning_rate=2e-3,
        n_codes=1024,
        code_dim=4,
        widths_vqvae=(32, 64),
        widths_ldm=(128, 128),
        schedule="cosine",
        target="v",
        precision="bfloat16",
        seed=0,
        validation=0.05,
        resume=False,
        half=False,
        out_dir="",
        out_model="ldm.safetensors",
        out_history="history.csv",
        out_picture="training.png",
    ):
        """Train a latent diffusion model from images.

        First an autoencoder learns to map the images to small latents and back,
        then a diffusion model learns to make new latents. Both end up in one model
        file, from which dipy_generate_ldm makes new images.

        Parameters
        ----------
        input_files : variable string or Path
            The word mnist for the packaged digits, or images of one's own: arrays
            (n, h, w) or (n, h, w, channels) in .npy or .npz files, PNG files, or
            folders of these.
        epochs_vqvae : int, optional
            Passes over the images for the autoencoder.
        epochs_ldm : int, optional
            Passes over the images for the diffusion model.
        batch_size : int, optional
            Images in a batch.
        learning_rate : float, optional
            Highest learning rate; it warms up and falls to zero.
        n_codes : int, optional
            Number of codes of the autoencoder's codebook.
        code_dim : int, optional
            Channels of the latents.
        widths_vqvae : variable int, optional
            Channels of the autoencoder's levels; each halves the resolution.
        widths_ldm : variable int, optional
            Channels of the diffusion model's levels; each but the first halves
            the resolution.
        schedule : string, optional
            How noise grows with time: cosine or linear.
        target : string, optional
            What the diffusion model predicts: v, noise or clean.
        precision : string, optional
            Precision of the computations: float32, or bfloat16 (faster).
        seed : int, optional
            Seed of everything random.
        validation : float, optional
            Share of the images that is held out to validate, from 0 to below 1.
        resume : bool, optional
            Go on with a training that was interrupted, given the same inputs and
            options.
        half : bool, optional
            Round the weights in the model file to 16 bits.
        out_dir : string or Path, optional
            Output directory.
        out_model : string, optional
            Name of the model file.
        out_history : string, optional
            Name of the table of figures of each epoch.
        out_picture : string, optional
            Name of the picture of curves, reconstructions and samples, which is
            renewed after every epoch.
        """
        model_path, history_path, picture_path = output_paths(
            self,
            input_files[0],
            out_dir,
            out_model=out_model,
            out_history=out_history,
            out_picture=out_picture,
        )
        checkpoints = [
            model_path.with_name(f"{model_path.name}.{stage}-checkpoint")
            for stage in ("autoencoder", "diffusion")
        ]
        if resume:
            _refuse_nothing_to_resume(model_path, checkpoints)
        else:
            refuse_overwriting(
                self, checkpoints, "add --resume to go on, or --force to start afresh"
            )
            refuse_overwriting(self, (model_path, history_path, picture_path))
        images, held_out = _split(_load(input_files), validation, seed, batch_size)
        with quiet_start():
            from dipy_ldm import VQVAE, LatentDiffusion, training

        vqvae = VQVAE(
            widths=widths_vqvae, n_codes=n_codes, code_dim=code_dim, seed=seed
        )
        model = LatentDiffusion(
            vqvae, widths=widths_ldm, schedule=schedule, target=target, seed=seed
        )
        report = _Report(history_path, picture_path, images[:16])
        stages = (
            (vqvae, epochs_vqvae, checkpoints[0], report.autoencoder),
            (model, epochs_ldm, checkpoints[1], report.diffusion),
        )
        # Both stages, before the first has taken hours.
        for estimator, epochs, _, _ in stages:
            estimator.check_hyperparameters()
            training.check_options(
                len(images), epochs, batch_size, learning_rate, precision
            )
        if not resume:
            _forget(checkpoints)
        model_path.parent.mkdir(parents=True, exist_ok=True)
        self.checkpoints = checkpoints
        for estimator, epochs, checkpoint, tell in stages:
            estimator.fit(
                images,
                validation_data=held_out,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                precision=precision,
                checkpoint=checkpoint,
                callbacks=[tell],
            )
        model.save(model_path, half=half)
        _forget(checkpoints)


def _forget(checkpoints):
    for checkpoint in checkpoints:
        checkpoint.unlink(missing_ok=True)


def _refuse_nothing_to_resume(model_path, checkpoints):
    if model_path.exists():
        raise InputError(
            f"{model_path} is there: that training ended, and there is nothing to "
            "resume."
        )
    if not any(checkpoint.exists() for checkpoint in checkpoints):
        raise InputError(
            f"there is no checkpoint {checkpoints[0]} to resume from; start without "
            "--resume."
        )


def _load(input_files):
    """Load the packaged digits, or images of one's own."""
    return (
        load_mnist("train")[0] if input_files == ["mnist"] else load_images(input_files)
    )


def _split(images, share, seed, batch_size):
    """Hold a share of the images out, drawn at random; at least one if any."""
    if not 0 <= share < 1:
        raise InputError(f"validation must lie from 0 to below 1, not {share}.")
    count = math.ceil(share * len(images))
    if len(images) - count < batch_size:
        raise InputError(
            f"{len(images)} images, {count} of them held out to validate, are fewer "
            f"than a batch of {batch_size}; give more images or a smaller --batch_size."
        )
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = images[order[:count]] if count else None
    return images[order[count:]], held_out


class _Report:
    """Write the figures and the picture after every epoch."""

    def __init__(self, history_path, picture_path, images):
        self.history_path = history_path
        self.picture_path = picture_path
        self.images = images
        self.histories = {}
        self.pairs = None

    def autoencoder(self, vqvae):
        """Report on the first stage."""
        self.pairs = self.images, vqvae.predict(self.images)
        self._write("autoencoder", vqvae.history_)

    def diffusion(self, model):
        """Report on the second stage."""
        if self.pairs is None:
            self.autoencoder(model.vqvae)
        self._write("diffusion", model.history_, model.predict(36, steps=10))

    def _write(self, stage, history, samples=None):
        from dipy_ldm import plots

        self.histories[stage] = history
        _write_table(self.history_path, self.histories)
        plots.save_training(
            self.picture_path, self.histories, pairs=self.pairs, samples=samples
        )


def _write_table(path, histories):
    """Write one line for each epoch of each stage."""
    names = list(dict.fromkeys(name for h in histories.values() for name in h))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["stage", "epoch", *names])
    for stage, history in histories.items():
        for epoch, _ in enumerate(history["loss"]):
            values = [history[n][epoch] if n in history else "" for n in names]
            writer.writerow([stage, epoch + 1, *values])
    with replacing(path) as partial:
        partial.write_text(table.getvalue())
