// The left side: filters, and the list of prompts. Only the lines in view are in the page, so 8,192 are no burden.

const MOST_DOTS = 18;

// `change(part of the state)` is called on every choice.
function drawFilters(parent, state, counts, change) {
  parent.replaceChildren();
  const chosen = state.verdict ? state.verdict.split(",") : VERDICTS;
  const verdicts = make("div", parent, undefined, "group");
  for (const verdict of VERDICTS) {
    pressButton(verdicts, `${verdict} ${counts[verdict].toLocaleString("en")}`, chosen.includes(verdict), () => {
      const next = VERDICTS.filter((v) => (v === verdict) !== chosen.includes(v));
      change({ verdict: next.length === VERDICTS.length || !next.length ? "" : next.join(",") });
    }, verdict);
  }
  const row = make("div", parent, undefined, "group");
  choice(row, "end", [["", "any end"], ["cut", "cut off"], ["stop", "finished"]], state.end, (end) => change({ end }));
  choice(row, "record", [["", "all"], ["full", "with tokens"], ["text", "text only"]], state.record,
    (record) => change({ record }));
  choice(row, "sort", SORTS.map((name) => [name, name]), state.sort, (sort) => change({ sort }));
  const lengths = make("div", parent, undefined, "group lengths");
  make("span", lengths, "tokens", "quiet small");
  field(lengths, "from", state.min, (min) => change({ min }), "number");
  field(lengths, "to", state.max, (max) => change({ max }), "number");
  field(parent, "prompt", state.name, (name) => change({ name }));
  field(parent, "search prompts and responses ( / )", state.q, (q) => change({ q })).id = "v-search";
}

// A list of groups. `open(group)` is called on a click; `others` are verdicts of another run by prompt id, or null.
function groupList(scroll, height, open) {
  const sizer = make("div", scroll, undefined, "sizer");
  let groups = [], selected = "", index = null, others = null;

  function draw() {
    const first = Math.max(0, Math.floor(scroll.scrollTop / height) - 5);
    const last = Math.min(groups.length, first + Math.ceil(scroll.clientHeight / height) + 10);
    sizer.style.height = `${groups.length * height}px`;
    sizer.replaceChildren();
    for (let place = first; place < last; place++) {
      const group = groups[place];
      const button = make("button", sizer, undefined, "line");
      button.type = "button";
      button.style.top = `${place * height}px`;
      button.style.height = `${height}px`;
      button.title = group.id;
      button.setAttribute("aria-pressed", String(group.id === selected));
      make("span", button, group.name || "(empty)", "name");
      const row = make("span", button, undefined, "of");
      dots(row, group.rows.map((n) => index.rows.verdict[n]), MOST_DOTS);
      make("span", row, plainNumber(group.mean), "quiet");
      if (others) dots(make("span", button, undefined, "of"), others.get(group.id) || [], MOST_DOTS);
      button.addEventListener("click", () => open(group));
    }
  }

  scroll.addEventListener("scroll", draw);
  new ResizeObserver(draw).observe(scroll);
  return {
    show(newGroups, newSelected, newIndex, newOthers) {
      [groups, selected, index, others] = [newGroups, newSelected, newIndex, newOthers];
      const place = groups.findIndex((group) => group.id === selected);
      const top = place * height;
      if (place >= 0 && (top < scroll.scrollTop || top + height > scroll.scrollTop + scroll.clientHeight)) {
        sizer.style.height = `${groups.length * height}px`;
        scroll.scrollTop = top - scroll.clientHeight / 2;
      }
      draw();
    },
  };
}
