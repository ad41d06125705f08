// Where the viewer's data come from: the local server, or the page itself. Both answer with promises.

function servedSource() {
  const kept = new Map();
  async function get(path, query) {
    const address = `data/${path}${query ? `?${new URLSearchParams(query)}` : ""}`;
    let answer;
    try {
      answer = await fetch(address);
    } catch {
      throw new Error("The server does not answer. Start `vapo view` again.");
    }
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
  function once(path, query) {
    const key = `${path}?${query ? new URLSearchParams(query) : ""}`;
    if (!kept.has(key)) {
      if (kept.size > 400) kept.clear();
      kept.set(key, get(path, query));
      kept.get(key).catch(() => kept.delete(key));
    }
    return kept.get(key);
  }
  return {
    index: (run, step) => once(`${run}/index/${step}`),
    row: async (run, step, n) => (await once(`${run}/rows/${step}`, { n }))[n],
    search: async (run, step, words) => new Set(await once(`${run}/search/${step}`, { q: words })),
    history: (run, prompt) => once(`${run}/history`, { prompt }),
  };
}

function embeddedSource(data) {
  const part = (run, step) => data.parts[`${run}/${step}`];
  const asked = ({ prompt }) =>
    typeof prompt === "string" ? prompt : prompt.findLast(({ role }) => role === "user")?.content;
  const searched = (row) => [asked(row), row.response, row.reason, row.final_answer];
  return {
    index: async (run, step) => part(run, step).index,
    row: async (run, step, n) => part(run, step).rows[n],
    search: async (run, step, words) => {
      const needle = words.toLowerCase();
      const has = ([, row]) => searched(row).some((text) => text && String(text).toLowerCase().includes(needle));
      return new Set(Object.entries(part(run, step).rows).filter(has).map(([n]) => Number(n)));
    },
    history: async (run, prompt) => data.runs[run].steps.flatMap(({ key, label }) => {
      const { prompts, rows } = part(run, key).index;
      const place = prompts.findIndex(([id]) => id === prompt);
      const verdicts = rows.verdict.filter((_, n) => rows.prompt[n] === place);
      return place < 0 ? [] : [{ key, label, verdicts }];
    }),
  };
}
