import pytest

from dipy_ldm._utils.checks import (
    InputError,
    at_least,
    check_seed,
    check_shares,
    check_sizes,
    choose,
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
