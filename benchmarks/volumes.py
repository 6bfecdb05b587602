"""Measure the quality of generated volumes, as one line of JSON.

Generated volumes are compared with held-out ones: by voxels on the model's grid at half
its resolution, and by structure at full resolution. Each figure has a reference, the
same for real volumes, the best that samples could reach. All of them depend on the
number of volumes, so all sets have the same size.

The other measure finds the step, octave and region by which a network distinguishes
generated volumes.
"""

from typing import Any

from common import (
    add_sampling,
    generate,
    load_model,
    log,
    make_parser,
    png_path,
    print_scores,
    sampling,
    score_novelty,
)
import numpy as np
from scipy.ndimage import gaussian_filter

from dipy_ldm._utils.checks import InputError, at_least
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.evaluation._fidelity import (
    Sets,
    interior,
    measure_reconstruction,
    measure_sharpness,
    measure_texture,
    pair_similarity,
)
from dipy_ldm.evaluation.evaluate import scaled
from dipy_ldm.evaluation.two_sample import MIN_IMAGES, network_test
from dipy_ldm.metrics import (
    detail_correlation,
    detail_energy,
    energy_distance,
    nearest_distance,
    psnr,
)
from dipy_ldm.metrics.images import halve
from dipy_ldm.plots import planes, save_montage

# For drawing pairs of real volumes, and training volumes.
SEED = 0
# Draws of training volumes, over which the floor of the energy distance is averaged.
DRAWS = 10
# Volumes of each kind in the picture.
SHOWN = 3
# Times to which held-out volumes are noised, to be denoised from there.
TIMES = 0.1, 0.25, 0.4, 0.55, 0.7, 0.85
# Blurs that delimit octaves, in voxels, from the finest to the coarsest.
BLURS = 0, 0.7, 1.4, 2.8, 5.6


def load_real(options, model, grid):
    """Load held-out and training volumes, on the grid of the model.

    Shapes: held_out ``(n, x, y, z, channels)``.
    """
    held_out, train = (load(f, model, grid) for f in (options.real, options.train))
    # The same number of each, since figures depend on it.
    n = min(options.n_samples, len(held_out), len(train))
    at_least("the number of samples, and of volumes of each kind,", n, 2)
    return np.array(held_out[:n]), train


def load(files, model, grid):
    """Load volumes on the grid of a model, ``(n, x, y, z, channels)``."""
    channels = model.vqvae.shape_[-1] > 1
    how = {"grid": grid, "channels": channels}
    return load_volumes(files, shuffle=True, verbose=True, **how).images


def halve_all(volumes):
    """Return volumes at half their resolution, ``(n, x, y, z, channels)``."""
    # One by one: they may be mapped from a file larger than memory.
    return np.stack([halve(volume) for volume in volumes])


def score_distribution(generated, held_out, train):
    """Return the energy distance to real volumes, and that between real volumes.

    Shapes: generated, held_out ``(n, x, y, z, channels)``.
    """
    rng = np.random.default_rng(SEED)
    distance = energy_distance(generated, held_out)
    draws = [rng.choice(len(train), len(held_out), replace=False) for _ in range(DRAWS)]
    floor = np.mean([energy_distance(train[draw], held_out) for draw in draws])
    return {
        "energy": distance,
        "energy_floor": float(floor),
        "energy_ratio": distance / float(floor),
    }


def measure_novelty(held_out, train):
    """Measure how far held-out volumes are from the training volumes.

    Shapes: held_out, train ``(n, x, y, z, channels)``.
    """
    distances = nearest_distance(held_out, train)
    copies = np.count_nonzero(distances == 0)
    if copies:
        raise InputError(
            f"{copies} volumes of --real are in --train, too",
            "name held-out volumes with --real",
        )
    return distances


def score_diversity(generated, held_out):
    """Measure how similar the volumes of a set are to each other.

    Shapes: generated, held_out ``(n, x, y, z, channels)``.
    """
    samples, real = (
        pair_similarity(kind, SEED).value for kind in (generated, held_out)
    )
    return {"ms_ssim": samples, "ms_ssim_real": real, "ms_ssim_excess": samples - real}


def score_structure(generated, held_out, reconstructed):
    """Compare the energy of octaves and, inside heads, of textures.

    Shapes: generated, held_out, reconstructed ``(n, x, y, z, channels)``.
    """
    sets = Sets(held_out, held_out, generated, reconstructed)
    scores = {}
    for name, energies in {
        "octaves": measure_sharpness(sets),
        "bands": measure_texture(sets),
    }.items():
        for kind, start in {"generated": "", "reconstructed": "vqvae_"}.items():
            values = energies.get(kind, [])
            scores[start + name] = [round(ratio.value, 3) for ratio in values]
    return scores


def score_vqvae(vqvae, held_out, reconstructed):
    """Score reconstructions, which limit the quality of samples.

    Shapes: held_out, reconstructed ``(n, x, y, z, channels)``.
    """
    sets = Sets(held_out, held_out, reconstructed, reconstructed)
    scores: dict[str, Any] = measure_reconstruction(vqvae, sets)
    # Inside the head: virtual brains and most scans have a black background.
    inside = (held_out > held_out.min() + 0.05 * np.ptp(held_out)).any(-1)
    detail = reconstructed, held_out, inside
    return {
        "vqvae_mse": scores["mse"].value,
        "vqvae_mae": float(np.mean(np.abs(reconstructed - held_out))),
        "vqvae_ms_ssim": scores["ms_ssim"].value,
        "vqvae_psnr": float(psnr(*detail).mean()),
        "vqvae_detail_energy": float(detail_energy(*detail).mean()),
        "vqvae_detail_correlation": float(detail_correlation(*detail).mean()),
        "codes_used": scores["codes_used"],
        "n_codes": scores["n_codes"],
    }


