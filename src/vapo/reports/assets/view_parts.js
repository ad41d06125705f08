// Small parts of the page. Text goes into it only through textContent.

const at = (id) => document.getElementById(id);

function make(tag, parent, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  if (className) element.className = className;
  if (parent) parent.append(element);
  return element;
}

function drawing(tag, parent, attributes, colour) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (colour) element.style.stroke = `var(--${colour})`;
  parent.append(element);
  return element;
}

function pressButton(parent, text, pressed, onPress, dot) {
  const button = make("button", parent);
  button.type = "button";
  if (dot) make("span", button, "", `dot ${dot}`);
  button.append(text);
  if (pressed !== null) button.setAttribute("aria-pressed", String(pressed));
  button.addEventListener("click", onPress);
  return button;
}

function choice(parent, label, options, chosen, onChoose) {
  const select = make("select", parent);
  select.setAttribute("aria-label", label);
  for (const [value, text] of options) {
    const option = make("option", select, text);
    option.value = value;
    option.selected = value === chosen;
  }
  select.addEventListener("change", () => onChoose(select.value));
  return select;
}

// A field that answers when its reader pauses.
function field(parent, label, value, onInput, type = "search") {
  const input = make("input", parent);
  Object.assign(input, { type, value, placeholder: label });
  input.setAttribute("aria-label", label);
  let waiting;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => onInput(input.value.trim()), 250);
  });
  return input;
}

function fact(parent, key, value) {
  const span = make("span", parent, `${key} `, "quiet");
  make("b", span, String(value));
  return span;
}

function dots(parent, verdicts, most) {
  const row = make("span", parent, undefined, "dots");
  for (const verdict of verdicts.slice(0, most)) make("span", row, "", `dot ${verdict}`);
  if (verdicts.length > most) make("span", row, `+${verdicts.length - most}`, "quiet");
  return row;
}

function mixed(colour, share) {
  return `color-mix(in srgb, var(--${colour}) ${(100 * Math.min(1, Math.max(0, share))).toFixed(0)}%, transparent)`;
}

// A token in a sentence: blanks are visible.
function visible(token) {
  if (token === "") return "(empty)";
  return token.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/ /g, "␣");
}
