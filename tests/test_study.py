"""The page of a reproduced experiment, in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.report.page_parts import BigNumber, Panel, Section, Table
from a2a_ray.report.plotly_traces import axis, band_trace, line_trace, make_figure
from a2a_ray.report.study_page import Study, write_study
from tests.test_report import CHROMIUM, probe


def study() -> Study:
    traces = [line_trace([0, 1], [0.0, 2.0], "w", "var(--agent-1)"), band_trace([0, 1], [0, 1], [1, 3], "", "#0072b2")]
    figure = make_figure(traces, axis("angle"), axis("distance"))
    table = Table("measured", ["agent", "distance"], [["w <b>", 1.23456]])
    panels = [Panel("plateau", figure, "W"), Panel("again", figure, "U")]
    section = Section("Plateau", "Where they settle.", panels, [("w", "agent-1"), ("● measured", "")], "", [table])
    return Study("Misaligned", ["They rest."], [BigNumber("2", "pairs")], [section], {"command": "a2a-ray"})


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_draws_every_figure(tmp_path: Path) -> None:
    write_study(tmp_path, study())
    seen, console = probe(tmp_path / "report.html")
    assert seen["plots"] == 2
    assert not console


def test_each_figure_is_a_file_with_its_colours_resolved(tmp_path: Path) -> None:
    files = write_study(tmp_path / "new", study())
    assert [f.name for f in files] == ["plateau.html", "again.html"]
    page = files[0].read_text()
    assert "var(--" not in page
    assert "#0072b2" in page
    assert (files[0].parent / "plotly.min.js").stat().st_size > 1e6
    assert files[0].stat().st_size < 20_000


def test_outside_text_stays_text(tmp_path: Path) -> None:
    write_study(tmp_path, study())
    assert "w &lt;b&gt;" in (tmp_path / "report.html").read_text()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file"):
        write_study(tmp_path / "file", study())
