"""The table of options: what is refused, and what commands show of it."""

import pytest

from dipy_ldm._utils.checks import InputError
from dipy_ldm.workflows import _option_table as table
from dipy_ldm.workflows._options import CommandOptions

TRAIN = {"input_files": ["a.nii"]}
SCANS = {"model_file": "m", "input_files": ["a.nii"]}
CLASSES = {
    table.TrainOptions: TRAIN,
    table.GenerateOptions: {"model_file": "m"},
    table.DenoiseOptions: SCANS,
    table.InpaintOptions: SCANS,
    table.EvaluateOptions: {"model_file": "m"},
    table.AuditOptions: {"model_file": "m"},
}


def shown(kind):
    return [name for name, option in kind.declared().items() if not option.expert]


def test_commands_show_few_options():
    assert len(shown(table.TrainOptions)) <= 32
    assert sum(len(shown(kind)) for kind in CLASSES) <= 120


@pytest.mark.parametrize("kind", CLASSES)
def test_options_refer_to_options_of_the_same_command(kind):
    declared = kind.declared()
    for option in declared.values():
        assert {*option.requires, *option.excludes} <= declared.keys()
    kind(**CLASSES[kind]).validate()  # defaults are valid


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (table.TrainOptions, {"seconds": 9.0}, {"seconds", "check"}),
        (table.TrainOptions, {"coarsen": ["age=5"]}, {"coarsen", "conditions"}),
        (table.TrainOptions, {"mask_files": ["m"]}, {"mask_files", "background"}),
        (table.TrainOptions, {"steps_ldm": 5, "epochs_ldm": 5}, None),
        (table.TrainOptions, {"steps_detector": 5, "dwi": True}, None),
        (table.TrainOptions, {"init": "volumes", "patch": [8]}, {"patch"}),
        (table.GenerateOptions, {"suffix": "T1w"}, {"suffix", "bids"}),
        (table.DenoiseOptions, {"dilate": 1.0}, {"dilate", "lesions"}),
        (table.DenoiseOptions, {"strength": 0.0, "lesions": True}, None),
        (table.InpaintOptions, {"skull_stripped": True}, {"skull_stripped", "bids"}),
        (table.EvaluateOptions, {"measurements": "m.tsv"}, None),
        (table.AuditOptions, {"steps": 5, "generated_files": ["a"]}, None),
    ],
)
def test_options_without_effect_are_refused(kind, options, named):
    with pytest.raises(InputError, match="has no effect") as raised:
        kind(**CLASSES[kind] | options).validate()
    assert (named or options.keys()) <= raised.value.options
    assert raised.value.cure


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (table.TrainOptions, "validation", 1.0),
        (table.TrainOptions, "learning_rate", 0.0),
        (table.TrainOptions, "seed", -1),
        (table.TrainOptions, "background", 1.5),
        (table.TrainOptions, "patch", [0]),
        (table.DenoiseOptions, "repeats", 0),
        (table.InpaintOptions, "dilate", -1.0),
    ],
)
def test_invalid_values_are_refused(kind, option, value):
    with pytest.raises(InputError) as raised:
        kind(**CLASSES[kind] | {option: value}).validate()
    assert raised.value.option == option


def test_an_empty_list_is_no_change():
    options = table.TrainOptions(input_files=["a"], mask_files=[], seed=3)
    assert options.changed == ["seed", "input_files"]
    assert CommandOptions().changed == []
