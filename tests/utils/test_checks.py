import json
from pathlib import Path

import pytest

from dipy_ldm._utils.checks import (
    InputError,
    at_least,
    check_each,
    check_seed,
    check_shares,
    check_sizes,
    choose,
    naming_files,
)

TABLE = {"ddpm": 1, "ddim": 2, "dpm++": 3}
CHOICES = "; choose one of ddpm, ddim, dpm++."
NAN = float("nan")


def test_checks_let_valid_values_pass():
    assert choose("sampler", "dpm++", TABLE) == 3
    value = 1.0
    assert at_least("n", value, 1) is value
    check_shares(strength=0, eta=1)
    check_seed(0)
    check_seed(2**32 - 1)
    check_sizes(widths=[1, 2], epochs=None)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: choose("loss", "DDPM", TABLE), f"unknown loss 'DDPM'{CHOICES}"),
        (lambda: choose("loss", ["ddpm"], TABLE), f"unknown loss ['ddpm']{CHOICES}"),
        (lambda: at_least("n", 0.5, 1), "n must be at least 1, not 0.5."),
        (lambda: at_least("n", NAN, 1), "n must be at least 1, not nan."),
        (lambda: check_shares(eta="1"), "eta must lie between 0 and 1, not '1'."),
        (lambda: check_shares(eta=-0.1), "eta must lie between 0 and 1, not -0.1."),
        (lambda: check_shares(eta=1.1), "eta must lie between 0 and 1, not 1.1."),
        (lambda: check_shares(eta=NAN), "eta must lie between 0 and 1, not nan."),
        (lambda: check_seed(-1), "from 0 to 4294967295, not -1."),
        (lambda: check_seed(2**32), "from 0 to 4294967295, not 4294967296."),
        (lambda: check_seed(0.5), "from 0 to 4294967295, not 0.5."),
        (lambda: check_sizes(widths=[8, 0]), "widths must be at least 1, not 0."),
        (lambda: check_sizes(widths=[]), "the length of widths must be at least 1"),
    ],
)
def test_checks_name_parameter_and_limits(check, message):
    with pytest.raises(ValueError) as refusal:
        check()
    assert type(refusal.value) is InputError
    assert message in str(refusal.value)


def test_an_error_of_several_problems_lists_them_and_then_the_cure():
    problems = [InputError(f"{i}.nii is empty", "copy it again") for i in range(2)]
    error = InputError(cure="add `skip_bad`", complaints=problems)
    lines = [f"{i}.nii is empty; copy it again." for i in range(2)]
    assert str(error).splitlines() == [*lines, "Add `skip_bad`."]
    assert error.options == {"skip_bad"}


def test_an_error_without_text_is_what_it_consists_of():
    problem = InputError("a.nii is empty")
    assert InputError(complaints=[InputError(complaints=[problem])]).complaints == (
        problem,
    )


def test_saved_errors_are_restored_with_other_names_of_files():
    problem = InputError("a/1.nii is empty", "copy it", files=["a/1.nii"])
    error = InputError(cure="go on", option="paths", complaints=[problem])
    restored = InputError.from_saved(json.loads(json.dumps(error.to_saved())))
    assert str(restored) == str(error)
    renamed = restored.renamed({"a/1.nii": "b/2.nii"})
    assert renamed.complaints[0].files == (Path("b/2.nii"),)
    assert str(renamed) == str(error).replace("a/1.nii", "b/2.nii")


def test_check_each_reports_all_errors_and_their_files():
    def check(file):
        with naming_files(file):
            at_least("size", 0 if file.suffix else 1, 1)

    with pytest.raises(InputError) as refusal:
        check_each(check, [Path("a.nii"), Path("b"), Path("c.nii")])
    assert refusal.value.files == (Path("a.nii"), Path("c.nii"))
    assert [error.option for error in refusal.value.complaints] == ["size", "size"]
