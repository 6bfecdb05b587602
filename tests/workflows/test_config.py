"""Runs repeated from their TOML file."""

from concurrent.futures import ThreadPoolExecutor
import math
import tomllib
from types import SimpleNamespace

from processes import answer, execute, load_model
import pytest
from safetensors import safe_open

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError
from dipy_ldm.data._nifti import DTYPES
from dipy_ldm.diffusion.samplers import SAMPLERS
from dipy_ldm.nn._building import PRECISIONS
from dipy_ldm.workflows import _config as config
from dipy_ldm.workflows.denoise import DenoiseLDMFlow
from dipy_ldm.workflows.evaluate import EvaluateLDMFlow
from dipy_ldm.workflows.generate import GenerateLDMFlow
from dipy_ldm.workflows.inpaint import InpaintLDMFlow
from dipy_ldm.workflows.train import TrainLDMFlow


def parse(flow, *words):
    """Return the options of a command line."""
    parser = config.ConfigParser()
    parser.add_workflow(flow())
    return parser.get_flow_args([*map(str, words)])


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.tensorflow  # which strategies are from
def test_choices_are_listed_and_others_refused():
    from dipy_ldm._backend.strategy import STRATEGIES

    tables = {"strategy": STRATEGIES, "precision": {"auto": None, **PRECISIONS}}
    tables |= {"sampler": SAMPLERS, "dtype": DTYPES}
    for flow in (TrainLDMFlow, GenerateLDMFlow):
        for name, declared in flow.run.options.declared().items():
            if declared.choices:
                assert set(declared.choices) == set(tables[name])
    parser = config.ConfigParser()
    parser.add_workflow(GenerateLDMFlow())
    assert "--strategy {auto,none,mirrored,multi_worker}" in parser.format_help()
    with pytest.raises(InputError, match="unknown strategy 'mirrored'; choose one of"):
        parse(DenoiseLDMFlow, "m", "a.nii.gz", "--strategy", "mirrored")
    alone = parse(DenoiseLDMFlow, "m", "a.nii.gz", "--strategy", "none")
    assert alone["strategy"] == "none"


@pytest.mark.parametrize("first", [("--conditions", "age=60"), ("--cond=age=60",)])
def test_repeated_list_options_are_refused(first):
    with pytest.raises(InputError, match="--conditions is given twice; put all its"):
        parse(GenerateLDMFlow, "m", *first, "--conditions", "sex=F")
    numbers = ("--widths_ldm", 4, "--widths_ldm", 8, "--seed", 1, "--seed", 2)
    used = parse(TrainLDMFlow, "a.npy", *numbers)
    assert (used["widths_ldm"], used["seed"]) == ([8], 2)


def test_generate_repeats_a_run_by_its_config(tmp_path):
    options = ("--n_samples", 3, "--steps", 2, "--seed", 5, "--conditions", "label=7")
    execute("generate", "mnist", *options, cwd=tmp_path)
    document = tomllib.loads((tmp_path / "samples.toml").read_text())
    used = document["dipy_generate_ldm"]
    # Those that were given, and the defaults: of the command, and of the model.
    assert (used["seed"], used["sampler"], used["guidance"]) == (5, "dpm++", 2.0)
    assert used["model_file"] == "mnist"
    assert document["versions"]["dipy_ldm"] == __version__
    assert {"keras", "python", "dipy", "nibabel", "numpy"} < document["versions"].keys()
    again = ("--config", "samples.toml", "--out_dir", "again")
    execute("generate", *again, cwd=tmp_path)
    copies = tmp_path / "again"
    for name in ("samples.npz", "samples.png"):
        assert (copies / name).read_bytes() == (tmp_path / name).read_bytes()


def test_train_repeats_a_run_by_its_config(trained_folder, tmp_path):
    again = ("--config", "out/ldm.toml", "--out_dir", tmp_path)
    execute("train", *again, cwd=trained_folder)
    first, second = (
        safe_open(folder / "ldm.safetensors", "numpy").metadata()
        for folder in (trained_folder / "out", tmp_path)
    )
    assert first == second  # with the hash of all weights
    # What the kind of data decides is among the options.
    used = tomllib.loads((tmp_path / "ldm.toml").read_text())["dipy_train_ldm"]
    assert (used["n_codebooks"], used["validation"]) == (1, 0.05)
    assert used["input_files"] == ["blobs.npy"]
    assert "resume" not in used
    assert load_model(tmp_path / "ldm.safetensors").seed == used["seed"]


def test_options_of_the_command_line_override_the_config(tmp_path):
    text = """
        [dipy_denoise_ldm]
        model_file = "ldm.safetensors"
        input_files = ["a.nii.gz", "b.nii.gz"]
        conditions = "group=control"
        strength = 0.3
        repeats = 2
        difference = true
        steps = 6
        out_dir = "out"
        """
    toml = write(tmp_path / "denoised.toml", text)
    used = parse(DenoiseLDMFlow, "--config", toml, "--repeats", 4, "--out_dir", "new")
    assert used["input_files"] == ["a.nii.gz", "b.nii.gz"]
    assert used["conditions"] == ["group=control"]
    assert (used["repeats"], used["out_dir"], used["difference"]) == (4, "new", True)
    assert used["steps"] == 6
    other = ("other.safetensors", "c.nii.gz")
    used = parse(DenoiseLDMFlow, "--conf", toml, *other, "--strength", 0.5)
    assert used["model_file"] == "other.safetensors"
    assert used["input_files"] == ["c.nii.gz"]
    # Steps that suited another strength.
    assert (used["strength"], used.get("steps")) == (0.5, None)


