"""What several tests share: tiny images and tiny fitted models."""

from collections import Counter
from functools import partial
import gc
from itertools import chain
import logging
import os
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Each of pytest's workers has its share of the cores: threads of PyTorch and of numpy's
# products wait for each other in loops, and with more of them take many times as long.
# Not what starts the workers, whose share they would inherit.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    share = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))
# Tests that are run on a cluster are not meant to train on it.
for name in list(os.environ):
    if name.startswith(("SLURM", "TF_CONFIG")):
        del os.environ[name]

BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
collect_ignore = []
if BACKEND != "tensorflow":
    # As if it were not installed; and what is about nothing else is not asked for.
    sys.modules["tensorflow"] = None
    collect_ignore = [
        "backend/test_backend.py",
        "test_upstream.py",
        "workflows/test_workflows_workers.py",
        "training/test_trainer_xla.py",
    ]

from dipy.utils.logging import CustomHandler  # noqa: E402
import numpy as np  # noqa: E402
from processes import ABSENT, TINY, execute, skipped_training  # noqa: E402
import pytest  # noqa: E402

# Before any test imports TensorFlow, as a user is told to.
import dipy_ldm  # noqa: E402

TINY_VQVAE = {"widths": (8, 8), "blocks": 1, "n_codes": 16, "code_dim": 2}
TINY_LDM = {"widths": (8, 16), "blocks": 1}
SLOWEST = 10  # files that are listed
YOUNG = 20_000  # objects that Python's collector waits for
# Folders whose files take less than half a minute each.
QUICK = {"benchmarks", "checking", "data", "diffusion", "metrics", "prior", "utils"}


def pytest_collection_modifyitems(items):
    """Leave what is quick to the end, and out what is of TensorFlow alone.

    A file is run by one worker, since its fixtures take long: what is long comes first,
    so that none has much to do yet when the others are done.
    """
    items.sort(key=lambda item: item.path.parent.name in QUICK)
    if BACKEND != "tensorflow":
        reason = f"Keras computes with {BACKEND}"
        for item in items:
            if item.get_closest_marker("tensorflow"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter):
    """List the files that took longest."""
    seconds = Counter()
    for report in chain(*terminalreporter.stats.values()):
        if duration := getattr(report, "duration", 0):
            seconds[report.nodeid.partition("::")[0]] += duration
    if len(seconds) > SLOWEST:
        terminalreporter.section("slowest files")
        for file, total in seconds.most_common(SLOWEST):
            terminalreporter.line(f"{total:6.1f} s  {file}")


@pytest.fixture(scope="session", autouse=True)
def as_installed():
    """Let what tests start not find what tests alone need: each is a second sooner."""
    if BACKEND != "jax":
        paths = filter(None, [str(ABSENT), os.environ.get("PYTHONPATH")])
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@pytest.fixture(scope="session", autouse=True)
def graphs_as_traced():
    """Let TensorFlow run graphs as they are, which tests do a few times each.

    To rewrite them takes a fifth of the time. In processes that tests start they are
    rewritten, as a user's are.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        disabled = {"disable_meta_optimizer": True}
        tf.config.optimizer.set_experimental_options(disabled)


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Spare Python's collector what is there to the end, before the tests of each file.

    All of TensorFlow, and what earlier files left in its caches: it would go through
    that again and again, for a twentieth to a sixth of the time. And what a graph is
    made of is there as long as its model, however often that is looked at. Not after
    files that left next to nothing, since to collect takes half a second.
    """
    if gc.get_threshold()[0] == YOUNG and not gc.get_count()[2]:
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same weights each time, where a test says no seed."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def dipy_logs_alone():
    """Let no handler of a command's logs outlive the output that pytest caught."""
    yield
    handlers = logging.root.handlers
    handlers[:] = [h for h in handlers if not isinstance(h, CustomHandler)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def no_real_cache(monkeypatch, tmp_path_factory):
    """Keep conformed volumes among what the tests write."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture
def load(tmp_path):
    """Return what loads volumes, with a cache of its own."""
    from dipy_ldm.data import load_volumes

    def load(*paths, **options):
        return load_volumes(paths, cache_dir=tmp_path / "cache", **options)

    return load


@pytest.fixture
def undecoded(monkeypatch):
    """Let samples be latents, as those near two codes become voxels of either."""
    decode = lambda self, latents, tile=None: latents  # noqa: E731
    monkeypatch.setattr(dipy_ldm.VQVAE, "decode", decode)


@pytest.fixture
def unguided(monkeypatch):
    """Let models of images have no guide, which takes as long to compile as they do."""
    from dipy_ldm.denoiser._networks import Architecture

    monkeypatch.setattr(Architecture, "has_guide", False)


@pytest.fixture
def untrained():
    """Let denoisers be built and not trained: no steps, callbacks or checkpoints."""
    with skipped_training("latent_diffusion"):
        yield


@pytest.fixture
def untrained_autoencoders():
    """The same for autoencoders."""
    with skipped_training("vqvae"):
        yield


@pytest.fixture
def reset_layer_names():
    """Return what makes Keras number its layers from the beginning again.

    For two trainings that shall agree to the last bit: TensorFlow adds up in the
    order of names, and that of "layer_10" is not that of "layer_9".
    """
    import keras

    return keras.utils.clear_session


@pytest.fixture
def compile_by_xla(monkeypatch):
    """Return what lets Keras decide as with a GPU, and gives models it decides for."""
    import keras

    def compile_all():
        models = []

        def resolve(model):
            models.append(model)
            return True

        trainer = keras.Model.__mro__[1]
        monkeypatch.setattr(trainer, "_resolve_auto_jit_compile", resolve)
        return models

    return compile_all


@pytest.fixture(scope="session")
def bfloat16():
    """Return the name of this precision, on a machine that has it."""
    from dipy_ldm._utils.checks import InputError
    from dipy_ldm.training._precision import choose_precision

    try:
        return choose_precision("bfloat16", 3).name
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def blobs():
    """Return 64 images (13, 10) of soft blobs at random places, in [-5, 20]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:13, :10]
    centre = rng.uniform(2, 8, (64, 2, 1, 1))
    distance = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2
    return (25 * np.exp(-distance / 6) - 5).astype("float32")[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, blobs):
    """Return a folder with the blobs as a file, for what runs the commands."""
    path = tmp_path_factory.mktemp("commands")
    np.save(path / "blobs.npy", blobs)
    return path


