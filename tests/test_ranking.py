"""Bold only where a win is significant, means over training seeds, and intervals beside every accuracy of a table."""

import csv as reader
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reporting import L2, LINF, PGDAT, RECORDS, ROCL, STANDARD, bits, result, subject

from robench import reporting, seeds
from robench.cli.asked import SPACIOUS
from robench.ranking import ranking
from robench.rendering.csv import csv
from robench.reporting import Table
from robench.results import Result, Store, Subject
from robench.statistic import holm, interval, mcnemar, spread

Cli = Callable[..., tuple[int, str, str]]
N = 40
GOOD, POOR = "1" * 30 + "0" * 10, "1" * 10 + "0" * 30
columns = st.integers(1, 4).flatmap(
    lambda rows: st.lists(
        st.lists(
            st.one_of(st.none(), st.integers(0, 25).map(lambda k: [i < k for i in range(25)])),
            min_size=rows,
            max_size=rows,
        ),
        min_size=1,
        max_size=3,
    )
)


# bold


@given(columns)
@settings(deadline=None, derandomize=True, max_examples=25)
def test_bold_is_what_beats_every_rival_after_correction(
    given_columns: Sequence[Sequence[Sequence[bool] | None]],
) -> None:
    pairs = [
        (place, i, k, column[i], column[k])
        for place, column in enumerate(given_columns)
        for i, k in itertools.combinations(range(len(column)), 2)
        if column[i] is not None and column[k] is not None
    ]
    values = []
    for _, _, _, one, other in pairs:
        alone = [sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((one, other), (other, one))]  # type: ignore[arg-type]
        values.append(mcnemar(*alone))
    beats: dict[tuple[int, int], list[bool]] = {}
    for (place, i, k, one, other), p in zip(pairs, holm(values), strict=True):
        assert one is not None
        assert other is not None
        beats.setdefault((i, place), []).append(p <= 0.05 and sum(one) > sum(other))
        beats.setdefault((k, place), []).append(p <= 0.05 and sum(other) > sum(one))
    found = ranking(given_columns, list(range(len(given_columns[0]))))
    assert found.wins == {cell for cell, won in beats.items() if all(won)}
    assert found.tests == len(pairs)


def test_more_comparisons_need_more_images() -> None:
    near = [[i < 20 for i in range(30)], [i < 13 for i in range(30)]]  # 7 to 0: p = 0.016
    assert ranking([near], [0, 1]).wins == {(0, 0)}
    assert ranking([near] * 4, [0, 1]).wins == frozenset()


def made(records: Sequence[Result], which: str = "white-box", intervals: bool = False) -> Table:
    return reporting.tables(records, which, intervals=intervals)[0]


def bold(table: Table) -> set[tuple[str, str]]:
    return {(table.rows[row][1], table.heads[place - 1]) for row, place in table.bold}


def records(good: str = GOOD, poor: str = POOR, **changes: object) -> list[Result]:
    clean = bits("1" * N)
    return [
        result(STANDARD, "pgd-20", "1" * 12 + "0" * 28, clean=clean),
        result(PGDAT, "pgd-20", good, clean=clean, **changes),  # type: ignore[arg-type]
        result(ROCL, "pgd-20", poor, clean=clean),
    ]


def test_a_significant_win_is_bold_and_the_caption_says_how() -> None:
    table = made(records())
    assert bold(table) == {("pgd-at", "seen linf-8/255 pgd-20")}
    (note,) = [note for note in table.notes if note.startswith("Bold")]
    assert "exact McNemar on the same images, 5 %, Holm over 6 comparisons" in note
    assert "which takes 20.0 points or more" in note  # 8 of 40: 2 / 2**8 <= 0.05 / 6


def test_a_win_by_chance_is_not_bold_and_the_caption_says_so() -> None:
    table = made(records(good="1" * 16 + "0" * 24))
    assert not table.bold
    assert any(note.startswith("No number is bold") for note in table.notes)


def test_a_win_over_all_but_one_is_not_bold() -> None:
    assert not made(records(poor="1" * 29 + "0" * 11)).bold


def test_a_doubted_row_is_never_bold_and_no_rival() -> None:
    assert not bold(made(records(notes=("flag: zero gradients",)))) & {("pgd-at !", "seen linf-8/255 pgd-20")}
    flagged = [*records()[:2], replace(records()[2], notes=("flag: zero gradients",), robust=bits("1" * N))]
    assert bold(made(flagged)) == {("pgd-at", "seen linf-8/255 pgd-20")}


