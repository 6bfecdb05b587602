"""The workflow behind ``dipy_check_ldm``."""

from functools import partial

from dipy.workflows.workflow import Workflow

from dipy_ldm._utils.checks import InputError, at_least, check_sizes
from dipy_ldm.workflows import _options as options, cli
from dipy_ldm.workflows._outputs import json_and_page
from dipy_ldm.workflows._quiet_start import quiet_start


class CheckLDMFlow(Workflow):
    """Look at images and machine before a long training."""

    verdict = ""  # what is to be said in the end, if something must be mended

    @classmethod
    def get_short_name(cls):
        """Return the prefix of the workflow's options in combined workflows."""
        return "check_ldm"

    def when_interrupted(self) -> str:
        """Say what Ctrl-C left behind.

        Returns
        -------
        str
            One sentence.
        """
        return "interrupted; no page was written."

    def run(
        self,
        input_files,
        suffix=None,
        filter=None,
        epochs_vqvae=None,
        epochs_ldm=None,
        steps_vqvae=None,
        steps_ldm=None,
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
        voxel_size=None,
        shape=None,
        channels=False,
        mask_files=None,
        patch=None,
        flip=False,
        no_augment=False,
        cache_dir=None,
        cache_limit=None,
        seconds=60.0,
        out_dir="",
        out_check="check",
    ):
        """Look at images and machine before a long training.

        Takes the options of dipy_train_ldm and looks at all that can be known before:
        every file and header, volumes that lie otherwise than most or are there twice,
        memory, time, precision, and, in some steps of training, whether anything is
        learnt. Writes a page that explains it (.html) and the same for programs
        (.json); the exit status is 1 if something must be mended.

        Parameters
        ----------
        input_files : variable string or Path
            What dipy_train_ldm shall be given: NIfTI volumes, folders, wildcards or
            lists of them; the word mnist; or images in .npy, .npz or PNG files.
        suffix : variable string, optional
            Volumes: kinds of scans to take, by the ends of their names, such as T1w.
            Needed where they have several. What is in folders derivatives or sourcedata
            is taken only if these are named.
        filter : variable string, optional
            Volumes: values that names of files must have, such as task=rest ses=01,02
            for any entity of BIDS.
        epochs_vqvae : int, optional
            Passes over the images for the autoencoder, as of dipy_train_ldm.
        epochs_ldm : int, optional
            Passes over the images for the diffusion model.
        steps_vqvae : int, optional
            Steps of the autoencoder, instead of passes over the images.
        steps_ldm : int, optional
            Steps of the diffusion model, instead of passes over the images.
        batch_size : int, optional
            Images in a batch. None is for 64, or 4 volumes.
        accumulate : int, optional
            Batches whose gradients are averaged for one step of the weights.
        learning_rate : float, optional
            Highest learning rate. None is for the usual ones.
        n_codes : int, optional
            Number of codes in a codebook of the autoencoder.
        n_codebooks : int, optional
            Number of codebooks. None is for 1, or 4 for volumes.
        code_dim : int, optional
            Channels of the latents. None is for 3, or 8 for volumes.
        widths_vqvae : variable int, optional
            Channels of the autoencoder's levels. None is for 32 64.
        widths_ldm : variable int, optional
            Channels of the diffusion model's levels. None is for 128 128, or 64 128 256
            for volumes.
        loss : string, optional
            How the autoencoder compares: squared (if None), absolute, spectral or
            structural.
        schedule : string, optional
            How noise grows with time: cosine or linear.
        target : string, optional
            What the diffusion model predicts: v, noise or clean.
        guide : bool, optional
            Volumes: a guide shall be trained, too.
        conditions : string, optional
            What the diffusion model shall be told of each image: names with commas
            between them, such as age,sex.
        coarsen : string, optional
            Steps to which conditions are rounded, such as age=5.
        precision : string, optional
            Precision of the computations: auto, float32, bfloat16 or, on GPUs alone,
            float16.
        remat : bool, optional
            Compute parts of the networks twice instead of keeping them.
        strategy : string, optional
            How the work is spread over devices of this machine: auto (all GPUs),
            mirrored or none.
        devices : variable string, optional
            Devices of this machine to use, such as GPU:0, or their numbers. None is
            for all.
        seed : int, optional
            Seed of everything random.
        validation : float, optional
            Share of the images that is held out to validate, from 0 to below 1.
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
        patch : variable int, optional
            Voxels along each side of the pieces that the autoencoder learns from.
            None is for whole images, or 48 voxels of volumes.
        flip : bool, optional
            Half of the images shall be mirrored.
        no_augment : bool, optional
            Volumes shall not be changed before they are seen.
        cache_dir : string or Path, optional
            Volumes: where they are kept as the networks need them; the training finds
            them there. None is for the user's cache.
        cache_limit : float, optional
            Volumes: gigabytes that all trainings' volumes may take there.
        seconds : float, optional
            Time for each of two trials, about: some steps of both stages, and eight
            images learnt by heart. Compiling the networks comes on top. 0 is for no
            trial.
        out_dir : string or Path, optional
            Output directory.
        out_check : string, optional
            Stem of the names of both files.
        """
        outputs = json_and_page(self, input_files[0], out_dir, out_check=out_check)
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
        check_sizes(**sizes, accumulate=accumulate)
        at_least("seconds", seconds, 0)
        if strategy == "multi_worker":
            raise InputError(
                "the check is for one machine; leave out `strategy`, or give mirrored "
                "or none."
            )
        options.check(validation, learning_rate, seed)
        method = {"schedule": schedule, "target": target, "guide": guide, "seed": seed}
        method |= {"learning_rate": learning_rate, "precision": precision}
        method |= {"remat": remat, "accumulate": accumulate, "checkpoint_steps": 1000}
        with quiet_start():
            from dipy_ldm.workflows import _checks as checks

            place = checks.start(strategy, devices, loss, **method)
        looked = checks.look(
            input_files,
            options.names_of(conditions),
            options.steps_of(coarsen),
            suffix=suffix,
            filter=options.values_of(filter),
            voxel_size=options.one_or_more(voxel_size),
            shape=options.one_or_more(shape),
            channels=channels,
            mask_files=mask_files,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
        )
        tried = checks.try_out(
            looked.material,
            sizes | {"loss": loss},
            method,
            strategy=place,
            validation=validation,
            changes=(flip, no_augment),
            seconds=seconds,
        )
        own_options = cli.options_of(self)
        sections = {
            title: [
                f.reworded(partial(cli.as_options, options=own_options))
                for f in findings
            ]
            for title, findings in (looked.findings | tried).items()
        }
        self.verdict = checks.write(outputs, input_files, sections)
