"""The workflow behind ``dipy_train_ldm``."""

from contextlib import ExitStack, contextmanager, suppress
import logging

from dipy.workflows.workflow import Workflow

from dipy_ldm import _presets, _serialization
from dipy_ldm._utils.checks import InputError, check_sizes
from dipy_ldm._utils.files import claimed, make_folder, refuse_claimed
from dipy_ldm.data._cohort import split
from dipy_ldm.workflows import (
    _inputs as inputs,
    _options as options,
    _recipes as recipes,
    _workers as workers,
)
from dipy_ldm.workflows._outputs import output_paths, refuse_overwriting
from dipy_ldm.workflows._progress import Report
from dipy_ldm.workflows._quiet_start import quiet_start

logger = logging.getLogger(__name__)


class TrainLDMFlow(Workflow):
    """Train a latent diffusion model from images."""

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "train_ldm"

    def when_interrupted(self) -> str:
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        if any(path.exists() for path in getattr(self, "checkpoints", ())):
            return "interrupted; add --resume to go on from the last checkpoint."
        return "interrupted before the first checkpoint; nothing is there to resume."

    def run(
        self,
        input_files,
        suffix=None,
        filter=None,
        epochs_vqvae=None,
        epochs_ldm=None,
        steps_vqvae=None,
        steps_ldm=None,
        steps_detector=None,
        batch_size=None,
        accumulate=1,
        learning_rate=None,
        n_codes=1024,
        n_codebooks=None,
        code_dim=None,
        widths_vqvae=None,
        widths_ldm=None,
        loss=None,
        schedule="cosine",
        target="v",
        guide=False,
        conditions="",
        coarsen="",
        precision="auto",
        remat=False,
        strategy="auto",
        devices=None,
        seed=0,
        validation=0.05,
        checkpoint_steps=1000,
        resume=False,
        half=False,
        voxel_size=None,
        shape=None,
        channels=False,
        mask_files=None,
        source_files=None,
        source_labels=False,
        background=1.0,
        skip_bad=False,
        patch=None,
        flip=False,
        no_augment=False,
        cache_dir=None,
        cache_limit=None,
        out_dir="",
        out_model="ldm.safetensors",
        out_history="history.csv",
        out_picture="training.png",
    ):
        """Train a latent diffusion model from images or volumes.

        First an autoencoder learns to map the images to small latents and back,
        then a diffusion model learns to make new latents. Both end up in one model
        file, from which dipy_generate_ldm makes new images.

        Parameters
        ----------
        input_files : variable string or Path
            NIfTI volumes, folders of them, wildcards, or lists of them in text, CSV
            or TSV files; the word mnist for the packaged digits; or images: arrays
            (n, h, w) or (n, h, w, channels) in .npy or .npz files, PNG files, or
            folders of these.
        suffix : variable string, optional
            Volumes: kinds of scans to take, by the ends of their names, such as T1w.
            Needed where they have several. What is in folders derivatives or sourcedata
            is taken only if these are named.
        filter : variable string, optional
            Volumes: values that names of files must have, such as task=rest ses=01,02
            for any entity of BIDS.
        epochs_vqvae : int, optional
            Passes over the images for the autoencoder. None is for 5, or for 4000
            steps of volumes.
        epochs_ldm : int, optional
            Passes over the images for the diffusion model. None is for 10, or for
            6000 steps of volumes.
        steps_vqvae : int, optional
            Steps of the autoencoder, instead of passes over the images.
        steps_ldm : int, optional
            Steps of the diffusion model, instead of passes over the images.
        steps_detector : int, optional
            Train a detector, too, for so many steps: by parts of the images that are
            made brighter or darker it learns to tell where an image is not as the
            others are, for --lesions of dipy_denoise_ldm. For volumes 10000 is a good
            number. None is for no detector.
        batch_size : int, optional
            Images in a batch. None is for 64, or 4 volumes.
        accumulate : int, optional
            Batches whose gradients are averaged for one step of the weights: as one
            larger batch, in the memory of one.
        learning_rate : float, optional
            Highest learning rate; it warms up and falls to zero. None is for 0.002, and
            of the autoencoder of images for 0.004.
        n_codes : int, optional
            Number of codes in a codebook of the autoencoder.
        n_codebooks : int, optional
            Number of codebooks; each has codes for what those before it leave. None is
            for 1, or 4 for volumes.
        code_dim : int, optional
            Channels of the latents. None is for 3, or 8 for volumes.
        widths_vqvae : variable int, optional
            Channels of the autoencoder's levels; each halves the resolution. None
            is for 32 64.
        widths_ldm : variable int, optional
            Channels of the diffusion model's levels; each but the first halves
            the resolution. None is for 128 128, or 64 128 256 for volumes.
        loss : string, optional
            How the autoencoder compares: squared (if None), absolute, spectral or
            structural.
        schedule : string, optional
            How noise grows with time: cosine or linear.
        target : string, optional
            What the diffusion model predicts: v, noise or clean.
        guide : bool, optional
            Volumes: train the smaller network too that --guidance of
            dipy_generate_ldm needs. For images it always is.
        conditions : string, optional
            What the diffusion model shall be told of each image, so that it can be
            asked for it: names with commas between them, such as age,sex. They are
            columns beside the paths in a list, or of the scans.tsv, sessions.tsv and
            participants.tsv of the files' folders, looked up by the sub- and ses- of
            their names. Of the packaged digits there is label.
        coarsen : string, optional
            Steps to which conditions are rounded, so that they tell less of persons:
            age=5 for steps of five years, or of whatever the unit is.
        precision : string, optional
            Precision of the computations: auto (the fastest that this machine
            computes well, or that of the checkpoint), float32, bfloat16 or, on GPUs
            alone, float16.
        remat : bool, optional
            Compute parts of the networks twice instead of keeping them: less
            memory, more time.
        strategy : string, optional
            How the work is spread over devices: auto (all machines that Slurm or
            TF_CONFIG names, or all GPUs of this one), multi_worker (several
            machines), mirrored (a replica of the networks on each device of this
            machine) or none. The result is the same.
        devices : variable string, optional
            Devices of this machine to use, such as GPU:0, or their numbers. None is
            for all.
        seed : int, optional
            Seed of everything random.
        validation : float, optional
            Share of the images that is held out to validate, from 0 to below 1. All
            images of a subject, as the sub- of their names or a column participant_id
            of a list tells, are on one side.
        checkpoint_steps : int, optional
            Batches after which a checkpoint is written within a round of validation;
            there are others after rounds, as long as they take no more than a
            twentieth of the time, one at the end, and one when SIGTERM or SIGHUP comes,
            after which the exit status is 143 or 129.
        resume : bool, optional
            Go on with a training that was interrupted, given the same inputs and
            options, or begin it if there is no checkpoint.
        half : bool, optional
            Round the weights in the model file to 16 bits.
        voxel_size : variable float, optional
            Volumes: size of the voxels to work with, in mm, one number or three.
            None is for the median of the files.
        shape : variable int, optional
            Volumes: number of voxels along each axis, one number or three. None is
            for what holds all volumes.
        channels : bool, optional
            Volumes: take the fourth axis of the files for channels.
        mask_files : variable string or Path, optional
            Volumes: what matters on each, in the order of the inputs or, where the
            sub- and ses- of all names tell otherwise, by these.
        source_files : variable string or Path, optional
            Volumes: what the diffusion model shall make each of, such as another
            contrast of the same head. They are given as the inputs are, on any grid,
            and belong to the input of the same sub- and ses- in their names or, where
            names have none, in the same order.
        source_labels : bool, optional
            Sources are segmentations.
        background : float, optional
            Weight in the autoencoder's loss of what lies outside of the masks or,
            without masks, of the darkest voxels; 1 for no difference.
        skip_bad : bool, optional
            Volumes: go on without files that can't be read.
        patch : variable int, optional
            Voxels along each side of the pieces that the autoencoder learns from,
            one number or one for each axis; the whole axis where images have no more.
            None is for whole images, or 48 voxels of volumes.
        flip : bool, optional
            Mirror half of the images left to right while the autoencoder learns.
        no_augment : bool, optional
            Volumes: don't move them, nor change their intensities, nor add noise
            that the autoencoder shall learn to remove.
        cache_dir : string or Path, optional
            Volumes: where they are kept as the networks need them. None is for the
            user's cache.
        cache_limit : float, optional
            Volumes: gigabytes that all trainings' volumes may take there. Beyond, those
            that were used least recently are removed, but none that is in use. None is
            for no limit.
        out_dir : string or Path, optional
            Output directory.
        out_model : string, optional
            Name of the model file.
        out_history : string, optional
            Name of the table of figures of each round: an epoch, or several where
            they have few steps.
        out_picture : string, optional
            Name of the picture of curves, reconstructions and samples, which is
            renewed while training.
        """
        paths = output_paths(
            self,
            input_files[0],
            out_dir,
            out_model=out_model,
            out_history=out_history,
            out_picture=out_picture,
        )
        self.checkpoints = _checkpoints(paths[0])
        method = {"schedule": schedule, "target": target, "guide": guide, "seed": seed}
        if not self._is_needed(paths, resume, method):
            return
        # What takes least is checked first; volumes are read when all else is right.
        sizes = {
            "epochs_vqvae": epochs_vqvae,
            "epochs_ldm": epochs_ldm,
            "steps_vqvae": steps_vqvae,
            "steps_ldm": steps_ldm,
            "batch_size": batch_size,
            "widths_vqvae": widths_vqvae,
            "widths_ldm": widths_ldm,
            "n_codes": n_codes,
            "n_codebooks": n_codebooks,
            "code_dim": code_dim,
            "patch": options.one_or_more(patch),
        }
        counts = {
            "accumulate": accumulate,
            "checkpoint_steps": checkpoint_steps,
            "steps_detector": steps_detector,
        }
        check_sizes(**sizes, **counts)
        options.check(validation, learning_rate, seed, mask_files, background)
        cluster = workers.find(strategy)
        strategy = _join(cluster, strategy, devices, paths[0])
        planned = inputs.plan(
            input_files,
            options.names_of(conditions),
            options.steps_of(coarsen),
            suffix=suffix,
            filter=options.values_of(filter),
            voxel_size=options.one_or_more(voxel_size),
            shape=options.one_or_more(shape),
            channels=channels,
            mask_files=mask_files,
            source_files=source_files,
            source_labels=source_labels,
            skip_bad=skip_bad,
        )
        settings = _presets.resolve(planned, loss=loss, **sizes)
        inputs.rehearse(planned, validation, seed, settings.batch_size)
        strategy = _make_strategy(strategy, devices)
        how = {"learning_rate": learning_rate, "precision": precision, "remat": remat}
        recipe = recipes.make(settings, strategy, **counts, **method, **how)
        recipe.check(planned.shape, settings.patch, planned.source)
        chief = workers.is_first(cluster)
        with self._alone(paths, resume, chief):
            data = _load(planned, strategy, chief, cache_dir, cache_limit)
            train, held_out = split(data, validation, seed, settings.batch_size)
            inputs.check_conditions(train)
            self._prepare(resume, chief)
            shown = train.images[:16], data.affine, train.sources
            report = Report(paths[1], paths[2], *shown)
            model = recipe.fit(
                train,
                held_out,
                self.checkpoints,
                (report.autoencoder, report.diffusion, report.detector),
                patch=settings.patch,
                background=background,
                augment=recipes.augmentation(flip, settings, no_augment),
            )
            if chief:
                self._finish(model, report, paths[0], half)

    def _is_needed(self, paths, resume, method):
        """Say whether there is something to train; refuse what is in the way."""
        for path in paths:
            refuse_claimed(path)
        if resume and _has_ended(paths[0], method):
            return False
        self._check_outputs(paths, resume)
        return True

    def _check_outputs(self, paths, resume):
        """Refuse to overwrite what is there, but for what is to be resumed."""
        resumable = any(checkpoint.exists() for checkpoint in self.checkpoints)
        if resume and paths[0].exists():
            raise InputError(
                f"{paths[0]} is there: that training ended, and there is nothing to "
                "resume."
            )
        if resume and resumable:
            return
        refuse_overwriting(
            self,
            self.checkpoints,
            "add --resume to go on, or --force to start afresh",
        )
        refuse_overwriting(self, paths)

    @contextmanager
    def _alone(self, paths, resume, chief):
        """Claim the outputs, and look at them anew: another may just have ended."""
        with ExitStack() as stack:
            if chief:
                for path in paths:
                    stack.enter_context(_claimed(path))
                self._check_outputs(paths, resume)
            yield

    def _prepare(self, resume, chief):
        """Say where training begins, and remove what it does not go on from."""
        if resume and not any(checkpoint.exists() for checkpoint in self.checkpoints):
            logger.info("there is no checkpoint to resume from; training begins.")
        if chief and not resume:
            self._forget()

    def _finish(self, model, report, path, half):
        model.save(path, half=half)
        report.finish(model)
        self._forget()

    def _forget(self):
        for checkpoint in self.checkpoints:
            # In this order: without the last one, the one before is not asked for.
            _serialization.before(checkpoint).unlink(missing_ok=True)
            checkpoint.unlink(missing_ok=True)


