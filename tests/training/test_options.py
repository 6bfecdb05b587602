"""Training options, as passed and as resolved."""

import pytest

from dipy_ldm import _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm.training._options import cosine_decay, resolve


@pytest.mark.parametrize("callbacks", [print, [print]])
def test_one_callback_is_a_list_of_one(callbacks):
    options = {"strategy": None, "precision": "float32", "callbacks": callbacks}
    assert resolve("vqvae", 2, options).callbacks == [print]


def test_checkpoints_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = {"strategy": None, "precision": "float32", "checkpoint": "~/run/c"}
    assert resolve("vqvae", 2, options).checkpoint == "/home/me/run/c"


def test_learning_rate_does_not_depend_on_accumulation():
    one, four = cosine_decay(1.0, 4000), cosine_decay(1.0, 4 * 4000, accumulate=4)
    for step in (0, 100, 499, 2000):
        assert float(four(4 * step)) == pytest.approx(float(one(step)), abs=1e-6)


def test_a_checkpoint_that_other_workers_lack_is_refused(monkeypatch, tmp_path):
    gathered = lambda value: [value, "bfloat16"]  # noqa: E731
    monkeypatch.setattr(_backend, "gather_from_workers", gathered)
    options = {"strategy": None, "checkpoint": tmp_path / "missing"}
    sentence = r"\[None, 'bfloat16'\]\); write it to a folder"
    with pytest.raises(InputError, match=sentence):
        resolve("vqvae", 2, options)
