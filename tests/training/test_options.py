"""Options of a training, as given and as resolved."""

import pytest

from dipy_ldm.training._options import resolve


@pytest.mark.parametrize("callbacks", [print, [print]])
def test_one_callback_is_a_list_of_one(callbacks):
    options = {"strategy": None, "precision": "float32", "callbacks": callbacks}
    assert resolve("vqvae", 2, options).callbacks == [print]


def test_checkpoints_may_be_in_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = {"strategy": None, "precision": "float32", "checkpoint": "~/run/c"}
    assert resolve("vqvae", 2, options).checkpoint == "/home/me/run/c"
