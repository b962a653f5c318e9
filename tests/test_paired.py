"""`robench compare`: counts by hand, corrected over its rows, and errors that say what is missing."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_reporting import HOSTILE, L2, LINF, PGDAT, ROCL, SECRET, STANDARD, bits, named, result

from robench import paired, statistic, terminal
from robench.errors import StoreError, UsageError
from robench.inference import Inference
from robench.rendering.markdown import markdown
from robench.results import Store

N = 24
ONES = "1" * 16 + "0" * 8  # clean bits of the second
RECORDS = [
    result(PGDAT, "pgd-20", "1" * 14 + "0" * 10, clean=bits("1" * 20 + "0" * 4)),
    result(ROCL, "pgd-20", "0" * 2 + "1" * 2 + "0" * 20, clean=bits(ONES)),
    result(PGDAT, "fgsm", "1" * 12 + "0" * 12, clean=bits("1" * 20 + "0" * 4)),
    result(ROCL, "fgsm", "0" * 11 + "1" * 5 + "0" * 8, clean=bits(ONES)),
    result(PGDAT, "pgd-20", "1" * 12 + "0" * 12, L2, clean=bits("1" * 20 + "0" * 4)),
    result(ROCL, "pgd-20", "1" * 10 + "0" * 14, L2, clean=bits(ONES)),
    result(PGDAT, "pgd-20", "1" * 18 + "0" * 6, LINF, STANDARD, clean=bits("1" * 20 + "0" * 4)),
    result(ROCL, "pgd-20", "1" * 14 + "0" * 10, LINF, STANDARD, clean=bits(ONES)),
    result(PGDAT, "autoattack", "1" * 24),
    result(PGDAT, "pgd-20", "1" * 24, LINF, ROCL),
]


def rows(records: list = RECORDS, one: str = "pgd-at", other: str = "rocl") -> dict[str, paired.Row]:  # type: ignore[type-arg]
    (pair,) = paired.pairs(records, one, other)
    return {f"{row.threat or ''} {row.name}".strip(): row for row in pair.rows}


def test_every_shared_attack_is_a_row_and_so_are_worst_cases() -> None:
    assert list(rows()) == [
        "clean",
        "linf-8/255 fgsm",
        "linf-8/255 pgd-20",
        "linf-8/255 pgd-20 from standard",
        "linf-8/255 worst",
        "l2-0.5 pgd-20",
        "worst of all",
    ]


def test_images_are_counted_one_by_one() -> None:
    found = rows()
    assert found["clean"].alone == (4, 0)
    assert found["linf-8/255 pgd-20"].alone == (12, 0)
    assert found["linf-8/255 fgsm"].alone == (11, 4)
    assert found["linf-8/255 worst"].alone == (12, 0)  # of 12 and of none
    assert found["worst of all"].alone == (12, 0)
    assert found["linf-8/255 fgsm"].difference == pytest.approx(7 / N)


def test_tests_are_exact_and_corrected_over_the_rows() -> None:
    found = list(rows().values())
    assert [row.p for row in found] == [statistic.mcnemar(*row.alone) for row in found]
    assert [row.corrected for row in found] == list(statistic.holm([row.p for row in found]))
    assert rows()["linf-8/255 pgd-20"].better == 0
    assert rows()["clean"].better is None  # 4 to 0 is p 0.125
    assert rows(one="rocl", other="pgd-at")["linf-8/255 pgd-20"].better == 1


def test_the_table_has_it_in_words() -> None:
    (made,) = paired.tables(paired.pairs(RECORDS, "pgd-at", "rocl"))
    row = next(row for row in made.rows if row[:2] == ("linf-8/255", "pgd-20"))
    assert row[2:6] == ("58.3 (38.8-75.5)", "8.3 (2.3-25.8)", "12", "0")
    assert row[6].startswith("+50.0 (+")
    assert row[7:] == ("<0.001", "0.003", "A is better")
    assert made.rows[0][-1] == "not told apart"


def test_the_order_of_the_two_turns_everything_round() -> None:
    there, back = rows(), rows(one="rocl", other="pgd-at")
    for name, row in there.items():
        assert row.alone == back[name].alone[::-1]
        assert (row.p, row.corrected) == (back[name].p, back[name].corrected)
        assert row.ends == pytest.approx((-back[name].ends[1], -back[name].ends[0]))


def test_what_only_one_met_is_said() -> None:
    (pair,) = paired.pairs(RECORDS, "pgd-at", "rocl")
    assert pair.missed == (
        "only pgd-at met autoattack linf-8/255.",
        "only pgd-at met pgd-20 linf-8/255 from rocl.",
    )
    assert set(pair.missed) <= set(paired.tables([pair])[0].notes)


def test_a_doubted_checkpoint_is_not_ranked() -> None:
    records = [replace(r, notes=("flag: zero gradients",)) if r.subject == PGDAT else r for r in RECORDS]
    (made,) = paired.tables(paired.pairs(records, "pgd-at", "rocl"))
    assert {row[-1] for row in made.rows} == {"not ranked"}
    assert "A: pgd-at !, B: rocl;" in made.title
    assert any("zero gradients" in note for note in made.notes)


def test_a_smoothed_classifier_is_compared_by_adaptive_attacks_alone() -> None:
    smooth = Inference(draws=30, augment={"area": 0.5})

    def smoothed(attack: str, robust: str, adaptive: bool) -> object:
        made = result(ROCL, attack, robust, clean=bits(ONES))
        return replace(made, cell=replace(made.cell, inference=replace(smooth, adaptive=adaptive)))

    records = [*RECORDS, smoothed("pgd-20", ONES, False), smoothed("eot-pgd", "1" * 4 + "0" * 20, True)]
    records.append(result(PGDAT, "eot-pgd", "1" * 14 + "0" * 10))
    (pair,) = paired.pairs(records, "pgd-at", "rocl +tsi-30")  # type: ignore[arg-type]
    assert [row.name for row in pair.rows] == ["clean", "eot-pgd"]
    assert any("did not climb" in text for text in pair.missed)


def test_other_images_and_seeds_are_tables_of_their_own() -> None:
    more = [
        result(on, "fgsm", "1" * N, seed=seed, data=data)
        for on in (PGDAT, ROCL)
        for seed, data in ((1, "d" * 64), (0, "e" * 64))
    ]
    found = paired.pairs([*RECORDS, *more], "pgd-at", "rocl")
    assert len({made.title for made in paired.tables(found)}) == len(found) == 3


def test_names_are_told_apart_by_their_digest() -> None:
    twin = replace(ROCL, sha256="f" * 64)
    records = [*RECORDS, result(twin, "fgsm", "1" * N)]
    with pytest.raises(UsageError, match=r"2 checkpoints are called 'rocl'.*ffffffffffff"):
        paired.pairs(records, "pgd-at", "rocl")
    assert paired.pairs(records, "pgd-at", "ffff")[0].subjects == (PGDAT, twin)
    assert paired.pairs(RECORDS, "checkpoints/pgd-at", "rocl")[0].subjects == (PGDAT, ROCL)


def test_a_suites_last_epoch_is_found_by_the_runs_name() -> None:
    last = replace(ROCL, name="rocl@last", sha256="e" * 64)
    records = [record for record in RECORDS if record.subject == PGDAT]
    records += [result(last, "fgsm", "1" * N)]
    assert paired.pairs(records, "pgd-at", "rocl")[0].subjects == (PGDAT, last)
    both = [*records, result(ROCL, "fgsm", "1" * N)]
    assert paired.pairs(both, "pgd-at", "rocl")[0].subjects == (PGDAT, ROCL)


@pytest.mark.parametrize(
    ("records", "names", "error", "words"),
    [
        (RECORDS, ("pgd-att", "rocl"), UsageError, "unknown checkpoint 'pgd-att'. Did you mean 'pgd-at'"),
        (RECORDS, ("rocl", "rocl"), UsageError, "the same checkpoint"),
        (
            [result(PGDAT, "fgsm", "1" * 8), result(ROCL, "fgsm", "1" * 9)],
            ("pgd-at", "rocl"),
            StoreError,
            "not attacked on the same images: cifar10, 8 images dddddddd, attack seed 0 and cifar10, 9 images",
        ),
        (
            [result(PGDAT, "fgsm", "1" * 8), result(ROCL, "pgd-20", "1" * 8)],
            ("pgd-at", "rocl"),
            StoreError,
            "met no attack in common: fgsm linf-8/255 and pgd-20 linf-8/255",
        ),
    ],
)
def test_what_cannot_be_compared_is_said(
    records: list,
    names: tuple[str, str],
    error: type[Exception],
    words: str,  # type: ignore[type-arg]
) -> None:
    with pytest.raises(error) as caught:
        paired.pairs(records, *names)
    assert words in str(caught.value)


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "latex", "json", "html"])
def test_the_command_prints_every_format(
    form: str, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    for record in RECORDS:
        Store(tmp_path).put(record)
    code, out, err = run_cli("compare", "pgd-at", "rocl", "--results", tmp_path, "--format", form)
    assert (code, err) == (0, "")
    assert "worst of all" in out
    if form == "csv":
        line = next(row for row in csv.DictReader(io.StringIO(out)) if row["attack"] == "worst of all")
        assert (line["only_first"], line["only_second"], line["better"]) == ("12", "0", "pgd-at")
        assert float(line["difference_low"]) < 0.5 < float(line["difference_high"])
    written = run_cli("compare", "pgd-at", "rocl", "--results", tmp_path, "--format", form, "--out", tmp_path / "x")
    assert (tmp_path / "x").read_text() == out
    assert written[1] == ""


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_names_are_inert(text: str) -> None:
    found = paired.pairs([r for r in named(text) if not r.source], "1" * 64, "2" * 64)
    made = paired.tables(found)
    for shown in (markdown(made), terminal.text(made, file=True), paired.csv(found)):
        assert not SECRET.search(re.sub(r"\\.", "", shown))
    assert not [line for line in terminal.text(made, file=True).splitlines() if line.startswith("INJECTED")]
    for row in csv.reader(io.StringIO(paired.csv(found))):
        assert not [cell for cell in row if cell[:1] in ("=", "+", "@", "\t", "\r")]
