"""Time trainings: first step, share of time in steps, replicas and workers."""

import argparse
import json
import logging
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from common import log, make_parser, print_scores, vary_scan
from dipy.data import get_fnames
import nibabel as nib
import numpy as np
from peers import describe_processor, spread
from peers_common import ABSENT

from dipy_ldm._utils.checks import InputError, at_least

COMMAND = Path(sys.executable).with_name("dipy_train_ldm")
FIRST_STEPS = 3
BEGUN = re.compile(r"(\w+): preparing the first step")
STEPPED = re.compile(rf"(\w+), epoch 1/\d+:[^\r]* [1-9]\d*/{FIRST_STEPS} \[")
# Different scans of a cohort; the others are links to them.
N_DIFFERENT = 12
# Steps of an epoch on replicas and workers.
STEPS = 30


def add_first_step_options(parser):
    """Add the options of :func:`time_first_steps`."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        help="files and options of dipy_train_ldm; default: the packaged digits",
    )


def time_first_steps(options):
    """Measure the time until each stage of ``dipy_train_ldm`` has made a step."""
    at_least("rounds", options.rounds, 1)
    arguments = options.arguments or ["mnist"]
    rounds = []
    for number in range(options.rounds):
        log(f"round {number + 1} of {options.rounds}")
        rounds.append(time_stages(arguments))
    return {
        **describe_processor(),
        "arguments": " ".join(arguments),
        **{stage: spread([times[stage] for times in rounds]) for stage in rounds[0]},
    }


def time_stages(arguments):
    """Run the command once, and time its stages."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ABSENT:
            Path(folder, f"{name}.py").write_text("raise ImportError\n")
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        few = [f"--steps_{stage}={FIRST_STEPS}" for stage in ("vqvae", "ldm")]
        begun, ended = watch(
            [COMMAND, *arguments, *few, "--out_dir", folder],
            # Draw the bar after each step.
            os.environ
            | {"PYTHONPATH": os.pathsep.join(paths), "TQDM_MININTERVAL": "0"},
        )
    if not ended:
        raise InputError(
            "the command ended without a training", "name files to train on"
        )
    # The first stage includes all that comes before.
    begun[next(iter(ended))] = 0
    return {stage: ended[stage] - begun[stage] for stage in ended}


def watch(command, environment):
    """Run a command, and record when each stage begins and has made its first step."""
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}
    start, output = time.perf_counter(), ""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        while piece := os.read(process.stderr.fileno(), 2**16):
            now = time.perf_counter() - start
            output += piece.decode(errors="replace")
            for pattern, times in ((BEGUN, begun), (STEPPED, ended)):
                for stage in pattern.findall(output):
                    times.setdefault(stage, now)
    if process.returncode:
        raise InputError(f"the command failed: {output.strip().splitlines()[-1]}")
    return begun, ended


def add_cohort_options(parser):
    """Add the options of :func:`time_cohorts`."""
    parser.add_argument("--n", nargs="+", type=int, default=[6, 24, 5000])
    parser.add_argument("--voxel_size", type=float, default=8)
    parser.add_argument("--steps_vqvae", type=int, default=2000)
    parser.add_argument("--steps_ldm", type=int, default=6000)


def time_cohorts(options):
    """Measure the share of training time spent in steps, by size of the cohort."""
    for n in options.n:
        yield time_cohort(n, options)


def time_cohort(n, options):
    """Train on a cohort, and time it."""
    from dipy_ldm.workflows.train import TrainLDMFlow

    listener, logger = StepTimes(), logging.getLogger("dipy_ldm")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(listener)
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder, "scans")
        scans.mkdir()
        write_cohort(scans, n)
        start = time.perf_counter()
        flow = TrainLDMFlow(mix_names=False, force=True)
        try:
            flow.run(
                [str(scans)],
                voxel_size=[options.voxel_size],
                steps_vqvae=options.steps_vqvae,
                steps_ldm=options.steps_ldm,
                cache_dir=str(Path(folder, "cache")),
                out_dir=folder,
            )
        except InputError:
            # A training that is too short to learn anything raises at its end.
            if not listener.steps:
                raise
        whole = time.perf_counter() - start
    logger.removeHandler(listener)
    steps = listener.steps
    share = round(sum(steps.values()) / whole, 3)
    return {"n": n, "whole": round(whole, 1), "steps": steps, "share": share}