def test_a_single_row_is_compared_with_nothing() -> None:
    table = made(records()[:1])
    assert not table.bold
    assert (
        "40 images resolve differences of 15.0 points or more between two models on them (exact McNemar, 5 %)."
        in table.notes
    )


def test_few_images_resolve_nothing() -> None:
    assert any(
        "4 images resolve no difference at all" in note
        for note in made([result(PGDAT, "fgsm", "1" * 4, clean=bits("1" * 4))]).notes
    )


def test_the_white_box_numbers_of_a_transfer_table_are_in_no_comparison() -> None:
    clean = bits("1" * N)
    crossed = [
        result(on, "pgd-20", robust, LINF, source, clean=clean)
        for on, source, robust in (
            (STANDARD, PGDAT, POOR),
            (PGDAT, STANDARD, GOOD),
            (ROCL, STANDARD, POOR),
            (ROCL, PGDAT, POOR),
        )
    ]
    own = [result(STANDARD, "pgd-20", "1" * N, clean=clean)]
    (table,) = reporting.tables([*crossed, *own], "transfer")
    assert bold(table) == {("pgd-at", "standard")}
    assert any("Holm over 2 comparisons" in note for note in table.notes)


# seeds


def seed(number: int, of: Subject = PGDAT) -> Subject:
    name = f"{of.name}-seed{number}" if number else of.name
    return replace(of, name=name, seed=number, sha256=str(number).ljust(64, of.sha256[0]))


def test_several_seeds_of_a_recipe_have_a_row_of_their_mean() -> None:
    clean = bits("1" * N)
    robust = [20, 22, 27]
    own = [result(seed(i), "pgd-20", ("1" * k).ljust(N, "0"), clean=clean) for i, k in enumerate(robust)]
    table = made([*own, *records()[::2]])
    rows = {row[1]: row for row in table.rows}
    assert [rows[name][2] for name in ("standard", "pgd-at", "pgd-at-seed1", "pgd-at, mean")] == [
        "1 seed",
        "seed 0",
        "seed 1",
        "3 seeds",
    ]
    mean, deviation = spread([k / N for k in robust])
    assert deviation is not None
    assert rows["pgd-at, mean"][4] == f"{100 * mean:.1f} +- {100 * deviation:.1f}"
    assert rows["pgd-at, mean"][3] == "100.0 +- 0.0"
    assert list(rows).index("pgd-at, mean") == list(rows).index("pgd-at-seed2") + 1
    assert any("training seeds of one recipe" in note for note in table.notes)


def test_seeds_of_a_recipe_are_no_rivals_and_their_mean_is_bold_where_each_is() -> None:
    clean = bits("1" * N)
    own = [result(seed(i), "pgd-20", GOOD, clean=clean) for i in (0, 1)]
    names = {name for name, _ in bold(made([*own, *records()[::2]]))}
    assert names == {"pgd-at", "pgd-at-seed1", "pgd-at, mean"}
    one = [own[0], result(seed(1), "pgd-20", POOR, clean=clean)]
    assert {name for name, _ in bold(made([*one, *records()[::2]]))} == {"pgd-at"}


def test_a_mean_of_a_doubted_seed_is_marked_and_one_of_missing_seeds_says_so() -> None:
    own = [result(seed(0), "pgd-20", GOOD), result(seed(1), "pgd-20", GOOD, notes=("flag: zero gradients",))]
    rows = {row[1]: row for row in made([*own, result(seed(0), "fgsm", GOOD)]).rows}
    assert "pgd-at, mean !" in rows
    assert "75.0 (1 of 2)" in rows["pgd-at, mean !"]


@pytest.mark.parametrize(
    ("other", "together"),
    [
        (replace(PGDAT, name="pgd-at-seed1", seed=1, sha256="1" * 64), True),
        (replace(PGDAT, name="pgd-at-seed1@last", seed=1, sha256="1" * 64), False),
        (replace(PGDAT, name="mine", seed=1, sha256="1" * 64), False),
        (replace(PGDAT, recipe="other", name="pgd-at-seed1", seed=1, sha256="1" * 64), False),
        (replace(PGDAT, sha256="1" * 64), False),  # the same seed twice, so something else differs
    ],
)
def test_which_checkpoints_are_seeds_of_one_recipe(other: Subject, together: bool) -> None:
    assert bool(seeds.families([PGDAT, other])) is together
    last = replace(PGDAT, name="pgd-at@last")
    assert bool(seeds.families([last, replace(other, name=f"{other.name}@last")])) is together