@pytest.mark.parametrize(
    ("flow", "options", "words", "kept"),
    [
        (TrainLDMFlow, "steps_ldm = 9", "--epochs_l 2", ""),
        (TrainLDMFlow, "epochs_vqvae = 1", "--epochs_l 2", "epochs_vqvae"),
        # Samples are counted per volume, independent of conditions.
        (InpaintLDMFlow, "n_samples = 3", "m --conditions age=60", "n_samples"),
        (GenerateLDMFlow, "n_samples = 3", "--conditions age=60", ""),
        (EvaluateLDMFlow, "steps = 9\nguidance = 3.0", "--generated_files a.npy", ""),
        (TrainLDMFlow, "n_codes = 64\npatch = [8]", "--init volumes", ""),
        (TrainLDMFlow, "steps_ldm = 5", "--init volumes", "steps_ldm"),
        (TrainLDMFlow, "widths_ldm = [8]", "--init=volumes", "widths_ldm"),
        (TrainLDMFlow, "widths_ldm = [8]", "--init=brains", ""),
        (TrainLDMFlow, "seconds = 9.0", "--check", "seconds"),
        (TrainLDMFlow, "seconds = 9.0", "", ""),
    ],
)
def test_options_of_a_config_that_do_not_suit_are_dropped(
    tmp_path, flow, options, words, kept
):
    text = f"[dipy_{flow.get_short_name()}]\n{options}"
    file = write(tmp_path / "run.toml", text)
    used = parse(flow, "a.nii", *words.split(), "--config", file)
    of_file = tomllib.loads(options)
    assert " ".join(n for n, v in of_file.items() if used.get(n) == v) == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("strength 3", r"is not valid TOML \(.*\); give a file that dipy_denoise_ldm"),
        (
            '[dipy_train_ldm]\ninput_files = "mnist"',
            "has options of dipy_train_ldm, but none of dipy_denoise_ldm; give a file",
        ),
        ("strength = 3", "has no options of dipy_denoise_ldm; give a file"),
        (
            "[dipy_denoise_ldm]\nstronger = 3",
            "has the option stronger, which dipy_denoise_ldm does not have; correct",
        ),
        ('[dipy_denoise_ldm]\nstrength = "much"', "strength can't be 'much' as in"),
        ("[dipy_denoise_ldm]\nseed = [1]", r"seed can't be \[1\] as in"),
        ("[dipy_denoise_ldm]\nlesions = 1", "lesions can't be 1 as in"),
        ("[dipy_denoise_ldm]\nconfig = 'a'", "has the option config, which"),
        (None, "can't be read .No such file or directory.; give a file that"),
    ],
)
def test_invalid_configs_are_refused(text, expected, tmp_path):
    file = tmp_path / "run.toml"
    if text is not None:
        write(file, text)
    with pytest.raises(config.InputError, match=expected):
        parse(DenoiseLDMFlow, "--config", file)


def test_generate_refuses_a_config_of_another_command(tmp_path):
    write(tmp_path / "run.toml", "[dipy_train_ldm]\n")
    output = execute("generate", "--config", "run.toml", cwd=tmp_path, status=2)
    assert answer(output).startswith("dipy_generate_ldm: run.toml has options of")


def test_write_config_keeps_the_file_of_another_run(tmp_path):
    flow = DenoiseLDMFlow(force=False)
    options = SimpleNamespace(odd='a "b"\\c\n', limit=math.inf, resume=True)
    for seed in (1, 2, 1, 3):
        options.seed = seed
        config.write_config(flow, tmp_path / "denoised", options)
    files = ["denoised.toml", "denoised-2.toml", "denoised-3.toml"]
    texts = [(tmp_path / file).read_text() for file in files]
    tables = [tomllib.loads(text)["dipy_denoise_ldm"] for text in texts]
    for file, text in zip(files, texts, strict=True):
        # Which is run where paths among the options begin.
        assert text.partition("\n")[0].endswith(f"--config {tmp_path / file}")
    assert [table["seed"] for table in tables] == [1, 2, 3]
    assert (tables[0]["odd"], tables[0]["limit"]) == (options.odd, math.inf)
    assert len(list(tmp_path.iterdir())) == 3
    flow._force_overwrite = True
    config.write_config(flow, tmp_path / "denoised", options)
    assert "seed = 3" in (tmp_path / "denoised.toml").read_text()


def test_write_config_of_simultaneous_jobs(tmp_path):
    def write_seed(seed):
        flow, options = DenoiseLDMFlow(force=False), SimpleNamespace(seed=seed)
        return config.write_config(flow, tmp_path / "denoised", options)

    with ThreadPoolExecutor(8) as pool:
        files = [*pool.map(write_seed, range(8))]
    texts = [tomllib.loads(file.read_text())["dipy_denoise_ldm"] for file in files]
    assert [table["seed"] for table in texts] == [*range(8)]
    assert sorted(tmp_path.iterdir()) == sorted(files)
