// Draws the charts of a page with plotly.js: records from data/charts-PAGE.js (see jobs/reports/charts.py), colours from report.css.
"use strict";
(() => {
  const LINE = 16; // px between two names
  const NARROW = 560; // px of a chart under which the names of lines go above them instead of beside them
  const N_COLOURS = 6;
  const FEW_POINTS = 20; // a curve of so few has a dot at each
  const charts = Object.entries(window.REPORT ?? {}).filter(([key]) => key.startsWith("charts-")).flatMap(([, drawn]) => drawn);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const colourOf = (colour) => {
    if (colour === "right") return style("--c3");
    if (colour === "wrong") return style("--c2");
    return style(`--c${colour <= 0 ? 0 : ((colour - 1) % N_COLOURS) + 1}`);
  };
  const dashOf = (colour) => (colour > N_COLOURS ? "dot" : colour < 0 ? "dash" : "solid");
  const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;"); // plotly reads some tags

  // The square of the middle of a logarithmic axis. A name stands to the right of its point in the left half, and else to the left.
  const middleOf = (series) => {
    const all = series.flatMap((one) => one.x).filter((x) => x > 0);
    return Math.min(...all) * Math.max(...all);
  };

  // ---- one function per kind: series -> plotly's traces ----------------------------------------------------------

  const traces = {
    lines: (series, width, chart) => series.map((one) => ({
      type: "scatter", mode: chart.labels === "table" && one.x.length <= FEW_POINTS ? "lines+markers" : "lines", name: escaped(one.name), x: one.x, y: one.y,
      line: { color: colourOf(one.colour), width: one.colour <= 0 ? 3 : 1.75, dash: dashOf(one.colour) },
      hovertemplate: `%{y:${chart.y.format ?? ".1f"}}<extra>%{fullData.name}</extra>`,
    })),
    dots: (series) => series.map((one) => ({
      type: "scatter", mode: "markers", name: escaped(one.name), x: one.x, y: one.y.map(escaped),
      marker: { color: colourOf(one.colour), size: one.colour === 0 ? 8 : 11, symbol: one.colour === 0 ? "diamond" : one.colour < 0 ? "diamond-open" : "circle-open", line: { width: 2 } },
      cliponaxis: false,
      hovertemplate: "%{y}: %{x:.4~g}<extra>%{fullData.name}</extra>",
    })),
    bars: (series) => series.map((one) => ({
      type: "bar", name: escaped(one.name), x: one.x, y: one.y, text: one.text, textposition: "none", opacity: 0.7, marker: { color: colourOf(one.colour), line: { width: 0 } },
      hovertemplate: "%{y} at %{text} percent<extra>%{fullData.name}</extra>",
    })),
    points: (series, width) => series.map((one) => ({
      type: "scatter", mode: width < NARROW ? "markers" : "markers+text", name: escaped(one.name), x: one.x, y: one.y, text: one.text.map(escaped),
      textposition: one.x.map((x) => (x * x < middleOf(series) ? "middle right" : "middle left")), cliponaxis: false,
      textfont: { size: 11, color: style("--soft") }, marker: { color: colourOf(one.colour), size: 9 },
      error_y: {
        type: "data", symmetric: false, thickness: 1, width: 3, color: colourOf(one.colour),
        arrayminus: one.bars.map((bar) => bar?.[0] ?? 0), array: one.bars.map((bar) => bar?.[1] ?? 0),
      },
      hovertemplate: "%{text}: %{y:.1f} in %{x:.3~g} s<extra>%{fullData.name}</extra>",
    })),
    heat: ([one], width) => [{
      type: "heatmap", x: one.x.map(escaped), y: one.y.map(escaped), z: one.z, text: one.counts.map((row) => row.map((count) => (count ? String(count) : ""))),
      texttemplate: width < NARROW ? "" : "%{text}", showscale: false, xgap: 1, ygap: 1, zmin: 0, zmax: 1,
      colorscale: [[0, style("--card")], [1, style("--heat")]],
      hovertemplate: "true: %{y}, found: %{x}: %{text} (%{z:.0%})<extra></extra>",
    }],
  };

  // ---- axes and names -------------------------------------------------------------------------------------------

  const rangeOf = (values, given) => {
    if (given) return given;
    const known = values.filter((value) => value !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const room = Math.max((high - low) * 0.06, 0.5);
    return [low - room, high + room];
  };

  const axisOf = (axis) => ({
    title: { text: axis.title, standoff: 8, font: { size: 12, color: style("--soft") } }, type: axis.log ? "log" : undefined,
    range: axis.log ? undefined : axis.range, gridcolor: style("--grid"), linecolor: style("--line"), zeroline: false, automargin: true,
    fixedrange: true, tickfont: { size: 12 }, ...(axis.log ? { dtick: 1, minor: { showgrid: false } } : {}),
  });

  // Names beside the ends of lines, moved apart where they would cover each other: upwards, and down again from the chart's top edge.
  const endLabels = (series, range, height) => {
    const pixel = (value) => ((value - range[0]) / (range[1] - range[0])) * height;
    const ends = series.map((one) => ({ one, at: pixel(one.y.at(-1)), value: one.y.at(-1) })).sort((a, b) => a.at - b.at);
    ends.forEach((end, i) => (end.place = i ? Math.max(end.at, ends[i - 1].place + LINE) : end.at));
    ends.reduceRight((above, end) => (end.place = Math.min(end.place, above - LINE)), height + LINE);
    return ends.map(({ one, at, value, place }) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 6, y: value, yshift: place - at, yanchor: "middle", showarrow: false,
      text: `${escaped(one.name)} ${value.toFixed(1)}`, font: { size: 12, color: colourOf(one.colour) },
    }));
  };

  const heightOf = (chart, rows) => ({ heat: 120 + 30 * rows, dots: 96 + 30 * rows, points: 420 })[chart.kind] ?? 350;

  const layoutOf = (chart, series, width) => {
    const rows = chart.kind === "heat" || chart.kind === "dots" ? series[0].y.length : 0;
    const named = chart.labels !== "table"; // else a table of the page names the lines
    const beside = chart.labels === "ends" && width >= NARROW;
    const height = heightOf(chart, rows) + (width < NARROW && chart.kind !== "heat" && named ? 19 * series.length : 0); // the legend's names stand one above the other
    const margin = { l: 52, r: beside ? 130 : 12, t: beside || chart.kind === "heat" ? 12 : 34, b: 46 };
    const y = axisOf(chart.y);
    if (chart.kind === "lines" && !chart.y.log) y.range = rangeOf(series.flatMap((one) => one.y), chart.y.range);
    if (rows) Object.assign(y, { autorange: "reversed", type: "category", dtick: 1, ticksuffix: " " });
    const x = axisOf(chart.x);
    if (chart.labels === "ends") x.tickvals = [1, 5, 10, 15, 20];
    if (chart.kind === "heat") Object.assign(x, { type: "category", tickangle: width < NARROW ? -90 : -40, dtick: 1, showgrid: false });
    if (chart.kind === "heat") y.showgrid = false;
    if (chart.kind === "bars" && series.every((one) => Math.max(...one.y) < 8)) y.dtick = 1; // or plotly would mark half a query
    return {
      width, height, margin, xaxis: x, yaxis: y, barmode: "overlay", bargap: 0, dragmode: false, hovermode: chart.kind === "lines" ? "x unified" : "closest",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: style("--font") || "system-ui, sans-serif", size: 12, color: style("--ink") },
      hoverlabel: { bgcolor: style("--card"), bordercolor: style("--line"), font: { color: style("--ink"), size: 12 } },
      showlegend: named && !beside && chart.kind !== "heat" && series.length > 1,
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 12 }, itemclick: false, itemdoubleclick: false },
      annotations: beside ? endLabels(series, y.range, height - margin.t - margin.b) : [],
    };
  };

  // ---- drawing --------------------------------------------------------------------------------------------------

  const draw = (figure, chart) => {
    const plot = figure.querySelector(".plot");
    const series = chart.choices[figure.querySelector("select")?.selectedIndex ?? 0].series;
    const width = plot.clientWidth;
    plot.style.minHeight = "0";
    window.Plotly.react(plot, traces[chart.kind](series, width, chart), layoutOf(chart, series, width), { displayModeBar: false, scrollZoom: false });
  };

  const prepare = (figure, chart) => {
    if (chart.choices.length > 1) {
      const select = document.createElement("select");
      select.setAttribute("aria-label", `${chart.title}: show`);
      select.append(...chart.choices.map((choice) => new Option(choice.name)));
      select.addEventListener("change", () => draw(figure, chart));
      figure.querySelector("figcaption").append(select);
    }
    draw(figure, chart);
  };

  const pairs = charts.map((chart) => [document.querySelector(`[data-chart="${chart.id}"]`), chart]).filter(([figure]) => figure);
  pairs.forEach(([figure, chart]) => prepare(figure, chart));
  const again = () => pairs.forEach(([figure, chart]) => draw(figure, chart));
  let waiting;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(again, 120); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
})();
