"""Runs that are repeated by their TOML file."""

from concurrent.futures import ThreadPoolExecutor
import tomllib

from processes import answer, execute, load_model
import pytest
from safetensors import safe_open

from dipy_ldm import __version__
from dipy_ldm._backend.strategy import STRATEGIES
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


def test_choices_are_listed_and_others_refused():
    tables = {"strategy": STRATEGIES, "precision": {"auto": None, **PRECISIONS}}
    tables |= {"sampler": SAMPLERS, "dtype": DTYPES}
    for flow in (TrainLDMFlow, GenerateLDMFlow):
        for name, words in flow.choices.items():
            assert set(words) == set(tables[name])
    parser = config.ConfigParser()
    parser.add_workflow(GenerateLDMFlow())
    assert "--sampler {ddpm,ddim,dpm++}" in parser.format_help()
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


def test_digits_are_generated_again(tmp_path):
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


def test_a_training_is_done_again(trained_folder, tmp_path):
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


def test_options_of_the_command_line_come_first(tmp_path):
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


def test_epochs_replace_the_steps_of_a_file(tmp_path):
    text = '[dipy_train_ldm]\ninput_files = "mnist"\nsteps_ldm = 9\nepochs_vqvae = 1\n'
    file = write(tmp_path / "ldm.toml", text)
    used = parse(TrainLDMFlow, "--epochs_l", 2, "--config", file)
    assert (used["epochs_ldm"], used["epochs_vqvae"]) == (2, 1)
    assert "steps_ldm" not in used


def test_conditions_replace_the_number_of_generated_samples_alone(tmp_path):
    text = 'model_file = "m"\ninput_files = ["a.nii"]\nn_samples = 3\n'
    file = write(tmp_path / "inpainted.toml", f"[dipy_inpaint_ldm]\n{text}")
    conditions = ("--conditions", "age=60")
    assert parse(InpaintLDMFlow, "--config", file, *conditions)["n_samples"] == 3
    text = '[dipy_generate_ldm]\nmodel_file = "m"\nn_samples = 3\n'
    file = write(tmp_path / "samples.toml", text)
    used = parse(GenerateLDMFlow, "--config", file, *conditions)
    assert "n_samples" not in used


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "strength 3",
            r"is not valid TOML \(.*\); give a file that dipy_denoise_ldm wrote",
        ),
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
def test_a_file_of_something_else_is_refused(text, expected, tmp_path):
    file = tmp_path / "run.toml"
    if text is not None:
        write(file, text)
    with pytest.raises(config.InputError, match=expected):
        parse(DenoiseLDMFlow, "--config", file)


def test_the_command_says_so_in_a_sentence(tmp_path):
    write(tmp_path / "run.toml", "[dipy_train_ldm]\n")
    output = execute("generate", "--config", "run.toml", cwd=tmp_path, status=2)
    assert answer(output).startswith("dipy_generate_ldm: run.toml has options of")


def test_the_file_of_another_run_is_kept(tmp_path):
    flow = DenoiseLDMFlow(force=False)
    options = config.SimpleNamespace(seed=1, odd='a "b"\\c\n', resume=True)
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
    assert tables[0]["odd"] == options.odd
    assert len(list(tmp_path.iterdir())) == 3
    flow._force_overwrite = True
    config.write_config(flow, tmp_path / "denoised", options)
    assert "seed = 3" in (tmp_path / "denoised.toml").read_text()


def test_jobs_that_end_at_once_have_files_of_their_own(tmp_path):
    def write_seed(seed):
        flow, options = DenoiseLDMFlow(force=False), config.SimpleNamespace(seed=seed)
        return config.write_config(flow, tmp_path / "denoised", options)

    with ThreadPoolExecutor(8) as pool:
        files = [*pool.map(write_seed, range(8))]
    texts = [tomllib.loads(file.read_text())["dipy_denoise_ldm"] for file in files]
    assert [table["seed"] for table in texts] == [*range(8)]
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_the_file_of_a_check_says_how_to_check_again(tmp_path):
    options = config.SimpleNamespace(input_files=["a.npy"], check=True)
    flow = TrainLDMFlow(force=False)
    file = config.write_config(flow, tmp_path / "check.json", options)
    again = "# To repeat this run: dipy_check_ldm --config "
    assert file.read_text().startswith(again)


def test_a_limit_may_be_infinite(tmp_path):
    limit = config._toml_value(float("inf"))
    text = f'[dipy_train_ldm]\ninput_files = ["mnist"]\ncache_limit = {limit}\n'
    file = write(tmp_path / "ldm.toml", text)
    assert parse(TrainLDMFlow, "--config", file)["cache_limit"] == float("inf")


def test_sizes_of_a_file_give_way_to_a_model_to_begin_from(tmp_path):
    text = '[dipy_train_ldm]\ninput_files = ["a"]\nn_codes = 64\npatch = [8]\n'
    file = write(tmp_path / "ldm.toml", f"{text}steps_ldm = 5\n")
    options = parse(TrainLDMFlow, "--config", file, "--init", "volumes")
    assert options["steps_ldm"] == 5
    assert not {"n_codes", "patch"} & options.keys()


@pytest.mark.parametrize(("init", "taken"), [("volumes", [8]), ("brains", None)])
def test_a_whole_model_to_begin_from_has_widths_of_its_own(tmp_path, init, taken):
    text = '[dipy_train_ldm]\ninput_files = ["a"]\nwidths_ldm = [8]\n'
    file = write(tmp_path / "ldm.toml", text)
    options = parse(TrainLDMFlow, "--config", file, f"--init={init}")
    assert options.get("widths_ldm") == taken


def test_samples_replace_how_to_sample(tmp_path):
    text = '[dipy_evaluate_ldm]\nmodel_file = "m"\nsteps = 10\nguidance = 2.0\n'
    file = write(tmp_path / "evaluation.toml", text)
    used = parse(EvaluateLDMFlow, "--config", file, "--generated_files", "a.npy")
    assert not {"steps", "guidance"} & used.keys()


def test_the_check_and_the_training_take_each_others_files(tmp_path):
    text = '[dipy_train_ldm]\ninput_files = ["a.npy"]\nseconds = 9.0\n'
    file = write(tmp_path / "check.toml", text)
    used = parse(TrainLDMFlow, "--config", file, "--check")
    assert used["check"] and used["input_files"] == ["a.npy"]
    assert used["seconds"] == 9
    assert "seconds" not in parse(TrainLDMFlow, "--config", file)
