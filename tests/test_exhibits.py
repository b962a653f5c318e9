"""What lies beside the cells: labels, pictures and features, what is worked out from them, and how it looks."""

import base64
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_rendering import Page, browser  # noqa: F401 (a fixture)
from test_reporting import HOSTILE, LINF, PGDAT, RECORDS, ROCL, SECRET, STANDARD, named, result, rows

from robench import data, exhibits, gallery, perclass, recipe
from robench.caption import accuracy
from robench.data import Split
from robench.diagnosis import Diagnosis, Row
from robench.embedding import tsne
from robench.errors import StoreError
from robench.exhibits import Embedding, Example, Exhibits, Labels, Pictures
from robench.panels import Classes, Cloud, Examples
from robench.rendering import axes, drawing
from robench.rendering.html import html
from robench.results import Result, Store
from robench.spec import digest
from robench.statistic import interval
from robench.threat import ThreatModel
from robench.training import Run, train

Cli = Callable[..., tuple[int, str, str]]
LABELS = Labels("d" * 64, "cifar10", 4, "0 1 2 2 0 1 2 2")


def png(shade: int, side: int = 2) -> str:
    stream = io.BytesIO()
    Image.new("L", (side, side), shade).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def pictures(of: Result, count: int = 3) -> Pictures:
    examples = (Example(i, 1, 2, png(i), png(100 + i), png(200)) for i in range(count))
    return Pictures(of.cell.key, tuple(examples))


def embedding(on: Any = ROCL, **changes: Any) -> Embedding:
    found = Embedding(
        subject=on,
        attack="pgd-20",
        version=1,
        threat=LINF,
        data="d" * 64,
        count=4,
        seed=0,
        perplexity=2.0,
        divergence=0.1,
        classes=3,
        labels=(0, 1, 2, 0),
        clean=((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)),
        adversarial=((2.0, 0.0), (1.0, 3.0), (0.0, -1.0), (0.5, 0.5)),
        clean_accuracy=0.75,
        robust_accuracy=0.25,
    )
    return replace(found, **changes)


def shown(records: Sequence[Any] = RECORDS, on: Any = ROCL) -> Exhibits:
    first = next(r for r in records if isinstance(r, Result))
    return Exhibits((LABELS,), (pictures(first),), (embedding(on),))


@pytest.fixture
def plots() -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'robench[plot]'")


# files


