"""Threat models as text: what is written is read back exactly, and what cannot be meant is refused with a hint."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.errors import UsageError
from robench.threat import Norm, ThreatModel, number

FEW = settings(deadline=None, derandomize=True, max_examples=60)


@FEW
@given(st.sampled_from(Norm), st.integers(0, 255))
def test_levels_of_255_round_trip(norm: Norm, levels: int) -> None:
    threat = ThreatModel.parse(f"{norm.value}-{levels}/255")
    assert threat == ThreatModel(norm, levels / 255)
    assert ThreatModel.parse(str(threat)) == threat


@FEW
@given(st.sampled_from(Norm), st.decimals(0, 1, places=4))
def test_decimals_round_trip(norm: Norm, eps: object) -> None:
    threat = ThreatModel.parse(f"{norm.value}-{eps}")
    assert threat.eps == float(str(eps))
    assert ThreatModel.parse(str(threat)) == threat


@FEW
@given(st.sampled_from([Norm.L2, Norm.L1]), st.floats(0, 1e6, allow_subnormal=True))
def test_any_float_round_trips(norm: Norm, eps: float) -> None:
    assert ThreatModel.parse(str(ThreatModel(norm, eps))).eps == eps


@pytest.mark.parametrize("text", ["linf-8/255", "l2-0.5", "l1-12", "linf-0", "linf-1", "l2-128/255", "linf-0.2"])
def test_usual_texts_are_canonical(text: str) -> None:
    assert str(ThreatModel.parse(text)) == text


def test_equal_radii_have_one_text() -> None:
    assert str(ThreatModel.parse("linf-16/510")) == "linf-8/255"
    assert str(ThreatModel.parse(" l2-0.50 ")) == "l2-0.5"


def test_zero_is_allowed() -> None:
    assert ThreatModel.parse("l2-0").eps == 0


def test_linf_above_one_suggests_the_fraction() -> None:
    with pytest.raises(UsageError, match=r"did you mean linf-8/255\?"):
        ThreatModel.parse("linf-8")


@pytest.mark.parametrize("eps", [-1.0, -1e-9, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("norm", Norm)
def test_impossible_radii_are_refused(norm: Norm, eps: float) -> None:
    with pytest.raises(UsageError, match="finite number of at least 0"):
        ThreatModel(norm, eps)


@pytest.mark.parametrize("text", ["linf--1", "linf-nan", "l2-inf", "l1--inf", "l2--1/255"])
def test_impossible_texts_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="finite number of at least 0"):
        ThreatModel.parse(text)


@pytest.mark.parametrize(("text", "guess"), [("l_2-0.5", "l2-0.5"), ("Linf-8/255", "linf-8/255"), ("L1-12", "l1-12")])
def test_an_unknown_norm_suggests_the_nearest(text: str, guess: str) -> None:
    with pytest.raises(UsageError, match=rf"did you mean {guess}\?") as caught:
        ThreatModel.parse(text)
    assert "norms: linf, l2, l1" in str(caught.value)


@pytest.mark.parametrize("text", ["linf", "", "8/255", "l2 0.5"])
def test_a_text_without_a_dash_shows_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="write NORM-EPS"):
        ThreatModel.parse(text)


@pytest.mark.parametrize("eps", ["", "eight", "8/0", "8/", "/255", "1/2/3", "8\\255"])
def test_a_radius_that_is_no_number_is_refused(eps: str) -> None:
    with pytest.raises(UsageError, match="must be a number or a fraction such as 8/255"):
        ThreatModel.parse(f"linf-{eps}")


def test_number_reads_both_forms() -> None:
    assert number("1/256", "x") == 1 / 256
    assert number("1e-3", "x") == 1e-3


def test_equal_threats_are_equal_keys() -> None:
    assert len({ThreatModel.parse("linf-8/255"), ThreatModel(Norm.LINF, 8 / 255)}) == 1


def test_a_fraction_may_have_decimals() -> None:
    assert number("0.007/0.0314", "step") == pytest.approx(0.007 / 0.0314, rel=1e-15)
    for text in ("1/2/3", "1/", "/2", "1/0", "a/2"):
        with pytest.raises(UsageError, match="step must be a number or a fraction"):
            number(text, "step")
