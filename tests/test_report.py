"""The report: what it shows, what it counts, and that what agents said stays text in the browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Content, Message
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.report import figures
from a2a_ray.report import report_page as report
from a2a_ray.report.page_parts import BigNumber, Table
from a2a_ray.report.report_data import (
    AgentEntry,
    ConversationItem,
    ErrorSeries,
    PlateauPoint,
    ReportData,
    TrajectoryPoint,
)
from a2a_ray.report.report_page import render_report, write_report
from a2a_ray.report.wilson import wilson_interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PAYLOAD = (
    "</script><script>window.pwned=1</script><img src=x onerror=\"window.pwned=2\"><svg onload='window.pwned=3'>"
    '"\'><iframe srcdoc="<script>parent.pwned=4</script>"></iframe><a href="javascript:window.pwned=5">link</a>'
    "{{7*7}}{% raw %}${7*7} %{x} <b>bold</b> </title></style></textarea>--> var(--page)"
    "\u2028\u202e\x1b[31m\x00\ud800"
)


def talk(id: str, *texts: Content, opening: Content = "Once upon a time.", status: str = DONE) -> Transcript:
    transcript = Transcript(id, ("ann", "bob"), opening)
    for i, text in enumerate(texts):
        transcript.append(Message(id, i + 1, ("ann", "bob")[i % 2], text))
    transcript.status = status
    return transcript


def found(
    onset: int | None = None, distances: dict[str, Any] | None = None, drift: Any = (), **more: Any
) -> list[tuple[str, Finding]]:
    """The findings of the loop detector and of the paper's rule, with their analyzers in words."""
    loop = {} if onset is None else {"status": "loop", "kind": "verbatim", "onset_turn": onset, "alarm_turn": onset + 1}
    about = {"conversation_id": "c", "threshold": 1.0, "score": 2.0}
    series = {"series": distances or {}, "drift": list(drift)}
    return [
        ("loops", Finding(**about, **{"analyzer": "loops", "evidence": {"scores": [0.0, 2.0]}, **loop, **more})),
        ("paper rule", Finding(**about, analyzer="paper_rule", evidence=series)),
    ]


def item(
    id: str,
    *texts: str,
    status: str = DONE,
    cell: str = "",
    onset: int | None = None,
    distances: dict[str, Any] | None = None,
    drift: Any = (),
) -> ConversationItem:
    said = talk(id, *(texts or ("Hello.", "Hi.")), status=status)
    return ConversationItem(said, cell, found(onset, distances, drift))


def full(text: str = "") -> ReportData:
    """A report with every section; `text` stands wherever something comes from outside."""
    nan = float("nan")
    distances = {"cosine": [0.9, 0.1], "jaccard": [0.8, nan], "bleu": [0.7, 0.3], "coherence": [nan, nan], text: [1.0]}
    talked = talk(f"talk {text}", f"first {text}", "Hi.", f"first {text}", opening=f"opening {text}")
    talked.append(Message(talked.id, 4, text or "bob", text, kind=text or "action"))
    broken = talk(f"broken {text}", "Hello.", status=FAILED)
    broken.error = f"it broke {text}"
    mine = found(3, distances, [0.1, 0.2, nan], kind=f"kind {text}", span=f"phrase {text}")
    named = [(f"{name} {text}", finding) for name, finding in mine]
    looped = ConversationItem(talked, f"cell {text}", named, [[], [], [(0, 5)]])
    return ReportData(
        title=f"title {text}",
        headline=[f"headline {text}"],
        numbers=[BigNumber(f"1 {text}", f"number {text}")],
        tables=[Table(f"table {text}", [f"column {text}"], [[f"value {text}"], [1.5], [None]], f"note {text}")],
        plateau=[
            PlateauPoint(0.0, f"w {text}", 0.0, 0.0),
            PlateauPoint(90.0, f"w {text}", 0.5, 0.5),
            PlateauPoint(90.0, f"u {text}", 0.7, 0.7, "adversary"),
        ],
        errors=[ErrorSeries(f"pair {text}", f"w {text}", [1.0, 0.1, 0.0], 0.05)],
        conversations=[looped, ConversationItem(broken, f"cell {text}"), item(f"plain {text}", distances=distances)],
        trajectory=[
            TrajectoryPoint(float(i), -float(i), i, talked.id if i < 5 else f"plain {text}", i < 5) for i in range(9)
        ],
        run={f"key {text}": f"value {text}"},
        agents=[AgentEntry(f"agent {text}", f"kind {text}", {f"setting {text}": [text]})],
        specification=f"name: {text}",
        loops=Table(f"loops {text}", [f"setting {text}"], [[f"cell {text}"]]),
    )