def measure(options):
    """Score the model that the command line names."""
    model, grid = load_model(options.model)
    held_out, train = load_real(options, model, grid)
    small_held_out, small_train = halve_all(held_out), halve_all(train)
    novelty = measure_novelty(small_held_out, small_train)
    generated, seconds = generate(model, options)
    generated = generated[: len(held_out)]
    small = halve_all(generated)
    log("scoring")
    reconstructed = model.vqvae.predict(held_out)
    if options.montage:
        show(options.montage, held_out, reconstructed, generated, grid.affine)
    return {
        "model": options.model,
        **sampling(options),
        "seconds": seconds,
        "n_compared": len(held_out),
        "n_train": len(train),
        **score_distribution(small, small_held_out, small_train),
        **score_novelty(small, small_train, novelty),
        **score_diversity(generated, held_out),
        **score_structure(generated, held_out, reconstructed),
        **score_vqvae(model.vqvae, held_out, reconstructed),
    }


def show(path, held_out, reconstructed, generated, affine):
    """Write a picture: rows of real, reconstructed and generated volumes.

    Shapes: held_out, reconstructed, generated ``(n, x, y, z, channels)``.
    """
    rows = [kind[:SHOWN] for kind in (held_out, reconstructed, generated)]
    pictures = planes(np.concatenate(rows), affine)
    save_montage(path, pictures, columns=len(rows[0]), scale=2)


def recognise(options):
    """Measure at which stage a network distinguishes generated from real volumes."""
    model, grid = load_model(options.model)
    real = load(options.real, model, grid)
    n = min(options.n_samples, len(real) // 2)
    at_least("the number of volumes of each kind", n, MIN_IMAGES)
    reference, held_out = np.array(real[:n]), np.array(real[n : 2 * n])
    for name, pair in cases(model, options, reference, held_out):
        log(name)
        test = network_test(*pair, seed=options.seed)
        yield {
            "volumes": name,
            "auc": round(test.auc.value, 3),
            "interval": [round(test.auc.low, 3), round(test.auc.high, 3)],
            "learnt": round(test.learnt, 3),
            "rounds": test.rounds,
            "n_compared": n,
        }


def cases(model, options, reference, held_out):
    """Yield names of cases, and the two sets to distinguish in each.

    Shapes: reference, held_out ``(n, x, y, z, channels)``.
    """

    def shown(volumes):
        return scaled(np.clip(volumes, *model.vqvae.intensity_), model.vqvae)

    options.n_samples, real = len(held_out), shown(reference)
    yield "held-out", (real, shown(held_out))
    yield "reconstructed", (real, shown(model.vqvae.predict(held_out)))
    for time in TIMES:
        again = model.denoise(held_out, strength=time, seed=options.seed)
        yield f"denoised from {time}", (real, shown(again))
    generated = shown(generate(model, options)[0])
    yield "generated", (real, generated)
    for low, high in zip(BLURS, BLURS[1:]):
        yield f"generated, {low} to {high} voxels", band(real, generated, low, high)
    for place, kept in {"inside": True, "rim": False}.items():
        parts = (
            np.where([interior(v)[..., None] == kept for v in x], x, 0)
            for x in (real, generated)
        )
        yield f"generated, {place}", tuple(parts)
    options.steps *= 10
    name = f"generated, {options.steps} steps"
    yield name, (real, shown(generate(model, options)[0]))


def band(real, generated, low, high):
    """Return the band between two blurs, scaled around 0.5.

    Shapes: real, generated ``(n, x, y, z, channels)``.
    """
    finer, coarser = ((0, *[blur] * 3, 0) for blur in (low, high))
    bands = [
        gaussian_filter(volumes, finer) - gaussian_filter(volumes, coarser)
        for volumes in (real, generated)
    ]
    spread = 8 * bands[0].std()
    return tuple(np.clip(0.5 + part / spread, 0, 1) for part in bands)


def add_model(parser, *sets):
    """Add the model, sets of volumes, and how samples are drawn."""
    parser.add_argument("model", help="model file that was trained on volumes")
    kinds = {"real": "held-out", "train": "training"}
    for name in sets:
        parser.add_argument(
            f"--{name}",
            nargs="+",
            required=True,
            metavar="FILE",
            help=f"{kinds[name]} volumes: NIfTI files, folders, wildcards or lists",
        )
    add_sampling(parser, n_samples=100, batch_size=None)


def add_score_options(parser):
    """Add the options of :func:`measure`."""
    add_model(parser, "real", "train")
    parser.add_argument(
        "--montage",
        metavar="FILE",
        type=png_path,
        help="picture of real, reconstructed and generated volumes, a row each",
    )


MEASURES = {
    "score": (add_score_options, measure),
    "recognise": (lambda parser: add_model(parser, "real"), recognise),
}


def main(arguments=None):
    """Print the scores as lines of JSON."""
    print_scores(make_parser(__doc__, MEASURES), arguments)


if __name__ == "__main__":
    main()