@pytest.fixture(scope="session")
def make_once(tmp_path_factory):
    """Return what copies a folder that one of pytest's workers makes for all."""
    from dipy_ldm._utils.files import claimed

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name, make):
        with claimed(root / name, wait=True):
            if not (root / name).exists():
                folder = tmp_path_factory.mktemp(f"{name}-in-the-making")
                make(folder)
                folder.rename(root / name)
        return shutil.copytree(root / name, tmp_path_factory.mktemp(name) / name)

    return make_once


@pytest.fixture(scope="session")
def trained_folder(make_once, blobs):
    """Return a folder with ``blobs.npy``, and a training of it in ``out``."""

    def make(folder):
        np.save(folder / "blobs.npy", blobs)
        execute("train", "blobs.npy", *TINY, "--out_dir", "out", cwd=folder)

    return make_once("trained", make)


@pytest.fixture(scope="session")
def vqvae(blobs):
    """Return an autoencoder fitted to the blobs."""
    import keras

    from dipy_ldm import VQVAE

    keras.utils.clear_session()  # as ``reset_layer_names``
    return VQVAE(**TINY_VQVAE).fit(blobs, epochs=2, batch_size=16, verbose=False)


@pytest.fixture(scope="session")
def diffusion(vqvae, blobs):
    """Return a diffusion model fitted to the blobs."""
    from dipy_ldm import LatentDiffusion

    model = LatentDiffusion(vqvae, **TINY_LDM)
    return model.fit(blobs, epochs=2, batch_size=16, verbose=False)


@pytest.fixture(scope="session")
def digits(make_once):
    """Return 900 digits of three kinds, their names, and an autoencoder of them."""
    from dipy_ldm import VQVAE
    from dipy_ldm.data import load_mnist

    images, labels = load_mnist("train")
    which = np.flatnonzero(labels < 3)[:900]
    images, labels = images[which], labels[which]

    def make(folder):
        vqvae = VQVAE(widths=(8, 16), n_codes=64)
        vqvae.fit(images, epochs=4, batch_size=32, verbose=False)
        vqvae.save(folder / "vqvae.safetensors")

    vqvae = VQVAE.load(make_once("digits", make) / "vqvae.safetensors")
    return images, np.array(["naught", "one", "two"])[labels], vqvae


@pytest.fixture(scope="session")
def model_path(make_once):
    """Return the file of a model of volumes that has learnt hardly anything."""
    from scans import blocky_volumes, grid_affine

    from dipy_ldm import VQVAE, LatentDiffusion

    def make(folder):
        options = {"epochs": 1, "batch_size": 4, "verbose": False}
        vqvae = VQVAE(widths=(4, 4), n_codes=64, code_dim=2, n_codebooks=1)
        vqvae.fit(blocky_volumes(), affine=grid_affine(), **options)
        model = LatentDiffusion(vqvae, widths=(4, 8), guide=False)
        model.fit(blocky_volumes(), **options)
        model.save(folder / "ldm.safetensors")

    return make_once("model", make) / "ldm.safetensors"


@pytest.fixture
def assert_unreadable(tmp_path):
    """Return what writes a diffusion model that must be refused with a sentence."""
    from dipy_ldm import LatentDiffusion, _serialization
    from dipy_ldm._utils.checks import InputError

    def assert_unreadable(tensors, document, sentence):
        path = tmp_path / "m.safetensors"
        _serialization.save(path, "latent_diffusion", tensors, document)
        with pytest.raises(InputError, match=sentence) as refusal:
            LatentDiffusion.load(path)
        message = str(refusal.value)
        assert message.startswith(str(path))
        return message

    return assert_unreadable


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Return ``execute`` for commands in this test's folder."""
    monkeypatch.chdir(tmp_path)
    return partial(execute, cwd=".")
