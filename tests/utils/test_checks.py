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


def test_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)


def test_choose_returns_the_entry():
    assert choose("sampler", "dpm++", TABLE) == 3


@pytest.mark.parametrize("name", ["foo", "DDPM", "", None, 1, ["ddpm"]])
def test_choose_names_the_choices(name):
    with pytest.raises(InputError) as caught:
        choose("sampler", name, TABLE)
    expected = f"unknown sampler {name!r}; choose one of ddpm, ddim, dpm++."
    assert str(caught.value) == expected


@pytest.mark.parametrize("value", [1, 1.0, 7])
def test_at_least_returns_the_value(value):
    assert at_least("n_samples", value, 1) is value


@pytest.mark.parametrize("value", [0, -3, 0.5, float("nan")])
def test_at_least_names_parameter_and_minimum(value):
    with pytest.raises(InputError) as caught:
        at_least("n_samples", value, 1)
    assert str(caught.value) == f"n_samples must be at least 1, not {value}."


@pytest.mark.parametrize("share", ["0.1", None, -0.1, 1.1, float("nan")])
def test_shares_lie_between_0_and_1(share):
    check_shares(strength=0, eta=1)
    with pytest.raises(InputError, match="strength must lie between 0 and 1, not"):
        check_shares(strength=share)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, float("nan")])
def test_seeds_are_whole_numbers_of_32_bits(seed):
    check_seed(0)
    check_seed(2**32 - 1)
    with pytest.raises(InputError, match="from 0 to 4294967295, not"):
        check_seed(seed)


def test_sizes_are_at_least_one_or_none():
    check_sizes(widths=[1, 2], epochs=None)
    with pytest.raises(InputError, match="widths must be at least 1, not 0"):
        check_sizes(widths=[8, 0])
    with pytest.raises(InputError, match="the length of widths must be"):
        check_sizes(widths=[])
