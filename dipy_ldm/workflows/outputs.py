"""Where outputs go, and that none is overwritten unasked."""

from pathlib import Path

from dipy.workflows.multi_io import connect_output_paths

from dipy_ldm.validation import InputError


def output_paths(flow, input_path, out_dir, **names):
    """Resolve the outputs of a workflow as DIPY does, without making anything.

    DIPY's own iterator takes every positional word for an existing file, makes
    folders before the inputs are known to be good, and goes on with status 0 where
    outputs exist.

    Parameters
    ----------
    flow : dipy.workflows.workflow.Workflow
        Workflow; its ``last_generated_outputs`` are set.
    input_path : str or Path
        First input, beside which the strategies ``append`` and ``prepend`` put
        outputs.
    out_dir : str or Path
        Output folder.
    **names : str
        File name of each output, by its parameter's name.

    Returns
    -------
    list of Path
        One path for each name.
    """
    _, (paths,) = connect_output_paths(
        [[str(input_path)]],
        out_dir,
        list(names.values()),
        output_strategy=flow._output_strategy,
        mix_names=flow._mix_names,
    )
    flow.last_generated_outputs = dict(zip(names, map(Path, paths)))
    return list(flow.last_generated_outputs.values())


def refuse_overwriting(flow, paths, cure="add --force to overwrite"):
    """Raise an error if one of the paths exists, unless forced.

    Parameters
    ----------
    flow : dipy.workflows.workflow.Workflow
        Workflow that knows whether to force.
    paths : iterable of Path
        Files that are about to be written.
    cure : str
        What to do about it.

    Raises
    ------
    InputError
        If one is there.
    """
    there = [str(path) for path in paths if path.exists()]
    if there and not flow._force_overwrite:
        verb = "exists" if len(there) == 1 else "exist"
        raise InputError(f"{', '.join(there)} {verb} already; {cure}.")
