"""What stored results say of masked gradients: each rule has a case that fires it and the nearest that does not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_diagnosis import MASKS, Masked, digits, net_for, purified
from test_reporting import FORMS, LINF, PGDAT, STANDARD, render, result, rows

from robench import diagnosis, figures, reporting, standing, verdict
from robench.diagnosis import RULES, Row, row
from robench.door import frozen
from robench.inference import Inference
from robench.results import Result, Store
from robench.signs import FEWEST, FOUND, LOOKS, signs
from robench.threat import ThreatModel

N = 200
FEW, MORE = {"steps": 20, "restarts": 1}, {"steps": 40, "restarts": 1}
STRONG = {"steps": 100, "queries": 5000}
BOX, HALF = ThreatModel.parse("linf-1"), ThreatModel.parse("linf-4/255")


def cell(attack: str, broken: Sequence[int] | range, threat: ThreatModel = LINF, **changes: Any) -> Result:
    """A result on 200 images, all right when clean, of which some are broken."""
    options = changes.pop("options", FEW)
    text = "".join("0" if i in set(broken) else "1" for i in range(N))
    made = result(PGDAT, attack, text, threat, clean=(True,) * N, **changes)
    return replace(made, cell=replace(made.cell, options=options))


def found(name: str, results: Sequence[Result], threat: ThreatModel = LINF) -> Row:
    (made,) = [each for each in signs(results) if each.threat == threat]
    assert [each.id for each in made.rows] == list(RULES)
    return next(each for each in made.rows if each.id == name)


PGD, STEP = cell("pgd-20", range(100)), cell("fgsm", range(60), options={})
AUTO = cell("autoattack", range(100), options=STRONG)
CASES: list[tuple[str, str, list[Result]]] = [
    ("G6", "suspect", [PGD, cell("pgd-40", range(102), options=MORE)]),
    ("G6", "pass", [PGD, cell("pgd-40", range(101), options=MORE)]),
    ("G6", "pass", [PGD, cell("pgd-40", range(102), options=MORE), cell("autoattack", range(102), options=STRONG)]),
    ("G6", "not run", [PGD, cell("pgd@loss=dlr,steps=40", range(102), options={**MORE, "loss": "dlr"})]),
    ("G8", "fail", [AUTO, cell("square", range(99, 102), options={"queries": 5000})]),
    ("G8", "pass", [AUTO, cell("square", range(99, 101), options={"queries": 5000})]),
    ("G8", "suspect", [PGD, cell("square", range(99, 102), options={"queries": 5000})]),
    ("G8", "fail", [replace(AUTO, notes=("flag: Square broke 9 images that no gradient attack before it broke",))]),
    ("G8", "pass", [replace(AUTO, left={"apgd-ce": 101, "apgd-t": 100, "fab-t": 100, "square": 100})]),
    ("G8", "not run", [PGD]),
    ("G9", "fail", [PGD, cell("fgsm", range(102), options={})]),
    ("G9", "pass", [PGD, cell("fgsm", range(101), options={})]),
    ("G9", "pass", [PGD, STEP]),
    ("G9", "not run", [cell("pgd@steps=2", range(10), options={"steps": 2}), STEP]),
    ("G10", "fail", [AUTO, cell("pgd-20", range(99, 102), source=STANDARD)]),
    ("G10", "suspect", [PGD, cell("pgd-20", range(99, 102), source=STANDARD)]),
    ("G10", "pass", [AUTO, cell("pgd-20", range(99, 101), source=STANDARD)]),
    ("G10", "not run", [cell("pgd-20", range(99), source=STANDARD)]),
    ("G11", "fail", [PGD, cell("pgd-20", range(197), BOX)]),
    ("G11", "pass", [PGD, cell("pgd-20", range(198), BOX)]),
    ("G11", "not run", [PGD, cell("fgsm", range(9), BOX, options={})]),
    ("G12", "fail", [PGD, cell("pgd-20", range(102), HALF)]),
    ("G12", "pass", [PGD, cell("pgd-20", range(101), HALF)]),
    ("G12", "not run", [PGD, cell("pgd-20", range(150), HALF, options=MORE)]),
    ("G12", "not run", [cell("fgsm", range(9), options={}), cell("fgsm", range(50), HALF, options={})]),
    ("G16", "fail", [AUTO, cell("random-noise", [150], options={"tries": 100})]),
    ("G16", "pass", [AUTO, cell("random-noise", [5], options={"tries": 100})]),
    ("G16", "suspect", [PGD, cell("random-noise", [150], options={"tries": 100})]),
]


@pytest.mark.parametrize(("name", "word", "results"), CASES)
def test_each_sign_has_its_rule(name: str, word: str, results: list[Result]) -> None:
    assert found(name, results).verdict == word
    assert found(name, results[::-1]) == found(name, results)


def test_what_no_cell_answers_says_what_to_run() -> None:
    (made,) = signs([PGD])
    missing = {each.id: each.reason for each in made.rows if each.verdict == "not run"}
    assert set(missing) == set(RULES) - set(LOOKS)
    assert all("robench diagnose" in missing[name] for name in ("G3", "G4", "G5", "G7"))
    assert all("--" in missing[name] for name in FOUND)


def test_few_images_are_judged_by_no_count() -> None:
    short = [replace(r, clean=tuple(i < FEWEST - 1 for i in range(N))) for r in (AUTO, STEP)]
    short = [replace(r, robust=tuple(a and b for a, b in zip(r.clean, r.robust, strict=True))) for r in short]
    assert {each.verdict for each in signs(short)[0].rows if each.id in FOUND} == {"not run"}


def test_l1_where_one_climb_says_little_is_only_suspect() -> None:
    ball, half = ThreatModel.parse("l1-12"), ThreatModel.parse("l1-6")
    two = [cell("pgd-20", range(100), ball), cell("pgd-20", range(110), half)]
    assert found("G12", two, ball).verdict == "suspect"


def test_a_smoothed_classifier_has_no_signs_of_its_own() -> None:
    smooth = replace(STEP, cell=replace(STEP.cell, inference=Inference()))
    assert signs([smooth]) == []


@pytest.mark.parametrize(
    "kind", ["softmax", "sigmoids", "tanh", "large logits", "detached", "random logits", "purified"]
)
def test_every_finding_of_the_look_belongs_to_an_indicator(kind: str) -> None:
    mask = {**MASKS, "purified": purified}[kind]
    x, y = (part[-64:] for part in digits())
    model = Masked(mask).eval()
    with frozen(model):
        probe = verdict.probe(model, x, y, 10)
    assert probe.findings
    for name, text in probe.findings:
        assert any(fragment in text for fragment in LOOKS[name]), (name, text)
    noted = replace(AUTO, notes=probe.notes)
    caught = {name for name, _ in probe.findings}
    assert {each.id for each in signs([noted])[0].rows if each.verdict in ("fail", "suspect")} == caught


def test_the_look_finds_nothing_in_an_honest_net() -> None:
    x, y = (part[-64:] for part in digits())
    with frozen(net_for()):
        assert verdict.probe(net_for(), x, y, 10).findings == ()
    assert torch.is_grad_enabled()


MASKED = [AUTO, cell("square", range(99, 109), options={"queries": 5000}), replace(STEP, subject=PGDAT)]
HONEST = replace(
    result(STANDARD, "autoattack", "0" * N, clean=(True,) * N), cell=replace(AUTO.cell, checkpoint=STANDARD.sha256)
)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "transfer"])
def test_a_failed_sign_is_in_every_rendering(form: str) -> None:
    made = render([*MASKED, HONEST], form)
    assert "G8" in made
    assert "G8" not in render([AUTO, HONEST], form)
    if form == "cells":
        head, *lines = rows(made)
        where, name = head.index("flags"), head.index("checkpoint")
        assert {line[name] for line in lines if "G8" in line[where]} == {"pgd-at"}


def test_a_failed_sign_is_in_every_figure_and_leaves_the_ranking() -> None:
    for figure in figures.figures([*MASKED, HONEST]):
        assert "unreliable at linf-8/255 G8" in figure.caption
    assert reporting.tables([AUTO, HONEST])[0].bold
    assert not reporting.tables([*MASKED, HONEST])[0].bold


def test_the_table_has_each_checkpoint_at_each_threat_and_the_worse_of_two_verdicts() -> None:
    (table,) = standing.tables([*MASKED, HONEST])
    words = {line[1].removesuffix(" !"): line[3] for line in table.rows}
    assert words == {"pgd-at": "fail", "standard": "pass"}
    assert any("fail G8 black box beats white box: 9 of 200 images" in note for note in table.notes)
    bad = tuple(row(name, 1.0, "fail" if name == "G3" else "pass", "seen") for name in RULES)
    ill = diagnosis.Diagnosis(STANDARD.sha256, "standard", LINF, "d" * 64, N, N, 0, (), bad)
    (table,) = standing.tables([*MASKED, HONEST], [ill])
    by_name = {line[1]: line for line in table.rows}
    assert by_name["standard !"][3:6] == ("fail", "16 of 16", "G3")


def test_the_command_prints_indicators(tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    for each in MASKED:
        Store(tmp_path).put(each)
    for form in ("terminal", "markdown", "latex", "json", "csv"):
        code, out, err = run_cli("report", "--table", "indicators", "--format", form, "--results", tmp_path)
        assert (code, err) == (0, "")
        assert "black box beats white box" in out
    code, out, _ = run_cli("verify", tmp_path)
    assert (code, "fail G8" in out) == (0, True)
