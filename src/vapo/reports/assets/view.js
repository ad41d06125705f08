// The viewer: one state, drawn anew where it changed. The state is in the address, so a link shows what its sender saw.

const data = JSON.parse(at("samples").textContent);
const source = data.served ? servedSource() : embeddedSource(data);
const runs = data.runs;
const two = runs.length > 1;
const list = groupList(at("v-scroll"), two ? 64 : 48, (group) => update({ prompt: group.id, sample: "", token: "" }));
let state = readFragment(location.hash);
if (!data.complete && !location.hash.includes("=")) state.record = "full"; // what is on this page
let drawnFor = 0; // counts drawings, so that an answer that comes too late is not drawn
let index = null, other = null, groups = [], cards = [], scale = {};

const steps = () => runs[0].steps;
const step = () => steps().find(({ key }) => key === state.step) || steps()[steps().length - 1];
const group = () => groups.find(({ id }) => id === state.prompt) || groups[0];
const colourings = () => COLOURINGS.filter((key) => scale[key]);
const colour = () => (colourings().includes(state.colour) ? state.colour : colourings()[0] || "");

function update(change) {
  state = { ...state, ...change };
  history.replaceState(null, "", writeFragment(state));
  draw(change);
}

async function draw(change = null) {
  const mine = (drawnFor += 1);
  at("viewer").ariaBusy = "true";
  try {
    await loadStep(mine);
    if (mine !== drawnFor) return;
    const onlyText = change && Object.keys(change).every((key) => ["min", "max", "name", "q"].includes(key));
    drawBar();
    // a field that is being written in stays as it is
    if (!onlyText) drawFilters(at("v-filters"), state, tally(index.rows), update);
    drawNote();
    list.show(groups, group()?.id ?? "", index, other && verdictsByPrompt(other));
    await drawMain(mine);
  } catch (error) {
    if (mine !== drawnFor) return;
    at("v-main").replaceChildren();
    make("p", at("v-main"), error.message, "alarm");
  }
  if (mine === drawnFor) at("viewer").ariaBusy = "false";
}

async function loadStep(mine) {
  if (state.q) at("v-chosen").textContent = "Searching …";
  const loaded = await source.index(0, step().key);
  const found = state.q ? await source.search(0, step().key, state.q) : null;
  const beside = two && runs[1].steps.length ? await source.index(1, nearestStep(runs[1].steps, step()).key) : null;
  if (mine !== drawnFor) return;
  [index, other] = [loaded, beside];
  scale = commonScale([index.scale, ...(other ? [other.scale] : [])]);
  groups = shownGroups(index, state, found);
  if (state.both && other) {
    const there = new Set(other.prompts.map(([id]) => id));
    groups = groups.filter(({ id }) => there.has(id));
  }
}

// One scale for both runs, so that equal colours mean equal numbers.
function commonScale(scales) {
  const joined = {};
  for (const key of COLOURINGS) {
    const ends = scales.map((s) => s[key]).filter((end) => end !== null && end !== undefined);
    if (!ends.length) joined[key] = null;
    else if (key === "value") joined[key] = [Math.min(...ends.map((e) => e[0])), Math.max(...ends.map((e) => e[1]))];
    else joined[key] = Math.max(...ends);
  }
  return joined;
}

function verdictsByPrompt(loaded) {
  const found = new Map();
  loaded.rows.prompt.forEach((place, n) => {
    const id = loaded.prompts[place][0];
    found.set(id, [...(found.get(id) || []), loaded.rows.verdict[n]]);
  });
  return found;
}

function drawBar() {
  const bar = at("v-bar");
  bar.replaceChildren();
  const move = make("div", bar, undefined, "group");
  pressButton(move, "‹", null, () => moveStep(-1)).setAttribute("aria-label", "step before");
  choice(move, "step", steps().map(({ key, label }) => [key, label]), step().key, (key) => update({ step: key, token: "" }));
  pressButton(move, "›", null, () => moveStep(1)).setAttribute("aria-label", "next step");
  const views = make("div", bar, undefined, "group");
  for (const [key, name] of [["one", "one response"], ["side", "side by side"]]) {
    pressButton(views, name, state.view === key, () => update({ view: key }));
  }
  if (two) pressButton(views, "in both runs", Boolean(state.both), () => update({ both: state.both ? "" : "1" }));
  const colours = make("div", bar, undefined, "group");
  make("span", colours, "colour by", "quiet small");
  for (const key of colourings()) {
    pressButton(colours, COLOURS[key].name, key === colour(), () => update({ colour: key }));
  }
  pressButton(bar, "?", null, () => at("v-help").showModal()).setAttribute("aria-label", "keys");
  drawLegend(at("v-legend"), colour(), scale[colour()]);
}

