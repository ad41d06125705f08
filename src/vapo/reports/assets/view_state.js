// What the viewer shows: its state, the state's form in the address, and which responses pass its filters.
// Nothing here touches the page; tests run it in node.

const VERDICTS = ["right", "wrong", "invalid"];
const COLOURINGS = ["value", "advantage", "td", "entropy", "log_ratio", "logp"];
const SORTS = ["order", "mixed first", "best first", "worst first", "longest first"];
const DEFAULTS = {
  step: "", prompt: "", sample: "", token: "", view: "one", colour: "", sort: "order",
  verdict: "", end: "", record: "", min: "", max: "", name: "", q: "", both: "",
};

// "#step=step_000010&prompt=p7" as a state. What is unknown is left out; other anchors of a page are no state.
function readFragment(hash) {
  const state = { ...DEFAULTS };
  if (!hash.includes("=")) return state;
  for (const [key, value] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (Object.hasOwn(DEFAULTS, key)) state[key] = value;
  }
  return state;
}

function writeFragment(state) {
  const told = new URLSearchParams();
  for (const key of Object.keys(DEFAULTS)) {
    if (state[key] !== DEFAULTS[key]) told.set(key, state[key]);
  }
  return `#${told}`;
}

// Whether response n of the index passes the filters. `found` is the set of search results, null without a search.
function passes(rows, n, state, found) {
  const verdicts = state.verdict ? state.verdict.split(",") : VERDICTS;
  const tokens = rows.tokens[n] ?? 0;
  return (
    verdicts.includes(rows.verdict[n]) &&
    (state.end === "" || rows.truncated[n] === (state.end === "cut")) &&
    (state.record === "" || rows.full[n] === (state.record === "full")) &&
    (state.min === "" || tokens >= Number(state.min)) &&
    (state.max === "" || tokens <= Number(state.max)) &&
    (found === null || found.has(n))
  );
}

// The index's groups: responses to one prompt that pass, with their mean reward. Groups without any are left out.
function shownGroups(index, state, found = null) {
  const groups = index.prompts.map(([id, name]) => ({ id, name, rows: [], all: 0 }));
  index.rows.prompt.forEach((place, n) => {
    groups[place].all += 1;
    if (passes(index.rows, n, state, found)) groups[place].rows.push(n);
  });
  const words = state.name.toLowerCase();
  const named = (group) => !words || `${group.name}\n${group.id}`.toLowerCase().includes(words);
  const kept = groups.filter((group) => group.rows.length && named(group));
  for (const group of kept) {
    const rewards = group.rows.map((n) => index.rows.reward[n]).filter((x) => x !== null);
    group.mean = rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
    group.spread = rewards.length ? Math.max(...rewards) - Math.min(...rewards) : 0;
    group.longest = Math.max(...group.rows.map((n) => index.rows.tokens[n] ?? 0));
  }
  return sortedGroups(kept, state.sort);
}

function sortedGroups(groups, sort) {
  const keys = {
    "mixed first": (g) => -g.spread,
    "best first": (g) => -(g.mean ?? -Infinity),
    "worst first": (g) => g.mean ?? Infinity,
    "longest first": (g) => -g.longest,
  };
  const key = keys[sort];
  return key ? [...groups].sort((a, b) => key(a) - key(b) || 0) : groups;
}

// How many responses of an index have each verdict.
function tally(rows) {
  const counts = { right: 0, wrong: 0, invalid: 0 };
  for (const verdict of rows.verdict) counts[verdict] += 1;
  return counts;
}

// The step of another run that is nearest to a step; of the same phase where it has some.
function nearestStep(steps, wanted) {
  const same = steps.filter((step) => step.phase === wanted.phase);
  const distance = (step) => Math.abs(step.step - wanted.step);
  return (same.length ? same : steps).reduce((a, b) => (a === null || distance(b) < distance(a) ? b : a), null);
}

// The item `by` places after the current one, held at the ends; the first if there is no current one.
function moved(items, at, by) {
  if (!items.length) return undefined;
  return items[at < 0 ? 0 : Math.min(items.length - 1, Math.max(0, at + by))];
}

// (γλ)^l δ_{t+l}: what each later token adds to the advantage of token `from`. Null before it, and where the
// environment wrote; such tokens do not count in l. `lam` is one number, or one for each token.
function weightedErrors(errors, lam, gamma, from) {
  let weight = 1;
  return errors.map((error, i) => {
    if (i < from || error === null) return null;
    const part = weight * error;
    weight *= gamma * (Array.isArray(lam) ? lam[i] : lam);
    return part;
  });
}

// The turns as {author, start, end}.
function turnSpans(turns) {
  let start = 0;
  return turns.map(([author, count]) => {
    const span = { author, start, end: start + count };
    start += count;
    return span;
  });
}

function plainNumber(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  const text = Number.isInteger(x) || size >= 100 ? x.toFixed(0) : size < 0.001 ? x.toPrecision(2) : x.toFixed(3);
  return text.replace("-", "−");
}

// A number at the end of a scale: short.
function shortNumber(x) {
  return String(Number(x.toPrecision(2))).replace("-", "−");
}

function answerText(answer) {
  return typeof answer === "string" ? answer : JSON.stringify(answer);
}
