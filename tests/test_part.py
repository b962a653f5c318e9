"""A cell run in parts: however it is cut, stopped, damaged or copied together, the record is that of a single run."""

import itertools
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation import CALLS, Corner, LeavesBallOnce, Raises, name
from test_results import CELL, SUBJECT
from torch import Tensor, nn

from robench import verdict
from robench.attacks.autoattack import AutoAttack
from robench.checkpoint import Checkpoint, open_checkpoint
from robench.errors import RobenchError, StoreError, UsageError
from robench.evaluation import Engine
from robench.inference import parse
from robench.job import Job
from robench.part import Part, Parts, contradictions, cover, gaps, read, together, unfinished
from robench.protocols import Progress
from robench.results import Failure, Result, Store, pack
from robench.spec import digest
from robench.threat import ThreatModel

CPU = torch.device("cpu")
COUNT = 24


class Noisy(nn.Module):
    """A classifier that answers differently each time, by the global generator."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner((x + 0.3 * torch.rand_like(x) - 0.15).clamp(0, 1))
        return found


@pytest.fixture(scope="module")
def standard(trained: Path) -> Checkpoint:
    return open_checkpoint("standard-digits", trained)


@pytest.fixture(scope="module")
def robust(trained: Path) -> Checkpoint:
    return open_checkpoint("pgd-at-digits", trained)


def planned(
    engine: Engine, checkpoint: Checkpoint, attack: str = "pgd-5", threat: str = "linf-0.1", **more: Any
) -> Job:
    options = {"count": COUNT, **more}
    (job,) = engine.plan([checkpoint], attacks=[attack], threats=[ThreatModel.parse(threat)], **options)
    return job


def cut(engine: Engine, job: Job, size: int) -> Result:
    return together([engine.run_part(job, *span) for span in gaps((), job.cell.count, size)], job.finds)


def bare(record: object) -> Result:
    """A record without what no two runs share."""
    assert isinstance(record, Result), record
    return replace(record, seconds=0.0, provenance={})


# however it is cut

ATTACKS = [
    ("pgd-5", "linf-0.1"),
    ("pgd@steps=4,restarts=2", "l2-0.5"),
    ("pgd-3x2", "l1-2"),
    ("mi-fgsm", "linf-0.1"),
    ("feature-pgd@steps=4", "linf-0.1"),
    ("apgd-ce@steps=8", "linf-0.05"),
    ("apgd-t@steps=5,targets=3", "l2-0.3"),
    ("apgd-ce@steps=6", "l1-2"),
    ("fab-t@steps=4,targets=2", "linf-0.1"),
    ("square@queries=40", "linf-0.1"),
    ("square@queries=40", "l1-3"),
    ("deepfool", "l2-0.3"),
    ("ddn@steps=8", "l2-0.3"),
    ("cw@steps=6", "l2-0.3"),
    ("hopskipjump@steps=2", "l2-0.3"),
    ("random-noise@tries=5", "l2-1"),
    ("autoattack@steps=4,queries=30", "linf-0.05"),
    ("autoattack-plus@steps=2,queries=20", "l2-0.3"),
    (name(Corner), "linf-0.1"),
]


@pytest.mark.parametrize(("attack", "threat"), ATTACKS, ids=[f"{attack}-{threat}" for attack, threat in ATTACKS])
def test_a_record_does_not_depend_on_how_it_was_cut(robust: Checkpoint, attack: str, threat: str) -> None:
    engine = Engine(CPU)
    job = planned(engine, robust, attack, threat)
    whole = engine.evaluate(job)
    assert sum(bare(whole).robust) > 0 or bare(whole).norms
    for size in (1, 7):
        assert bare(cut(engine, job, size)) == bare(whole)


@pytest.mark.parametrize("attack", ["pgd-5", "square@queries=30", "autoattack@steps=3,queries=20"])
@pytest.mark.parametrize("size", [1, 7, 23])
def test_a_transfer_does_not_either(standard: Checkpoint, robust: Checkpoint, attack: str, size: int) -> None:
    job = planned(Engine(CPU), robust, attack, sources=[standard])
    assert bare(cut(Engine(CPU), job, size)) == bare(Engine(CPU).evaluate(job))


@pytest.mark.parametrize("attack", ["pgd-3", "eot-pgd@steps=2,draws=2", "square@queries=10"])
@pytest.mark.parametrize("size", [1, 7])
def test_nor_does_one_with_smoothed_inference(standard: Checkpoint, attack: str, size: int) -> None:
    job = planned(Engine(CPU), standard, attack, inference=parse("tsi@draws=4,area=0.6"))
    assert bare(cut(Engine(CPU), job, size)) == bare(Engine(CPU).evaluate(job))


def randomised(checkpoint: Checkpoint) -> tuple[Engine, Job]:
    engine = Engine(CPU, batch=7)
    job = planned(engine, checkpoint, "eot-pgd@steps=2,draws=2", "linf-0.05")
    engine._nets[checkpoint.sha256] = Noisy(engine.loaded(checkpoint))  # type: ignore[assignment]
    return engine, job


def test_a_randomised_model_draws_for_each_part_what_it_always_does(robust: Checkpoint) -> None:
    # its draws come from the global generator, so they belong to the part: another order or process changes nothing,
    # another size does
    engine, job = randomised(robust)
    spans = list(gaps((), COUNT, 7))
    forwards = [engine.run_part(job, *span) for span in spans]
    engine, job = randomised(robust)
    torch.manual_seed(99)
    backwards = [engine.run_part(job, *span) for span in reversed(spans)][::-1]
    one, other = together(forwards), together(backwards)
    assert bare(one) == bare(other) == bare(engine.evaluate(job))
    assert any(note.startswith("mean over 20 passes: clean ") for note in one.notes)
    assert sum(one.robust) > 0


def test_parts_of_a_randomised_model_do_not_share_their_draws() -> None:
    drawn = []
    for seed, *first in ((3,), (3, 0), (3, 7), (4,)):
        with verdict.guarded(seed, *first):
            drawn.append(tuple(torch.rand(4).tolist()))
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_what_square_alone_breaks_is_judged_over_all_parts() -> None:
    attack = AutoAttack(ThreatModel.parse("linf-0.1"))
    # 1 of 400 beyond the threshold of 0.2 %, though in no part of 100 but one; 1 of 1000 is below it
    left = {"apgd-ce": 300, "apgd-t": 200, "fab-t": 200, "square": 199}
    assert attack.finds(left, 400) == ["flag: Square broke 1 images that no gradient attack before it broke"]
    assert attack.finds(left, 1000) == []
    assert attack.finds({"apgd-ce": 0}, 400) == []
    assert attack.finds({}, 400) == []


class Narrow(nn.Module):
    """A classifier on a device that holds so many images."""

    def __init__(self, inner: nn.Module, room: int) -> None:
        super().__init__()
        self.inner, self.room, self.refused = inner, room, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError(f"{len(x)} images do not fit")
        found: Tensor = self.inner(x)
        return found


def test_what_does_not_fit_into_memory_is_halved_once_and_the_record_says_so(robust: Checkpoint) -> None:
    engine = Engine(CPU, batch=64)
    job = planned(engine, robust, "pgd-5", count=256)
    whole = engine.evaluate(job)
    narrow = Narrow(engine.loaded(robust), 40)
    engine._probe(robust, engine.images("digits", 256))
    engine._nets[robust.sha256] = narrow  # type: ignore[assignment]
    found = engine.evaluate(job)
    assert bare(found).notes == ("out of memory: went on with 32 images at once",)
    assert narrow.refused <= 3  # in the first of four parts: the clean look, the attack and the verdict
    assert bare(found).robust == bare(whole).robust
    assert bare(found).largest == bare(whole).largest
    narrow.room = 0
    failed = engine.evaluate(job)
    assert isinstance(failed, Failure)
    assert failed.reason == "OutOfMemoryError: 1 images do not fit"


# arithmetic of ranges


def part(start: int, stop: int, robust: Callable[[int], bool] = lambda i: i % 3 == 0, count: int = 40) -> Part:
    images = range(start, stop)
    return Part(
        cell=replace(CELL, count=count),
        subject=SUBJECT,
        source=None,
        start=start,
        stop=stop,
        clean=tuple(True for _ in images),
        robust=tuple(robust(i) for i in images),
        largest=start / 1000,
        seconds=1.0,
        forwards=len(images),
        backwards=2 * len(images),
        left={"a": len(images), "b": 1},
    )


SPANS = st.tuples(st.integers(0, 19), st.integers(1, 20)).filter(lambda span: span[0] < span[1])


@given(spans=st.lists(SPANS, max_size=6), size=st.integers(1, 25))
@settings(deadline=None, derandomize=True)
def test_gaps_hold_each_image_once_that_is_not_there(spans: list[tuple[int, int]], size: int) -> None:
    found = list(gaps(spans, 20, size))
    held = [i for start, stop in found for i in range(start, stop)]
    assert held == [i for i in range(20) if not any(start <= i < stop for start, stop in spans)]
    assert all(0 < stop - start <= size and start // size == (stop - 1) // size for start, stop in found)


@given(spans=st.lists(SPANS, max_size=6))
@settings(deadline=None, derandomize=True)
def test_a_cover_does_not_overlap_and_holds_the_most(spans: list[tuple[int, int]]) -> None:
    def apart(chosen: list[Part]) -> bool:
        ordered = sorted(each.span for each in chosen)
        return all(one[1] <= other[0] for one, other in itertools.pairwise(ordered))

    parts = [part(*span) for span in spans]
    found = cover(parts)
    assert apart(found)
    assert [each.span for each in found] == sorted(each.span for each in found)
    every = [list(some) for number in range(len(parts) + 1) for some in itertools.combinations(parts, number)]
    best = max(sum(each.stop - each.start for each in some) for some in every if apart(some))
    assert sum(each.stop - each.start for each in found) == best


def test_costs_add_up_and_the_largest_is_kept() -> None:
    found = together([part(0, 10), part(10, 25), part(25, 40)])
    assert (found.forwards, found.backwards, found.seconds, found.largest) == (40, 80, 3.0, 0.025)
    assert found.left == {"a": 40, "b": 3}
    assert found.robust == tuple(i % 3 == 0 for i in range(40))


@pytest.mark.parametrize("spans", [[(0, 39)], [(1, 40)], [(0, 20), (21, 40)], [(0, 21), (20, 40)], [(0, 40), (0, 40)]])
def test_images_that_are_absent_or_there_twice_are_no_record(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="of 40"):
        together([part(*span) for span in spans])


# stopped, and gone on with


class StoppedError(BaseException):
    """Stands for Ctrl-C at some moment."""


def stopping(after: int) -> Callable[[Progress], None]:
    left = iter(range(after))

    def monitor(progress: Progress) -> None:
        if next(left, None) is None:
            raise StoppedError

    return monitor


def files_of(folder: Path) -> list[str]:
    """What lies in a results folder besides the labels of its images and what training cost."""
    every = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(path for path in every if not re.fullmatch(r"labels.*|training(/[0-9a-f]+\.json)?", path))


@pytest.mark.parametrize("attack", [name(Corner), "autoattack@steps=2,queries=10", "ddn@steps=4"])
@pytest.mark.parametrize("after", [1, 9, 25, 60])
def test_what_was_stopped_goes_on_where_it_was(robust: Checkpoint, tmp_path: Path, attack: str, after: int) -> None:
    threat = "l2-0.3" if attack.startswith("ddn") else "linf-0.05"
    store = Store(tmp_path)
    job = planned(Engine(CPU, batch=3), robust, attack, threat)
    whole = Engine(CPU, batch=3).evaluate(job)
    with pytest.raises(StoppedError):
        list(Engine(CPU, batch=3, monitor=stopping(after)).run([job], store))
    there = [each.span for each in Parts(tmp_path, job.cell).every()]
    ran: list[tuple[int, int]] = []
    engine = Engine(CPU, batch=3)
    run_part = engine.run_part
    engine.run_part = lambda job, a, b, *rest: (ran.append((a, b)), run_part(job, a, b, *rest))[1]  # type: ignore[method-assign]
    ((_, record, was_there),) = engine.run([job], store)
    assert bare(record) == bare(whole)
    assert not was_there
    assert ran == list(gaps(there, COUNT, job.size(3)))
    assert files_of(tmp_path) == ["cells", f"cells/{job.cell.key}.json"]


def test_parts_that_are_there_count_as_done(standard: Checkpoint, tmp_path: Path) -> None:
    job = planned(Engine(CPU), standard, "fgsm")
    for span in ((0, 6), (6, 12), (18, 24)):
        Parts(tmp_path, job.cell).put(Engine(CPU).run_part(job, *span))
    told: list[Progress] = []
    list(Engine(CPU, batch=6, monitor=told.append).run([job], Store(tmp_path)))
    assert told[0].done == 0.75 * told[0].total
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert told[-1].done == told[-1].total


@pytest.mark.parametrize("batch", [1, 5, 12, 500])
def test_parts_of_another_size_are_used(standard: Checkpoint, tmp_path: Path, batch: int) -> None:
    job = planned(Engine(CPU), standard, name(Corner))
    whole = Engine(CPU).evaluate(job)
    for span in ((0, 5), (3, 9), (17, 18)):  # of which two overlap, and say the same
        Parts(tmp_path, job.cell).put(Engine(CPU).run_part(job, *span))
    CALLS.clear()
    ((_, record, _),) = Engine(CPU, batch=batch).run([job], Store(tmp_path))
    assert bare(record) == bare(whole)
    assert sum(CALLS) <= COUNT - 6 - 1


def test_stores_with_parts_merge_by_copying(standard: Checkpoint, tmp_path: Path) -> None:
    job = planned(Engine(CPU), standard)
    for number, spans in enumerate([[(0, 8)], [(8, 16)], [(16, 24)]]):
        for span in spans:
            Parts(tmp_path / str(number), job.cell).put(Engine(CPU).run_part(job, *span))
        shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
    engine = Engine(CPU)
    engine.run_part = None  # type: ignore[assignment, method-assign]
    ((_, record, _),) = engine.run([job], Store(tmp_path / "all"))
    assert bare(record) == bare(Engine(CPU).evaluate(job))


def test_parts_that_say_different_things_are_an_error_that_names_both(standard: Checkpoint, tmp_path: Path) -> None:
    job = planned(Engine(CPU), standard)
    one, other = (Engine(CPU).run_part(job, *span) for span in ((0, 10), (6, 24)))
    wrong = (not other.clean[3], *other.clean[4:])
    other = replace(other, clean=(*other.clean[:3], *wrong), robust=(False,) * 18)
    for each in (one, other):
        Parts(tmp_path, job.cell).put(each)
    with pytest.raises(
        StoreError, match=r"0-10\.json and .*6-24\.json hold different results for image \d+ of one cell"
    ):
        list(Engine(CPU).run([job], Store(tmp_path)))


def test_another_part_for_the_same_images_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path, part(0, 10))
    there = path.read_bytes()
    put(tmp_path, replace(part(0, 10), seconds=9.0))  # which says the same
    with pytest.raises(StoreError, match=r"0-10\.json holds another result .*: 4 robust there, 5 now\. Move"):
        put(tmp_path, part(0, 10, lambda i: i % 3 == 0 or i == 1))
    assert path.read_bytes() == there
    path.write_text("{")
    put(tmp_path, part(0, 10))  # a damaged one is replaced
    assert path.read_bytes() == there


def test_a_part_that_contradicts_an_overlapping_one_is_found() -> None:
    found = contradictions(
        (Path(str(each.span)), each)
        for each in [part(0, 10), part(5, 15), part(12, 20, lambda i: i == 14), part(20, 25)]
    )
    assert found == ["(5, 15) and (12, 20) hold different results for image 12 of one cell"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 100_000])
def test_a_damaged_part_is_named_and_run_again(standard: Checkpoint, tmp_path: Path, content: bytes) -> None:
    job = planned(Engine(CPU), standard)
    parts = Parts(tmp_path, job.cell)
    for span in ((0, 8), (8, 16)):
        parts.put(Engine(CPU).run_part(job, *span))
    (parts.folder / "8-16.json").write_bytes(content)
    told: list[str] = []
    ((_, record, _),) = Engine(CPU, batch=8, tell=told.append).run([job], Store(tmp_path))
    assert len(told) == 1
    assert "8-16.json is damaged" in told[0]
    assert "\n" not in told[0]
    assert bare(record) == bare(Engine(CPU).evaluate(job))


def test_a_failure_keeps_what_was_done_unless_the_attack_broke_its_contract(
    standard: Checkpoint, tmp_path: Path
) -> None:
    for attack, kept in ((LeavesBallOnce, 0), (Raises, 1)):
        job = planned(Engine(CPU), standard, name(attack))
        fgsm = Engine(CPU).run_part(planned(Engine(CPU), standard, "fgsm"), 0, 8)
        Parts(tmp_path, job.cell).put(replace(fgsm, cell=job.cell))
        ((_, record, _),) = Engine(CPU, batch=8).run([job], Store(tmp_path))
        assert isinstance(record, Failure)
        assert len(Parts(tmp_path, job.cell).every()) == kept


def test_a_folder_that_cannot_be_written_is_said_before_the_first_pass(standard: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "cells").touch()  # what a read-only folder is to a process that may write everywhere
    job = planned(Engine(CPU), standard, name(Corner))
    CALLS.clear()
    with pytest.raises(StoreError, match="cannot write"):
        list(Engine(CPU).run([job], Store(tmp_path)))
    assert CALLS == []


@pytest.mark.parametrize("span", [(0, 0), (-1, 3), (5, 4), (20, 25)])
def test_a_range_that_is_not_there_is_refused(standard: Checkpoint, span: tuple[int, int]) -> None:
    engine = Engine(CPU)
    with pytest.raises(UsageError, match="has images 0 to 23"):
        engine.run_part(planned(engine, standard), *span)


def test_an_attack_on_all_images_at_once_has_one_part(standard: Checkpoint, tmp_path: Path) -> None:
    engine = Engine(CPU, batch=5)
    job = planned(engine, standard, "autoattack@backend=reference,steps=2,queries=5")
    assert list(gaps((), COUNT, job.size(5))) == [(0, COUNT)]
    with pytest.raises(UsageError, match="needs all 24 images in one call"):
        engine.run_part(job, 0, 5)
    assert isinstance(next(engine.run([job], Store(tmp_path)))[1], Result)


# what is read is what was written


def put(folder: Path, each: Part) -> Path:
    Parts(folder, each.cell).put(each)
    return Parts(folder, each.cell).folder / f"{each.start}-{each.stop}.json"


FULL = replace(
    part(5, 12),
    norms=(0.5, None, 0.0, 0.25, 1.0, None, 2.0),
    answers=(20, 100, 60),
    told=("out of memory: went on with 3 images at once",),
    peak_memory=12,
    joules=0.5,
    provenance={"device": "cpu", "threads": 1},
)


def test_any_part_comes_back_as_it_was(tmp_path: Path) -> None:
    for number, each in enumerate((part(0, 1), part(5, 12), FULL, replace(FULL, source=SUBJECT))):
        assert read(put(tmp_path / str(number), each)) == each


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.update(start=4), "bytes|describes"),
        (lambda table: table.update(stop=99), "bytes"),
        (lambda table: table.update(norms=[0.5]), "1 norms for 7"),
        (lambda table: table.update(robust=pack([True] * 7), clean=pack([False] * 7)), "robust that were wrong"),
        (lambda table: table["cell"].update(seed=5), "describes the images"),
        (lambda table: table.update(format=2), "format"),
        (lambda table: table.update(kind="result"), "no part"),
        (lambda table: table.update(extra=1), "unknown key"),
        (lambda table: table.update(largest="nan"), "largest"),
    ],
)
def test_a_part_that_cannot_be_is_damaged_though_its_digest_is_right(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    path = put(tmp_path, FULL)
    table = json.loads(path.read_bytes())
    del table["digest"]
    change(table)
    path.write_text(json.dumps({**table, "digest": digest(table)}))
    with pytest.raises(StoreError, match=rf"5-12\.json is damaged: .*({said})"):
        read(path)


def test_a_part_under_another_name_is_damaged(tmp_path: Path) -> None:
    path = put(tmp_path, FULL)
    with pytest.raises(StoreError, match="it describes the images 5-12"):
        read(path.rename(path.with_name("6-13.json")))


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Bytes flipped, cut out, put in or doubled; numbers and words changed as a hand would."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        place = dice.randrange(len(found) or 1)
        kind = dice.randrange(6)
        if kind == 0 and found:
            found[place] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del found[place : place + dice.choice([1, 2, 40, len(found)])]
        elif kind == 2:
            found[place:place] = dice.choice(
                [b"0", b"-", b"[", b'"', b"null,", b"1e999", b"NaN", b"\\u0000", b"9" * 400]
            )
        elif kind == 3:
            other = dice.randrange(len(found) or 1)
            found[place:place] = found[other : other + dice.choice([1, 8, 100])]
        elif kind == 4:
            old, new = dice.choice(
                [(b"true", b"false"), (b"null", b"0"), (b"0.", b"1."), (b"linf", b"l2"), (b"{", b"[")]
            )
            found = bytearray(bytes(found).replace(old, new, 1))
        else:
            digits = [i for i, byte in enumerate(found) if chr(byte).isdigit()]
            if digits:
                found[dice.choice(digits)] = ord(str(dice.randrange(10)))
    return bytes(found)


def fuzz(folder: Path, count: int, seed: int = 0) -> None:
    """No changed record or part may be taken for another one, nor stop with anything but our own error."""
    dice = random.Random(seed)
    store = Store(folder)
    result = together([replace(part(0, 40), norms=tuple(i / 7 for i in range(40)))])
    store.put(result)
    cases: list[tuple[Path, object, Callable[[Path], object]]] = [
        (store.path(result.cell), result, lambda path: store.get(result.cell)),
        (put(folder, FULL), FULL, read),
    ]
    for path, good, opened in cases:
        content = path.read_bytes()
        for number in range(count // 2):
            path.write_bytes(mutated(content, dice))
            said = ""
            try:
                assert opened(path) == good, number  # only what does not matter to JSON was changed, such as a blank
            except RobenchError as error:
                said = str(error)
            assert "\n" not in said, number


def test_changed_files_are_never_taken_for_others(tmp_path: Path) -> None:
    fuzz(tmp_path, 400)


@pytest.mark.nightly
def test_changed_files_are_never_taken_for_others_in_ten_thousand_cases(tmp_path: Path) -> None:
    fuzz(tmp_path, 20_000, seed=1)


# what verify and list make of them


def test_unfinished_cells_are_listed_until_they_are_whole(tmp_path: Path) -> None:
    assert unfinished(tmp_path) == ([], [])
    for span in ((10, 20), (0, 5)):
        put(tmp_path, part(*span))
    (tmp_path / "parts" / "notes").mkdir()  # somebody else's folder
    found, wrong = unfinished(tmp_path)
    assert [[each.span for each in cell] for cell in found] == [[(0, 5), (10, 20)]]
    assert wrong == []
    put(tmp_path, part(4, 8, lambda i: True))
    damaged = put(tmp_path, part(30, 40))
    damaged.write_text("{")
    found, wrong = unfinished(tmp_path)
    assert len(wrong) == 2
    assert "30-40.json is damaged" in wrong[0]
    assert "0-5.json and" in wrong[1]
    Store(tmp_path).put(together([part(0, 40)]))
    assert unfinished(tmp_path) == ([], [])


def test_the_command_line_says_what_is_unfinished(
    standard: Checkpoint, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    job = planned(Engine(CPU), standard)
    for span in ((0, 6), (3, 9)):
        Parts(tmp_path, job.cell).put(Engine(CPU).run_part(job, *span))
    evaluate = ["evaluate", standard.folder, "--attack", "pgd-5", "--threat", "linf-0.1", "--count", COUNT]
    for finished in (False, True):
        code, out, _ = run_cli("verify", tmp_path)
        assert code == 0
        assert ("standard-digits: pgd-5 linf-0.1: 9 of 24 images; the same robench evaluate goes on" in out) != finished
        code, out, _ = run_cli("list", "results", "--results", tmp_path)
        assert code == 0
        assert ("unfinished: 9 images" in out) != finished
        assert run_cli(*evaluate, "--results", tmp_path)[0] == 0
    (record,) = Store(tmp_path).records()
    assert bare(record) == bare(Engine(CPU).evaluate(job))
    put(tmp_path, part(0, 4)).write_text("{")
    code, out, _ = run_cli("verify", tmp_path)
    assert code == 1
    assert "0-4.json is damaged" in out


def test_the_command_line_names_a_damaged_part_and_goes_on(
    standard: Checkpoint, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    job = planned(Engine(CPU), standard)
    put(tmp_path, Engine(CPU).run_part(job, 0, 6)).write_text("{")
    given = ["--attack", "pgd-5", "--threat", "linf-0.1", "--count", COUNT, "--results", tmp_path]
    code, _, err = run_cli("evaluate", standard.folder, *given)
    assert code == 0
    assert "0-6.json is damaged" in err
    assert files_of(tmp_path) == ["cells", f"cells/{job.cell.key}.json"]
