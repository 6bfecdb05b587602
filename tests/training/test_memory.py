"""Memory: estimates match the use, and too little is reported."""

from functools import partial
import gc
import json
from pathlib import Path
import resource

from processes import run_python
import pytest

from dipy_ldm import VQVAE, LatentDiffusion, _backend
from dipy_ldm._utils.checks import InputError
from dipy_ldm.denoiser import _unet as unet_network
from dipy_ldm.nn import _building as building
from dipy_ldm.workflows import cli

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
PATH = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "


@pytest.mark.parametrize(
    "case",
    [
        ["train", "autoencoder", "32 32 32", 4, "float32"],
        # Nearly all of the codes are dead, and revived.
        ["train", "autoencoder", "28 28", 64, "float32", 16384],
        ["code", "decode", "64 64 64", 1, None],
    ],
)
@pytest.mark.tensorflow  # JAX takes less for most of this
def test_estimated_memory_is_within_a_third_of_the_measured(case):
    result = run_python(BENCHMARK, "--case", json.dumps(case))
    announced, taken = json.loads(result.stdout.splitlines()[-1])
    assert 2 / 3 < announced / taken < 4 / 3


@pytest.mark.tensorflow
def test_deleted_models_leave_no_graphs(blobs):
    import tensorflow as tf

    def graphs():
        gc.collect()
        return {id(one) for one in gc.get_objects() if isinstance(one, tf.Graph)}

    def train():
        options = {"epochs": 1, "batch_size": 16, "verbose": False}
        sizes = {"widths": (8,), "n_codes": 8, "code_dim": 1}
        vqvae = VQVAE(**sizes).fit(blobs[:32], **options)
        model = LatentDiffusion(vqvae, widths=(8,), guide=False)
        model.fit(blobs[:32], **options)
        model.predict(2, steps=2)

    # What is traced once, for all trainings, stays.
    train()
    before = graphs()
    train()
    assert graphs() <= before


@pytest.mark.tensorflow
def test_variables_share_a_name():
    # TensorFlow keeps something for each name, and takes a millisecond.
    with building.seeded(0):
        unet = unet_network.unet((4, 4, 2), widths=(4,), blocks=1)
    names = {weight.value.name for weight in unet.weights}
    assert {name.split("/")[0] for name in names} == {"weights"}
    assert len({weight.path for weight in unet.weights}) == len(unet.weights)


def test_check_memory_refuses(diffusion, monkeypatch):
    monkeypatch.setattr(_backend, "free_memory", lambda strategy: 1e6)
    with pytest.raises(
        InputError, match=r"0.0 GiB are available; use a smaller `batch_size`"
    ):
        diffusion.check_memory()
    with pytest.raises(InputError, match=r"use a smaller `tile`"):
        diffusion.check_memory(1)
    monkeypatch.setattr(_backend, "free_memory", lambda strategy: 1e9)
    diffusion.check_memory()


def test_needed_memory_grows_with_the_batch_and_the_tile(diffusion):
    few, many = (diffusion.needed_memory(n) for n in (1, 200))
    assert few < many
    large = (2048, 2048)
    _, whole = diffusion.vqvae_.needed_memory(large, batch_size=1)
    _, tiled = diffusion.vqvae_.needed_memory(large, batch_size=1, tile=64)
    assert tiled < whole / 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"),
    ],
)
def test_out_of_memory_gives_a_sentence(monkeypatch, capsys, error):
    class Flow:
        def run(self, model_file, batch_size=1, tile=None):
            """Do nothing."""

    def fail(flow, **options):
        raise error

    monkeypatch.setattr(cli.flow_runner, "run_flow", fail)
    with pytest.raises(SystemExit) as end:
        cli.run(Flow())
    assert end.value.code == 2
    message = capsys.readouterr().err.strip()
    assert (
        "out of memory; free some, or give a smaller --batch_size or --tile." in message
    )
    assert "\n" not in message
    # Evaluations have no such options.
    assert cli._out_of_memory(["n_samples"]) == "out of memory; free some."


@pytest.mark.parametrize("gibibytes", [1.5, 8])
def test_a_limit_of_the_address_space(tmp_path, gibibytes):
    line = "from dipy_ldm.workflows import cli; sys.argv[0] = 'x'; cli.generate()"
    options = ["mnist", "--n_samples", "2", "--steps", "1", "--out_dir", tmp_path]
    limits = (resource.RLIMIT_AS, [int(gibibytes * 2**30)] * 2)
    how = {"check": False, "preexec_fn": partial(resource.setrlimit, *limits)}
    result = run_python("-c", PATH + line, *options, **how)
    if gibibytes > 2:
        assert result.returncode == 0, result.stderr
        return
    assert result.returncode == 2
    assert "raise the limit (ulimit -v 2621440" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
