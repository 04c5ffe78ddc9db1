"""The bar of a fit tells when all epochs will be over."""

import re
import time
from types import SimpleNamespace

import pytest

from pleiad.fit_bar import FitBar, FitEndColumn


def test_the_end_is_that_of_the_whole_fit():
    column = FitEndColumn()
    column.begin(100, 500, False)
    column.began = time.monotonic() - 60
    column.bar, column.step = 3, 110
    told = column.render(SimpleNamespace(id=3)).plain
    assert re.fullmatch(r"fit ends (\w+ \d+ \w+ )?\d\d:\d\d, in 0:39:00", told)
    assert column.render(SimpleNamespace(id=4)).plain == ""
    column.stops = True
    assert column.render(SimpleNamespace(id=3)).plain.endswith("or sooner")


@pytest.mark.parametrize(("step", "last"), [(100, 500), (110, float("inf"))])
def test_nothing_is_told_that_is_not_known(step, last):
    column = FitEndColumn()
    column.begin(100, last, False)
    column.bar, column.step = 0, step
    assert column.render(SimpleNamespace(id=0)).plain == ""


def test_the_bar_has_the_column():
    bar = FitBar()
    assert bar.configure_columns(SimpleNamespace())[-1] is bar.end


@pytest.mark.parametrize(("epochs", "told"), [(3, "Epoch 1/2"), (-1, "Epoch 1")])
def test_a_fit_that_ends_by_steps_has_no_last_epoch(epochs, told):
    bar = FitBar()
    bar._trainer = SimpleNamespace(max_epochs=epochs, sanity_checking=False)
    assert bar._get_train_description(1).strip() == told
