from __future__ import annotations

import numpy as np
import pytest

from edgekit.bench.heat import Heating, fit_heating, is_flat


def warming(t: np.ndarray, *, start: float = 40.0, steady: float = 75.0, tau: float = 90.0) -> np.ndarray:
    return steady - (steady - start) * np.exp(-t / tau)


@pytest.mark.parametrize("step_c", [0.05, 0.5, 1.0])
def test_the_truth_lies_within_the_stated_errors(step_c: float) -> None:
    """Random machines, noise that lasts several readings, sensors of different steps, runs of 2 to 5 time constants."""
    rng = np.random.default_rng(1)
    held, resolved, trials = 0, 0, 60
    for _ in range(trials):
        tau, start, rise = rng.uniform(40, 200), rng.uniform(25, 50), rng.uniform(15, 45)
        t = np.arange(0, tau * rng.uniform(2, 5), 0.5)
        noise = np.convolve(rng.normal(0, 0.4, len(t) + 9), np.ones(10) / 10, "valid")
        y = np.round((warming(t, start=start, steady=start + rise, tau=tau) + noise) / step_c) * step_c
        fit = fit_heating("soc", list(t), list(y))
        if isinstance(fit, Heating):
            resolved += 1
            near = abs(fit.steady_c - start - rise) <= fit.steady_error_c
            held += near and abs(fit.tau_s - tau) <= fit.tau_error_s
            assert fit.steady_error_c < rise
    assert resolved >= 0.9 * trials
    assert held >= 0.9 * resolved


def test_a_run_too_short_for_its_time_constant_gives_no_figure() -> None:
    t = np.arange(0, 30, 0.5)
    y = warming(t, tau=900) + np.random.default_rng(0).normal(0, 0.2, len(t))
    answer = fit_heating("soc", list(t), list(y))
    assert isinstance(answer, str)
    assert "soc: " in answer
    assert "run longer" in answer or "too little" in answer


def test_constant_and_sparse_temperatures_give_a_sentence() -> None:
    assert "moved by 0.0 °C only" in str(fit_heating("soc", list(range(60)), [50.0] * 60))
    assert "3 readings, 12 are needed" in str(fit_heating("soc", [0, 1, 2], [50.0, 51.0, 52.0]))


def test_flat_is_judged_by_the_trend_and_not_by_the_flicker_of_whole_degrees() -> None:
    t = np.arange(0, 600.0)
    flicker = np.round(warming(t, tau=50) + 0.3 * np.sin(t))
    assert is_flat(list(t), list(flicker), 200)
    assert not is_flat(list(t[:120]), list(np.round(warming(t[:120], tau=50))), 40)
    assert not is_flat([0.0, 1.0], [50.0, 50.0], 1)


def test_the_curve_meets_both_ends() -> None:
    t = np.arange(0, 400, 0.5)
    fit = fit_heating("soc", list(t), list(warming(t)))
    assert isinstance(fit, Heating)
    assert fit.at(0) == pytest.approx(40, abs=0.5)
    assert fit.at(1e6) == pytest.approx(75, abs=0.5)
    assert fit.tau_s == pytest.approx(90, rel=0.05)
