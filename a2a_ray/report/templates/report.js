(() => {
  "use strict";
  const { figures, series, positions } = JSON.parse(document.getElementById("data").textContent);
  const config = { responsive: true, displayModeBar: false, doubleClick: false };
  const drawn = new Map(); // element -> function that returns its figure, to draw again when light mode changes to dark

  // Figures name their colours; the style sheet defines them, for light and dark mode.
  const resolved = (value, key = "") => {
    if (Array.isArray(value)) return key === "" || typeof value[0] === "object" ? value.map((v) => resolved(v)) : value;
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v, k)]));
    if (key.endsWith("color") && typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      if (name) return getComputedStyle(document.documentElement).getPropertyValue(name[1]).trim();
    }
    return value;
  };

  const themed = (layout) => {
    const axis = (a) => ({ gridcolor: "var(--rule-color)", linecolor: "var(--rule-color)", zerolinecolor: "var(--rule-color)", ...a });
    return {
      ...layout,
      autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "var(--ink-color)" },
      hoverlabel: { bgcolor: "var(--page)", bordercolor: "var(--rule-color)", font: { color: "var(--ink-color)" } },
      xaxis: axis(layout.xaxis),
      yaxis: axis(layout.yaxis),
    };
  };

  const draw = (element, figure = drawn.get(element)) => {
    drawn.set(element, figure);
    const { data, layout } = figure();
    Plotly.react(element, resolved(data), resolved(themed(layout)), config);
  };

  const oneConversation = (number) => () => {
    const { data, layout } = figures.conversation;
    const own = series[number];
    const traces = data.map((trace, i) => ({ ...trace, y: own.series[i], visible: own.series[i].some((v) => v !== null) }));
    Object.assign(traces.at(-1), { x0: own.step, dx: own.step }); // the drift has a value per turn, not per round
    return { data: traces, layout: marked(layout, own, "x", own.series[0].length) };
  };

  // Vertical lines at the onset of the loop and at the alarm.
  const marked = (layout, own, at, width) => {
    const marks = [own.onset, own.alarm].filter(Boolean);
    const line = (m) => ({ type: "line", x0: m[at], x1: m[at], y0: 0, y1: 1, yref: "paper", line: { color: "var(--onset-color)", width: 2, dash: "dash" } });
    const text = (m, i) => ({ x: m[at], y: 1 - 0.09 * i, yref: "paper", yanchor: "top", xanchor: m[at] > width / 2 ? "right" : "left", showarrow: false, text: m.text, font: { color: "var(--onset-color)" }, bgcolor: "var(--page)", opacity: 0.9 });
    return { ...layout, shapes: [...(layout.shapes || []), ...marks.map(line)], annotations: [...(layout.annotations || []), ...marks.map(text)] };
  };

  const scoreOf = (number) => () => {
    const { data, layout } = figures.score;
    const own = series[number];
    const threshold = { type: "line", x0: 0, x1: 1, xref: "paper", y0: own.threshold, y1: own.threshold, line: { color: "var(--muted-color)", width: 1.5, dash: "dot" } };
    const text = { x: 0, xref: "paper", y: own.threshold, xanchor: "left", yanchor: "bottom", showarrow: false, text: "threshold", font: { color: "var(--muted-color)" } };
    const base = { ...layout, shapes: [threshold], annotations: [text] };
    return { data: [{ ...data[0], y: own.scores }], layout: marked(base, own, "turn", own.scores.length) };
  };

  const map = (figure, number) => () => {
    const [lines, turns, chosen] = figure.data;
    const way = positions[number];
    const here = way && way.looped === figure.layout.meta ? { x: way.x, y: way.y } : {};
    return { data: [lines, turns, { ...chosen, ...here }], layout: figure.layout };
  };

  for (const element of document.querySelectorAll(".plot[data-figure]")) draw(element, () => figures[element.dataset.figure]);

  const chooser = document.getElementById("choose");
  const choose = () => {
    const one = document.getElementById("chosen-conversation");
    if (one) draw(one, oneConversation(chooser.value));
    for (const element of document.querySelectorAll(".plot[data-map]")) draw(element, map(figures[element.dataset.map], chooser.value));
  };
  if (chooser) {
    chooser.addEventListener("change", choose);
    choose();
  }

  for (const conversation of document.querySelectorAll(".conversation"))
    conversation.addEventListener("toggle", () => {
      const own = conversation.querySelector(".plot[data-conversation]");
      if (conversation.open && own && !drawn.has(own)) draw(own, oneConversation(own.dataset.conversation));
      const score = conversation.querySelector(".plot[data-score]");
      if (conversation.open && score && !drawn.has(score)) draw(score, scoreOf(score.dataset.score));
    });

  const search = document.getElementById("search");
  if (search) {
    const conversations = [...document.querySelectorAll(".conversation")];
    const count = document.getElementById("found");
    let wait;
    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      for (const conversation of conversations) conversation.hidden = wanted !== "" && !conversation.textContent.toLowerCase().includes(wanted);
      count.textContent = wanted ? `${conversations.filter((t) => !t.hidden).length} of ${conversations.length} conversations` : "";
    };
    search.addEventListener("input", () => {
      clearTimeout(wait);
      wait = setTimeout(filter, 150);
    });
  }

  const openTarget = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (!target) return;
    target.hidden = false; // a search may have hidden it
    if (target.tagName === "DETAILS") target.open = true;
    target.scrollIntoView(); // drawing has moved it since the browser scrolled to it
  };
  addEventListener("hashchange", openTarget);
  openTarget();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((_, element) => draw(element)));
})();
