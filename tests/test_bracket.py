"""The bracket mode: an interval that holds AutoAttack's value, from bits and counts that are stored."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robench import reporting
from robench.attacks import attack_for
from robench.bracket import interval
from robench.door import Door
from robench.errors import UsageError
from robench.noise import ImageGenerator
from robench.results import Cell, Result, Subject
from robench.statistic import at_most
from robench.threat import ThreatModel

LINF = ThreatModel.parse("linf-0.1")


def result(robust: int, count: int, left: dict[str, int]) -> Result:
    cell = Cell("c", "", "autoattack-bracket", 1, {}, LINF, "d", count, 0)
    who = Subject("model", "pgd-at", "supervised", LINF, 0, "digits", "c")
    bits = tuple(i < robust for i in range(count))
    return Result(cell, who, None, (True,) * count, bits, 0.1, 1.0, 1, 1, left=left)


@pytest.mark.parametrize("sampled", [1, 10, 100, 500])
def test_nothing_broken_gives_the_closed_form(sampled: int) -> None:
    assert at_most(0, sampled) == pytest.approx(1 - 0.05 ** (1 / sampled), rel=1e-9)


@given(st.integers(1, 60), st.integers(0, 60))
@settings(deadline=None)  # the first call imports what works it out
def test_the_bound_is_where_so_few_become_unlikely(sampled: int, broken: int) -> None:
    broken = min(broken, sampled)
    share = at_most(broken, sampled)
    if broken >= sampled:
        assert share == 1
        return
    likely = sum(math.comb(sampled, k) * share**k * (1 - share) ** (sampled - k) for k in range(broken + 1))
    assert likely == pytest.approx(0.05, rel=1e-6)


def test_an_interval_by_hand() -> None:
    # 50 left of 100; 20 sampled, of which 1 was broken before: 31 left were not sampled
    found = interval(result(50, 100, {"apgd-t": 51, "sampled": 20, "fab-t": 19, "square": 19}))
    assert found == (pytest.approx((50 - at_most(1, 20) * 31) / 100), 0.5)


@pytest.mark.parametrize(
    ("left", "lowest"),
    [
        ({"apgd-t": 50, "sampled": 0}, 0.0),  # nothing is known of FAB-T and Square
        ({"apgd-t": 50, "sampled": 50, "fab-t": 50, "square": 50}, 0.5),  # everything is
        ({"apgd-t": 70, "sampled": 20, "fab-t": 0}, 0.0),  # all of the sample broken
    ],
)
def test_the_ends(left: dict[str, int], lowest: float) -> None:
    assert interval(result(50, 100, left)) == (lowest, 0.5)


def test_autoattack_and_transfers_have_no_interval() -> None:
    assert interval(result(50, 100, {"apgd-t": 50, "fab-t": 50, "square": 50})) is None
    crossed = result(50, 100, {"sampled": 10})
    assert interval(replace(crossed, cell=replace(crossed.cell, source="s"))) is None


def test_a_table_shows_both_ends_and_says_what_it_is_not() -> None:
    attack = attack_for("autoattack-bracket", LINF)
    made = replace(
        result(50, 100, {"apgd-t": 50, "sampled": 20, "fab-t": 20, "square": 20}),
        notes=attack.notes(10),  # type: ignore[attr-defined]
    )
    (table,) = reporting.tables([made])
    assert table.heads[-1].endswith("autoattack-bracket")
    assert table.rows[0][-1] == "45.8 to 50.0"
    assert any("not AutoAttack: fab-t and square on a random 10 %" in note for note in table.notes)


class Ramp(nn.Module):
    """Linear, so that a part of the images can be broken."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.flatten(1).mean(1)
        return torch.stack([level, 1 - level, level / 2, level / 3, level / 4], 1)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_sample_belongs_to_seed_and_image(share: float) -> None:
    x = torch.linspace(0, 1, 60)[:, None, None, None].expand(60, 1, 6, 6).clone()
    model, attack = Ramp(), attack_for(f"autoattack-bracket@steps=3,queries=5,share={share}", LINF)
    y = model(x).argmax(1)

    def run(rows: slice) -> tuple[Tensor, dict[str, int]]:
        door = Door(model, 5)
        found = attack(door, x[rows], y[rows], generator=ImageGenerator(0, range(60)[rows]))
        return found, door.left

    (whole, left), (first, early), (second, late) = (run(each) for each in (slice(60), slice(25), slice(25, 60)))
    assert torch.equal(whole, torch.cat([first, second]))
    assert left["sampled"] == early["sampled"] + late["sampled"]
    assert 0 < left["apgd-t"] < 60
    assert left["sampled"] == left["apgd-t"] if share == 1 else 0 < left["sampled"] < left["apgd-t"]


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(UsageError, match=r"share \(0\) above 0"):
        attack_for("autoattack-bracket@share=0", LINF)
