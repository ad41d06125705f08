// All metrics of a run as small panels, each with its numbers under the pointer. Drawn when they are opened.

const metrics = JSON.parse(at("metrics-data").textContent);

function drawPanels() {
  const box = at("m-panels");
  const words = at("m-filter").value.trim().toLowerCase();
  box.replaceChildren();
  let section = "";
  let grid = null;
  for (const panel of metrics.panels) {
    if (words && !`${panel.name} ${panel.heading} ${panel.meaning}`.toLowerCase().includes(words)) continue;
    if (panel.section !== section || !grid) {
      section = panel.section;
      make("h3", box, section);
      grid = make("div", box, undefined, "panels");
    }
    drawPanel(make("figure", grid, undefined, "panel"), panel, metrics.steps[panel.phase]);
  }
  if (!grid) make("p", box, "No metric has these words.", "quiet");
}

function drawPanel(figure, panel, steps) {
  const caption = make("figcaption", figure, undefined, "small");
  caption.title = panel.meaning;
  make("b", caption, panel.name);
  const told = make("span", caption, undefined, "quiet");
  const known = panel.values.filter((v) => v !== null);
  let [low, high] = spread(known);
  if (low === high) [low, high] = [low - 0.5, high + 0.5];
  const first = steps[0], width = Math.max(1, steps[steps.length - 1] - first);
  const x = (i) => 2 + (296 * (steps[i] - first)) / width, y = (v) => 76 - (72 * (v - low)) / (high - low);
  const svg = drawing("svg", figure, { viewBox: "0 0 300 80", preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `${panel.name} by step`);
  const wide = { fill: "none", "vector-effect": "non-scaling-stroke" };
  const points = panel.values.flatMap((v, i) => (v === null ? [] : [`${x(i).toFixed(1)},${y(v).toFixed(1)}`]));
  if (points.length === 1) points.push(points[0].replace(/^[^,]+/, "300"));
  if (low < 0 && high > 0) drawing("polyline", svg, { ...wide, points: `0,${y(0)} 300,${y(0)}` }, "line");
  drawing("polyline", svg, { ...wide, points: points.join(" "), "stroke-width": 1.6 }, "first");
  const mark = drawing("polyline", svg, { ...wide, points: "" }, "quiet");
  const ends = make("div", figure, undefined, "ends quiet");
  make("span", ends, `${plainNumber(spread(known)[0])} to ${plainNumber(spread(known)[1])}`);
  make("span", ends, `${panel.phase === "pretrain" ? "pretraining " : ""}steps ${first} to ${steps[steps.length - 1]}`);
  const rest = () => {
    const last = panel.values.findLastIndex((v) => v !== null);
    told.textContent = ` ${plainNumber(panel.values[last])}`;
    mark.setAttribute("points", "");
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const wanted = first + (width * (event.clientX - box.left)) / box.width;
    let near = 0;
    steps.forEach((step, i) => { if (Math.abs(step - wanted) < Math.abs(steps[near] - wanted)) near = i; });
    told.textContent = ` ${plainNumber(panel.values[near])} at step ${steps[near]}`;
    mark.setAttribute("points", `${x(near)},0 ${x(near)},80`);
  });
  svg.addEventListener("pointerleave", rest);
  rest();
}

at("m-filter").addEventListener("input", drawPanels);
at("m-details").addEventListener("toggle", () => { if (!at("m-panels").hasChildNodes()) drawPanels(); });
