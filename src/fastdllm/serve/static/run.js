// One answer as it grows: its numbers, its canvas, its text.

import { Canvas } from "./canvas.js";

const EVERY = 100; // milliseconds between two looks at the clock

export class Run {
  /** @param name what the heading says */
  constructor(name, tip) {
    this.root = document.getElementById("run-template").content.firstElementChild.cloneNode(true);
    this.at = (selector) => this.root.querySelector(selector);
    this.at("h2").textContent = this.name = name;
    this.at(".canvas").setAttribute("aria-label", `Canvas, ${name.toLowerCase()}; arrow keys move between its slots`);
    this.canvas = new Canvas(this.at(".canvas"), this.at(".scale"), tip);
    this.tip = tip;
  }

  /** An empty canvas. */
  reset(spec, slots, block) {
    this.slots = slots;
    this.blocks = Math.ceil(slots / block);
    this.frame = null;
    this.rows = 0;
    this.seconds = 0;
    this.at(".spec").textContent = spec;
    this.at(".answer").textContent = "";
    this.canvas.reset(slots, block);
    this.say("");
    this.#count();
  }

  /**
   * Read passes until the answer is finished; drawn at most once for each frame of the screen.
   * @param passes the asynchronous generator of Api.passes
   */
  async follow(passes) {
    this.started = performance.now();
    this.root.classList.add("running");
    this.say("sent; the server has not begun");
    const clock = setInterval(() => this.#tick(), EVERY);
    try {
      for await (const frame of passes) this.#take(frame);
    } finally {
      clearInterval(clock);
      this.root.classList.remove("running");
      this.#draw();
    }
  }

  #take(frame) {
    this.seconds = (performance.now() - this.started) / 1000;
    this.rows += frame.rows_computed;
    this.frame = frame;
    this.drawing ??= requestAnimationFrame(() => this.#draw());
  }

  #tick() {
    if (!this.frame?.finish_reason) this.seconds = (performance.now() - this.started) / 1000;
    this.#count();
  }

  #draw() {
    cancelAnimationFrame(this.drawing);
    this.drawing = null;
    if (!this.frame) return;
    this.canvas.show(this.frame);
    const text = this.frame.text.trimStart();
    if (this.at(".answer").textContent !== text) this.at(".answer").textContent = text;
    this.say(this.#sentence());
    this.#count();
    this.tip.refresh();
  }

  /** Tokens of the answer: those committed left of its end. */
  get tokens() {
    const { committed_at: at, end } = this.frame;
    return at.slice(0, end ?? at.length).filter(Boolean).length;
  }

  get passes() {
    return this.frame ? this.frame.nfe : 0;
  }

  get finished() {
    return Boolean(this.frame?.finish_reason);
  }

  #sentence() {
    const { finish_reason: why, block, committed_at: at } = this.frame;
    if (why) return why === "stop" ? "finished: the model ended its answer" : "finished: every slot is filled";
    const filled = at.filter(Boolean).length;
    return `block ${block + 1} of ${this.blocks}, ${filled} of ${this.slots} slots`;
  }

  #count() {
    const { frame, seconds } = this;
    const tokens = frame ? this.tokens : 0;
    this.#put("passes", frame ? String(frame.nfe) : "–");
    this.#put("tpf", frame ? (tokens / frame.nfe).toFixed(2) : "–");
    this.#put("rate", frame && seconds ? figures(tokens / seconds) : "–");
    this.#put("seconds", seconds ? seconds.toFixed(2) : "–");
    this.#put("rows", frame ? this.rows.toLocaleString("en") : "–");
  }

  #put(name, text) {
    const cell = this.at(`[data-count=${name}]`);
    if (cell.textContent !== text) cell.textContent = text;
  }

  /** What is going on, beside the heading. */
  say(text) {
    if (this.at(".state").textContent !== text) this.at(".state").textContent = text;
  }
}

/** A number with one decimal where it is small. */
const figures = (number) => number.toLocaleString("en", { maximumFractionDigits: number < 100 ? 1 : 0 });
