"use strict";
(() => {
  const all = (within, selector) => [...within.querySelectorAll(selector)];
  const look = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faint = (hex, alpha) =>
    `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join()},${alpha})`;

  // What is shown: by the filters of the page, by the legend and the setting of each section.
  const off = { group: new Set(), method: new Set(), axis: {}, words: [] };
  const hidden = (axes, labels) => axes.some((name, i) => off.axis[name]?.has(labels[i]));

  const sections = JSON.parse(document.getElementById("figures").textContent).map((data, i) => ({
    ...data,
    root: all(document, ".section")[i],
    names: data.axes.map((axis) => axis.name),
    at: data.axes.map((axis) => axis.labels[0]),
    methods: data.methods.map((title, k) => ({
      title, color: `--m${k % 10}`, dash: ["solid", "dash", "dot"][Math.floor(k / 10) % 3], shown: true,
    })),
    near: i === 0,
  }));

  const lines = (section, setting) => (setting?.lines ?? [])
    .map((line) => ({ ...line, ...section.methods[line.method] }))
    .filter((line) => line.shown && !off.method.has(line.title));
  const chosen = (section) =>
    section.settings.find((setting) => setting.labels.every((label, i) => label === section.at[i]));

  // Plots: each kind makes traces, a layout and perhaps a height.
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
  const upright = (at, text = "") => ({
    shapes: [{ type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1,
      line: { color: look("--soft"), width: 1, dash: "dot" } }],
    annotations: text ? [{ x: at, y: 0, yref: "paper", yanchor: "bottom", xanchor: "left", xshift: 4,
      showarrow: false, text, font: { size: 12, color: look("--soft") } }] : [],
  });
  const number = (text) => (/^-?\d+(\.\d+)?( ?%)?$/.test(text) ? parseFloat(text) : NaN);
  const ticks = (values) => [...new Set(values)].sort((a, b) => a - b)
    .filter((value, i, sorted) => i === 0 || value / sorted[i - 1] > 1.3);
  const wide = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 8;

  const curve = (line, name, over) => {
    const band = line.curves[name];
    if (!band) return [];
    const place = band.x ?? (over === "passes" ? line.passes : band.mean.map((_, i) => i + 1));
    const kept = band.mean.map((_, i) => i).filter((i) => band.mean[i] !== null && place[i] !== null);
    const x = kept.map((i) => place[i]), mean = kept.map((i) => band.mean[i]), color = look(line.color);
    const upper = kept.map((i) => band.mean[i] + band.sd[i]);
    const lower = kept.map((i) => band.mean[i] - band.sd[i]);
    return [
      { x: [...x, ...[...x].reverse()], y: [...upper, ...lower.reverse()], fill: "toself", mode: "lines",
        line: { width: 0 }, fillcolor: faint(color, 0.13), hoverinfo: "skip" },
      { x, y: mean, mode: x.length > 12 ? "lines" : "lines+markers", name: line.title,
        line: { color, width: 2, dash: line.dash }, marker: { color, size: 6 },
        hovertemplate: "%{fullData.name}: %{y:.4~g}<extra></extra>" },
    ];
  };

  // The axis to draw over: of numbers, if there is one, and of those the longest.
  const longest = (section) => {
    const rank = ({ labels }) => (labels.some((label) => isNaN(number(label))) ? 0 : 1000) + labels.length;
    return section.axes.reduce((best, _, i) => (rank(section.axes[i]) > rank(section.axes[best]) ? i : best), 0);
  };

  const kinds = {
    across: (section) => {
      const over = longest(section);
      const here = section.settings.filter((setting) => !hidden(section.names, setting.labels)
        && setting.labels.every((label, i) => i === over || label === section.at[i]));
      const labels = here.map((setting) => setting.labels[over]);
      const values = labels.map(number), counted = values.every((value) => !isNaN(value));
      const count = section.methods.length;
      const place = (i, k) => (counted ? values[i] : i + ((k - (count - 1) / 2) * 0.7) / count);
      const drawn = (k, pick, more) => {
        const found = here.map((setting, i) => [place(i, k), pick(lines(section, setting).find((line) => line.method === k))])
          .filter(([, value]) => value && value.mean !== null);
        return { x: found.map(([x]) => x), y: found.map(([, value]) => value.mean),
          error_y: { type: "data", array: found.map(([, value]) => value.sd ?? 0), width: 3, thickness: 1.2, color: more.marker.color },
          mode: counted ? "lines+markers" : "markers", ...more };
      };
      const traces = section.methods.flatMap((method, k) => {
        const color = look(method.color), dashed = { color, width: 1, dash: "dot" };
        return [
          drawn(k, (line) => line?.value, { name: method.title, line: { color, width: 2, dash: method.dash },
            marker: { color, size: 8 }, hovertemplate: `${method.title}: %{y:.4~g}<extra></extra>` }),
          drawn(k, (line) => line?.paper, { line: dashed, marker: { color, size: 9, symbol: "circle-open", line: { width: 1.5 } },
            hovertemplate: `${method.title} in the paper: %{y:.4~g}<extra></extra>` }),
        ];
      });
      const log = counted && wide(values), numbers = ticks(values);
      const x = counted
        ? { type: log ? "log" : "linear", tickvals: log ? numbers : values, ticktext: (log ? numbers : values).map(String) }
        : { tickvals: labels.map((_, i) => i), ticktext: labels, range: [-0.6, labels.length - 0.4], showgrid: false };
      return [traces, layout(axis(section.names[over], x), axis(""))];
    },
    difference: (section) => {
      const rows = lines(section, chosen(section)).filter((line) => line.difference).reverse();
      return [
        rows.flatMap((line) => {
          const { mean, low, high, seeds, paper } = line.difference, color = look(line.color);
          const bar = low === null ? undefined
            : { type: "data", symmetric: false, array: [high - mean], arrayminus: [mean - low], color, thickness: 2, width: 5 };
          return [
            { x: seeds, y: seeds.map(() => line.title), mode: "markers",
              marker: { color: faint(color, 0.4), size: 7 }, hovertemplate: "%{x:+.1f}<extra></extra>" },
            { x: [mean], y: [line.title], mode: "markers", marker: { color, size: 11, symbol: "diamond" },
              error_x: bar, hovertemplate: `${line.title}: %{x:+.1f}<extra></extra>` },
            { x: paper === null ? [] : [paper], y: paper === null ? [] : [line.title], mode: "markers",
              marker: { color, size: 12, symbol: "circle-open", line: { width: 2 } },
              hovertemplate: `${line.title} in the paper: %{x:+.1f}<extra></extra>` },
          ];
        }),
        layout(axis("points"), axis("", { type: "category", color: look("--ink") }), upright(0)),
        `${4.5 + 2.1 * rows.length}rem`,
      ];
    },
    curve: (section, { curve: name, x: over }) => {
      const setting = chosen(section);
      return [
        lines(section, setting).flatMap((line) => curve(line, name, over)),
        over === "passes"
          ? layout(axis("passes"), axis(""), setting ? upright(setting.commonCost, "equal cost") : {})
          : layout(axis("epoch"), axis(""), { hovermode: "x unified" }),
      ];
    },
    tuning: (section) => {
      const tuned = lines(section, chosen(section)).filter((line) => line.tuning);
      const radii = ticks(tuned.flatMap((line) => line.tuning.rho));
      return [
        tuned.flatMap((line) => {
          const { rho, accuracy, chosen: best } = line.tuning, color = look(line.color);
          return [
            { x: rho, y: accuracy, mode: "lines+markers", name: line.title,
              line: { color, width: 2, dash: line.dash }, marker: { color, size: 6 },
              hovertemplate: `${line.title}, ρ = %{x}: %{y:.1f} %<extra></extra>` },
            { x: [best], y: [accuracy[rho.indexOf(best)]], mode: "markers", hoverinfo: "skip",
              marker: { symbol: "circle-open", color, size: 15, line: { width: 2 } } },
          ];
        }),
        layout(axis("ρ", { type: "log", tickvals: radii, ticktext: radii.map(String) }), axis("")),
      ];
    },
  };

  let printing = false;
  const draw = (section) => {
    if (section.root.hidden || !(section.near || printing)) return;
    for (const place of all(section.root, ".plot")) {
      const [traces, frame, height] = kinds[place.dataset.kind](section, place.dataset);
      if (height) place.style.height = height;
      if (printing) Object.assign(frame, { width: place.clientWidth, height: place.clientHeight });
      Plotly.react(place, traces, frame, { displayModeBar: false, responsive: true });
    }
  };

  // The controls of each section.
  const checkbox = (method, changed) => {
    const label = document.createElement("label"), box = document.createElement("input");
    const swatch = document.createElement("span");
    box.type = "checkbox";
    box.checked = true;
    label.style.setProperty("--c", `var(${method.color})`);
    swatch.className = "swatch";
    box.addEventListener("change", () => { method.shown = box.checked; changed(); });
    label.append(box, swatch, method.title);
    return label;
  };
  for (const section of sections) {
    const plots = section.root.querySelector(".plots");
    if (!plots) continue;
    plots.querySelector(".legend").append(...section.methods
      .filter((_, k) => section.settings.some((setting) => setting.lines.some((line) => line.method === k)))
      .map((method) => checkbox(method, () => draw(section))));
    all(plots, "select").forEach((select, i) => {
      select.value = section.at[i];
      select.addEventListener("change", () => { section.at[i] = select.value; draw(section); });
    });
    plots.hidden = false;
  }
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      const section = sections.find(({ root }) => root === target);
      if (isIntersecting && !section.near) { section.near = true; draw(section); }
    }
  }, { rootMargin: "600px" });
  sections.forEach((section) => seen.observe(section.root));

  // The filters of the page.
  const filter = () => {
    for (const [i, section] of sections.entries()) {
      const { group = "", words = "" } = section.root.dataset, text = words.toLowerCase();
      const groups = all(section.root, "tbody[data-labels]");
      for (const body of groups) body.hidden = hidden(section.names, JSON.parse(body.dataset.labels));
      for (const row of all(section.root, "tr[data-method]")) row.hidden = off.method.has(row.dataset.method);
      section.root.hidden = off.group.has(group) || !off.words.every((word) => text.includes(word))
        || (groups.length > 0 && groups.every((body) => body.hidden))
        || (section.methods.length > 0 && section.methods.every(({ title }) => off.method.has(title)));
      all(section.root, "select").forEach((select, k) => {
        for (const option of select.options) option.disabled = !!off.axis[select.dataset.axis]?.has(option.value);
        if (select.selectedOptions[0]?.disabled) {
          select.value = [...select.options].find((option) => !option.disabled)?.value ?? select.value;
          section.at[k] = select.value;
        }
      });
      const entry = document.querySelector(`[data-entry="${i}"]`);
      if (entry) entry.hidden = section.root.hidden;
      draw(section);
    }
    for (const body of all(document, ".contents tbody"))
      body.hidden = all(body, "[data-entry]").every((entry) => entry.hidden);
    const left = sections.filter((section) => !section.root.hidden).length;
    document.getElementById("filtered").textContent = left < sections.length ? `${left} of ${sections.length} shown` : "";
  };
  const filters = document.getElementById("filters");
  if (filters && filters.querySelector("input")) {
    for (const fieldset of all(filters, "fieldset")) {
      const { filter: kind, axis: name } = fieldset.dataset;
      const set = kind === "axis" ? (off.axis[name] = new Set()) : off[kind];
      for (const box of all(fieldset, "input"))
        box.addEventListener("change", () => { set[box.checked ? "delete" : "add"](box.value); filter(); });
    }
    document.getElementById("find")?.addEventListener("input", ({ target }) => {
      off.words = target.value.toLowerCase().split(/\s+/).filter(Boolean);
      filter();
    });
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.reset(); // a browser keeps what was ticked when the page is loaded again
    filters.hidden = false;
  }

  sections.forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => sections.forEach(draw));
  const print = (begin) => () => {
    printing = begin;
    document.documentElement.classList.toggle("printing", begin);
    if (sections.length === 1) for (const more of all(document, "section details")) more.open = begin;
    sections.forEach(draw);
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
})();
