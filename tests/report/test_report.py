"""The report: one file that loads nothing, with hostile names as text, and small."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import GeometryHistory, GeometryRecord, MetricSpec, diagnose, load_history
from lightning_geo.analysis.runs import Run
from lightning_geo.report.page import report
from lightning_geo.report.sentences import run_sentences
from lightning_geo.storage.record_file import RecordFile
from lightning_geo.utils.errors import RunError
from support.programs import browser_context
from support.records import make_record
from support.report_page import Page, assert_loads_nothing

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


def run(name: str = "bert/version_0", seed: int = 0, samples: int = 4, **kwargs: object) -> Run:
    records = [make_record(50 * s, seed=seed, **kwargs) for s in range(samples)]  # type: ignore[arg-type]
    return Run(name, Path(name), GeometryHistory(records))


def hostile() -> Run:
    """A run whose every name is markup, and what it says of its own metrics."""
    spec = MetricSpec(HOSTILE, HOSTILE, ("layer", "head"), *[HOSTILE] * 4, headline=(HOSTILE,))
    records = [
        GeometryRecord(
            {HOSTILE: {"entropy": np.random.default_rng(s).random((2, 3)), HOSTILE: np.ones((2, 3)) * s},
             f"{HOSTILE}2": {"entropy": np.ones((2, 3)) * s}},
            {"class": HOSTILE},
            step=s,
            probe_fingerprint=HOSTILE,
            specs={HOSTILE: spec},
        )
        for s in (0, 9)
    ]  # fmt: skip
    return Run(HOSTILE, Path("x"), GeometryHistory(records))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_report_loads_nothing(count: int) -> None:
    page = Page(report([run(f"run_{seed}", seed) for seed in range(count)]))
    assert_loads_nothing(page)
    assert ("How the runs differ" in page.text) == (count > 1)


def test_every_sentence_stands_in_it() -> None:
    one = run()
    text = Page(report([one])).text
    for sentence in run_sentences(one.history):
        assert sentence.text in text
    assert "bert/version_0" in text
    assert "4, steps 0 to 150" in text


def test_what_counts_stands_before_what_is_folded() -> None:
    records = [GeometryRecord({"encoder": {"normalized_entropy": np.full((4, 4), x)}}, step=50 * i)
               for i, x in enumerate((0.7, 0.01, 0.01))]  # fmt: skip
    page = report([Run("x", Path("x"), GeometryHistory(records))])
    order = ["Something is wrong", "critical since step 50", "Largest changes", "<details", "What changed"]
    order += ["Metric by metric</h2>", "All metrics of x</h2>", "time per sample"]
    body = page[page.index("</nav>") :]
    places = [body.index(text) for text in order]
    assert places == sorted(places)
    assert page.index('id="runs"') > page.index('id="reading"')  # metadata last
    for anchor in re.findall(r'href="#(\w+)"', page):
        assert page.count(f'id="{anchor}"') == 1


def test_three_findings_are_open_and_the_worst_come_first() -> None:
    seven = [run(f"run_{seed}", seed, samples=8) for seed in range(3)]
    open_part, _, folded = report(seven).partition('id="more"')
    levels = re.findall(r'<section class="finding (\w+)">', open_part)
    assert len(levels) == 3
    rest = re.findall(r'<section class="finding (\w+)">', folded)
    assert len(rest) + 3 == sum(len(diagnose(one.history).findings) for one in seven)
    assert set(rest) <= {"note", "warning", "critical"}
    order = ["critical", "warning", "note"]
    assert max(map(order.index, levels)) <= min(map(order.index, rest))


def logged(folder: Path, scalars: dict[str, list[tuple[int, float]]]) -> Run:
    """A run whose entropy collapses, with scalars in its event file as a logger writes them."""
    sink = RecordFile(folder, "geometry")
    for i, level in enumerate((0.7, 0.01, 0.01)):
        sink.write(GeometryRecord({"encoder": {"normalized_entropy": np.full((4, 4), level)}}, step=50 * i))
    sink.close()
    writer = SummaryWriter(str(folder))
    for tag, points in scalars.items():
        for step, value in points:
            writer.add_scalar(tag, value, step)
    writer.close()
    return Run(folder.name, folder, load_history(folder))


def test_the_loss_is_drawn_with_findings_and_evaluations(tmp_path: Path) -> None:
    loss = [(step, 2.0 - step / 100) for step in range(0, 101, 10)]
    one = logged(tmp_path / "a", {"train/loss": loss, "val/accuracy": [(50, 0.5), (100, 0.875)]})
    page = report([one])
    assert "val/accuracy 0.875 at step 100 · train/loss 1.00 at step 100." in Page(page).text
    [chart] = re.findall(r'<svg class="lg"[^>]*aria-label="train/loss.*?</svg>', page, re.DOTALL)
    [x] = re.findall(r'class="event critical" d="M([\d.]+) ', chart)
    [line] = re.findall(r'<polyline class="l0" points="([^"]+)"', chart)
    points = dict(tuple(map(float, point.split(","))) for point in line.split())
    assert float(x) in points  # step 50 of the loss
    dots = re.findall(r'class="evaluation l0" cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert [points[float(cx)] for cx, _ in dots] == [float(cy) for _, cy in dots]
    assert "val/accuracy 0.875 at step 100</title>" in chart


def test_runs_are_compared_by_their_outcome_first(tmp_path: Path) -> None:
    a = logged(tmp_path / "a", {"train/loss": [(0, 1.0), (9, 0.5)], "val/acc": [(9, 0.961)]})
    b = logged(tmp_path / "b", {"train/loss": [(0, 1.0), (9, float("nan"))]})
    page = Page(report([a, b])).text
    assert re.search(r"a\s*0\.961 \(step 9\)\s*0\.500 \(step 9\)\s*b\s*-\s*1\.00 \(step 0\)", page)
    assert page.index("0.961 (step 9)") < page.rindex("Largest differences")


def test_a_loss_that_is_not_found_is_said(tmp_path: Path) -> None:
    absent = "The loss is not in the run's event files, nor in a metrics.csv beside them."
    one, other = logged(tmp_path / "a", {}), logged(tmp_path / "b", {"loss": [(0, 1.0), (9, 0.5)]})
    assert absent in Page(report([one])).text
    assert absent in Page(report([run()])).text
    assert f"a: {absent}" in Page(report([one, other])).text
    assert "The loss is not" not in Page(report([other])).text


def test_a_loss_that_went_to_a_csv_file_is_drawn(tmp_path: Path) -> None:
    one = logged(tmp_path / "a", {})
    (tmp_path / "a" / "metrics.csv").write_text("epoch,step,train/loss\n0,0,1.0\n0,50,0.5\n0,100,0.25\n")
    page = report([one])
    assert "train/loss 0.250 at step 100." in Page(page).text
    assert re.findall(r'<svg class="lg"[^>]*aria-label="train/loss', page)


def test_a_loss_that_only_weights_and_biases_has_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "offline-run-20260101_000000-abc"
    one = logged(folder / "files", {})
    (folder / "run-abc.wandb").touch()
    for path in (folder, folder / "files"):
        text = Page(report([Run("a", path, one.history)])).text
        assert "run-abc.wandb, which W&B alone reads: its workspace shows the loss." in text


def test_a_report_of_two_says_where_they_differ() -> None:
    a, b = run("a"), run("b")
    for record in b.history._records:
        record.stacks["encoder"]["entropy"] = record.stacks["encoder"]["entropy"].copy()
    b.history._records[-1].stacks["encoder"]["entropy"][1, 2] += 1000
    text = Page(report([a, Run("b", Path("b"), GeometryHistory(b.history._records))])).text
    assert "Layer 1 differs most" in text
    assert "entropy, B − A" in text or "entropy12" in text


@pytest.mark.parametrize("runs", [[hostile()], [hostile(), hostile()], [run(HOSTILE), run(HOSTILE, 1)]])
def test_hostile_names_are_text(runs: list[Run]) -> None:
    page = Page(report(runs))
    assert_loads_nothing(page)
    assert HOSTILE in page.text


@pytest.mark.browser
def test_a_browser_shows_it_without_a_request_or_a_complaint(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report([hostile(), hostile()]), encoding="utf-8")
    said: list[str] = []
    with browser_context() as context:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("request", lambda request: said.append(request.url))
        page.goto(file.as_uri())
        assert "owned" not in page.evaluate("document.title").split("<")[0]
        assert page.evaluate("document.querySelectorAll('script, img, [onerror]').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [text for text in said if not text.startswith(("data:", file.as_uri()))] == []


def test_other_shapes_are_drawn(tmp_path: Path) -> None:
    gaps = run(metrics=["entropy", "cone.output", "drift.output"])
    for record in gaps.history._records:
        record.stacks["encoder"]["entropy"][0] = np.nan  # a layer without attention
    for one in (
        Run("gaps", Path("gaps"), GeometryHistory(gaps.history._records)),
        run(samples=1),
        run(samples=2, layers=1, heads=1),
        run(stacks=["encoder", "decoder", "decoder.cross"], metrics=["entropy", "redundancy"]),
    ):
        assert_loads_nothing(Page(report([one])))


def test_a_metric_whose_sign_says_most_has_zero_in_the_middle() -> None:
    page = report([run(metrics=["symmetry"])])
    assert ">+1.00<" in page
    assert ">−1.00<" in page


def test_different_models_are_refused() -> None:
    with pytest.raises(RunError, match="different models"):
        report([run(), run(layers=5)])


def test_a_report_on_bert_base_is_small(tmp_path: Path) -> None:
    sink = RecordFile(tmp_path, "geometry")
    for sample in range(200):
        sink.write(make_record(50 * sample, layers=12, heads=12))
    history = load_history(tmp_path)
    pages = [report([Run(str(n), tmp_path, history) for n in range(count)]) for count in (1, 2)]
    sizes = [len(page.encode()) for page in pages]
    assert max(sizes) < 2_000_000
