"use strict";
(() => {
  const all = (within, selector) => [...within.querySelectorAll(selector)];

  // What is shown: by the filters of the page, by the legend and the setting of each section.
  const off = { group: new Set(), method: new Set(), axis: {}, words: [] };
  const hidden = (axes, labels) => axes.some((name, i) => off.axis[name]?.has(labels[i]));

  const sections = JSON.parse(document.getElementById("figures").textContent).map((data, i) => ({
    ...data,
    root: all(document, ".section")[i],
    names: data.axes.map((axis) => axis.name),
    at: data.axes.map((axis) => axis.labels[0]),
    methods: data.methods.map((method) => ({ ...method, shown: true })),
    near: i === 0,
  }));

  const lines = (section, setting) => (setting?.lines ?? [])
    .map((line) => ({ ...line, ...section.methods[line.method] }))
    .filter((line) => line.shown && !off.method.has(line.title));
  const chosen = (section) =>
    section.settings.find((setting) => setting.labels.every((label, i) => label === section.at[i]));

  // Plots: each kind says what is drawn over which axes, and `chart` draws it.
  const number = (text) => (/^-?\d+(\.\d+)?( ?%)?$/.test(text) ? parseFloat(text) : NaN);
  const ticks = (values) => [...new Set(values)].sort((a, b) => a - b)
    .filter((value, i, sorted) => i === 0 || value / sorted[i - 1] > 1.3);
  const wide = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 8;
  const named = (values) => values.map((value) => [value, String(value)]);

  const curve = (line, name, over) => {
    const band = line.curves[name];
    if (!band) return [];
    const place = band.x ?? (over === "passes" ? line.passes : band.mean.map((_, i) => i + 1));
    const points = band.mean.map((y, i) => ({ x: place[i], y, sd: band.sd[i] ?? 0 }))
      .filter(({ x, y }) => y !== null && x !== null);
    return [
      { kind: "band", style: line.style, points: points.map(({ x, y, sd }) => ({ x, low: y - sd, high: y + sd })) },
      { kind: "line", style: line.style, name: line.title, points, dots: points.length <= 12 },
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
      const values = labels.map(number), counted = labels.length > 1 && values.every((value) => !isNaN(value));
      const count = section.methods.length;
      const place = (i, k) => (counted ? values[i] : i + ((k - (count - 1) / 2) * 0.7) / count);
      const found = (k, pick) => here
        .map((setting, i) => [place(i, k), pick(lines(section, setting).find((line) => line.method === k)), labels[i]])
        .filter(([, value]) => value && value.mean !== null)
        .map(([x, value, at]) => ({ x, y: value.mean, low: value.mean - (value.sd ?? 0), high: value.mean + (value.sd ?? 0), at }));
      const marks = section.methods.flatMap((method, k) => {
        const points = found(k, (line) => line?.value), paper = found(k, (line) => line?.paper);
        const about = (point) => `${method.title}, ${point.at}: ${digits(point.y)}`;
        return [
          ...(counted && paper.length ? [{ kind: "line", style: { ...method.style, dash: "2 3", thin: true }, points: paper }] : []),
          ...(counted && points.length ? [{ kind: "line", style: method.style, name: method.title, points }] : []),
          { kind: "points", style: method.style, name: counted ? "" : method.title, points, size: 4, bars: "y", about },
          { kind: "points", style: method.style, points: paper, size: 5, hollow: true,
            about: (point) => `${about(point)} in the paper` },
        ].filter((mark) => mark.points.length);
      });
      const log = counted && wide(values), numbers = ticks(values);
      const x = counted
        ? { log, ticks: named(log ? numbers : [...new Set(values)]), ends: extent(values) }
        : { ticks: labels.map((label, i) => [i, label]), ends: [-0.6, labels.length - 0.4], plain: true };
      return { marks, x: { label: section.names[over], ...x }, y: {} };
    },
    frontier: (section) => {
      const setting = chosen(section), drawn = lines(section, setting);
      const place = (line) => setting.costs[line.method];
      const best = (setting?.frontier ?? []).map((k) => drawn.find((line) => line.method === k)).filter(Boolean);
      const steps = best.flatMap((line, i) => [...(i ? [{ x: place(line), y: best[i - 1].value.mean }] : []), { x: place(line), y: line.value.mean }]);
      const marks = drawn.map((line) => {
        const { mean, sd } = line.value, points = [{ x: place(line), y: mean, low: mean - (sd ?? 0), high: mean + (sd ?? 0) }];
        return { kind: "points", style: line.style, points, size: 5, bars: "y", hollow: setting.dominated.includes(line.method),
          label: best.includes(line) ? line.title : "", about: ({ x, y }) => `${line.title}: ${digits(y)} at ${digits(x)} gradients a step` };
      });
      if (steps.length) marks.unshift({ kind: "line", style: { color: "var(--soft)", thin: true }, points: steps });
      return { marks, x: { label: "gradients a step", log: true, ticks: named([1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8]) }, y: {} };
    },
    difference: (section) => {
      const rows = lines(section, chosen(section)).filter((line) => line.difference).reverse();
      const marks = rows.flatMap((line, y) => {
        const { mean, low, high, seeds, paper } = line.difference, { style, title } = line;
        const about = ({ x }) => `${title}: ${signed(x)}`;
        return [
          { kind: "points", style: { ...style, faint: true }, points: seeds.map((x) => ({ x, y })), size: 3.5, about },
          { kind: "points", style, points: [{ x: mean, y, low: low ?? mean, high: high ?? mean }], size: 5.5, bars: "x",
            shape: "diamond", about },
          { kind: "points", style, points: paper === null ? [] : [{ x: paper, y }], size: 6, hollow: true,
            about: (point) => `${about(point)} in the paper` },
        ];
      });
      return {
        marks, x: { label: "points" }, rule: { x: 0 }, height: 52 + 34 * rows.length,
        y: { ticks: rows.map((line, i) => [i, line.title]), ends: [-0.6, rows.length - 0.4], plain: true, strong: true },
      };
    },
    curve: (section, { curve: name, x: over }) => {
      const setting = chosen(section);
      const marks = lines(section, setting).flatMap((line) => curve(line, name, over));
      return over === "passes"
        ? { marks, x: { label: "passes over the training data" }, y: {}, rule: setting && { x: setting.commonCost, text: "equal cost" } }
        : { marks, x: { label: section.over ?? "epoch" }, y: {} };
    },
    tuning: (section) => {
      const tuned = lines(section, chosen(section)).filter((line) => line.tuning);
      const radii = ticks(tuned.flatMap((line) => line.tuning.rho));
      const marks = tuned.flatMap(({ tuning: { rho, accuracy, chosen: best }, style, title }) => [
        { kind: "line", style, name: title, points: rho.map((x, i) => ({ x, y: accuracy[i] })), dots: true },
        { kind: "points", style, points: [{ x: best, y: accuracy[rho.indexOf(best)] }], size: 7, hollow: true,
          about: ({ y }) => `${title} chose ρ = ${best}: ${digits(y)}` },
      ]);
      return { marks, x: { label: "ρ", log: true, ticks: named(radii) }, y: {} };
    },
  };

  // Where the plots are drawn: SVG, whose colours and words are also those of a print.
  const minus = (text) => text.replace("-", "\u2212");
  const digits = (value) => minus(Math.abs(value) >= 0.001 || value === 0 ? String(+value.toPrecision(4)) : value.toExponential(1));
  const signed = (value) => (value > 0 ? "+" : "") + minus(value.toFixed(1));
  const extent = (values) => [Math.min(...values), Math.max(...values)];
  const svg = (name, attributes = {}, ...inside) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...inside);
    return made;
  };
  const symbol = (shape, x, y, r, look) => {
    const corners = { square: [[-r, -r], [r, -r], [r, r], [-r, r]], diamond: [[-r, 0], [0, -r], [r, 0], [0, r]],
      triangle: [[-r * 1.1, r], [0, -r * 1.2], [r * 1.1, r]], wedge: [[-r * 1.1, -r], [0, r * 1.2], [r * 1.1, -r]] }[shape];
    return corners
      ? svg("polygon", { ...look, points: corners.map(([dx, dy]) => `${(x + dx).toFixed(1)},${(y + dy).toFixed(1)}`).join(" ") })
      : svg("circle", { ...look, cx: x, cy: y, r });
  };
  const pen = document.createElement("canvas").getContext("2d");
  const measured = (text, size = 12) => {
    pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
    return pen.measureText(text).width;
  };
  // Round numbers between two ends: about `count` of them, and their texts.
  const round = ([low, high], count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((each) => each * power >= rough * 0.999);
    const behind = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++)
      found.push([at * step, minus((at * step).toFixed(Math.min(behind, 8)))]);
    return found;
  };
  const scale = (axis, values, count) => {
    let [low, high] = axis.ends ?? extent(values.filter(Number.isFinite));
    if (!(low <= high)) [low, high] = [0, 1];
    if (low === high) [low, high] = axis.log ? [low / 1.5, high * 1.5] : [low - (Math.abs(low) || 1) / 10, high + (Math.abs(high) || 1) / 10];
    const bend = axis.log ? Math.log : (value) => value;
    const room = axis.plain ? 0 : 0.04 * (bend(high) - bend(low)), from = bend(low) - room, to = bend(high) + room;
    const share = (value) => (bend(value) - from) / (to - from);
    return { share, ticks: axis.ticks ?? round([from, to], count) };
  };

  const chart = (place, { marks, x, y, rule, height = 0 }) => {
    const names = marks.filter((mark) => mark.name);
    const width = Math.max(240, place.clientWidth), narrow = width < 460;
    const tall = (narrow ? 1.25 : 1) * height || (printing ? 230 : narrow ? 260 : 320);
    const lined = names.every((mark) => mark.kind === "line");
    // names stand at the ends of their lines where there is room, or else in a key above them
    const aside = lined && !narrow && names.length * 15 <= tall - 60 && names.length > 0;
    const longestName = Math.max(0, ...names.map((mark) => measured(mark.name)));
    const key = [];
    let top = 10;
    if (!aside && names.length) {
      let at = 0, line = 0;
      for (const mark of names) {
        const long = measured(mark.name) + 44;
        if (at && at + long > width) { at = 0; line++; }
        key.push([mark, at, line]);
        at += long;
      }
      top += 18 * (line + 1) + 4;
    }
    const points = marks.flatMap((mark) => mark.points);
    const vertical = scale(y, [...points.flatMap((p) => [p.y, p.low, p.high])].filter((v) => v !== undefined), 6);
    const shownY = vertical.ticks.filter(([value]) => inside(vertical.share(value)));
    const above = y.strong && narrow; // names over their rows, where there is no room beside them
    const left = above ? 4 : 10 + Math.max(0, ...shownY.map(([, text]) => measured(text)));
    const right = aside ? longestName + 34 : 12;
    const bottom = 40, base = tall + top - 10;
    const horizontal = scale(x, [...points.flatMap((p) => (y.plain ? [p.x, p.low, p.high] : [p.x])), ...(rule && y.plain ? [rule.x] : [])]
      .filter((v) => v !== undefined), Math.max(3, (width - left - right) / 90));
    const px = (value) => left + horizontal.share(value) * (width - left - right);
    const py = (value) => base - bottom - vertical.share(value) * (base - bottom - top);
    const made = svg("svg", { class: "chart", width, height: base, viewBox: `0 0 ${width} ${base}` });
    const text = (words, at, more = {}) => svg("text", { x: at[0], y: at[1], ...more }, words);

    for (const [value, words] of shownY) {
      if (!y.plain) made.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: py(value), y2: py(value) }));
      made.append(above
        ? text(words, [left, py(value) - 9], { class: "tick strong" })
        : text(words, [left - 7, py(value) + 4], { class: y.strong ? "tick strong" : "tick", "text-anchor": "end" }));
    }
    const shownX = horizontal.ticks.filter(([value]) => inside(horizontal.share(value)));
    let free = -Infinity;
    for (const [value, words] of shownX) {
      if (!x.plain) made.append(svg("line", { class: "grid", x1: px(value), x2: px(value), y1: top, y2: base - bottom }));
      const half = measured(words) / 2, at = Math.max(half, Math.min(width - half, px(value)));
      if (at - half < free) continue; // rather no number than one upon another
      free = at + half + 6;
      made.append(text(words, [at, base - bottom + 16], { class: "tick", "text-anchor": "middle" }));
    }
    made.append(text(x.label ?? "", [(left + width - right) / 2, base - 5], { class: "label", "text-anchor": "middle" }));
    if (rule && inside(horizontal.share(rule.x))) {
      made.append(svg("line", { class: "rule", x1: px(rule.x), x2: px(rule.x), y1: top, y2: base - bottom }));
      if (rule.text) {
        const end = px(rule.x) + measured(rule.text) + 6 > width - right;
        made.append(text(rule.text, [px(rule.x) + (end ? -4 : 4), base - bottom - 5], { class: "label", "text-anchor": end ? "end" : "start" }));
      }
    }

    const spots = [];
    for (const mark of marks) {
      const { style } = mark, { color } = style, at = mark.points.map((p) => [px(p.x), py(p.y)]);
      if (mark.kind === "band") {
        const edge = (end) => mark.points.map((p) => `${px(p.x).toFixed(1)},${py(p[end]).toFixed(1)}`);
        made.append(svg("polygon", { style: `fill: ${color}`, "fill-opacity": 0.13, points: [...edge("high"), ...edge("low").reverse()].join(" ") }));
      } else if (mark.kind === "line") {
        made.append(svg("polyline", { class: "line", fill: "none", style: `stroke: ${color}`, "stroke-width": style.thin ? 1 : 2,
          "stroke-dasharray": style.dash, "stroke-linejoin": "round", points: at.map((each) => each.map((v) => v.toFixed(1)).join()).join(" ") }));
      }
      if (mark.kind === "points" || mark.dots)
        mark.points.forEach((point, i) => {
          if (mark.bars) {
            const over = mark.bars === "y";
            const [x1, y1] = over ? [at[i][0], py(point.low)] : [px(point.low), at[i][1]];
            const [x2, y2] = over ? [at[i][0], py(point.high)] : [px(point.high), at[i][1]];
            made.append(svg("line", { x1, y1, x2, y2, style: `stroke: ${color}`, "stroke-width": over ? 1.2 : 2 }));
          }
          const size = mark.size ?? 3, [cx, cy] = at[i];
          const look = { class: "point", style: `stroke: ${color}; fill: ${mark.hollow ? "none" : color}`,
            "stroke-width": mark.hollow ? 1.6 : 0, "fill-opacity": style.faint ? 0.4 : 1 };
          made.append(symbol(mark.shape ?? style.shape, cx, cy, size, look));
          if (mark.label) {
            const half = measured(mark.label) / 2, middle = Math.max(left + half, Math.min(width - half, cx));
            made.append(text(mark.label, [middle, cy - size - 5], { class: "tick strong", "text-anchor": "middle" }));
          }
        });
      mark.points.forEach((point, i) => {
        const [cx, cy] = at[i];
        if (mark.about) spots.push({ cx, cy, says: mark.about(point) });
        else if (mark.kind === "line" && mark.name)
          spots.push({ cx, cy, line: mark.name, x: point.x, says: `${mark.name}: ${digits(point.y)}` });
      });
    }

    const sample = (mark, cx, cy) => (mark.kind === "line"
      ? svg("line", { x1: cx, x2: cx + 22, y1: cy, y2: cy, style: `stroke: ${mark.style.color}`, "stroke-width": 2.4, "stroke-dasharray": mark.style.dash })
      : symbol(mark.style.shape, cx + 15, cy, 4.5, { style: `fill: ${mark.style.color}` }));
    for (const [mark, at, line] of key)
      made.append(sample(mark, at, 10 + 18 * line), text(mark.name, [at + 28, 14 + 18 * line], { class: "name" }));
    if (aside) {
      const ends = names.map((mark) => ({ mark, y: py(mark.points.at(-1).y) })).sort((a, b) => a.y - b.y);
      const low = base - bottom - 2;
      ends.forEach((end, i) => { end.y = Math.max(end.y, i ? ends[i - 1].y + 15 : top); });
      for (let i = ends.length - 1; i >= 0; i--) ends[i].y = Math.min(ends[i].y, i === ends.length - 1 ? low : ends[i + 1].y - 15);
      for (const { mark, y: at } of ends)
        made.append(sample(mark, width - right + 6, at), text(mark.name, [width - right + 32, at + 4], { class: "name" }));
    }
    place.replaceChildren(made, tip);
    place.series = marks.filter((mark) => mark.kind === "line").map((mark) => ({ name: mark.name, y: mark.points.map((p) => p.y) }));
    made.addEventListener("pointermove", (event) => point(place, spots, event));
    made.addEventListener("pointerleave", () => { tip.hidden = true; });
  };
  const inside = (share) => share >= -0.001 && share <= 1.001;

  // What is under the pointer: the nearest point, or all curves at one place.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  const point = (place, spots, { clientX, clientY }) => {
    const box = place.getBoundingClientRect(), x = clientX - box.left, y = clientY - box.top;
    const far = (spot) => (spot.line ? Math.abs(spot.cx - x) + Math.abs(spot.cy - y) / 100 : Math.hypot(spot.cx - x, spot.cy - y));
    const near = spots.reduce((best, spot) => (!best || far(spot) < far(best) ? spot : best), null);
    tip.hidden = !near || far(near) > (near.line ? 60 : 25);
    if (tip.hidden) return;
    const said = near.line
      ? [digits(near.x), ...spots.filter((spot) => spot.line && Math.abs(spot.cx - near.cx) < 1).map(({ says }) => says)]
      : [near.says];
    if (tip.parentNode !== place) place.append(tip);
    tip.replaceChildren(...said.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    tip.style.left = `${Math.max(0, Math.min(near.cx + 12, place.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 14, place.clientHeight - tip.offsetHeight))}px`;
  };

  let printing = false;
  const draw = (section) => {
    if (section.root.hidden || !(section.near || printing)) return;
    for (const place of all(section.root, ".plot")) {
      chart(place, kinds[place.dataset.kind](section, place.dataset));
      const where = section.at.join(", "), caption = place.parentNode.querySelector(".where");
      if (caption) caption.textContent = where && place.dataset.kind !== "across" ? ` · ${where}` : "";
    }
  };

  // The controls of each section.
  const checkbox = (method, changed) => {
    const label = document.createElement("label"), box = document.createElement("input");
    const swatch = svg("svg", { class: "swatch", viewBox: "0 0 22 8" }, svg("line", { x2: 22, y1: 4, y2: 4,
      style: `stroke: ${method.style.color}`, "stroke-dasharray": method.style.dash }));
    box.type = "checkbox";
    box.checked = true;
    label.style.setProperty("--c", method.style.color);
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
  let wideBefore = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === wideBefore || printing) return;
    wideBefore = innerWidth;
    sections.forEach(draw);
  });
  const print = (begin) => () => {
    printing = begin;
    document.documentElement.classList.toggle("printing", begin);
    if (sections.length === 1) for (const more of all(document, "section details")) more.open = begin;
    sections.forEach(draw);
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
})();
