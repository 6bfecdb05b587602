"""Measure how well segmenters train on generated scans with their segmentations.

One command does everything, in a folder: it draws brains from label maps, with their
tissues as segmentations, trains a model on both channels (resuming from checkpoints),
generates as many pairs as there are real ones, and trains segmenters on real pairs,
generated ones or both, evaluated on brains of held-out label maps::

    python benchmarks/pairs.py brains --maps heads --except 05 10 15 20

It prints a line of JSON for each segmenter, and one with the mean of each kind and its
ratio to that of real pairs. Existing files are kept.
"""

from pathlib import Path

from common import Parser, draw_brains, load_model, log, print_scores, train_once
import keras
from keras import layers, ops
import label_maps
import numpy as np

from dipy_ldm.data import read_volume, write_volume
from dipy_ldm.data.channels import channel_slices
from dipy_ldm.data.volumes import load_volumes
from dipy_ldm.metrics import dice

# Tissues to segment, and the label-map tissues of each, in the order of their labels.
TISSUES = {
    "white matter": ("white matter", "damaged white matter"),
    "cortex": ("cortex",),
    "deep grey matter": ("deep grey matter", "putamen", "pallidum", "thalamus")
    + ("ventral diencephalon",),
    "fluid": ("fluid", "choroid plexus", "rim of the ventricles"),
    "cerebellum": ("cerebellar white matter", "cerebellar cortex"),
    "brain stem": ("brain stem",),
}
CHANNELS = ("T1w", "dseg")
# Of the segmenters: widths, steps, batch size and learning rate.
WIDTHS, STEPS, BATCH, RATE = (16, 32, 64), 800, 2, 2e-3