@pytest.mark.parametrize("record", [LABELS, pictures(RECORDS[0]), embedding()], ids=lambda r: type(r).__name__)  # type: ignore[arg-type]
def test_what_is_stored_comes_back_and_a_change_is_named(tmp_path: Path, record: Any) -> None:
    path = exhibits.put(record, tmp_path)
    before = path.stat().st_mtime_ns
    assert exhibits.put(record, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    found = exhibits.load(tmp_path)
    assert [*found.labels, *found.pictures, *found.embeddings] == [record]
    content = path.read_text()
    path.write_text(content.replace(": 1", ": 2", 2) if ": 1" in content else content.replace("0 1 2", "0 2 2"))
    with pytest.raises(StoreError, match=rf"{path.name} is damaged or was changed.*delete it and run robench"):
        exhibits.load(tmp_path)
    path.write_text(content)
    path.rename(path.with_name("0" * 32 + ".json"))
    with pytest.raises(StoreError, match="not what its name says"):
        exhibits.load(tmp_path)


@pytest.mark.parametrize(
    "record", [replace(LABELS, labels="0 1 9"), embedding(labels=(0, 1, 2)), embedding(labels=(0, 1, 2, 3))]
)
def test_what_cannot_be_is_not_shown(tmp_path: Path, record: Any) -> None:
    exhibits.put(record, tmp_path)
    with pytest.raises(StoreError, match="damaged"):
        exhibits.load(tmp_path)


def test_other_labels_for_the_same_images_are_refused(tmp_path: Path) -> None:
    exhibits.put(LABELS, tmp_path)
    with pytest.raises(StoreError, match="other labels for the same images"):
        exhibits.put(replace(LABELS, labels="1 1 2 2 0 1 2 2"), tmp_path)


def test_verify_looks_at_them(tmp_path: Path, run_cli: Cli) -> None:
    for record in RECORDS:
        Store(tmp_path).put(record)
    first = next(r for r in RECORDS if isinstance(r, Result))  # whose image 0 alone stayed right
    exhibits.put(replace(LABELS, labels="0 1"), tmp_path)
    exhibits.put(pictures(first), tmp_path)
    code, out, _ = run_cli("verify", tmp_path)
    assert code == 1
    assert "2 labels for the 8 images" in out
    assert "image 0 is not broken there" in out
    assert "image 1 is not broken there" not in out


# class by class


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
@settings(deadline=None, derandomize=True)
def test_shares_of_classes_make_up_the_whole(images: list[tuple[bool, int]]) -> None:
    right, labels = zip(*images, strict=True)
    found = perclass.shares(right, labels)
    assert sum(each.right for each in found) == sum(right)
    assert sum(each.count for each in found) == len(images)
    for each in found:
        mine = numpy.array(right)[numpy.array(labels) == each.label]
        assert each.accuracy == pytest.approx(mine.mean())
    worst = perclass.worst_class(right, labels)
    assert worst.accuracy <= sum(right) / len(right) + 1e-12
    assert worst.accuracy == min(each.accuracy for each in found)


def test_a_worst_class_is_under_all_attacks_together() -> None:
    records = [result(PGDAT, "pgd-20", "11010100"), result(PGDAT, "fgsm", "01110100")]
    (table,) = perclass.tables(records, [LABELS])
    (row,) = table.rows
    # clean 1111 1100; together 01010100: class 0 has images 0 and 4, class 1 images 1 and 5, class 2 images 2, 3, 6, 7
    assert row[1:] == ("pgd-at", "75.0", "50.0 (2: 2/4)", "37.5", "0.0 (0: 0/2)")


def test_a_checkpoint_that_met_fewer_attacks_has_no_worst_class() -> None:
    records = [
        result(PGDAT, "pgd-20", "11010100"),
        result(PGDAT, "fgsm", "01110100"),
        result(ROCL, "fgsm", "1" * 6 + "00"),
    ]
    (table,) = perclass.tables(records, [LABELS])
    assert {row[1]: row[4:] for row in table.rows}["rocl"] == ("-", "-")
    panel = next(
        p for f in gallery.figures(records, Exhibits((LABELS,)), "classes") for p in f.panels if "linf" in p.title
    )
    assert isinstance(panel, Classes)
    assert panel.lines == (("pgd-at", (0.0, 1.0, 0.25)),)


def test_rows_of_classes_are_tidy() -> None:
    made = perclass.csv([result(PGDAT, "pgd-20", "11010100", notes=("flag: odd",))], [LABELS])
    head, *found = rows(made)
    table = [dict(zip(head, row, strict=True)) for row in found]
    assert {(r["threat"], r["class"], r["right"], r["of"]) for r in table} >= {
        ("", "2", "2", "4"),
        ("linf-8/255", "0", "1", "2"),
    }
    assert {r["flags"] for r in table} == {"odd"}
    for r in table:
        low, high = interval(int(r["right"]), int(r["of"]))
        assert (float(r["accuracy_low"]), float(r["accuracy_high"])) == pytest.approx((low, high))


def test_means_have_intervals_where_asked_for() -> None:
    (table,) = perclass.tables([result(PGDAT, "pgd-20", "11010100")], [LABELS], intervals=True)
    assert table.rows[0][2] == accuracy([(True,) * 6 + (False,) * 2], True)
    assert "-" in table.rows[0][2]


@pytest.mark.parametrize("labels", [(), (replace(LABELS, data="e" * 64),)])
def test_without_labels_the_error_says_how_to_get_them(labels: Any) -> None:
    for make in (perclass.tables, perclass.csv):
        with pytest.raises(StoreError, match="run robench evaluate again"):
            make(RECORDS, labels)


def test_evaluate_stores_the_labels_of_its_images(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    line = ("evaluate", "pgd-at-digits", "--attack", "fgsm", "--count", 30, "--device", "cpu")
    where = ("--checkpoints", trained, "--results", tmp_path)
    assert run_cli(*line, *where)[0] == 0
    (labels,) = exhibits.load(tmp_path).labels
    images = data.load("digits", Split.TEST, Path()).take(slice(30))
    assert labels.each == images.y.tolist()
    assert (labels.data, labels.classes) == (images.digest, 10)
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    assert run_cli(*line, *where)[0] == 0  # the cell is there already
    code, out, _ = run_cli("report", "--results", tmp_path, "--table", "classes", "--format", "markdown")
    assert code == 0
    assert "Worst class, digits, 30 test images" in out
    assert run_cli("report", "--results", tmp_path, "--table", "classes", "--format", "csv")[1].count("\n") == 21


# pictures


def test_kept_pictures_are_of_images_that_fall_again(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    where = ("--checkpoints", trained, "--results", tmp_path, "--device", "cpu")
    run_cli("evaluate", "standard-digits", "--attack", "pgd-20", "--threat", "linf-0.2", "--count", 40, *where)
    (record,) = Store(tmp_path).records()
    code, _, told = run_cli("show", record.cell.key, "--images", 3, "--keep", *where)
    assert (code, "stored" in told) == (0, True)
    (kept,) = exhibits.load(tmp_path).pictures
    images = data.load("digits", Split.TEST, Path())
    assert len(kept.examples) == 3
    for each in kept.examples:
        clean, adv = (
            numpy.array(Image.open(io.BytesIO(base64.b64decode(text)))) / 255 for text in (each.clean, each.adversarial)
        )
        assert numpy.allclose(clean, images.x(torch.tensor([each.number]))[0, 0].numpy(), atol=1e-6)
        assert numpy.abs(adv - clean).max() <= 0.2 + 1 / 255
        assert each.label == int(images.y[each.number]) != each.answer
    assert run_cli("verify", tmp_path)[0] == 0
    code, _, told = run_cli("show", record.cell.key, "--images", 3, *where)
    assert code == 2
    assert "--out FILE.png, with --keep" in told


def test_pictures_that_do_not_fall_again_are_not_kept(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    where = ("--checkpoints", trained, "--results", tmp_path, "--device", "cpu")
    run_cli("evaluate", "pgd-at-digits", "--attack", "pgd-20", "--threat", "linf-0.001", "--count", 20, *where)
    (record,) = Store(tmp_path).records()
    path = Store(tmp_path).path(record.cell)
    table = json.loads(path.read_bytes())
    del table["digest"]
    table["robust"] = "AAAA"
    path.write_text(json.dumps({**table, "digest": digest(table)}))
    assert run_cli("show", path, "--images", 2, "--keep", *where)[0] == 1
    assert [each.examples for each in exhibits.load(tmp_path).pictures] == [()]


# features


def test_tsne_is_the_same_again_and_keeps_clouds_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 8, generator=generator) + 8 * torch.eye(3, 8)[y]
    points, divergence = tsne(x, 10.0, 0)
    assert (points, divergence) == tsne(x, 10.0, 0)
    found = torch.tensor(points)
    near = torch.cdist(found, found).fill_diagonal_(torch.inf).argmin(1)
    assert (y[near] == y).float().mean() > 0.95
    assert divergence > 0


def test_features_of_a_checkpoint_are_stored_and_drawn(trained: Path, tmp_path: Path, run_cli: Cli) -> None:
    where = ("--checkpoints", trained, "--results", tmp_path, "--device", "cpu")
    line = ("features", "standard-digits", "--threat", "linf-0.2", "--count", 40, *where)
    assert run_cli(*line)[0] == 0
    (found,) = exhibits.load(tmp_path).embeddings
    assert found.labels == tuple(data.load("digits", Split.TEST, Path()).y[:40].tolist())
    assert found.clean_accuracy is not None
    assert found.robust_accuracy is not None
    assert found.robust_accuracy < found.clean_accuracy
    assert run_cli(*line)[0] == 0
    assert exhibits.load(tmp_path).embeddings == (found,)
    pytest.importorskip("matplotlib")
    out = tmp_path / "features.png"
    assert run_cli("plot", "--results", tmp_path, "--kind", "features", "--out", out) == (0, "", "")
    assert out.read_bytes().startswith(b"\x89PNG")
    code, _, told = run_cli("plot", "--results", tmp_path, "--kind", "features", "--dataset", "mnist", "--out", out)
    assert code == 2
    assert "--dataset mnist leaves none of the features; there are some on digits" in told


def test_an_encoder_without_a_head_is_attacked_through_its_features(tmp_path: Path, run_cli: Cli) -> None:
    made = recipe.load("simclr-digits", [("stage.0.epochs", 1)])
    train(Run(replace(made, stage=made.stage[:1]), tmp_path / "runs" / "encoder"))
    where = ("--checkpoints", tmp_path / "runs", "--results", tmp_path, "--device", "cpu", "--threat", "linf-0.2")
    code, _, told = run_cli("features", "encoder", "--count", 20, *where)
    assert code == 0, told
    (found,) = exhibits.load(tmp_path).embeddings
    assert (found.attack, found.clean_accuracy) == ("feature-pgd", None)
    assert found.clean != found.adversarial
    code, _, told = run_cli("features", "encoder", "--attack", "pgd-20", "--count", 20, *where)
    assert code == 2
    assert "only --attack feature-pgd" in told


# figures


@pytest.mark.parametrize("kind", list(gallery.KINDS))
def test_a_flag_is_in_every_figure(kind: str) -> None:
    records = [replace(r, notes=("flag: zero gradients",)) if isinstance(r, Result) else r for r in RECORDS]
    (figure,) = gallery.figures(records, shown(), kind)
    assert "zero gradients" in figure.caption
    assert "(flagged)" in figure.title + str(figure.panels)
    rows = (Row("G8", "black box", 5.0, "rule", "fail", "5 of 8 images"),)
    made = [Diagnosis(who.sha256, who.name, LINF, "d" * 64, 8, 8, 0, (), rows) for who in (STANDARD, ROCL)]
    (figure,) = gallery.figures(RECORDS, shown(), kind, made)
    assert "unreliable at linf-8/255 G8 black box" in figure.caption
    assert "(flagged)" in figure.title + str(figure.panels)


@pytest.mark.parametrize("kind", list(gallery.KINDS))
def test_no_figure_is_an_error_that_says_what_to_run(kind: str) -> None:
    with pytest.raises(StoreError, match=f"no {kind} to draw: .*robench"):
        gallery.figures(RECORDS, Exhibits(), kind)


def test_pictures_of_cells_that_are_left_out_are_not_shown() -> None:
    gone = pictures(result(PGDAT, "pgd-20", "11110000", ThreatModel.parse("l2-7")))
    assert gallery.figures(RECORDS, Exhibits(pictures=(gone,))) == []
    (figure,) = gallery.figures(RECORDS, shown(), "examples")
    (panel,) = figure.panels
    assert isinstance(panel, Examples)
    assert panel.title == "standard, pgd-20 linf-8/255"


def test_both_clouds_share_their_axes() -> None:
    (figure,) = gallery.figures([], shown(), "features")
    one, two = figure.panels
    assert isinstance(one, Cloud)
    assert isinstance(two, Cloud)
    assert one.reach == two.reach == ((0.0, 2.0), (-1.0, 3.0))
    assert (one.title, two.title) == ("clean, accuracy 75.0", "under pgd-20 at linf-8/255, accuracy 25.0")


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("form", drawing.FORMATS)
@pytest.mark.parametrize("kind", list(gallery.KINDS))
def test_a_figure_is_drawn_to_the_same_bytes(kind: str, form: str) -> None:
    made = drawing.draw(gallery.figures(RECORDS, shown(), kind), form)
    assert made == drawing.draw(gallery.figures(RECORDS[::-1], shown(), kind), form)


@pytest.mark.usefixtures("plots")
def test_a_slim_figure_has_all_pictures_in_rows_of_four() -> None:
    first = next(r for r in RECORDS if isinstance(r, Result))
    figures = gallery.figures(RECORDS, Exhibits(pictures=(pictures(first, 9),)), "examples")
    for slim in (False, True):
        drawn = ElementTree.fromstring(drawing.draw(figures, "svg", slim=slim).decode())
        images = [each for each in drawn.iter() if each.tag.endswith("image")]
        assert len(images) == 27
        assert float(drawn.attrib["width"].removesuffix("pt")) == pytest.approx(72 * (3.4 if slim else 7.0), abs=0.5)


@pytest.mark.usefixtures("plots")
def test_colours_stay_colours() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 30, 60)).save(stream, format="PNG")
    found = axes._picture(base64.b64encode(stream.getvalue()).decode())
    assert found.shape == (4, 4, 3)
    assert (found == (200, 30, 60)).all()


@pytest.mark.usefixtures("plots")
def test_many_classes_are_a_curve() -> None:
    many = replace(LABELS, classes=30, labels="0 1 2 25 0 1 2 2")
    figures = gallery.figures(RECORDS, Exhibits((many,)), "classes")
    assert "in the order of their accuracy" in figures[0].caption
    assert b"the worst first" in drawing.draw(figures, "svg")


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("text", [*HOSTILE, "$x^2", "../../x"], ids=ascii)
def test_names_are_inert(text: str) -> None:
    records = named(text)
    one = next(r for r in records if isinstance(r, Result))
    found = replace(shown(records, one.subject), embeddings=(embedding(one.subject, attack=text),))
    drawn = gallery.figures(records, found)
    assert {figure.kind for figure in drawn} == set(gallery.KINDS)
    made = html(perclass.tables(records, [LABELS]), drawn)
    page = Page(made)
    assert page.tags.count("script") == 1
    assert not page.asks
    for figure in drawn:
        svg = drawing.draw([figure], "svg").decode()
        assert not SECRET.search("".join(ElementTree.fromstring(svg).itertext()))
        assert "<script" not in svg
    for row in rows(perclass.csv(records, [LABELS])):
        assert not [cell for cell in row if cell[:1] in ("=", "+", "@", "-", "\t", "\r")]


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_pictures_and_asks_for_nothing(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:  # noqa: F811
    path = tmp_path / "report.html"
    path.write_text(html(perclass.tables(RECORDS, [LABELS]), gallery.figures(RECORDS, shown())))
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate("[...document.querySelectorAll('svg image')].map(i => i.getBoundingClientRect().width)")
    assert len(sizes) == 9
    assert min(sizes) > 5
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:image/png")] == [path.as_uri()]
