"""Progress bars, and log messages beside them."""

import logging
import sys

from dipy.utils.logging import CustomHandler
import pytest

from dipy_ldm._utils.progress import tqdm


def log_to_console(monkeypatch, kind=logging.StreamHandler):
    handler = kind(sys.stderr)
    handler.setLevel(logging.INFO)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    return [handler]


@pytest.mark.parametrize("kind", [logging.StreamHandler, CustomHandler])
def test_messages_are_logged_above_the_bar(monkeypatch, capsys, kind):
    handlers = log_to_console(monkeypatch, kind)
    logger = logging.getLogger("dipy_ldm.anything")
    monkeypatch.setattr(logger, "level", logging.DEBUG)
    for i in tqdm(range(3), mininterval=0):
        logger.info("message %d", i)
        logger.debug("for the file alone")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    # None stands beside a bar.
    written = [line.strip() for line in lines if "message" in line]
    assert written == [f"message {i}" for i in range(3)]
    assert not any("alone" in line for line in lines)
    assert logging.root.handlers == handlers


def test_a_bar_that_is_not_shown_redirects_nothing(monkeypatch):
    handlers = log_to_console(monkeypatch)
    bar = tqdm(range(3), disable=True)
    assert logging.root.handlers == handlers
    bar.close()


def test_a_bar_closed_late_brings_no_handlers_back(monkeypatch):
    log_to_console(monkeypatch)
    bar = tqdm(range(3))
    handlers = log_to_console(monkeypatch)
    bar.close()
    assert logging.root.handlers == handlers
