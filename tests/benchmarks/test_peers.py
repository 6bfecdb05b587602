from functools import partial
import importlib

import pytest
import scripts

from dipy_ldm import VQVAE


@pytest.fixture(scope="module")
def ours():
    # It asks for a bar that is drawn after each step; other tests' bars shall not be.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_MININTERVAL", "0.1")
        yield scripts.load("benchmarks/peers_ours.py")


def test_the_bar_of_fit_names_every_step(ours, blobs, monkeypatch):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    tqdm = importlib.import_module("tqdm").tqdm
    bar_of = importlib.import_module("dipy_ldm.training._trainer")
    # As in the benchmark's process, where the variable is set before tqdm is imported.
    monkeypatch.setattr(bar_of, "tqdm", partial(tqdm, mininterval=0))
    vqvae = VQVAE(widths=(4,), n_codes=8)
    watch = ours.watch_fit(vqvae, blobs, batch_size=16)
    times = watch.times["autoencoder"]
    assert sorted(times) == list(range(1, 9))  # none before the first step
    assert sorted(times.values()) == [times[step] for step in sorted(times)]
