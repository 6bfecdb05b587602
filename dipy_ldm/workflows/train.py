"""The workflow behind ``dipy_train_ldm`` and ``dipy_check_ldm``."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
import hashlib
import json
import logging
import os

from dipy_ldm import _presets, _serialization
from dipy_ldm._presets import Preset
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.files import refuse_claimed
from dipy_ldm.data._cohort import split
from dipy_ldm.data._image_checks import survey
from dipy_ldm.data.channels import require_intensity_channels
from dipy_ldm.workflows import (
    _config as config,
    _inputs as inputs,
    _launch as launch,
    _training as training,
)
from dipy_ldm.workflows._option_table import TrainOptions
from dipy_ldm.workflows._options import parse_names, takes_options
from dipy_ldm.workflows._outputs import (
    LDMFlow,
    claimed_output,
    json_and_page,
    output_paths,
    refuse_overwriting,
)

logger = logging.getLogger(__name__)


class TrainLDMFlow(LDMFlow):
    """Train a latent diffusion model on images."""

    example = "bids/ --suffix T1w --voxel_size 2 --init volumes --out_dir ldm"
    verdict = ""  # a sentence of a check on what must be fixed, if anything
    checkpoints: tuple = ()
    is_check = False

    def when_interrupted(self) -> str:
        """Return a sentence on what is left after Ctrl-C."""
        if self.is_check:
            return "interrupted; no page was written."
        if self._is_resumable():
            return "interrupted; add --resume to go on from the last checkpoint."
        return "interrupted before the first checkpoint; there is nothing to resume."

    @takes_options
    def run(self, options: TrainOptions) -> None:
        """Train a latent diffusion model on images or volumes.

        First an autoencoder learns to encode the images as small latents and to decode
        them, then a diffusion model learns to generate latents. Both are written to
        one model file, from which dipy_generate_ldm generates images. Also writes
        history.csv, the losses and metrics of each validation round, and training.png,
        with curves, reconstructions and samples, which is updated during the training.

        With --check, or as dipy_check_ldm, nothing is trained. Instead, all files and
        headers, duplicates and orientations of volumes, memory, time and precision are
        checked and, in a few training steps, whether the model learns. Writes a page
        that explains the results (check.html), and the results for programs
        (check.json). The exit status is 1 if something must be fixed. Preprocessed
        volumes are cached for the training.
        """
        if options.check:
            self._check(options)
        else:
            self._train(options)

    def _check(self, options):
        """Check inputs, options and machine, and write a page of the results."""
        self.is_check = True
        first = options.input_files[0]
        outputs = json_and_page(self, first, options.out_dir, out_check="check")
        if options.strategy == "multi_worker":
            raise InputError(
                "the check is for one machine",
                "leave out `strategy`, or give mirrored or none",
            )
        strategy = _make_strategy(options.strategy, options.devices, alone=True)
        with launch.quiet_start():
            from dipy_ldm.workflows import _check_command as checks

        self.verdict = checks.check(options, strategy, outputs)
        self.outputs = outputs
        config.write_config(self, outputs[0], options)

    def _train(self, options):
        """Train all stages that have not ended."""
        paths = output_paths(
            self,
            options.input_files[0],
            options.out_dir,
            out_model=options.out_model,
            out_history="history.csv",
            out_picture="training.png",
        )
        self.checkpoints = _checkpoints(paths[0])
        if not self._is_needed(paths, options):
            return
        # The fastest checks come first; volumes are read last.
        sizes = options.sizes()
        cluster = launch.find_workers(options.strategy)
        strategy = _wait_for_workers(cluster, options, paths[0])
        loggers = training.tensorboard_callbacks(options.tensorboard)
        planned = inputs.plan_training(options)
        if options.steps_detector:
            require_intensity_channels(planned.cohort.channels)
        preset = _presets.resolve(planned.cohort, **sizes)
        split_options = options.validation, options.seed, preset.batch_size
        inputs.check_split(planned, *split_options)
        strategy = _make_strategy(strategy, options.devices)
        recipe = training.prepare(preset, strategy, options)
        recipe.check(planned.cohort, planned.shape, planned.source)
        chief = launch.is_chief(cluster)
        with self._claim_outputs(paths, options.resume, chief):
            data = _load(planned, strategy, chief, options)
            train, held_out = split(data, *split_options)
            inputs.check_conditions(train)
            self._remove_earlier(paths[0], options, chief)
            report = training.Report(paths[1], paths[2], train, bool(recipe.of_vqvae))
            used = options.sizes_used(preset)
            if chief:
                config.write_config(self, paths[0], options, **used)
            model = recipe.fit(train, held_out, self.checkpoints, report, loggers)
            if chief:
                self._write(model, report, paths, replace(options, **used))

    def _write(self, model, report, paths, options):
        """Write a model and its figures, and remove the checkpoints."""
        document = model.to_document() | {"settings": _settings(options)}
        kind, tensors = "latent_diffusion", model.to_tensors()
        _serialization.save(paths[0], kind, tensors, document)
        report.finish(model)
        self._remove_checkpoints()
        self.outputs = paths

    def _is_needed(self, paths, options):
        """Return whether to train; refuse files that would be overwritten."""
        for path in paths:
            refuse_claimed(path)
        if options.resume and self._is_replacing(paths[0]):
            raise InputError(
                f"{paths[0]} is older than the checkpoint of a training that would "
                "have replaced it",
                "move it away to resume, or give --force and no --resume to start "
                "afresh",
            )
        if options.resume and _has_ended(paths[0], options):
            self._remove_checkpoints()  # if it was stopped before it could
            return False
        self._check_outputs(paths, options.resume)
        return True

    def _is_replacing(self, model):
        """Return whether a training that would replace a model was interrupted."""
        written = [c.stat().st_mtime for c in self.checkpoints if c.exists()]
        return model.exists() and max(written, default=0) > model.stat().st_mtime

    def _check_outputs(self, paths, resume):
        """Refuse to overwrite outputs, except those of a training that is resumed."""
        if resume and paths[0].exists():
            raise InputError(
                f"{paths[0]} exists: that training has ended, and there is nothing to "
                "resume"
            )
        if resume and self._is_resumable():
            return
        cure = "add --resume to go on, or --force to start afresh"
        refuse_overwriting(self, self.checkpoints, cure)
        refuse_overwriting(self, paths)

    def _is_resumable(self):
        return any(checkpoint.exists() for checkpoint in self.checkpoints)

    @contextmanager
    def _claim_outputs(self, paths, resume, chief):
        """Claim the outputs, and check them again: another run may have just ended."""
        with ExitStack() as stack:
            if chief:
                for path in paths:
                    stack.enter_context(claimed_output(path))
                self._check_outputs(paths, resume)
            yield

    def _remove_earlier(self, path, options, chief):
        """Remove files of earlier trainings, unless this training resumes one."""
        if options.resume:
            if self._is_resumable():
                return
            logger.info("there is no checkpoint to resume from; training starts anew.")
        if chief:
            self._remove_checkpoints()

    def _remove_checkpoints(self):
        for checkpoint in self.checkpoints:
            # In this order: without the last checkpoint, the previous one is not read.
            _serialization.previous_path(checkpoint).unlink(missing_ok=True)
            checkpoint.unlink(missing_ok=True)


def _has_ended(path, options):
    """Return whether the model exists already; refuse one of another training."""
    if not path.exists():
        return False
    saved = _serialization.read_document(path, "latent_diffusion").get("settings")
    changed = "with unknown options"
    if saved is not None:
        # A later version may have more options.
        defaults = _settings(TrainOptions(input_files=[]))
        changed = _describe_change(defaults | saved, _settings(options))
    if changed:
        raise InputError(
            f"{path} is of another training ({changed})",
            "name another --out_dir, or give --force and no --resume to replace it",
        )
    logger.info("%s exists: that training has ended; nothing to resume.", path)
    return True


def _describe_change(was, now):
    """Describe which option has changed, except sizes that are left to defaults."""
    for name, value in now.items():
        is_default = value is None and name in Preset._fields
        if not is_default and was.get(name) != value:
            if _is_path(name):
                return f"{name} is not what it was"
            return f"{name} was {was.get(name)} and is {value}"
    return ""


def _settings(options):
    """Return the options that change what is trained, for the model file.

    Instead of names of files, which may identify people, it has their hash; folders are
    left out, since they can be written in many ways.
    """
    values = config.plain_options(vars(options))
    for name in ("conditions", "channels", "source_channels"):
        names = getattr(options, name)
        values[name] = sorted(parse_names(names)) or names
    for name in filter(_is_path, values):
        if values[name] is not None:
            text = json.dumps(_base_names(values[name]))
            values[name] = hashlib.sha256(os.fsencode(text)).hexdigest()
    return {n: values[n] for n, o in options.declared().items() if o.changes_result}


def _is_path(name):
    """Return whether the values of an option are paths."""
    return name.endswith("_files") or name == "init"


def _base_names(paths):
    if isinstance(paths, list):
        return [_base_names(path) for path in paths]
    return paths and os.path.basename(os.path.normpath(paths))


def _wait_for_workers(cluster, options, path):
    """Wait for the other workers, if there are any, before volumes are read."""
    if cluster is None:
        return options.strategy
    launch.log_to_file(cluster, path)
    logger.info("waiting for %d workers: %s", len(cluster.addresses), cluster.addresses)
    return _make_strategy(options.strategy, options.devices)


def _make_strategy(name, devices, alone=False):
    """Return the strategy for the devices; this starts TensorFlow."""
    with launch.quiet_start():
        from dipy_ldm import _backend

        return _backend.make_strategy(name, devices, alone=alone)


def _load(planned, strategy, chief, options):
    """Read the volumes: the chief first, and other workers from its cache."""
    from dipy_ldm import _backend

    with _backend.chief_first(strategy):
        data = planned.load(
            cache_dir=options.cache_dir, cache_limit=options.cache_limit, verbose=chief
        )
        if data.affine is not None:
            # The result is cached, too.
            survey(data.images, verbose=chief)
            if data.sources is not None:
                survey(data.sources, "source image", chief)
    return data


def _checkpoints(model_path):
    """Name the checkpoints of all stages, beside the model."""
    stages = "autoencoder", "diffusion", "detector"
    paths = [f"{model_path.name}.{stage}-checkpoint" for stage in stages]
    # The last is that of LatentDiffusion's guide.
    return [model_path.with_name(name) for name in (*paths, f"{paths[1]}.guide")]