function drawNote() {
  const { rows } = index;
  const full = rows.full.filter(Boolean).length, all = rows.full.length, shown = groups.reduce((n, g) => n + g.rows.length, 0);
  const count = (n) => n.toLocaleString("en");
  const some = `${count(full)} of them ${data.complete ? "recorded" : "here"} token by token`;
  const limit = data.complete ? `, the others as text (trainer.save_rollouts_in_full: ${runs[0].in_full ?? "?"})` : "";
  const told = full === all ? "all token by token" : some + limit;
  const every = runs[0].every > 1 ? ` Recorded are the first step, every ${runs[0].every} steps, and the last.` : "";
  const prompts = groups.length === 1 ? "one prompt" : `${count(groups.length)} prompts`;
  at("v-chosen").textContent = `${count(shown)} of ${count(all)} responses, ${prompts}; ${told}.${every}`;
}

async function drawMain(mine) {
  const main = at("v-main");
  const chosen = group();
  if (!chosen) {
    main.replaceChildren();
    make("p", main, "No response of this step passes the filters.", "quiet");
    return undefined;
  }
  const first = await source.row(0, index.key, chosen.rows[0]);
  if (mine !== drawnFor) return undefined;
  cards = [];
  hideTip();
  main.replaceChildren();
  drawPrompt(make("section", main, undefined, "prompt"), chosen, first);
  const panes = make("div", main, undefined, two ? "panes two" : "panes");
  const ours = drawPane(make("section", panes, undefined, "pane"), 0, index, chosen.rows, mine);
  if (!two) return ours;
  const pane = make("section", panes, undefined, "pane");
  const place = other ? other.prompts.findIndex(([id]) => id === chosen.id) : -1;
  const rows = other ? [...other.rows.prompt.keys()].filter((n) => other.rows.prompt[n] === place) : [];
  return Promise.all([ours, rows.length ? drawPane(pane, 1, other, rows, mine) : drawAbsent(pane, chosen.id)]);
}

function drawPrompt(section, chosen, row) {
  const details = make("details", section);
  details.open = true;
  const summary = make("summary", details, chosen.name);
  make("span", summary, ` ${chosen.id}`, "quiet small");
  drawMessages(make("div", details, undefined, "messages"), row ? row.prompt : chosen.name);
  if (row && row.answer !== null && row.answer !== undefined) {
    const gold = make("p", section, undefined, "gold");
    fact(gold, "gold answer", answerText(row.answer));
  }
  const through = make("div", section, undefined, "through");
  source.history(0, chosen.id).then((found) => {
    if (found.length < 2) return;
    make("span", through, "through training", "quiet small");
    for (const { key, label, verdicts } of found) {
      const button = pressButton(through, label, key === index.key, () => update({ step: key, prompt: chosen.id, sample: "", token: "" }));
      dots(button, verdicts, 8);
    }
  }, () => {});
}

function drawMessages(parent, prompt) {
  if (typeof prompt === "string") {
    make("pre", parent, prompt);
    return;
  }
  for (const { role, content } of prompt) {
    const message = make("div", parent, undefined, "message");
    make("div", message, role, "role");
    make("pre", message, content);
  }
}

async function drawAbsent(pane, prompt) {
  make("h3", pane, runs[1].name);
  const found = await source.history(1, prompt);
  const where = found.length ? `It is recorded in ${found.map(({ label }) => label).join(", ")}.` : "No recorded step has it.";
  const near = runs[1].steps.length ? nearestStep(runs[1].steps, step()).label : "its steps";
  make("p", pane, `This prompt is not in ${near} of this run. ${where}`, "quiet");
}

