"use strict";
(() => {
  const all = (within, selector) => [...within.querySelectorAll(selector)];
  const look = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (title, more = {}) => ({
    title: { text: title, standoff: 8 }, color: look("--soft"), gridcolor: look("--line"),
    linecolor: look("--line"), zeroline: false, automargin: true, fixedrange: true, ...more,
  });
  const layout = (x, y, more = {}) => ({
    margin: { l: 8, r: 12, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: look("--ink") },
    hoverlabel: { bgcolor: look("--paper"), bordercolor: look("--line"), font: { color: look("--ink") } },
    showlegend: false, xaxis: x, yaxis: y, ...more,
  });
  const found = JSON.parse(document.getElementById("inspected").textContent);
  const select = document.getElementById("metric");
  const quiet = { displayModeBar: false, responsive: true };

  // Lines of the models: the colours are those of the table.
  const coloured = (trace) => {
    const color = look(`--m${trace.series % 10}`);
    return { ...trace, line: { color, width: 2, dash: trace.dash ?? "solid" }, marker: { color, size: 6 }, connectgaps: false,
      error_y: trace.error_y && { ...trace.error_y, color, width: 3, thickness: 1.2 },
      hovertemplate: "%{fullData.name}: %{x:.4~g}, %{y:.4~g}<extra></extra>" };
  };
  const log = { type: "log", exponentformat: "power", dtick: 1 };
  const frames = {
    density: () => [axis("eigenvalue"), axis("", log)],
    eigenvalues: () => [axis("rank", { dtick: 1 }), axis("", { rangemode: "tozero" })],
    sharpness: (traces) => {
      const radii = [...new Set(traces.flatMap(({ x }) => x))].sort((a, b) => a - b);
      return [axis("ρ", { type: "log", tickvals: radii, ticktext: radii.map(String) }), axis("", log)];
    },
    across: () => [axis("distance along it"), axis("")],
    down: () => [axis("distance along it"), axis("")],
    alignment: () => [axis("record"), axis("")],
  };
  const lines = (place, key) => {
    const traces = found.plots[key].map(coloured);
    Plotly.react(place, traces, { ...layout(...frames[key](traces)), ...sized(place) }, quiet);
  };

  // Surfaces: one scale of colours, one camera.
  let camera = { eye: { x: 1.35, y: -1.6, z: 1.0 } };
  const bar = (trace) => trace.colorscale
    ? { ...trace, colorbar: { ...trace.colorbar, title: {}, thickness: 10, outlinewidth: 0, tickfont: { color: look("--soft") } } } : trace;
  const surface = (place, kind, index) => {
    const [shown] = found.surfaces[select?.value ?? "loss"];
    const { kinds, labels } = shown.drawn[index], traces = kinds[kind === "contour" ? 0 : 1].map(bar);
    const scaled = shown.log ? { type: "log" } : {};
    if (kind === "surface") {
      const face = (text, more = {}) => ({ title: { text, font: { size: 11 } }, color: look("--soft"), gridcolor: look("--line"),
        zerolinecolor: look("--line"), backgroundcolor: look("--wash"), showbackground: true, ...more });
      const range = shown.log ? shown.span.map(Math.log10) : shown.span;
      const scene = { xaxis: face(labels[0]), yaxis: face(labels[1]), zaxis: face("", { ...scaled, range }), camera,
        aspectmode: "manual", aspectratio: { x: 1, y: 1, z: 0.8 } };
      Plotly.react(place, traces, layout({}, {}, { scene }), quiet)
        .then(() => { linked(place); pictured(place); });
    } else if (labels.length > 1) {
      const flat = { showgrid: false };
      Plotly.react(place, traces, { ...layout(axis(labels[0], flat), axis(labels[1], flat)), ...sized(place) }, quiet);
    } else {
      const one = traces.map((trace) => coloured({ ...trace, series: 0, name: select?.value ?? "loss" }));
      Plotly.react(place, one, { ...layout(axis(labels[0]), axis("", scaled)), ...sized(place) }, quiet);
    }
  };
  // Paper takes a picture of a surface: what a GPU draws cannot change its size while a page is printed.
  const inked = (face) => ({ ...face, color: "#5d636e", gridcolor: "#dcdee2", zerolinecolor: "#dcdee2", backgroundcolor: "#f3f4f1" });
  const onPaper = ({ data, layout: { scene, ...rest } }) => ({
    data: data.map((trace) => ({ ...trace, colorbar: { ...trace.colorbar, tickfont: { color: "#5d636e" } } })),
    layout: { ...rest, width: 560, height: 420, font: { ...rest.font, color: "#1b1d21" },
      scene: { ...scene, xaxis: inked(scene.xaxis), yaxis: inked(scene.yaxis), zaxis: inked(scene.zaxis) } },
  });
  const pictured = (place) => {
    clearTimeout(place.waiting);
    place.waiting = setTimeout(() => Plotly.toImage(onPaper(place), { format: "png", width: 560, height: 420, scale: 2 })
      .then((url) => { place.nextElementSibling.src = url; }), 2000);
  };
  const linked = (place) => {
    if (place.linked) return;
    place.linked = true;
    let waiting = false;
    const turn = (change) => {
      const moved = change["scene.camera"];
      if (!moved || JSON.stringify(moved) === JSON.stringify(camera)) return;
      camera = moved;
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        for (const other of all(document, '[data-plot^="surface-"]'))
          if (other !== place) Plotly.relayout(other, { "scene.camera": camera });
      });
    };
    place.on("plotly_relayouting", turn);
    place.on("plotly_relayout", (change) => { turn(change); pictured(place); });
  };

  let printing = false;
  const sized = (place) => (printing ? { width: place.clientWidth, height: place.clientHeight } : {});
  const draw = () => {
    for (const place of all(document, "[data-plot]")) {
      const [kind, index] = place.dataset.plot.split("-");
      if (printing && kind === "surface") continue;
      if (index === undefined) lines(place, kind);
      else surface(place, kind, Number(index));
    }
  };
  draw();
  select?.addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const print = (begin) => () => {
    printing = begin;
    document.documentElement.classList.toggle("printing", begin);
    draw();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
  document.documentElement.dataset.height = document.documentElement.scrollHeight; // for a picture of it all
})();
