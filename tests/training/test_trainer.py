"""Training: what both stages share."""

from contextlib import nullcontext
import signal
from types import SimpleNamespace
from unittest import mock

import keras
from keras import ops
import numpy as np
import pytest

from dipy_ldm import VQVAE, _backend, _serialization
from dipy_ldm._utils.checks import InputError
from dipy_ldm._utils.types import Batches
from dipy_ldm.data._image_checks import survey
from dipy_ldm.training import _trainer as trainer
from dipy_ldm.training._checkpoint import BestWeights, TrainingRecord
from dipy_ldm.training._optimizer import FlatAdam
from dipy_ldm.training._options import Length, ResolvedOptions
from dipy_ldm.training._trainer import DivergenceCheck, Progress, Stage

TINY = {"widths": (8,), "blocks": 1, "n_codes": 16, "code_dim": 2}


def staged(title, length, figure="loss", baseline=1.0):
    """Return a stage of which no more than this matters."""
    stage = Stage()
    stage.title, stage.length = title, length
    stage.figure, stage.baseline = figure, baseline
    return stage


def test_progress_bar_before_the_first_step(capsys):
    bar = Progress(staged("autoencoder", Length(epoch=2, total=2)), 0)
    bar.on_epoch_begin(0)
    assert "autoencoder: preparing the first step" in capsys.readouterr().err
    for batch in range(2):
        bar.on_train_batch_end(batch, {"loss": 1.0})
    bar.on_train_end()
    last = capsys.readouterr().err.rpartition("\r")[2]
    assert last.startswith("autoencoder, epoch 1/1")
    assert "loss=1.0000" in last


def test_checkpoint_settings_have_the_validation_data(rng):
    images, *held_out = rng.random((3, 4, 8, 8, 1))
    data = trainer.TrainingData(images, survey(images), (8, 8))
    settings = [data._replace(held_out=x).settings() for x in (None, *held_out)]
    names = [one["validation data"] for one in settings]
    assert len(set(names)) == 3 and names[0] is None
    assert names[1].startswith("(4, 8, 8, 1) (")
    again = data._replace(held_out=held_out[0].copy())
    assert again.settings() == settings[1]


def test_checkpoints_of_other_optimizers_are_refused(tmp_path):
    path = tmp_path / "checkpoint"
    document = {"settings": {}, "steps": 3, "history": {}}
    _serialization.save(path, "checkpoint", {"model.00000": np.zeros(2)}, document)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile(FlatAdam(), "mse")
    record = TrainingRecord(path, {}, Length(4, 4), BestWeights("", None))
    with pytest.raises(InputError, match="earlier version"):
        record.restore(model)


def test_metrics_are_made_without_applying_the_network():
    applied = []

    class Watched(keras.layers.Dense):
        def call(self, inputs, training=None):
            applied.append(training)
            return super().call(inputs)

    inputs = keras.Input((3,))
    # A list of one output is no other thing than the output.
    model = _backend.ReplicatedModel(inputs, [Watched(2)(inputs)])
    model.compile(FlatAdam(), "mse", metrics=["mae"])
    drawn = np.random.default_rng(0).random((2, 4, 3)).astype("float32")
    batch = drawn[0], drawn[1, :, :2]
    assert not applied
    model.prepare(Batches(4, lambda step, places: [part[places] for part in batch]))
    assert not applied
    assert model.optimizer.built
    assert len(model.metrics_variables) == 4  # sum and count of loss and metric
    loss, mae = model.evaluate(*batch, verbose=0)
    difference = ops.convert_to_numpy(model(batch[0])) - batch[1]
    assert loss == pytest.approx(np.mean(difference**2))
    assert mae == pytest.approx(np.mean(np.abs(difference)))
    assert applied


@pytest.mark.parametrize(
    ("epoch", "total", "size", "rounds"),
    [
        (1250, 2500, 1250, 2),  # of a large cohort each epoch is a round
        (2, 2000, 100, 20),  # of a small one many are
        (47, 2021, 141, 15),  # whole ones, and the last round is shorter
        (2, 120, 12, 10),  # a short training has rounds all the same
        (4, 12, 4, 3),
        (50, 20, 50, 1),  # less than an epoch
    ],
)
def test_short_epochs_are_joined_to_rounds(epoch, total, size, rounds):
    length = Length(epoch, total)
    assert (length.round, length.rounds) == (size, rounds)
    assert length.end(rounds - 1) == total
    assert length.end(0) == min(size, total)


def test_steps_are_those_of_the_weights():
    training = ResolvedOptions(epochs=3, batch_size=4, accumulate=2)
    assert training.length(50) == Length(epoch=12, total=36)
    assert training._replace(steps=20).length(50) == Length(epoch=12, total=40)


def watching(stage):
    return DivergenceCheck(stage, SimpleNamespace(done=0))


EVERY_NINTH = [(steps, 0.2) for steps in range(9, 91, 9)]
EVERY_TWELFTH = [(steps, 0.2) for steps in range(12, 121, 12)]


@pytest.mark.parametrize(
    ("length", "rounds", "steps"),
    [
        (Length(10, 1000), [(100, 0.2), (200, 0.05), (300, 0.1), (400, 0.099)], 200),
        # A callback has ended the last round at its third step.
        (Length(10, 1000), [(100, 0.2), (200, 0.05), (300, 0.1), (303, 0.099)], None),
        # A short one is a trial. In the first round something is learnt.
        (Length(1, 90), EVERY_NINTH, None),
        (Length(1, 120), EVERY_TWELFTH, 108),
    ],
)
def test_a_training_that_learns_nothing_for_a_fifth_of_its_length_stops(
    length, rounds, steps
):
    watch = watching(staged("autoencoder", length, "mse", 0.1))
    sentence = f"learnt nothing in {steps} steps .* learning rate"
    expected = pytest.raises(InputError, match=sentence) if steps else nullcontext()
    with expected:
        for number, (done, error) in enumerate(rounds):
            watch.record.done = done
            watch.on_epoch_end(number, {"mse": error})
    assert watch.record.done == rounds[-1][0]


