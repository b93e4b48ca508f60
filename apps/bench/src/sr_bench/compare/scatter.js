"use strict";
(() => {
  const data = JSON.parse(document.getElementById("scatter-data").textContent);
  const plot = document.getElementById("plot");
  if (!plot) return;
  const metrics = new Map(data.metrics.map((metric) => [metric.key, metric]));
  const control = (name) => document.getElementById(name);
  const make = (name, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const shapes = ["M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z", "M-5,-5H5V5H-5Z", "M0,-6L6,5H-6Z", "M0,-6.5L6.5,0L0,6.5L-6.5,0Z", "M0,6L6,-5H-6Z"];
  const ours = data.marks.filter((mark) => !mark.published);
  const shape = (mark) => (mark.published ? shapes[0] : shapes[ours.indexOf(mark) % shapes.length]);
  const color = (mark) => (mark.published ? "" : `--color:var(--c${ours.indexOf(mark) % 8})`);
  const shown = (value, key) => value.toFixed(metrics.get(key).digits).replace("-", "−");
  const title = (key) => `${metrics.get(key).title} ${metrics.get(key).higher ? "↑" : "↓"}`;

  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let index = Math.ceil(low / step); index * step <= high; index++) found.push([index * step, (index * step).toFixed(digits).replace("-", "−")]);
    return found;
  }

  // Value -> pixel from `from` (worst) to `to` (best), so that a metric where lower is better runs the other way.
  function axis(key, marks, spans, from, to) {
    const values = marks.flatMap((mark) => (spans ? mark.values[key] : [mark.values[key][0]])).filter((value) => value !== null);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.1 || Math.abs(high) * 0.05 || 1;
    [low, high] = [low - room, high + room];
    const up = metrics.get(key).higher;
    return { low, high, at: (value) => from + ((up ? value - low : high - value) / (high - low)) * (to - from) };
  }

  const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));

  // Each label takes the place around its mark that covers least of marks, of labels before it, and of what is outside.
  function placeLabels(points, area, layer) {
    const room = (area[2] - area[0]) / 3;
    const taken = points.flatMap((point) => [[point.x - 7, point.y - 7, point.x + 7, point.y + 7], ...point.spans]);
    for (const point of points) {
      const kind = point.mark.published ? "label halo published" : "label halo";
      const text = make("text", { class: kind }, layer, point.mark.label);
      let letters = [...point.mark.label];
      while (letters.length > 1 && text.getComputedTextLength() > room) {
        letters = letters.slice(0, -1); // the legend and the tip have it whole
        text.textContent = `${letters.join("").trimEnd()}…`;
      }
      const width = text.getComputedTextLength();
      let best = null;
      for (const away of [10, 20, 34, 50]) {
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, -1], [0, 1], [0.8, -0.8], [0.8, 0.8], [-0.8, -0.8], [-0.8, 0.8]]) {
          const left = point.x + dx * away - (dx < 0 ? width : dx ? 0 : width / 2);
          const middle = point.y + dy * (away + 3);
          const box = [left - 1, middle - 8, left + width + 1, middle + 8];
          const inside = overlap(box, area);
          const cost = taken.reduce((sum, other) => sum + overlap(box, other), 0) + 4 * (16 * (width + 2) - inside) + away;
          if (!best || cost < best.cost) best = { cost, box, left, middle, away, dx, dy };
        }
      }
      text.setAttribute("x", best.left);
      text.setAttribute("y", best.middle + 4);
      taken.push(best.box);
      if (best.away > 10) {
        const [x, y] = [point.x + best.dx * best.away, point.y + best.dy * (best.away - 4)];
        layer.prepend(make("line", { class: "leader", x1: point.x + best.dx * 7, y1: point.y + best.dy * 7, x2: x, y2: y }));
      }
    }
  }

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  function showTip(point, text) {
    tip.textContent = text;
    tip.hidden = false;
    tip.style.top = `${point.y + 14}px`;
    tip.style.left = `${Math.max(0, Math.min(point.x + 10, plot.clientWidth - tip.offsetWidth))}px`;
  }

  function describe(mark, key) {
    const [mean, low, high] = mark.values[key];
    return `${metrics.get(key).title} ${shown(mean, key)}` + (low === null ? "" : ` (${shown(low, key)} … ${shown(high, key)})`);
  }

  function drawAxes(svg, area, across, upwards, x, y) {
    const [left, top, right, bottom] = area;
    for (const [value, text] of ticks(across.low, across.high, right - left < 400 ? 4 : 8)) {
      make("line", { class: "grid", x1: across.at(value), x2: across.at(value), y1: top, y2: bottom }, svg);
      make("text", { class: "tick", x: across.at(value), y: bottom + 18, "text-anchor": "middle" }, svg, text);
    }
    for (const [value, text] of ticks(upwards.low, upwards.high, 6)) {
      make("line", { class: "grid", x1: left, x2: right, y1: upwards.at(value), y2: upwards.at(value) }, svg);
      make("text", { class: "tick", x: left - 8, y: upwards.at(value) + 4, "text-anchor": "end" }, svg, text);
    }
    make("text", { class: "title", x: (left + right) / 2, y: bottom + 40, "text-anchor": "middle" }, svg, `${title(x)}  (better →)`);
    make("text", { class: "title", transform: `translate(14,${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, svg, `${title(y)}  (better →)`);
    make("text", { class: "corner halo", x: right - 8, y: top + 16, "text-anchor": "end" }, svg, "better ↗");
  }

  // Where a mark and its intervals are: boxes of left, top, right, bottom.
  function place(mark, [meanX, lowX, highX], [meanY, lowY, highY], across, upwards, withSpans) {
    const [x, y] = [across.at(meanX), upwards.at(meanY)];
    const sorted = (a, b) => (a < b ? [a, b] : [b, a]);
    const spans = [];
    if (withSpans && lowX !== null) {
      const [left, right] = sorted(across.at(lowX), across.at(highX));
      spans.push([left, y - 0.75, right, y + 0.75]);
    }
    if (withSpans && lowY !== null) {
      const [top, bottom] = sorted(upwards.at(lowY), upwards.at(highY));
      spans.push([x - 0.75, top, x + 0.75, bottom]);
    }
    return { mark, x, y, spans };
  }

  function drawMark(svg, point, x, y) {
    const { mark } = point;
    const text = `${mark.label}${mark.published ? " (published)" : ""}\n${describe(mark, x)}\n${describe(mark, y)}`;
    const kind = mark.published ? "mark published" : "mark";
    const node = make("g", { class: kind, tabindex: 0, role: "img", "aria-label": text.replaceAll("\n", ", "), style: color(mark) }, svg);
    for (const [left, top, right, bottom] of point.spans) make("path", { class: "span", d: `M${left},${top}H${right}V${bottom}H${left}Z` }, node);
    make("path", { d: "M-13,-13H13V13H-13Z", fill: "transparent", transform: `translate(${point.x},${point.y})` }, node);
    make("path", { class: "shape", d: shape(mark), transform: `translate(${point.x},${point.y})` }, node);
    for (const name of ["pointerenter", "focus"]) node.addEventListener(name, () => showTip(point, text));
    for (const name of ["pointerleave", "blur"]) node.addEventListener(name, () => (tip.hidden = true));
  }

  function draw() {
    const [x, y] = [control("axis-x").value, control("axis-y").value];
    const spans = control("intervals").checked;
    const wanted = data.marks.filter((mark) => !mark.published || control("published")?.checked);
    const marks = wanted.filter((mark) => mark.values[x] && mark.values[y]);
    const width = Math.max(280, plot.clientWidth);
    const height = Math.round(Math.min(560, Math.max(320, width * 0.62)));
    const area = [64, 10, width - 12, height - 52];
    plot.replaceChildren(tip);
    tip.hidden = true;
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `${title(y)} against ${title(x)}` }, plot);
    if (marks.length) {
      const across = axis(x, marks, spans, area[0], area[2]);
      const upwards = axis(y, marks, spans, area[3], area[1]);
      drawAxes(svg, area, across, upwards, x, y);
      const points = marks.map((mark) => place(mark, mark.values[x], mark.values[y], across, upwards, spans));
      for (const point of [...points].reverse()) drawMark(svg, point, x, y);
      placeLabels(points, area, make("g", { "aria-hidden": "true", "pointer-events": "none" }, svg));
    }
    const absent = wanted.filter((mark) => !marks.includes(mark)).map((mark) => mark.label);
    control("without").textContent = absent.length ? `Without a mark, as one of the two figures is missing: ${[...new Set(absent)].join(", ")}.` : "";
  }

  function legend() {
    const entry = (text, path, kind, style) => {
      const item = document.createElement("span");
      const svg = make("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true", style });
      make("path", { d: path, class: kind }, svg);
      item.append(svg, text);
      control("legend").append(item);
    };
    for (const mark of ours) entry(mark.label, shape(mark), "", color(mark));
    if (data.marks.some((mark) => mark.published)) entry("published", shapes[0], "hollow", "");
  }

  for (const name of ["axis-x", "axis-y", "intervals", "published"]) control(name)?.addEventListener("change", draw);
  let width = 0;
  new ResizeObserver(() => {
    if (plot.clientWidth !== width) {
      width = plot.clientWidth;
      draw();
    }
  }).observe(plot);
  legend();
  draw();
})();
