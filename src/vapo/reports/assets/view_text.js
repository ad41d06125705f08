// One response: its facts, its text token by token in colours, and the line under it.

const COLOURS = {
  value: { name: "value", says: "what the critic expects before the token is written" },
  advantage: { name: "advantage", says: "orange tokens are made rarer, blue ones more frequent" },
  td: {
    name: "TD error",
    says: "how the token changed what the critic expects; click a token to see the (γλ)-weighted errors that its " +
      "advantage is the sum of",
  },
  entropy: { name: "entropy", says: "nats; how open the choice of the token was" },
  log_ratio: { name: "log-ratio", says: "log p of the trainer less log p of the sampler, in nats" },
  logp: { name: "surprise", says: "−log p of the token, in nats" },
};
const TOLD = [
  ["value", "value V"], ["return", "return"], ["advantage", "advantage A"], ["td", "TD error δ"],
  ["entropy", "entropy"], ["log_ratio", "log-ratio"], ["logp", "log p"],
];
const TWO_SIDED = ["advantage", "td", "log_ratio"];

function background(colour, x, scale) {
  if (x === null || x === undefined || !scale) return "";
  if (colour === "value") return mixed("third", (0.75 * (x - scale[0])) / (scale[1] - scale[0]));
  if (TWO_SIDED.includes(colour)) return mixed(x >= 0 ? "first" : "second", (0.65 * Math.abs(x)) / scale);
  return mixed("fourth", (0.7 * Math.abs(x)) / scale);
}

