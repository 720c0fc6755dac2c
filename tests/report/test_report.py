"""Learning curves: what is drawn, and what is left on disk; and the page that explains the numbers behind them."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import pytest
from helpers import ROOT, SilentSink, quick_if, tiny
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.engine.session import run_training
from cvxrl.report import curves
from cvxrl.report.curves import plot_curves
from cvxrl.runs.directory import RunDir

START = {"step": 0.0, "eval/accuracy": 0.4, "eval/stderr": 0.05}
STEP = {
    "reward/mean": 0.5,
    "policy/entropy": 1.0,
    "policy/kl": 0.01,
    "grad/norm": 4.0,
    "grad/norm_clipped": 1.0,
    "response/length": 18.0,
    "response/truncated": 0.25,
    "loss": -0.1,
}


@pytest.fixture
def axis() -> Axes:
    return Figure().subplots()


def drawn(axis: Axes, label: str) -> list[float]:
    """Values of the line with a label."""
    return list(next(line for line in axis.get_lines() if line.get_label() == label).get_ydata())


@pytest.mark.parametrize(
    "records",
    [
        [START, *({"step": float(i), **STEP} for i in range(1, 30))],
        pytest.param([START], marks=pytest.mark.slow),
        [{"step": 0.0}],
        pytest.param([START, {"step": 1.0, **STEP}], marks=pytest.mark.slow),
        pytest.param(
            [START, {"step": 1.0, **STEP}, {"step": 2.0, **dict.fromkeys(STEP, math.nan)}], marks=pytest.mark.slow
        ),
        [START, {"step": 1.0, **dict.fromkeys(STEP, 0.0)}, {"step": 2.0, **dict.fromkeys(STEP, math.inf)}],
        [START, {"step": 1.0, **dict.fromkeys(STEP)}],  # read back from metrics.jsonl, where NaN is null
    ],
    ids=["whole", "no step", "nothing", "one step", "nan", "zero and inf", "null"],
)
def test_a_picture_whatever_the_records(records: list[dict[str, float]], tmp_path: Path) -> None:
    path = tmp_path / "report" / "curves.png"
    plot_curves(records, path, "run [x] $1")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (1500, 1980)
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


@pytest.mark.parametrize(("error", "bars", "label"), [(0.05, 1, "95%"), (None, 0, "error needs 2 prompts")])
def test_an_unknown_error_has_no_bar(error: float | None, bars: int, label: str, axis: Axes) -> None:
    curves._scores(axis, [{"step": 0.0, "eval/accuracy": 0.4, "eval/stderr": error}])  # type: ignore[dict-item]
    (container,) = axis.containers
    (lines,) = container.lines[2]
    assert sum(len(segment) > 0 for segment in lines.get_segments()) == bars
    assert container.get_label() == f"held-out accuracy, {label}"


def test_a_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "curves.png"
    path.write_bytes(b"old")

    def fail(figure: Figure, target: io.BytesIO, **options: object) -> None:
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_curves([START], path, "run")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_error_bars_are_95_percent_intervals(axis: Axes) -> None:
    curves._scores(axis, [START, {"step": 1.0, **STEP}])
    (bar,) = axis.containers[0].lines[2]  # type: ignore[attr-defined]
    (low, high) = bar.get_segments()[0][:, 1]
    assert low == pytest.approx(0.4 - 1.96 * 0.05) and high == pytest.approx(0.4 + 1.96 * 0.05)


@pytest.mark.parametrize(("accuracy", "ends"), [(0.01, (0.0, 0.108)), (0.97, (0.872, 1.0)), (0.0, (0.0, 0.098))])
def test_error_bars_end_where_an_accuracy_does(axis: Axes, accuracy: float, ends: tuple[float, float]) -> None:
    curves._scores(axis, [{"step": 0.0, "eval/accuracy": accuracy, "eval/stderr": 0.05}])
    (bar,) = axis.containers[0].lines[2]  # type: ignore[attr-defined]
    assert tuple(bar.get_segments()[0][:, 1]) == pytest.approx(ends)


def test_gradient_panel_shows_both_norms_only_where_clipping_acted(axis: Axes) -> None:
    curves._gradients(axis, [{"step": 1.0, **STEP}])
    assert drawn(axis, "before clipping") == [4.0] and drawn(axis, "after clipping") == [1.0]
    assert axis.get_yscale() == "log"
    other = Figure().subplots()
    curves._gradients(other, [{"step": 1.0, "grad/norm": 0.5, "grad/norm_clipped": 0.5}])
    assert [line.get_label() for line in other.get_lines()] == ["before clipping"]
    assert other.get_title("right") == "never clipped"


def test_panels_without_data_say_so(axis: Axes) -> None:
    curves._gradients(axis, [START])
    assert [text.get_text() for text in axis.texts] == ["not measured"] and not len(axis.get_yticks())


def test_truncation_is_drawn_in_percent_when_there_is_any(axis: Axes) -> None:
    curves._lengths(axis, [{"step": 1.0, **STEP}])
    left, right = axis.figure.axes
    assert list(left.get_lines()[0].get_ydata()) == [18.0]
    assert list(right.get_lines()[0].get_ydata()) == [25.0]
    other = Figure().subplots()
    curves._lengths(other, [{"step": 1.0, **STEP, "response/truncated": 0.0}])
    assert len(other.figure.axes) == 1 and other.get_title("right") == "never truncated"


def test_smoothing_is_centred_and_narrower_at_the_ends() -> None:
    impulse = [0.0] * 20
    impulse[10] = 9.0
    smooth = curves._smooth(impulse)
    assert smooth[6:15] == pytest.approx([1.0] * 9) and smooth[5] == smooth[15] == 0.0
    assert curves._smooth([5.0, 0.0, 0.0, 0.0, 0.0, 0.0])[0] == pytest.approx(1.0)  # mean of the first five


def test_a_log_axis_smooths_logarithms(axis: Axes) -> None:
    records = [{"step": float(i), "policy/kl": kl} for i, kl in enumerate([1e-2, 1e-4])]
    curves._line(axis, records, "policy/kl", "KL", "black", log=True)
    assert list(axis.get_lines()[1].get_ydata()) == pytest.approx([1e-3, 1e-3])
    assert axis.get_yscale() == "log"


@pytest.mark.parametrize(
    "name",
    quick_if(("math_lco_kld", "base_sft").__contains__, ["math_grpo", "math_lco_kld", "math_reinforce", "base_sft"]),
)
def test_every_metric_is_explained(name: str, tmp_path: Path) -> None:
    recipe, sink = tiny(name), SilentSink()
    run_training(recipe, RunDir.of(tmp_path, recipe), sink, "new")
    page = (ROOT / "docs" / "run_directory.md").read_text()
    keys = {key for record in sink.records for key in record} - {"step"}
    assert len(keys) > 10
    assert not sorted(key for key in keys if f"`{key}`" not in page)
