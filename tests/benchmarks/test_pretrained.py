import json

import numpy as np
import pytest
from scans import soft_balls, write_volumes
import scripts

from dipy_ldm import VQVAE


@pytest.fixture(scope="module")
def pretrained():
    return scripts.load("benchmarks/pretrained.py")


@pytest.fixture(scope="module")
def files(pretrained, tmp_path_factory):
    """Return the folder of an autoencoder, its training pieces, and a volume."""
    place = tmp_path_factory.mktemp("pretrained")
    pieces = soft_balls(16, 1, (16, 16, 16), (3, 6))
    vqvae = VQVAE(widths=(4, 4), n_codes=64, n_codebooks=2, code_dim=2)
    vqvae.fit(pieces, affine=np.eye(4), epochs=2, batch_size=8, verbose=False)
    np.save(place / "pieces.npy", pieces)
    pretrained.save(vqvae, place / "small.safetensors")
    write_volumes(place / "scans", soft_balls(1, 2, (18, 17, 16), (4, 6)), np.eye(4))
    return place


def run(pretrained, capsys, *arguments):
    """Return the measures that a command prints."""
    pretrained.main([str(argument) for argument in arguments])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_latents_are_decoded_without_being_quantised(pretrained, files, capsys):
    command = "measure", files / "small.safetensors", files / "scans", "--gain", 0
    (quantised,) = run(pretrained, capsys, *command)
    (continuous,) = run(pretrained, capsys, *command, "--continuous")
    assert quantised["db"][0] < continuous["db"][0]


def test_all_components_of_blocks_restore_a_volume(pretrained, files, capsys):
    command = "linear", files / "pieces.npy", files / "scans", "--code_dim", 8, 64
    few, all_of_them = run(pretrained, capsys, *command)
    assert (few["code_dim"], all_of_them["code_dim"]) == (8, 64)
    assert 20 < few["db"] < all_of_them["db"]
    assert all_of_them["true"] == 1 and few["true"] < 1
