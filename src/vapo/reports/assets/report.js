"use strict";
// The rollout viewer. Text from the model goes into the page only through textContent.
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const at = (id) => document.getElementById(id);
  const verdicts = ["right", "wrong", "invalid"];
  const colourings = ["value", "advantage", "logp"].filter((key) => data.scale[key]);
  const names = { value: "value", advantage: "advantage", logp: "surprise" };
  const state = {
    step: data.steps.length - 1,
    shown: new Set(verdicts),
    colour: colourings[0] || "none",
    sample: 0,
    token: -1,
  };

  function make(tag, parent, text, className) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    if (parent) parent.append(element);
    return element;
  }

  function drawing(tag, parent, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
    return element;
  }

  function number(x) {
    if (x === null || x === undefined) return "–";
    return (Math.abs(x) >= 100 ? x.toFixed(0) : x.toFixed(3)).replace("-", "−");
  }

  // A number at the end of a scale: short.
  function end(x) {
    return String(Number(x.toPrecision(2))).replace("-", "−");
  }

  function visible(token) {
    if (token === "") return "(empty)";
    return token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
  }

  function mixed(colour, share) {
    return `color-mix(in srgb, var(--${colour}) ${(100 * Math.min(1, Math.max(0, share))).toFixed(0)}%, transparent)`;
  }

  // Value: paler is less promising. Advantage: blue made the outcome better than expected, orange worse.
  function background(sample, i) {
    const x = (sample[state.colour] || [])[i];
    if (x === null || x === undefined) return "transparent";
    if (state.colour === "value") {
      const [low, high] = data.scale.value;
      return mixed("third", (0.75 * (x - low)) / (high - low));
    }
    if (state.colour === "advantage") {
      return mixed(x >= 0 ? "first" : "second", (0.65 * Math.abs(x)) / data.scale.advantage);
    }
    return mixed("fourth", (0.7 * -x) / data.scale.logp);
  }

  function buttons(parent, title, items, pressed, onPress) {
    parent.replaceChildren();
    if (title) make("span", parent, title);
    for (const [key, text, dot] of items) {
      const button = make("button", parent);
      button.type = "button";
      if (dot) make("span", button, "", `dot ${dot}`);
      button.append(text);
      button.setAttribute("aria-pressed", String(pressed(key)));
      button.addEventListener("click", () => onPress(key));
    }
  }

  const step = () => data.steps[state.step];
  const listed = () => step().samples.filter((sample) => state.shown.has(sample.verdict));
  const current = () => listed()[state.sample];

  function drawControls() {
    const steps = data.steps.map((item, i) => [i, item.label]);
    buttons(at("v-steps"), "", steps, (i) => i === state.step, (i) => update({ step: i, sample: 0 }));
    const counts = verdicts.map((v) => [v, `${v} ${step().samples.filter((s) => s.verdict === v).length}`, v]);
    buttons(at("v-verdicts"), "show", counts, (v) => state.shown.has(v), (v) => {
      if (!state.shown.delete(v)) state.shown.add(v);
      update({ sample: 0 });
    });
    const colours = colourings.map((key) => [key, names[key]]);
    buttons(at("v-colours"), "colour by", colours, (key) => key === state.colour, (key) => update({ colour: key }));
    const items = listed().map((s, i) => [i, `${s.id} #${s.sample}`, s.verdict]);
    buttons(at("v-list"), "", items, (i) => i === state.sample, (i) => update({ sample: i }));
    const { right, wrong, invalid } = step().counts;
    at("v-chosen").textContent =
      `${step().samples.length} of the step's ${step().total} samples, picked so that each verdict appears. ` +
      `In all: ${right} right, ${wrong} wrong, ${invalid} invalid.`;
  }

  function drawLegend() {
    const legend = at("v-legend");
    legend.replaceChildren();
    const ramp = (stops) => {
      make("div", legend, "", "ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    };
    if (state.colour === "value") {
      make("span", legend, `V = ${end(data.scale.value[0])}`);
      ramp([mixed("third", 0), mixed("third", 0.75)]);
      make("span", legend, `${end(data.scale.value[1])}  ·  what the critic expects before the token is written`);
    } else if (state.colour === "advantage") {
      make("span", legend, `A = ${end(-data.scale.advantage)}`);
      ramp([mixed("second", 0.65), "transparent", mixed("first", 0.65)]);
      make("span", legend, `+${end(data.scale.advantage)}  ·  orange is made rarer, blue more frequent`);
    } else if (state.colour === "logp") {
      make("span", legend, "certain");
      ramp([mixed("fourth", 0), mixed("fourth", 0.7)]);
      make("span", legend, `−log p = ${data.scale.logp} nats and more`);
    }
  }

  function drawSample() {
    const sample = current();
    const facts = at("v-facts"), tokens = at("v-tokens");
    facts.replaceChildren();
    tokens.replaceChildren();
    at("v-plot").replaceChildren();
    at("v-prompt").textContent = sample ? sample.prompt : "";
    if (!sample) {
      make("span", facts, "No sample with these verdicts in this step.", "quiet");
      return;
    }
    const verdict = make("span", facts);
    make("span", verdict, "", `dot ${sample.verdict}`);
    make("b", verdict, sample.verdict);
    const rest = [["reward", number(sample.reward)], ["tokens", sample.num_tokens], ["weights of step", sample.version]];
    if (sample.lambda !== null) rest.push(["λ", sample.lambda]);
    for (const [key, value] of rest) {
      const fact = make("span", facts, `${key} `, "quiet");
      make("b", fact, String(value));
    }
    if (sample.truncated) make("span", facts, "cut off at the length limit", "quiet");
    if (sample.reason) make("span", facts, `reason: ${sample.reason}`, "quiet");
    sample.tokens.forEach((token, i) => {
      if (sample.left_out && i === sample.cut_at) make("span", tokens, `… ${sample.left_out} tokens left out …`, "gap");
      const shown = token === "" ? "∅" : token.replace(/\n/g, "⏎\n");
      const span = make("span", tokens, shown, sample.environment?.[i] ? "token environment" : "token");
      span.dataset.i = i;
      span.style.background = background(sample, i);
    });
    drawPlot(sample);
  }

  function drawPlot(sample) {
    if (!sample.value || !data.scale.value) return;
    const [low, high] = data.scale.value, last = Math.max(1, sample.value.length - 1);
    const x = (i) => (1000 * i) / last, y = (v) => 104 - (98 * (v - low)) / (high - low);
    const plot = at("v-plot");
    make("div", plot, "V over the response, and the return it should foresee (dashed)", "title");
    const frame = make("div", plot, undefined, "frame");
    const scale = make("div", frame, undefined, "scale");
    make("span", scale, end(high));
    make("span", scale, end(low));
    const svg = drawing("svg", frame, { viewBox: "0 0 1000 110", preserveAspectRatio: "none" });
    const line = (points, colour, more) => drawing("polyline", svg, {
      points, fill: "none", style: `stroke: var(--${colour})`, "stroke-width": 2, "vector-effect": "non-scaling-stroke", ...more,
    });
    line(`0,${y(low)} 1000,${y(low)}`, "line", { "stroke-width": 1 });
    line(`0,${y(high)} 1000,${y(high)}`, "line", { "stroke-width": 1 });
    const path = (series) => series.flatMap((v, i) => (v === null ? [] : [`${x(i).toFixed(1)},${y(v).toFixed(1)}`])).join(" ");
    if (sample.return) line(path(sample.return), "quiet", { "stroke-dasharray": "5 4", "stroke-width": 1.3 });
    line(path(sample.value), "third");
    line("", "ink", { id: "v-marker", "stroke-width": 1 });
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      point(Math.round((last * (event.clientX - box.left)) / box.width), event.clientX, box.top);
    });
    svg.addEventListener("pointerleave", () => point(-1));
    const ends = make("div", plot, undefined, "ends");
    make("span", ends, "first token");
    make("span", ends, sample.left_out ? "last token (middle left out)" : "last token");
  }

  // Mark one token in the text and on the line, and say everything about it beside (left, top).
  function point(i, left, top) {
    const sample = current(), tip = at("v-tip");
    if (!sample) return;
    for (const old of document.querySelectorAll(".token.here")) old.classList.remove("here");
    const span = document.querySelector(`.token[data-i="${i}"]`);
    state.token = span ? i : -1;
    tip.hidden = !span;
    const marker = at("v-marker");
    const place = span ? (1000 * i) / Math.max(1, sample.tokens.length - 1) : 0;
    if (marker) marker.setAttribute("points", span ? `${place},0 ${place},110` : "");
    if (!span) return;
    span.classList.add("here");
    tip.replaceChildren();
    make("div", tip, visible(sample.tokens[i]), "what");
    const table = make("table", tip);
    const logp = sample.logp && sample.logp[i];
    const position = sample.left_out && i >= sample.cut_at ? i + sample.left_out : i;
    const rows = [["token", `${position + 1} of ${sample.num_tokens}`]];
    if (sample.environment?.[i]) rows.push(["written by", "the environment; not learned from"]);
    if (logp !== null && logp !== undefined) rows.push(["logp", `${number(logp)} (p ${Math.exp(logp).toPrecision(2)})`]);
    const read = sample.environment?.[i] ? [] : ["value", "advantage", "return"];
    for (const key of read) if (sample[key]) rows.push([key, number(sample[key][i])]);
    for (const [key, value] of rows) {
      const row = make("tr", table);
      make("td", row, key, "quiet");
      make("td", row, value);
    }
    const box = span.getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const wantedTop = top === undefined ? box.bottom + 8 : top - size.height - 8;
    tip.style.left = `${Math.max(4, Math.min(left ?? box.left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${wantedTop + size.height > innerHeight ? box.top - size.height - 8 : Math.max(4, wantedTop)}px`;
  }

  function update(change) {
    Object.assign(state, change, { token: -1 });
    at("v-tip").hidden = true;
    drawControls();
    drawLegend();
    drawSample();
  }

  at("v-tokens").addEventListener("pointerover", (event) => {
    if (event.target.dataset.i !== undefined) point(Number(event.target.dataset.i));
  });
  at("v-tokens").addEventListener("pointerleave", () => point(-1));
  at("v-tokens").addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") point(-1);
    if (!move || !current()) return;
    event.preventDefault();
    const next = Math.min(current().tokens.length - 1, Math.max(0, state.token + move));
    document.querySelector(`.token[data-i="${next}"]`).scrollIntoView({ block: "nearest" });
    point(next);
  });
  at("viewer").hidden = false;
  update({});
})();
