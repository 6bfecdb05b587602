"""The console scripts."""

from contextlib import suppress
import inspect
import logging
import os
import re
import signal
import sys
import traceback
from typing import Any

from dipy.workflows import flow_runner

from dipy_ldm import __version__
from dipy_ldm._utils.checks import InputError, choose
from dipy_ldm._utils.signals import Terminated, deferred

# 1 is the answer of a check that found something red, and of an audit, copies.
_BAD_NEWS, _ERROR = 1, 2
_RESUME = "Add --resume to go on."
# How oneDNN, JAX and PyTorch say that memory is used up.
_NO_MEMORY = (
    "could not create a primitive",
    "RESOURCE_EXHAUSTED",
    "DefaultCPUAllocator: can't allocate memory",
)


def train() -> None:
    """Run ``dipy_train_ldm``."""
    from dipy_ldm.workflows.train import TrainLDMFlow

    run(TrainLDMFlow())


def generate() -> None:
    """Run ``dipy_generate_ldm``."""
    from dipy_ldm.workflows.generate import GenerateLDMFlow

    run(GenerateLDMFlow())


def denoise() -> None:
    """Run ``dipy_denoise_ldm``."""
    from dipy_ldm.workflows.denoise import DenoiseLDMFlow

    run(DenoiseLDMFlow())


def inpaint() -> None:
    """Run ``dipy_inpaint_ldm``."""
    from dipy_ldm.workflows.inpaint import InpaintLDMFlow

    run(InpaintLDMFlow())


def check() -> None:
    """Run ``dipy_check_ldm``; the status is 1 if something must be mended."""
    from dipy_ldm.workflows.check import CheckLDMFlow

    flow = CheckLDMFlow()
    run(flow)
    if flow.verdict:
        _leave(flow.verdict, _BAD_NEWS)


def evaluate() -> None:
    """Run ``dipy_evaluate_ldm``."""
    from dipy_ldm.workflows.evaluate import EvaluateLDMFlow

    run(EvaluateLDMFlow())


def audit() -> None:
    """Run ``dipy_audit_ldm``; the status is 1 if there are copies."""
    from dipy_ldm.workflows.audit import AuditLDMFlow

    flow = AuditLDMFlow()
    run(flow)
    if flow.verdict:
        _leave(flow.verdict, _BAD_NEWS)


def run(flow: Any) -> None:
    """Run a workflow on the command line; answer what users can mend with a sentence.

    Parameters
    ----------
    flow : dipy.workflows.workflow.Workflow
        Its ``run`` says what the command line is.
    """
    for talkative in ("matplotlib", "PIL", "h5py", "absl", "tensorflow", "jax"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # DIPY's own answers every name with INFO; when this may go, tests/test_upstream.py
    # tells.
    flow_runner.get_level = level
    options = options_of(flow)
    version = {"action": "version", "version": f"dipy_ldm {__version__}"}
    try:
        with deferred(_stop):
            flow_runner.run_flow(flow, extra_args={"version": version})
    except ConnectionError as error:
        _leave(f"{error} {_RESUME}", _ERROR, at_once=True)
    except (InputError, OSError) as error:
        _leave(as_options(str(error), options), _ERROR)
    except Terminated as end:
        _leave(f"{end} {_RESUME}", end.code)
    except Exception as error:
        if not _lacks_memory(error):
            # As Python would, but for the status.
            sys.excepthook(type(error), error, error.__traceback__)
            sys.exit(_ERROR)
        _leave(_give_less(options), _ERROR)
    except KeyboardInterrupt as error:
        say = getattr(flow, "when_interrupted", lambda: "interrupted.")
        _leave_interrupted(say(), error)


def level(name: str) -> int:
    """Look up a level of the log.

    Parameters
    ----------
    name : str
        Its name, in upper or lower case.

    Returns
    -------
    int
        The level.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    return choose("log_level", name.upper(), logging.getLevelNamesMapping())


def options_of(flow: Any) -> list[str]:
    """List the options of a command.

    Parameters
    ----------
    flow : dipy.workflows.workflow.Workflow
        Its ``run`` says what the command line is.

    Returns
    -------
    list of str
        Names of its parameters that have a default.
    """
    parameters = inspect.signature(flow.run).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty]


def as_options(sentence: str, options: list[str]) -> str:
    """Say to who gave options what is said to who gave parameters.

    Parameters
    ----------
    sentence : str
        Of the library, with names of parameters: in backticks, with an underscore, or
        as what something is said of (``seed must ...``).
    options : list of str
        Names of the command's options.

    Returns
    -------
    str
        With ``--name`` for those that are options of the command, and without
        backticks.
    """
    names = "|".join(map(re.escape, options))
    with_underscore = "|".join(re.escape(name) for name in options if "_" in name)
    # Neither a part of a path or a longer name, nor an option already.
    for pattern in (
        rf"`({names})`",
        rf"^({names})(?= must )",
        rf"(?<![\w./=`-])({with_underscore})(?!\.?[\w/=`(-])",
    ):
        sentence = re.sub(pattern, r"--\1", sentence)
    return re.sub(r"`(\w+)`", r"\1", sentence)


class _Stopped(KeyboardInterrupt):
    """The end that a signal asks for where there is no better moment to wait for."""


def _stop(number):
    raise _Stopped(number)


def _leave_interrupted(sentence, error):
    """End as Ctrl-C or a signal asked for, once what is half done is cleared away."""
    if isinstance(error, _Stopped):
        (number,) = error.args
        stopped = f"stopped by {signal.Signals(number).name}"
        _leave(sentence.replace("interrupted", stopped, 1), 128 + number)
    _leave(sentence, 130)


def _lacks_memory(error):
    """Say whether an error is that memory is used up, whoever needed it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("ResourceExhaustedError", "OutOfMemoryError")
        or any(words in str(error) for words in _NO_MEMORY)
    )


def _give_less(options):
    """Say what the options of a command can do where memory is used up."""
    names = [f"--{name}" for name in ("batch_size", "patch", "tile") if name in options]
    return f"the memory is used up; free some, or give a smaller {' or '.join(names)}."


def _leave(sentence, status, at_once=False):
    # Of several workers, each keeps the whole story in a file of its own.
    logging.getLogger("dipy_ldm").debug(sentence, exc_info=True)
    if error := sys.exception():
        # A bar that its frames hold would be drawn once more, below the last word.
        traceback.clear_frames(error.__traceback__)
    with suppress(OSError):  # where the terminal is gone
        sys.stderr.write(f"\n{os.path.basename(sys.argv[0])}: {sentence}\n")
    if at_once:
        # What TensorFlow still has open to a machine that is gone would have the last
        # word, or none.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