def _has_ended(path, method):
    """Say whether the model is there that shall be trained; refuse one of others."""
    if not path.exists():
        return False
    document = _serialization.read_document(path, "latent_diffusion")
    for name in ("seed", "schedule", "target"):
        value, other = method[name], document["latent_diffusion"][name]
        if value != other:
            raise InputError(
                f"{path} is of another training ({name} was {other} and is {value}); "
                "name another --out_dir, or give --force and no --resume to replace it."
            )
    logger.info("%s is there: that training ended; nothing to resume.", path)
    return True


def _join(cluster, strategy, devices, path):
    """Meet the other workers, if there are any, before the volumes are read.

    The chief reads them first, and the others find what it keeps on disk.
    """
    if cluster is None:
        return strategy
    workers.keep_log(cluster, path)
    logger.info("waiting for %d workers: %s", len(cluster.addresses), cluster.addresses)
    return _make_strategy(strategy, devices)


def _make_strategy(name, devices):
    """Choose the devices, which starts TensorFlow."""
    with quiet_start():
        from dipy_ldm import _backend

        return _backend.make_strategy(name, devices)


def _load(planned, strategy, chief, cache_dir, cache_limit):
    """Read the volumes: the chief first, and the others find what it has kept.

    Some may turn out to be bad, so that there are fewer than was planned.
    """
    from dipy_ldm import _backend

    with _backend.chief_first(strategy):
        options = {"cache_dir": cache_dir, "cache_limit": cache_limit}
        data = planned.load(**options, verbose=chief)
        inputs.survey(data, chief)
    return data


@contextmanager
def _claimed(path):
    """Claim an output, in a folder that is made, and removed if it stays empty."""
    new = not path.parent.exists()
    make_folder(path.parent)
    try:
        with claimed(path):
            yield
    finally:
        if new:
            with suppress(OSError):
                path.parent.rmdir()


def _checkpoints(model_path):
    """Name the checkpoints of all stages, beside the model."""
    # The last is that of LatentDiffusion's guide.
    ends = (
        "autoencoder-checkpoint",
        "diffusion-checkpoint",
        "detector-checkpoint",
        "diffusion-checkpoint.guide",
    )
    return [model_path.with_name(f"{model_path.name}.{end}") for end in ends]