# intervals


def test_every_accuracy_has_its_interval() -> None:
    for table in reporting.tables(RECORDS[:-1], intervals=True):
        for row in table.rows:
            for text in row[2 + ("seeds" in table.heads) :]:
                assert text == "-" or re.fullmatch(r"[\d.]+\*? \([\d.]+-[\d.]+\)", text)


def test_an_interval_is_wilsons() -> None:
    table = made([result(PGDAT, "pgd-20", GOOD)], intervals=True)
    low, high = interval(30, 40)
    assert table.rows[0][-1] == f"75.0 ({100 * low:.1f}-{100 * high:.1f})"
    assert any("95 % Wilson interval over 40 test images" in note for note in table.notes)


def test_without_intervals_the_caption_says_how_wide_they_are() -> None:
    low, high = interval(30, 40)
    widest = max(0.75 - low, high - 0.75, *[abs(end - 0.15) for end in interval(6, 40)])
    (note,) = [note for note in made([result(PGDAT, "pgd-20", GOOD)]).notes if note.startswith("n = 40")]
    assert f"up to {100 * widest:.1f} points" in note


def test_none_right_is_not_zero() -> None:
    notes = made([result(PGDAT, "pgd-20", "0" * N)]).notes
    assert "Where none of 40 is right, 0.0, up to 7.2 is possible (Clopper-Pearson, one-sided 95 %)." in notes


def test_all_right_is_not_certain() -> None:
    notes = made([result(PGDAT, "pgd-20", "1" * N)]).notes
    assert "Where all 40 are right, 100.0, down to 92.8 is possible (Clopper-Pearson, one-sided 95 %)." in notes


def test_tidy_rows_always_have_the_ends() -> None:
    for row in reader.DictReader(io.StringIO(csv(RECORDS))):
        for name in ("clean", "robust"):
            right = round(float(row[f"{name}_accuracy"]) * 8)
            assert (float(row[f"{name}_low"]), float(row[f"{name}_high"])) == interval(right, 8)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "json"])
def test_each_format_has_its_default_and_obeys_the_option(form: str, tmp_path: Path, run_cli: Cli) -> None:
    Store(tmp_path).put(result(PGDAT, "pgd-20", GOOD))
    line = ("report", "--results", tmp_path, "--format", form, "--table", "white-box")
    with_them, without = (run_cli(*line, option)[1] for option in ("--intervals", "--no-intervals"))
    assert re.search(r"75\.0 \(59\.8-85\.8\)", with_them)
    assert "59.8" not in without
    assert run_cli(*line)[1] == (with_them if form in SPACIOUS else without)


@pytest.mark.parametrize("option", ["--intervals", "--no-intervals"])
def test_a_kept_table_is_made_again_as_it_was(option: str, tmp_path: Path, run_cli: Cli) -> None:
    for robust, threat in ((GOOD, LINF), (POOR, L2)):
        Store(tmp_path).put(result(PGDAT, "pgd-20", robust, threat, clean=bits("1" * N)))
    for form in ("markdown", "latex"):
        line = ("report", "--results", tmp_path, "--format", form, option, "--threat", "linf", "--out", tmp_path / form)
        assert run_cli(*line)[0] == 0
    assert run_cli("verify", tmp_path, "--check")[0] == 0
    (tmp_path / "tables.json").write_text('{"markdown": {"form": "markdown", "table": "all", "dataset": null}}')
    assert run_cli("verify", tmp_path, "--check")[0] == 1  # as an earlier version listed it: read, and no longer so


def test_a_smoothed_number_that_no_adaptive_attack_made_wins_nothing() -> None:
    from robench.inference import Inference

    clean, look = bits("1" * N), Inference(draws=30, augment={"area": 0.5})

    def smoothed(attack: str, robust: str, adaptive: bool) -> Result:
        each = result(ROCL, attack, robust, clean=clean)
        return replace(each, cell=replace(each.cell, inference=replace(look, adaptive=adaptive)))

    plain = [result(PGDAT, "pgd-20", POOR, clean=clean), result(subject("trades"), "pgd-20", POOR, clean=clean)]
    table = made([*plain, smoothed("pgd-20", GOOD, False), smoothed("eot-pgd", POOR, True)])
    assert not table.bold
