"""Time a step of training on one and more replicas, and on one and two workers.

Each line of JSON is a training of the same model with the same batches: what a step
took, how that compares with one replica, and the share of it in which gradients were
summed. With GPUs the replicas are the GPUs; without, one processor poses as two.
Two workers are two processes that talk over TCP, with half of the cores each; so is
the one worker that they are compared with, which has the other half idle.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS = 30


def train(kind, batch_size, widths):
    """Train with a strategy and measure a step, and the sum of its gradients.

    Parameters
    ----------
    kind : str
        ``"1 replica"`` and the like.
    batch_size : int
        Images in a batch, of all replicas.
    widths : list of int
        Channels of the denoiser's levels.

    Returns
    -------
    dict
        Seconds.
    """
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
    # The first epoch is that of compilation; the fastest of the others the least
    # disturbed.
    step = min(b - a for a, b in zip(ends[:-1], ends[1:])) / STEPS if ends else None
    return {"step": step, "sum": time_of_sum(strategy, model.denoiser_)}


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


def time_of_sum(strategy, network):
    """Time the sum of numbers of the shapes of a network's weights."""
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


def measure(kind, arguments, n_gpus):
    """Train in processes of their own: TensorFlow is set up once in each."""
    workers = int(kind.split()[0]) if "worker" in kind else 0
    first = 21_000 + os.getpid() % 9000
    addresses = [f"127.0.0.1:{first + index}" for index in range(workers)]
    with tempfile.NamedTemporaryFile("r") as result:
        processes = []
        for index in range(max(1, workers)):
            command = [sys.executable, __file__, *arguments, "--child", kind]
            command += ["--result", result.name if index == 0 else os.devnull]
            environment = dict(os.environ)
            if workers:
                command += ["--cores", half(index)]
                task = {"type": "worker", "index": index}
                config = {"cluster": {"worker": addresses}, "task": task}
                environment["TF_CONFIG"] = json.dumps(config)
                gpus = range(n_gpus)[index::2]
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
            processes.append(subprocess.Popen(command, env=environment))
        statuses = [process.wait() for process in processes]
        if any(statuses):
            sys.exit(1)
        return json.loads(result.read())


def count_gpus():
    """Count the GPUs in another process, which leaves them alone."""
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    command = [sys.executable, "-c", code]
    return int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def half(index):
    """Name one or the other half of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    middle = len(cores) // 2
    return ",".join(map(str, (cores[:middle], cores[middle:])[index]))


def main():
    """Measure one kind after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 64])
    parser.add_argument(
        "--replicas", type=int, nargs="+", help="1, and all GPUs or 2, if left out"
    )
    for name in ("--child", "--cores", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        if options.cores:
            os.sched_setaffinity(0, map(int, options.cores.split(",")))
        seconds = train(options.child, options.batch_size, options.widths)
        with open(options.result, "w") as file:
            json.dump(seconds, file)
        return
    arguments = ["--batch_size", str(options.batch_size), "--widths"]
    arguments += map(str, options.widths)
    n_gpus = count_gpus()
    replicas = options.replicas or sorted({1, n_gpus or 2})
    for name, counts in (("replica", replicas), ("worker", [1, 2])):
        base = None
        for count in counts:
            seconds = measure(f"{count} {name}s", arguments, n_gpus)
            base = base or seconds["step"] * counts[0]
            line = {
                f"{name}s": count,
                "seconds_a_step": round(seconds["step"], 4),
                "speedup": round(base / seconds["step"], 2),
                "efficiency": round(base / seconds["step"] / count, 2),
                "share_of_communication": round(seconds["sum"] / seconds["step"], 3),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
