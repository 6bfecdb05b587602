"""The console scripts."""

import logging
import os
import sys

from dipy.workflows.flow_runner import run_flow

from dipy_ldm import __version__
from dipy_ldm.signals import STATUS, Terminated
from dipy_ldm.validation import InputError


def train():
    """Run ``dipy_train_ldm``."""
    from dipy_ldm.workflows.train import TrainLDMFlow

    run(TrainLDMFlow())


def generate():
    """Run ``dipy_generate_ldm``."""
    from dipy_ldm.workflows.generate import GenerateLDMFlow

    run(GenerateLDMFlow())


def denoise():
    """Run ``dipy_denoise_ldm``."""
    from dipy_ldm.workflows.denoise import DenoiseLDMFlow

    run(DenoiseLDMFlow())


def run(flow):
    """Run a workflow on the command line; answer what users can mend with a sentence.

    Parameters
    ----------
    flow : dipy.workflows.workflow.Workflow
        Its ``run`` says what the command line is.
    """
    # Which would tell of its fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    version = {"action": "version", "version": f"dipy_ldm {__version__}"}
    try:
        run_flow(flow, extra_args={"version": version})
    except (InputError, OSError) as error:
        _leave(str(error), 1, at_once=isinstance(error, ConnectionError))
    except Terminated as end:
        _leave(str(end), STATUS)
    except KeyboardInterrupt:
        say = getattr(flow, "when_interrupted", lambda: "interrupted.")
        _leave(say(), 130)


def _leave(sentence, status, at_once=False):
    # Of several workers, each keeps the whole story in a file of its own.
    logging.getLogger("dipy_ldm").debug(sentence, exc_info=True)
    sys.stderr.write(f"\n{os.path.basename(sys.argv[0])}: {sentence}\n")
    if at_once:
        # What TensorFlow still has open to a machine that is gone would have the last
        # word, or none.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