function drawLegend(legend, colour, scale) {
  legend.replaceChildren();
  if (!colour || !scale) return;
  const ramp = (stops) => {
    make("div", legend, "", "ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  };
  if (colour === "value") {
    make("span", legend, shortNumber(scale[0]));
    ramp([mixed("third", 0), mixed("third", 0.75)]);
    make("span", legend, shortNumber(scale[1]));
  } else if (TWO_SIDED.includes(colour)) {
    make("span", legend, shortNumber(-scale));
    ramp([mixed("second", 0.65), "transparent", mixed("first", 0.65)]);
    make("span", legend, `+${shortNumber(scale)}`);
  } else {
    make("span", legend, "0");
    ramp([mixed("fourth", 0), mixed("fourth", 0.7)]);
    make("span", legend, `${shortNumber(scale)} and more`);
  }
  make("span", legend, COLOURS[colour].says);
}

// Draws a response into `parent`. `how`: colour, scale (of all colours), gamma, token (the one to begin at),
// onPin(i), recorded (a sentence for responses without tokens). Returns what moves its token: `step(by)`, `pin(i)`.
function responseCard(parent, row, how) {
  const spans = [];
  let pinned = -1, marker = null;
  drawFacts(make("div", parent, undefined, "facts"), row);
  if (typeof row.prompt !== "string") make("div", parent, "assistant", "role");
  const text = make("div", parent, undefined, "text");
  text.tabIndex = 0;
  text.setAttribute("aria-label", "response, token by token");
  const plot = make("div", parent, undefined, "plot");
  if (!row.tokens) {
    make("span", text, row.response);
    make("p", plot, how.recorded, "quiet small");
    return { step: () => {}, pin: () => {} };
  }
  const num = row.tokens.length;
  for (const { author, start, end } of turnSpans(row.turns)) {
    const ours = author !== "environment";
    const block = ours ? text : make("div", text, undefined, "environment");
    if (!ours) make("div", block, "environment", "role");
    for (let i = start; i < end; i++) {
      const token = row.tokens[i];
      const span = make("span", block, token === "" ? "∅" : token.replace(/\n/g, "⏎\n"), ours ? "token" : "");
      span.place = i;
      spans.push(span);
    }
  }

  function series() {
    const numbers = row[how.colour];
    if (how.colour !== "td" || !numbers || pinned < 0) return numbers;
    return weightedErrors(numbers, row.lambdas ?? row.lambda, how.gamma, pinned);
  }

  function paint() {
    const numbers = series() || [], scale = how.scale[how.colour];
    spans.forEach((span, i) => { span.style.backgroundColor = background(how.colour, numbers[i], scale); });
    marker = drawPlot(plot, row, how, numbers, point);
    if (pinned >= 0) marker(pinned);
  }

  // Mark one token in the text and on the line, and say its numbers beside (left, top) or the token itself.
  function point(i, left, top) {
    for (const old of text.querySelectorAll(".here")) old.classList.remove("here");
    const span = spans[i];
    marker(span ? i : pinned);
    if (!span) return hideTip();
    span.classList.add("here");
    const box = span.getBoundingClientRect();
    const rows = TOLD.filter(([key]) => row[key] && row[key][i] !== null).map(([key, name]) => [name, row[key][i]]);
    if (how.colour === "td" && pinned >= 0 && i >= pinned && row.td?.[i] != null) {
      rows.push([`its part of A at ${pinned + 1}`, series()[i]]);
    }
    showTip(visible(row.tokens[i]), `token ${i + 1} of ${num}`, rows, left ?? box.left, top ?? box.bottom + 8, box.top);
  }

  function pin(i, told = true) {
    spans[pinned]?.classList.remove("pinned");
    pinned = i === pinned || !spans[i] ? -1 : i;
    spans[pinned]?.classList.add("pinned");
    if (how.colour === "td") paint();
    else marker(pinned);
    if (told) how.onPin(pinned);
  }

  text.addEventListener("pointerover", (event) => {
    if (event.target.place !== undefined) point(event.target.place);
  });
  text.addEventListener("pointerleave", () => point(-1));
  text.addEventListener("click", (event) => {
    if (event.target.place !== undefined && getSelection().isCollapsed) pin(event.target.place);
  });
  paint();
  if (how.token >= 0 && how.token < num) {
    pin(how.token, false);
    spans[how.token].scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  return {
    pin,
    step: (by) => {
      const next = Math.min(num - 1, Math.max(0, (pinned < 0 ? (by > 0 ? -1 : num) : pinned) + by));
      if (next !== pinned) pin(next);
      spans[next].scrollIntoView({ block: "nearest", inline: "nearest" });
      point(next);
    },
  };
}

function drawFacts(facts, row) {
  const verdict = make("span", facts);
  make("span", verdict, "", `dot ${row.verdict}`);
  make("b", verdict, row.verdict);
  if (row.reason) make("span", facts, row.reason);
  if (row.final_answer !== null) fact(facts, "its answer", row.final_answer);
  fact(facts, "reward", plainNumber(row.reward));
  if (row.score !== null) fact(facts, "score", plainNumber(row.score));
  for (const [name, value] of Object.entries(row.parts || {})) fact(facts, name, plainNumber(value));
  fact(facts, "tokens", row.num_tokens ?? "–");
  if (row.truncated) make("span", facts, "cut off at the length limit", "cut");
  if (row.lambda !== null) fact(facts, "λ", row.lambda);
  if (row.weight_version !== null) fact(facts, "weights of step", row.weight_version);
}

// The line of a series over the response. Returns the function that moves its marker to a token.
function drawPlot(plot, row, how, numbers, point) {
  plot.replaceChildren();
  const scale = how.scale[how.colour];
  const known = numbers.filter((x) => x !== null);
  if (!known.length || !scale) return () => {};
  const negate = how.colour === "logp" ? -1 : 1;
  const drawn = numbers.map((x) => (x === null ? null : negate * x));
  const reach = Array.isArray(scale) ? scale : [TWO_SIDED.includes(how.colour) ? -scale : 0, scale];
  const low = Math.min(reach[0], ...spread(drawn)), high = Math.max(reach[1], ...spread(drawn));
  const last = Math.max(1, numbers.length - 1);
  const x = (i) => (1000 * i) / last, y = (v) => 84 - (78 * (v - low)) / (high - low);
  const frame = make("div", plot, undefined, "frame");
  const ends = make("div", frame, undefined, "scale");
  make("span", ends, shortNumber(high));
  make("span", ends, shortNumber(low));
  const svg = drawing("svg", frame, { viewBox: "0 0 1000 90", preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `${COLOURS[how.colour].name} over the response`);
  const line = (points, colour, more) => drawing("polyline", svg, {
    points, fill: "none", "stroke-width": 1.6, "vector-effect": "non-scaling-stroke", ...more,
  }, colour);
  for (const v of low < 0 ? [low, 0, high] : [low, high]) line(`0,${y(v)} 1000,${y(v)}`, "line", { "stroke-width": 1 });
  const path = (values) => values.flatMap((v, i) => (v === null ? [] : [`${x(i).toFixed(1)},${y(v).toFixed(1)}`])).join(" ");
  if (how.colour === "value" && row.return) line(path(row.return), "quiet", { "stroke-dasharray": "5 4", "stroke-width": 1.2 });
  line(path(drawn), how.colour === "value" ? "third" : TWO_SIDED.includes(how.colour) ? "first" : "fourth");
  const mark = line("", "ink", { "stroke-width": 1 });
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    point(Math.round((last * (event.clientX - box.left)) / box.width), event.clientX + 12, box.bottom + 8);
  });
  svg.addEventListener("pointerleave", () => point(-1));
  return (i) => mark.setAttribute("points", i < 0 ? "" : `${x(i)},0 ${x(i)},90`);
}

// Lowest and highest of the numbers; the spread operator cannot take tens of thousands of arguments everywhere.
function spread(numbers) {
  let low = Infinity, high = -Infinity;
  for (const x of numbers) {
    if (x === null) continue;
    low = Math.min(low, x);
    high = Math.max(high, x);
  }
  return [low, high];
}

function hideTip() {
  at("v-tip").hidden = true;
}

function showTip(what, where, rows, left, top, above) {
  const tip = at("v-tip");
  tip.replaceChildren();
  tip.hidden = false;
  make("div", tip, what, "what");
  make("div", tip, where, "quiet small");
  const table = make("table", tip);
  for (const [name, value] of rows) {
    const line = make("tr", table);
    make("td", line, name, "quiet");
    make("td", line, plainNumber(value));
  }
  const size = tip.getBoundingClientRect();
  const fits = top + size.height <= innerHeight;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - size.width - 8))}px`;
  tip.style.top = `${Math.max(4, fits ? top : above - size.height - 8)}px`;
}