def make_parser():
    """Describe the command line."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of all files")
    parser.add_argument("--maps", required=True, help="folder of label maps")
    parser.add_argument(
        "--except", nargs="+", required=True, dest="without", help="held-out maps"
    )
    parser.add_argument("--n", type=int, default=200, help="pairs to learn from")
    parser.add_argument("--n_held_out", type=int, default=40)
    parser.add_argument("--voxel_size", type=float, default=4.0, help="in mm")
    parser.add_argument("--steps_vqvae", type=int, default=2000)
    parser.add_argument("--steps_ldm", type=int, default=4000)
    parser.add_argument("--widths_ldm", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the segmenters")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.set_defaults(measure=compare)
    return parser


def prepare(options):
    """Draw missing brains, and merge their labels into tissues."""
    sizes = str(options.voxel_size)
    for name, n, first, which in (
        ("train", options.n, 0, "--except"),
        ("held_out", options.n_held_out, 5000, "--only"),
    ):
        folder = options.folder / name
        if len(list(folder.glob("*_dseg.nii.gz"))) >= n:
            continue
        drawn = options.folder / f"{name}-labels"
        how = ["--dseg", "--voxel_size", sizes, sizes, "--maps", options.maps]
        draw_brains(drawn, "*_T1w.nii.gz", n, first, *how, which, *options.without)
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(drawn.glob("*_T1w.nii.gz")):
            labels, affine = read_volume(str(file).replace("_T1w.", "_T1w_dseg."))
            target = folder / file.name.replace("_T1w.", "_dseg.")
            write_volume(target, merge(labels[..., 0]), affine, "uint8")
            file.rename(folder / file.name)


def merge(labels):
    """Return the tissues of labels, ``(x, y, z)``."""
    tissues = np.zeros(labels.shape, "uint8")
    for number, members in enumerate(TISSUES.values(), 1):
        for name in members:
            tissues[np.isin(labels, label_maps.TISSUES[name].numbers)] = number
    return tissues


def train(options):
    """Train the model if it does not exist."""
    names = ("voxel_size", "steps_vqvae", "steps_ldm")
    folder = options.folder / "train"
    return train_once(options, names, folder, "--channels", *CHANNELS)


def compare(options):
    """Train and evaluate segmenters on real pairs, on generated ones and on both."""
    prepare(options)
    model, grid = load_model(train(options))
    how = {"grid": grid, "channels": model.channels_}
    real = load_volumes([options.folder / "train"], **how).images
    held_out = load_volumes([options.folder / "held_out"], **how).images
    log(f"generating {len(real)} pairs")
    generated = model.predict(len(real), verbose=True)
    both = np.concatenate([real, generated])
    kinds = {"real": real, "generated": generated, "both": both}
    judges = split(held_out, model.channels_)
    means: dict[str, list[float]] = {}
    for seed in options.seeds:
        for kind, images in kinds.items():
            scans, tissues = split(images, model.channels_)
            segmenter = learn(scans, tissues, options.steps, seed)
            scores = judge(segmenter, *judges)
            means.setdefault(kind, []).append(scores["mean"])
            yield {"learnt from": kind, "n": len(images), "seed": seed} | scores
    values = {kind: float(np.mean(scores)) for kind, scores in means.items()}
    ratios = {f"{kind} to real": mean / values["real"] for kind, mean in values.items()}
    yield values | ratios


def split(images, channels):
    """Return scans, ``(n, x, y, z, 1)``, and tissues, int ``(n, x, y, z)``."""
    (_, scan), (labels, columns) = channel_slices(channels)
    return np.asarray(images[..., scan]), labels.to_values(images[..., columns])


def learn(scans, tissues, steps, seed):
    """Train a segmenter."""
    # The coarsest grid must be met again on the way up.
    scans, tissues = (pad(x) for x in (scans, tissues))
    keras.utils.set_random_seed(seed)
    network = build(scans.shape[1:])
    network.compile(keras.optimizers.Adam(RATE), loss)
    rng = np.random.default_rng(seed)

    def batches():
        while True:
            rows = rng.integers(0, len(scans), BATCH)
            yield scans[rows], tissues[rows]

    network.fit(batches(), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
    return network


def pad(images):
    """Pad images to sides that all levels of the segmenter can halve."""
    factor = 2 ** (len(WIDTHS) - 1)
    sides = [(0, -n % factor) for n in images.shape[1:4]]
    return np.pad(images, [(0, 0), *sides, *[(0, 0)] * (images.ndim - 4)])


def build(shape):
    """Build a U-Net from scans to log odds of tissues."""

    def block(x, width):
        for _ in range(2):
            x = layers.Conv3D(width, 3, padding="same", use_bias=False)(x)
            x = layers.GroupNormalization(8)(x)
            x = layers.Activation("relu")(x)
        return x

    x = inputs = keras.Input(shape)
    skips = []
    for width in WIDTHS[:-1]:
        x = block(x, width)
        skips.append(x)
        x = layers.MaxPooling3D()(x)
    x = block(x, WIDTHS[-1])
    for width, skip in zip(WIDTHS[-2::-1], skips[::-1], strict=True):
        x = layers.Concatenate()([layers.UpSampling3D()(x), skip])
        x = block(x, width)
    return keras.Model(inputs, layers.Conv3D(len(TISSUES) + 1, 1)(x))


def loss(tissues, log_odds):
    """Return cross entropy plus one minus the mean Dice overlap."""
    truth = ops.one_hot(ops.cast(tissues, "int32"), len(TISSUES) + 1)
    entropy = ops.mean(ops.categorical_crossentropy(truth, log_odds, from_logits=True))
    shares, axes = ops.softmax(log_odds), (0, 1, 2, 3)
    both = ops.sum(truth * shares, axes)
    overlaps = (2 * both + 1) / (ops.sum(truth, axes) + ops.sum(shares, axes) + 1)
    return entropy + 1 - ops.mean(overlaps[1:])


def judge(segmenter, scans, tissues):
    """Return the mean Dice of each tissue, and of all."""
    labels = np.argmax(segmenter.predict(pad(scans), batch_size=1, verbose=0), -1)
    labels = labels[:, *map(slice, scans.shape[1:4])]
    scores = {
        name: float(
            np.mean([dice(a == number, b == number) for a, b in zip(labels, tissues)])
        )
        for number, name in enumerate(TISSUES, 1)
    }
    return {"mean": float(np.mean(list(scores.values())))} | scores


if __name__ == "__main__":
    print_scores(make_parser())