class Page(HTMLParser):
    """Elements and attributes of a page, and its text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # not in a script or style
            self.text += data


def page_data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def headings(page: str) -> list[str]:
    return [html.unescape(h) for h in re.findall(r"<h2>(.*?)</h2>", page)]


def test_sections_come_in_order_and_only_where_there_is_data() -> None:
    sections = ["Plateau against angle", "Error per round", "Loops", "Distances per round", "Trajectories"]
    sections += ["Conversations", "Failures", "What was run"]
    assert [h for h in headings(render_report(full())) if h in sections] == sections
    assert headings(render_report(ReportData("nothing"))) == []
    assert headings(render_report(ReportData("one", plateau=[PlateauPoint(0, "w", 1.0, 1.0)]))) == sections[:1]


def test_the_page_needs_no_network_and_stays_small() -> None:
    page = render_report(full())
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert len(own) < 60_000
    assert not re.search(r"https?://", own)
    assert "default-src 'none'" in own
    assert '<meta name="viewport"' in own


def test_text_is_readable_without_javascript() -> None:
    text = Page(render_report(full())).text
    for said in ("headline", "first", "opening", "it broke", "phrase", "a loop begins: turn 3", "name:", "note"):
        assert said in text


def test_repeated_passages_are_marked() -> None:
    page = render_report(full())
    assert re.findall(r"<mark title[^>]*>(.*?)</mark>", page) == ["first"]


def test_outside_text_is_escaped_everywhere() -> None:
    clean, hostile = full(), full(PAYLOAD)
    page = render_report(hostile).replace(get_plotlyjs(), "")
    parsed, expected = Page(page), Page(render_report(clean).replace(get_plotlyjs(), ""))
    for tag in ("script", "img", "svg", "iframe", "b", "style", "title", "a"):
        assert parsed.tags.count(tag) == expected.tags.count(tag), tag
    assert not [
        a
        for a in parsed.attributes
        if a[0].startswith("on") or (a[0] == "href" and a[1][0] != "#" and a[1] != "data:,")
    ]
    for place in ("title", "headline", "value", "note", "cell", "first", "opening", "it broke", "phrase", "name:"):
        assert f"{place} </script>" in parsed.text, place
    assert not re.search("[\x00\x1b\u2028\u202e\ud800]", page)


def test_data_in_the_script_is_escaped_and_read_back() -> None:
    page = render_report(full(PAYLOAD)).replace(get_plotlyjs(), "")
    raw = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert raw is not None
    assert not re.search("[<>&\u2028]", raw[1])
    for figure in page_data(page)["figures"].values():
        for text in strings(figure):
            # plotly reads HTML in every text: only what was escaped for it may carry outside text
            assert not re.search(r"<(?!br>)", text), text


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) else []


def test_every_figure_is_valid_plotly() -> None:
    import plotly.graph_objects as go

    page = page_data(render_report(full()))["figures"]
    assert set(page) == {
        *("plateau", "special", "conversation", "score", "error-0", "map-0", "map-1"),
        *(f"mean-{i}" for i in range(5 - 1)),  # coherence is undefined throughout
    }
    for figure in page.values():
        go.Figure(json.loads(re.sub(r"var\(--[\w-]+\)", "#123456", json.dumps(figure))))


def test_plateau_has_measured_markers_and_predicted_lines() -> None:
    points = [PlateauPoint(a, n, m, m + 1) for n in "wu" for a, m in ((90, 2.0), (0, 1.0))]
    figure = figures.plateau([*points, PlateauPoint(90, "w", 9.0, 9.0, "helper")])
    assert figure is not None
    lines, markers = figure["data"][0::2], figure["data"][1::2]
    assert [t["mode"] for t in lines] == ["lines", "lines"]
    assert [t["mode"] for t in markers] == ["markers", "markers"]
    assert lines[0]["x"] == [0, 90]
    assert lines[0]["y"] == [2.0, 3.0]
    assert markers[0]["y"] == [1.0, 2.0]
    assert markers[1]["marker"]["color"] == lines[1]["line"]["color"] == "var(--agent-2)"


def test_errors_that_are_zero_have_no_place_on_the_logarithmic_axis() -> None:
    ((pair, figure),) = figures.error_per_round([ErrorSeries("p", "w", [1.0, 1e-3, 0.0], 1e-16)])
    assert pair == "p"
    (measured,) = figure["data"]  # the predicted plateau is zero but for rounding
    assert measured["y"] == [1.0, 1e-3, None]
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < -3 < 0 < high


def test_onset_is_placed_on_the_axis_of_rounds() -> None:
    looped = item("a", "x", "y", "x", "y", "x", onset=3, distances={"bleu": [1, 0]}, drift=[0.5] * 5)
    series = figures.conversation_series(looped, ["bleu"])
    assert (series["onset"]["x"], series["onset"]["turn"]) == (1.5, 3)
    assert (series["alarm"]["x"], series["alarm"]["text"]) == (2, "alarm: turn 4")
    assert (series["scores"], series["threshold"]) == ([0, 2], 1)
    assert series["step"] == 0.5
    assert series["series"] == [[1, 0], [0.5] * 5]


def test_means_leave_out_what_is_undefined_and_conversations_that_ended() -> None:
    nan = float("nan")
    items = [item("a", cell="c", distances={"bleu": [1.0, nan, nan]}), item("b", cell="c", distances={"bleu": [0.0]})]
    ((title, figure),) = figures.mean_distances([*items, item("d", cell="c", distances={"bleu": [0.5, 0.25]})], ["c"])
    assert title == "BLEU"
    assert figure["data"][0]["y"] == [0.5, 0.25, None]


def test_findings_are_described_with_the_conversation() -> None:
    page = render_report(ReportData("one", conversations=[item("a", "x", "y", "x", "y", onset=3)]))
    text = Page(page.replace(get_plotlyjs(), "")).text
    assert "loop (verbatim), from turn 3, alarm after turn 4 (score 2, threshold 1)" in text
    assert "nothing found (score 2, threshold 1)" in text  # by the paper's rule: what ran is told
    assert text.index("a loop begins: turn 3") < text.index("alarm of the loop detector after turn 4")


@pytest.mark.parametrize(("successes", "trials"), [(35, 50), (0, 10), (10, 10), (1, 3)])
def test_wilson_interval_agrees_with_scipy(successes: int, trials: int) -> None:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_a_large_run_shows_loops_and_a_sample_and_says_so() -> None:
    items = [item(f"l{i}", onset=1) for i in range(report.MOST_LOOPED + 20)]
    items += [item(f"o{i}") for i in range(1000)] + [item(f"f{i}", status=FAILED) for i in range(3)]
    page = render_report(ReportData("large", conversations=items))
    text = Page(page.replace(get_plotlyjs(), "")).text
    assert "200 of the 220 that looped; all 3 that failed; 50, drawn at random, of the 1,000 others" in text
    assert "count all 1,223 conversations" in text
    assert page.count('<details class="conversation"') == 253
    assert page == render_report(ReportData("large", conversations=items))
    assert "Shown here" not in render_report(ReportData("small", conversations=items[:5]))


def test_a_page_of_long_talks_stays_small_and_shows_some_of_each() -> None:
    long = "x" * report.TEXT_LIMIT
    items = [item(f"l{i}", long, onset=1) for i in range(200)] + [item(f"o{i}", long) for i in range(20)]
    page = render_report(ReportData("long", conversations=items))
    assert 7_000_000 < len(page) < 8_000_000
    shown = re.search(r"Shown here: (\d+) of the 200 that looped; (\d+), drawn at random, of the 20 others", page)
    assert shown is not None
    assert int(shown[1]) > 100
    assert int(shown[2]) > 10


def test_a_megabyte_is_cut_with_a_note() -> None:
    page = render_report(ReportData("big", conversations=[item("c", "y" * 1_000_000, "Hi.")]))
    own = page.replace(get_plotlyjs(), "")
    assert len(own) < 100_000
    assert "980,000 more characters" in own
    assert "y" * report.TEXT_LIMIT in own


def test_the_file_is_utf8_and_written_whole(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", full(PAYLOAD))
    assert path.read_bytes().decode("utf-8").endswith("</html>\n")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="choose another file with -o"):
        write_report(tmp_path / "file" / "report.html", full())
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="folder"):
        write_report(tmp_path / "folder", full())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


PROBE = """<!DOCTYPE html><body style="margin:0"><iframe src="%s" style="width:%dpx;height:3000px;border:0"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {
  const page = frame.contentWindow, all = (s) => [...page.document.querySelectorAll(s)];
  all("details").forEach((d) => (d.open = true));
  setTimeout(() => {
    const hover = (p, curveNumber) => page.Plotly.Fx.hover(p, [{ curveNumber, pointNumber: 0 }]);
    all(".js-plotly-plot").forEach((p) => p.data.forEach((t, i) => { if (t.y.length) hover(p, i); }));
    setTimeout(() => {
      document.body.textContent = JSON.stringify({
        pwned: page.pwned ?? null,
        plots: all(".plot").length,
        drawn: all(".js-plotly-plot .main-svg .trace").length,
        hovers: all(".hovertext").map((h) => h.textContent),
        links: all("svg a, svg [style*=bold]").length,
        width: page.document.documentElement.scrollWidth,
      });
    }, 1000);
  }, 2000);
};
</script>"""


def probe(path: Path, width: int = 1200) -> tuple[dict[str, Any], list[str]]:
    """What Chromium makes of a page in a frame of this width, and its console."""
    probe_page = path.with_suffix(f".probe-{width}.html")
    probe_page.write_text(PROBE % (path.name, width))
    profile = path.parent / "profile"
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --allow-file-access-from-files --enable-logging=stderr --v=0"
    flags += f" --user-data-dir={profile} --virtual-time-budget=15000 --dump-dom {probe_page.as_uri()}"
    done = subprocess.run(
        [CHROMIUM or "", *flags.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    shutil.rmtree(profile, ignore_errors=True)
    found = re.search(r"<body[^>]*>(\{.*\})", done.stdout, re.S)
    assert found is not None, done.stdout[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]).split("</body>")[0])
    return seen, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
class TestInChromium:
    def test_the_page_draws_without_a_word_on_the_console(self, tmp_path: Path) -> None:
        seen, console = probe(write_report(tmp_path / "report.html", full()))
        assert console == []
        assert seen["drawn"] >= seen["plots"] >= 11
        assert seen["hovers"]

    @pytest.mark.parametrize("width", [360, 800])
    def test_the_page_does_not_scroll_sideways(self, tmp_path: Path, width: int) -> None:
        wide = Table("wide", ["column"] * 40, [[1.23456] * 40, ["x" * 500] * 40])
        data = full("y" * 500)
        seen, _ = probe(
            write_report(tmp_path / "report.html", ReportData(**{**vars_of(data), "tables": [wide]})), width
        )
        assert seen["width"] <= width

    @pytest.mark.parametrize("policy", [True, False])
    def test_nothing_that_was_said_runs(self, tmp_path: Path, policy: bool) -> None:
        path = write_report(tmp_path / "report.html", full(PAYLOAD))
        if not policy:  # the escaping must hold by itself
            path.write_text(re.sub(r"<meta http-equiv[^\n]*", "", path.read_text()))
        seen, console = probe(path)
        assert seen["pwned"] is None
        assert console == []

    def test_figures_read_no_html_from_outside(self, tmp_path: Path) -> None:
        short = "<b>x</b><a href='https://evil'>y</a>"  # plotly's own subset, short enough for a legend
        seen, _ = probe(write_report(tmp_path / "report.html", full(short)))
        assert seen["links"] == 0
        assert any("<b>x</b><a" in hover for hover in seen["hovers"])

    @pytest.mark.parametrize(("policy", "pwned"), [(True, None), (False, 3)])
    def test_the_probe_sees_an_attack_and_the_policy_stops_it(
        self, tmp_path: Path, policy: bool, pwned: int | None
    ) -> None:
        page = render_report(full()).replace("<main>", "<main><svg onload='window.pwned=3'></svg>")
        path = tmp_path / "report.html"
        path.write_text(page if policy else re.sub(r"<meta http-equiv[^\n]*", "", page))
        assert probe(path)[0]["pwned"] == pwned


def vars_of(data: ReportData) -> dict[str, Any]:
    return {name: getattr(data, name) for name in data.__dataclass_fields__}
