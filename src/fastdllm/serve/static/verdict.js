// The two answers compared, once both are there.

const BLANK = { figure: "–", detail: "after both runs" };

/** What stands there until both are finished. */
export function clear(root) {
  const words = { passes: "fewer passes", seconds: "faster", rows: "fewer rows" };
  for (const [name, what] of Object.entries(words)) write(root, name, { ...BLANK, what });
}

/**
 * Fill `root` with what the comparison says, and return it as a sentence.
 * @param together whether both ran at the same time: then their times say nothing
 */
export function compare(root, fast, plain, together) {
  const parts = {
    passes: part(plain.passes, fast.passes, "fewer passes", "more passes", String),
    seconds: part(plain.seconds, fast.seconds, "faster", "slower", (value) => `${value.toFixed(2)} s`),
    rows: part(plain.rows, fast.rows, "fewer rows", "more rows", (value) => value.toLocaleString("en")),
  };
  if (together) parts.seconds = { figure: "–", what: "time not compared", detail: "both ran at the same time" };
  for (const [name, said] of Object.entries(parts)) write(root, name, said);
  const found = Object.values(parts).filter(({ figure }) => figure !== "–");
  return `${found.map(({ figure, what }) => `${figure} ${what}`).join(", ")}.`;
}

function write(root, name, { figure, what, detail }) {
  const place = root.querySelector(`[data-part=${name}]`);
  for (const [tag, text] of [["strong", figure], ["span", what], ["small", detail]]) {
    place.querySelector(tag).textContent = text;
  }
}

function part(before, now, less, more, spell) {
  const ratio = before / now;
  const said = ratio >= 1 ? ratio : 1 / ratio;
  return {
    figure: `${said.toFixed(said < 100 ? 1 : 0)}×`,
    what: ratio >= 1 ? less : more,
    detail: `${spell(now)} instead of ${spell(before)}`,
  };
}
