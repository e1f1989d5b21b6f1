// The picker of a cache or a decoder, with controls for its parameters: all from what the server tells of them.

/** "name:key=value,key=value" as a name and its values. */
export function parse(spec) {
  const [name, ...rest] = spec.split(":");
  const pairs = rest.join(":").split(",").filter(Boolean).map((part) => part.split(/=(.*)/s).slice(0, 2));
  return { name: name.trim(), values: Object.fromEntries(pairs.map((pair) => pair.map((text) => text.trim()))) };
}

/** How a spec writes a value: none, true and false in lower case. */
const spell = (value) => (value === null ? "none" : String(value)).replace(/^(None|True|False)$/, (word) => word.toLowerCase());

const element = (kind, text, parent) => {
  const made = document.createElement(kind);
  made.textContent = text;
  parent.append(made);
  return made;
};

export class StrategyPicker {
  /**
   * @param root a fieldset with a select, a place for what is said about it and one for parameters
   * @param named how many parameters specs name even at their defaults: those that one looks for in them
   */
  constructor(root, named) {
    this.named = named;
    this.root = root;
    this.select = root.querySelector("select.name");
    this.select.addEventListener("input", () => this.#build({})); // before the form hears of it
    this.entries = [];
  }

  /** @param spec what is chosen at first */
  fill(entries, spec) {
    const { name, values } = parse(spec);
    this.entries = entries;
    this.select.replaceChildren();
    for (const entry of entries) element("option", entry.name, this.select).value = entry.name;
    this.select.disabled = false;
    this.select.value = name;
    this.#build(values);
  }

  get entry() {
    return this.entries.find(({ name }) => name === this.select.value);
  }

  #build(values) {
    const { summary, source, parameters } = this.entry;
    const about = this.root.querySelector(".about");
    about.replaceChildren(summary.replaceAll("`", ""));
    if (source) element("span", ` ${source}`, about).className = "source";
    const place = this.root.querySelector(".parameters");
    place.replaceChildren();
    for (const parameter of parameters) {
      const { name } = parameter;
      const row = element("div", "", place);
      const id = `${this.root.id}-${name}`;
      element("label", name, row).htmlFor = id;
      const control = this.#control(parameter, spell(values[name] ?? parameter.default), row);
      control.id = id;
      control.dataset.parameter = name;
    }
  }

  /** A control of the parameter's type: a list, a number, or text. */
  #control({ type, choices, default: given }, value, row) {
    const kinds = String(type).split("|").map((kind) => kind.trim());
    const listed = choices ?? (kinds.includes("bool") ? ["false", "true"] : null);
    if (listed) {
      const select = element("select", "", row);
      for (const choice of listed) element("option", spell(choice), select);
      select.value = value;
      return select;
    }
    const input = element("input", "", row);
    const optional = given === null || kinds.some((kind) => /^none(type)?$/i.test(kind));
    if (kinds.includes("int") || kinds.includes("float")) {
      input.type = "number";
      input.step = kinds.includes("float") ? "any" : "1";
    }
    input.value = value === "none" ? "" : value;
    input.placeholder = optional ? "none" : spell(given);
    input.dataset.empty = optional ? "none" : spell(given);
    return input;
  }

  /** The spec of what is chosen; of parameters at their defaults it names the first ones alone. */
  get spec() {
    const changed = this.entry.parameters.flatMap(({ name, default: given }, index) => {
      const control = this.root.querySelector(`[data-parameter="${CSS.escape(name)}"]`);
      const value = control.value.trim() || (control.dataset.empty ?? "");
      return value === "" || (value === spell(given) && index >= this.named) ? [] : [`${name}=${value}`];
    });
    return changed.length ? `${this.entry.name}:${changed.join(",")}` : this.entry.name;
  }
}
