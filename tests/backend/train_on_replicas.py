"""Train both stages on some numbers of replicas, and write what came out of each.

Arguments: dimensions, batches of a step, a folder and the kinds of replicas, of each of
which ``KIND.npz`` lies in the folder then: ``none``, ``two`` devices of one processor,
or ``worker I`` of those in ``TF_CONFIG``.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import keras
import numpy as np
import tensorflow as tf

# With a higher rate rounding grows, until a latent gets another code.
FIT = {"precision": "float32", "batch_size": 8, "learning_rate": 5e-4, "verbose": False}


def images(rank):
    rng = np.random.default_rng(0)
    size = (13, 10, 8)[:rank]
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    centres = rng.uniform(2, 8, (67, *(1,) * rank, rank))
    if rank == 3:
        # Aligned, so that more is known before the denoiser is trained.
        centres = 5 + (centres - 5) / 4
    distance = ((grid - centres) ** 2).sum(-1)
    return np.exp(-distance / 6)[..., None].astype("float32")


def conditions(data):
    """Say how bright the images are, and of some in which half."""
    brightness = data.mean((1, 2, 3))
    halves = np.where(data[:, :6].sum((1, 2, 3)) > data[:, 6:].sum((1, 2, 3)), "a", "b")
    return {"brightness": brightness, "half": [*halves[:-9], *[None] * 9]}


def sources(data):
    """Make of the images others, in which they can be seen."""
    return 3 - 2 * data


def train(rank, accumulate, **options):
    from dipy_ldm import VQVAE, LatentDiffusion
    from dipy_ldm.anomaly_detector import AnomalyDetector

    data = images(rank)
    # Three to validate, which no number of replicas but 1 and 3 divides.
    fit = FIT | options | {"accumulate": accumulate, "validation_data": data[:3]}
    # More codes than are used, so that some are revived.
    vqvae = VQVAE(widths=(8,), n_codes=64, code_dim=2)
    vqvae.fit(data[3:], epochs=7, **fit)
    model = LatentDiffusion(vqvae, widths=(8,), guide=False)
    if rank == 2:
        table = conditions(data)
        fit["validation_conditions"] = {n: v[:3] for n, v in table.items()}
        fit["conditions"] = {n: v[3:] for n, v in table.items()}
    else:
        fit["validation_source"], fit["source"] = np.split(sources(data), [3])
    model.fit(data[3:], epochs=7, **fit)
    assert (model.gaussian_ is None) == (rank == 2)
    if rank == 3:
        fit = FIT | options | {"accumulate": accumulate, "validation_data": data[:3]}
        model.detector_ = AnomalyDetector(widths=(8,), blocks=1)
        model.detector_.fit(data[3:], steps=46, **fit)
    return model


def outcome(model, **options):
    requested = {"half": list("abbab")} if model.conditions_ else None
    source = sources(images(3)[:5]) if model.source_ else None
    options |= {"conditions": requested, "source": source, "batch_size": 2}
    result = {"samples": model.predict(5, steps=4, **options)}
    for stage in filter(None, (model.vqvae, model, model.detector_)):
        for name, values in stage.history_.items():
            result[f"{type(stage).__name__} {name}"] = values
    networks = model.vqvae.encoder_, model.vqvae.decoder_, model.denoiser_
    if model.detector_:
        result["likely"] = model.detect(images(3)[:5])
        networks = *networks, model.detector_.network_
    for network in networks:
        for i, weight in enumerate(network.weights):
            # What all keys have in common changes nothing: such biases have no gradient
            # but rounding.
            if not weight.path.endswith("key/bias"):
                result[f"{network.name} {len(result)} {i}"] = weight.numpy()
    return result | {"codebook": model.vqvae.codebook_}


def strategy_of(kind):
    from dipy_ldm._backend import make_strategy

    if kind.startswith("worker"):  # as TF_CONFIG says
        return make_strategy("auto")
    if kind == "none":
        return make_strategy("none")
    return make_strategy("mirrored", ["CPU:0", "CPU:1"])


def main(rank, accumulate, folder, *kinds):
    if not os.environ.get("TF_CONFIG"):
        # As what a processor poses is settled when TensorFlow starts.
        (cpu,) = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    for kind in kinds:
        # Sums are in the order of names, and these are numbered.
        keras.utils.clear_session()
        strategy = strategy_of(kind)
        model = train(int(rank), int(accumulate), strategy=strategy)
        np.savez(f"{folder}/{kind}.npz", **outcome(model, strategy=strategy))


if __name__ == "__main__":
    main(*sys.argv[1:])