function drawPane(pane, run, loaded, rows, mine) {
  if (two) {
    const { label } = runs[run].steps.find(({ key }) => key === loaded.key);
    make("h3", pane, runs[run].name).append(make("span", null, ` ${label}`, "quiet"));
  }
  const samples = rows.map((n) => String(loaded.rows.sample[n] ?? n));
  const chosen = rows[Math.max(0, samples.indexOf(state.sample))];
  if (state.view === "side") {
    const columns = make("div", pane, undefined, "columns-of");
    const watch = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watch.unobserve(target);
        drawCard(target, run, loaded, target.row, mine);
      }
    }, { root: columns, rootMargin: "400px" });
    for (const n of rows) {
      const card = make("article", columns, undefined, "card-of");
      card.row = n;
      watch.observe(card);
      if (run === 0 && n === chosen && state.sample !== "") requestAnimationFrame(() => card.scrollIntoView({ block: "nearest", inline: "nearest" }));
    }
    return undefined;
  }
  const chips = make("div", pane, undefined, "group chips");
  rows.forEach((n, i) => {
    const chip = pressButton(chips, samples[i], n === chosen, () => update({ sample: samples[i], token: "" }), loaded.rows.verdict[n]);
    chip.title = `response ${samples[i]}: ${loaded.rows.verdict[n]}, ${loaded.rows.tokens[n]} tokens`;
  });
  return drawCard(make("article", pane), run, loaded, chosen, mine);
}

async function drawCard(article, run, loaded, n, mine) {
  const row = await source.row(run, loaded.key, n).catch((error) => ({ error }));
  if (mine !== drawnFor) return;
  const sample = String(loaded.rows.sample[n] ?? n);
  if (!row || row.error) {
    make("p", article, row ? row.error.message : `Response ${sample} is not on this page. All are in: vapo view RUN`, "quiet");
    return;
  }
  if (state.view === "side") make("div", article, `response ${sample}`, "quiet small");
  const focused = run === 0 && (state.sample === sample || (state.sample === "" && n === group().rows[0]));
  const card = responseCard(article, row, {
    colour: colour(),
    scale,
    gamma: runs[run].gamma,
    token: focused && state.token !== "" ? Number(state.token) : -1,
    recorded: "Of this response only the text was recorded (trainer.save_rollouts_in_full).",
    onPin: (i) => {
      if (run !== 0) return;
      state = { ...state, sample, token: i < 0 ? "" : String(i) };
      history.replaceState(null, "", writeFragment(state));
    },
  });
  if (focused) cards = [card];
}

function moveStep(by) {
  const next = moved(steps(), steps().indexOf(step()), by);
  if (next && next.key !== step().key) update({ step: next.key, token: "" });
}

function moveGroup(by) {
  const next = moved(groups, groups.indexOf(group()), by);
  if (next) update({ prompt: next.id, sample: "", token: "" });
}

function moveSample(by) {
  const rows = group()?.rows || [];
  const samples = rows.map((n) => String(index.rows.sample[n] ?? n));
  const next = moved(samples, Math.max(0, samples.indexOf(state.sample)), by);
  if (next !== undefined) update({ sample: next, token: "" });
}

const KEYS = {
  j: () => moveGroup(1),
  k: () => moveGroup(-1),
  l: () => moveSample(1),
  h: () => moveSample(-1),
  "]": () => moveStep(1),
  "[": () => moveStep(-1),
  c: () => update({ colour: colourings()[(colourings().indexOf(colour()) + 1) % colourings().length] }),
  s: () => update({ view: state.view === "one" ? "side" : "one" }),
  "/": () => at("v-search").focus(),
  "?": () => at("v-help").showModal(),
  ArrowRight: () => cards[0]?.step(1),
  ArrowLeft: () => cards[0]?.step(-1),
  Escape: () => { cards[0]?.pin(-1); hideTip(); },
};

// In a page with more than the viewer, keys are the viewer's once it was clicked.
let engaged = document.body.dataset.page === "view";
document.addEventListener("pointerdown", (event) => {
  engaged = document.body.dataset.page === "view" || at("viewer").contains(event.target);
});
document.addEventListener("keydown", (event) => {
  const writing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || at("v-help").open) return;
  if (writing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!engaged || !steps().length) return;
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});
addEventListener("hashchange", () => {
  if (!location.hash.includes("=")) return;
  state = readFragment(location.hash);
  draw();
});
at("v-help").addEventListener("click", () => at("v-help").close());
at("viewer").hidden = false;
if (steps().length) draw();
else make("p", at("v-main"), "No responses are recorded yet: see trainer.save_rollouts_every.", "quiet");
