"""The benchmark of how soon steps begin."""

import os
import sys

import pytest
import scripts

from dipy_ldm._utils.checks import InputError

# As a training draws its bars, each over the last.
FAKE = r"""
import sys, time

def draw(text):
    print(text, end="\r", file=sys.stderr, flush=True)
    time.sleep(0.2)

def draw_stage(name):
    draw(f"{name}: preparing the first step:   0%|          | 0/3 [00:00<?, ?step/s]")
    for step in (1, 2, 3):
        draw(f"{name}, epoch 1/1:  33%|###1      | {step}/3 [00:02<00:04, loss=0.1]")

time.sleep(0.4)
draw_stage("autoencoder")
time.sleep(0.4)
draw_stage("diffusion")
print()
sys.exit(__STATUS__)
"""


@pytest.fixture
def first_step():
    return scripts.load("benchmarks/training_time.py")


def fake(status):
    return [sys.executable, "-c", FAKE.replace("__STATUS__", status)]


def test_a_stage_is_timed_from_where_it_appears(first_step):
    begun, ended = first_step.watch(fake("0"), os.environ)
    assert list(begun) == list(ended) == ["autoencoder", "diffusion"]
    assert 0.4 <= begun["autoencoder"] <= ended["autoencoder"] - 0.19
    # Not the steps after the first.
    assert begun["diffusion"] >= ended["autoencoder"] + 0.9
    assert ended["diffusion"] >= begun["diffusion"] + 0.19


def test_time_before_training_counts_for_the_first_stage(first_step, monkeypatch):
    times = {"autoencoder": 3, "diffusion": 9}, {"autoencoder": 5, "diffusion": 12}
    monkeypatch.setattr(first_step, "watch", lambda command, environment: times)
    assert first_step.time_stages(["mnist"]) == {"autoencoder": 5, "diffusion": 3}


def test_command_without_training_is_an_error(first_step, monkeypatch):
    monkeypatch.setattr(first_step, "watch", lambda command, environment: ({}, {}))
    with pytest.raises(InputError, match="ended without a training"):
        first_step.time_stages(["--help"])


def test_failing_command_is_an_error(first_step):
    with pytest.raises(InputError, match="the command failed: there is no such thing"):
        first_step.watch(fake("'there is no such thing'"), os.environ)
