"""A run says how long it will take, on a CPU roughly before it compiles, and what takes a quarter of an hour instead."""

import pytest

from vit_jax import train
from vit_jax.training import forecast
from vit_jax.training.forecast import FLOPS_A_CORE, cpu_hours, in_words, quicker


def test_hours_are_flops_over_the_rate_of_all_cores():
    assert cpu_hours(int(FLOPS_A_CORE), steps=7200, cores=2) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.0, "1 minute"),
        (0.5, "30 minutes"),
        (1.2, "72 minutes"),
        (2.4, "2 hours"),
        (30.0, "30 hours"),
        (240.0, "10 days"),
    ],
)
def test_length_in_words(hours, words):
    assert in_words(hours) == words


def test_only_folders_of_classes_are_offered_quick(small, tmp_path):
    assert quicker(small("scratch")) == ""
    assert quicker(small("pretrain", dataset=str(tmp_path))) == ""
    assert f"folder.py:quick,{tmp_path}" in quicker(small("scratch", dataset=str(tmp_path)))


def test_a_run_on_a_cpu_says_only_how_large_it_is(small, tmp_path, capsys, monkeypatch):
    config = small("scratch", total_steps=1, warmup_steps=0)
    config.mesh.data = 1
    config.mesh.fsdp = 8
    monkeypatch.setattr(forecast, "cpu_hours", lambda *_: 100.0)
    train.run(config, tmp_path)
    assert "; 1 steps to go, a matter of days on" in capsys.readouterr().out


def test_the_first_steps_say_how_long_it_takes():
    assert forecast.measured(5400.0, 0.5, 20) == "about 90 minutes to go, as measured over 20 steps of 0.5 s"
