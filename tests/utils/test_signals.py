"""Signals are deferred to a safe moment, and their handlers restored."""

import signal

import pytest

from dipy_ldm import VQVAE, _serialization
from dipy_ldm._utils.signals import Terminated, reinstall_sigterm, stop_deferred

ENDS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def heeded():
    """Heed both signals, which who started the tests may have let them ignore."""
    calls = []
    handler = lambda number, frame: calls.append(number)  # noqa: E731
    before = {number: signal.signal(number, handler) for number in ENDS}
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDS)
def test_deferred_signal_handler_is_restored(heeded, number):
    received = []
    with stop_deferred(received.append):
        signal.raise_signal(number)
    assert received == [number]
    assert not heeded
    signal.raise_signal(number)
    assert heeded == [number]


def test_ignored_hangup_stays_ignored(heeded):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    received = []
    with stop_deferred(received.append):
        signal.raise_signal(signal.SIGHUP)
    assert not received
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_the_handler_of_a_program_that_python_runs_in_is_let_be(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.delattr(signal, "signal")
    with stop_deferred(None):
        pass
    reinstall_sigterm()


def test_a_lost_connection_leaves_a_checkpoint(heeded, blobs, tmp_path):
    path = tmp_path / "checkpoint"

    def hang_up(vqvae):
        signal.raise_signal(signal.SIGHUP)

    vqvae = VQVAE(widths=(8,), blocks=1, n_codes=16, code_dim=2)
    with pytest.raises(Terminated, match="stopped by SIGHUP; the checkpoint") as end:
        vqvae.fit(blobs, epochs=9, checkpoint=path, callbacks=[hang_up], verbose=False)
    assert end.value.code == 129
    assert _serialization.read_document(path, "checkpoint")["steps"] > 0