def test_check_result_names_actual_steps(caplog):
    stage = staged("autoencoder", Length(10, 4000))
    stage.failure = lambda figures: "nothing is learnt."
    best = BestWeights("autoencoder", None)
    record = SimpleNamespace(history={"step": [30, 60]}, best=best)
    trainer._check_result(stage, record)
    assert "after 60 steps nothing is learnt." in caplog.text
    record.history["step"] += [4000]
    with pytest.raises(InputError, match="^after 4000 steps nothing"):
        trainer._check_result(stage, record)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_stops_the_training_at_once(loss):
    watch = watching(staged("guide", Length(1, 90)))
    watch.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(InputError, match="of the guide became .* last checkpoint"):
        watch.on_train_batch_end(1, {"loss": loss})


def test_step_timer_without_elapsed_time(monkeypatch):
    # As Windows has it, whose clock ticks every 16 ms, where no step was left to take.
    monkeypatch.setattr(trainer.time, "monotonic", lambda: 3.0)
    timer = trainer._StepTimer(SimpleNamespace(), "guide")
    timer.on_train_begin()
    timer.on_train_end()
    assert timer.seconds == []


@pytest.mark.parametrize("guide", [False, True])
def test_log_round_of_a_guide_sets_no_history(guide):
    model, record = SimpleNamespace(), SimpleNamespace(history={"step": [1]})
    stage = staged("diffusion", Length(1, 2))
    stage.guide, stage.options = guide, ResolvedOptions()
    trainer._log_round(model, stage, record, 0, {"loss": 1.0})
    assert hasattr(model, "history_") == (not guide)


def test_error_of_the_first_step_is_raised(blobs, monkeypatch):
    fail = mock.Mock(side_effect=RuntimeError("there is no such convolution"))
    monkeypatch.setattr(FlatAdam, "_step", fail)
    with pytest.raises(RuntimeError, match="there is no such convolution"):
        VQVAE(**TINY).fit(blobs, epochs=1, verbose=False)


@pytest.fixture
def ctrl_c():
    """Heed Ctrl-C, which a shell lets the jobs ignore that it starts beside others."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Swallowing:
    """What is interrupted as it goes, and Python drops what is raised then."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interruption_that_python_drops_is_heeded_at_the_next_step(blobs, ctrl_c):
    rounds = []

    def tell(vqvae):
        rounds.append(vqvae.history_["step"][-1])
        Swallowing()

    with pytest.raises(KeyboardInterrupt):
        VQVAE(**TINY).fit(blobs, epochs=9, callbacks=[tell], verbose=False)
    assert rounds == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_job_that_ignores_ctrl_c_goes_on(blobs, ctrl_c):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupt = lambda vqvae: signal.raise_signal(signal.SIGINT)  # noqa: E731
    fit = {"epochs": 3, "callbacks": interrupt, "verbose": False}
    assert VQVAE(**TINY).fit(blobs, **fit).history_["epoch"][-1] == 3


def test_a_callback_of_keras_may_stop_a_training_within_a_round(blobs):
    def end(batch, logs):
        if batch == 2:
            stop.model.stop_training = True

    stop = keras.callbacks.LambdaCallback(on_train_batch_end=end)
    fit = {"epochs": 2, "batch_size": 8, "callbacks": [stop], "verbose": False}
    assert VQVAE(**TINY).fit(blobs, **fit).history_["step"] == [3]


def test_all_machines_stop_where_one_does(blobs, monkeypatch):
    other = iter([True])  # stops after its first round

    def gather(value):
        return [value, value is False and next(other, False)]

    monkeypatch.setattr(_backend, "gather_from_workers", gather)
    fit = {"epochs": 3, "precision": "float32", "verbose": False}
    assert len(VQVAE(**TINY).fit(blobs, batch_size=8, **fit).history_["step"]) == 1


def test_callbacks_of_keras_get_the_figures_of_the_history(blobs, tmp_path):
    watching, estimators = mock.Mock(spec=keras.callbacks.Callback), []
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    vqvae = VQVAE(**TINY)
    fit = {"validation_data": blobs[:4], "epochs": 2, "batch_size": 16}
    callbacks = [watching, table, estimators.append]
    vqvae.fit(blobs, callbacks=callbacks, verbose=False, **fit)
    watching.on_train_begin.assert_called_once()
    watching.on_train_end.assert_called_once()
    assert estimators == [vqvae, vqvae]
    (model,) = watching.set_model.call_args.args
    assert model.count_params() > 0
    assert watching.set_params.call_args.args[0]["epochs"] == 2
    figures = {k: v for k, v in vqvae.history_.items() if k not in ("step", "epoch")}
    assert "val_mse" in figures
    rounds = [call.args for call in watching.on_epoch_end.call_args_list]
    assert [number for number, _ in rounds] == [0, 1]
    for name, values in figures.items():
        assert [logs[name] for _, logs in rounds] == pytest.approx(values)
    head = (tmp_path / "log.csv").read_text().splitlines()[0]
    assert head == ",".join(["epoch", *sorted(figures)])