class StepTimes(logging.Handler):
    """Records the seconds of steps of each network from the log."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.steps = {}

    def emit(self, record):
        """Record the seconds of steps from the last message of a network."""
        if str(record.msg).endswith("in steps"):
            title, seconds, percent = record.args
            self.steps[title] = round(seconds * percent / 100, 1)


def write_cohort(folder, n):
    """Write scans, and links to them."""
    scan = nib.load(get_fnames(name="aniso_vox"))
    image = np.asarray(scan.dataobj, "float32")[..., None]
    image = np.clip(image / np.quantile(image, 0.999), 0, 1)
    for number, variant in enumerate(vary_scan(image, min(n, N_DIFFERENT))):
        scan = nib.Nifti1Image(variant[..., 0], scan.affine)
        nib.save(scan, folder / f"sub-{number:04}_T1w.nii.gz")
    for number in range(N_DIFFERENT, n):
        original = folder / f"sub-{number % N_DIFFERENT:04}_T1w.nii.gz"
        (folder / f"sub-{number:04}_T1w.nii.gz").symlink_to(original)


def add_replica_options(parser):
    """Add the options of :func:`time_replicas`."""
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 64])
    parser.add_argument(
        "--replicas", type=int, nargs="+", help="default: 1, and all GPUs or 2"
    )
    for name in ("--child", "--cores"):
        parser.add_argument(name, help=argparse.SUPPRESS)


def time_replicas(options):
    """Time a step on one and more replicas, and on one and two workers.

    Replicas are GPUs or, without GPUs, two simulated devices of the CPU. Two workers
    are processes that communicate over TCP, with half of the cores each; the single
    worker that they are compared with has half of the cores, too.
    """
    if options.child:
        if options.cores:
            os.sched_setaffinity(0, map(int, options.cores.split(",")))
        yield train_replicas(options.child, options.batch_size, options.widths)
        return
    n_gpus = count_gpus()
    replicas = options.replicas or sorted({1, n_gpus or 2})
    for name, counts in (("replica", replicas), ("worker", [1, 2])):
        base = None
        for count in counts:
            seconds = run_children(f"{count} {name}s", options, n_gpus)
            base = base or seconds["step"] * counts[0]
            yield {
                f"{name}s": count,
                "seconds_a_step": round(seconds["step"], 4),
                "speedup": round(base / seconds["step"], 2),
                "efficiency": round(base / seconds["step"] / count, 2),
                "share_of_communication": round(seconds["sum"] / seconds["step"], 3),
            }


def run_children(kind, options, n_gpus):
    """Train in separate processes, since TensorFlow can be set up only once in each."""
    n_workers = int(kind.split()[0]) if "worker" in kind else 0
    first = 21_000 + os.getpid() % 9000
    addresses = [f"127.0.0.1:{first + index}" for index in range(n_workers)]
    widths = [*map(str, options.widths)]
    command = [sys.executable, __file__, "replicas", "--child", kind]
    command += ["--batch_size", str(options.batch_size), "--widths", *widths]
    processes = []
    for index in range(max(1, n_workers)):
        environment, cores = dict(os.environ), []
        if n_workers:
            cores = ["--cores", half_of_cores(index)]
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            environment["TF_CONFIG"] = json.dumps(config)
            gpus = range(n_gpus)[index::2]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        output = subprocess.PIPE if index == 0 else subprocess.DEVNULL
        processes.append(
            subprocess.Popen([*command, *cores], env=environment, stdout=output)
        )
    results = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise InputError(f"the training on {kind} failed")
    return json.loads(results[0])


def train_replicas(kind, batch_size, widths):
    """Train with a strategy; time a step and the all-reduce of its gradients."""
    strategy = make_strategy(kind)
    from dipy_ldm import LatentDiffusion
    from dipy_ldm.data import load_mnist

    images = load_mnist("train")[0][: STEPS * batch_size]
    vqvae = LatentDiffusion.load("mnist").vqvae
    model = LatentDiffusion(vqvae, widths=widths)
    ends = []

    def note(model):
        ends.append(time.perf_counter())

    model.fit(
        images,
        epochs=4,
        batch_size=batch_size,
        strategy=strategy,
        callbacks=[note],
        verbose=False,
    )
    # The first epoch includes compilation; the fastest of the others is the least
    # disturbed.
    step = min(b - a for a, b in zip(ends[:-1], ends[1:])) / STEPS if ends else None
    return {"step": step, "sum": time_all_reduce(strategy, model.denoiser_)}


def make_strategy(kind):
    """Return the strategy of a kind."""
    import tensorflow as tf

    from dipy_ldm import _backend

    count = int(kind.split()[0])
    if "worker" in kind:
        return _backend.make_strategy("auto" if count > 1 else "none")
    (cpu,) = tf.config.list_physical_devices("CPU")
    if not tf.config.list_physical_devices("GPU"):
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    return _backend.make_strategy("mirrored", list(map(str, range(count))))


def time_all_reduce(strategy, network):
    """Time an all-reduce of tensors of the shapes of a network's weights."""
    import numpy as np
    import tensorflow as tf

    if strategy is None or strategy.num_replicas_in_sync == 1:
        return 0.0
    weights = [tf.constant(weight) for weight in network.get_weights()]

    def replica():
        context = tf.distribute.get_replica_context()
        return tf.add_n(
            [tf.reduce_sum(w) for w in context.all_reduce("SUM", list(weights))]
        )

    add_up = tf.function(lambda: strategy.run(replica))
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        result = strategy.experimental_local_results(add_up())
        np.array(result)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def count_gpus():
    """Count the GPUs in another process, so that this one does not initialise them."""
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def half_of_cores(index):
    """Return the numbers of the first or second half of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    return ",".join(map(str, (cores[:middle], cores[middle:])[index]))


MEASURES = {
    "first_step": (add_first_step_options, time_first_steps),
    "cohorts": (add_cohort_options, time_cohorts),
    "replicas": (add_replica_options, time_replicas),
}


if __name__ == "__main__":
    print_scores(make_parser(__doc__, MEASURES))
