// The canvas of one answer: a cell for each slot, coloured by the pass that committed it, and a tip that tells of one.

const VISIBLE = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
const FIRST_TOP = 8; // passes that the colours span at first
const LONG = 64; // blocks from which on those out of sight are not laid out

/** Text in one line: what breaks or moves a line is shown as a sign. What a model wrote is only ever set as text. */
const visible = (text) => text.replace(/[\n\t\r]/g, (character) => VISIBLE[character]);

const element = (kind, name) => {
  const made = document.createElement(kind);
  made.className = name;
  return made;
};

export class Canvas {
  /**
   * @param root the element that holds the blocks
   * @param scale the element with the legend of the colours
   */
  constructor(root, scale, tip) {
    this.root = root;
    this.scale = scale;
    this.cells = [];
    this.followed = true;
    tip.watch(this);
    for (const kind of ["wheel", "touchmove", "pointerdown", "keydown"]) {
      root.addEventListener(kind, () => (this.followed = false), { passive: true });
    }
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  /** As many masked slots, in blocks. */
  reset(slots, block) {
    this.blockLength = Math.max(1, Math.min(block, slots));
    this.frame = this.working = null;
    this.followed = true;
    this.cells = [];
    this.shown = { text: Array(slots).fill(""), at: Array(slots).fill(0), name: Array(slots).fill("slot open") };
    this.blocks = [];
    for (let first = 0; first < slots; first += this.blockLength) {
      const block = this.#block(first, Math.min(first + this.blockLength, slots));
      this.blocks.push(block);
    }
    this.root.replaceChildren(...this.blocks);
    this.root.classList.toggle("long", this.blocks.length > LONG);
    this.root.scrollTop = 0;
    this.#top(FIRST_TOP);
  }

  #block(first, end) {
    const block = element("div", "block");
    block.setAttribute("role", "group");
    block.setAttribute("aria-label", `Block ${this.blocks.length + 1}`);
    block.dataset.number = this.blocks.length + 1;
    for (let slot = first; slot < end; slot++) {
      const cell = element("span", "slot open");
      cell.setAttribute("role", "option");
      cell.dataset.slot = slot;
      cell.tabIndex = slot ? -1 : 0;
      this.cells.push(cell);
      block.append(cell);
    }
    return block;
  }

  /** The canvas as one pass left it; only cells that differ from what they show are touched. */
  show(frame) {
    if (frame.canvas.length !== this.cells.length) this.reset(frame.canvas.length, this.blockLength);
    this.frame = frame;
    for (let slot = 0; slot < this.cells.length; slot++) this.#update(slot);
    if (frame.finish_reason) this.#top(frame.nfe);
    else if (frame.nfe > this.top) this.#top(2 ** Math.ceil(Math.log2(frame.nfe)));
    const working = frame.finish_reason ? null : this.blocks[frame.block];
    if (working === this.working) return;
    this.working?.classList.remove("at-work");
    working?.classList.add("at-work");
    this.working = working;
    if (working) this.#follow(working);
  }

  #update(slot) {
    const { shown, frame } = this;
    const cell = this.cells[slot];
    const at = frame.committed_at[slot];
    const text = at ? this.text(slot) : "";
    const name = this.#name(slot, at);
    if (text !== shown.text[slot]) cell.textContent = shown.text[slot] = text;
    if (name !== shown.name[slot]) cell.className = shown.name[slot] = name;
    if (at !== shown.at[slot]) {
      cell.style.setProperty("--pass", at);
      shown.at[slot] = at;
    }
  }

  #name(slot, at) {
    const { end, nfe, finish_reason: done } = this.frame;
    const beyond = end !== null && slot > end ? " beyond" : "";
    if (at) return `slot${at === nfe && !done ? " now" : ""}${beyond}`;
    return `slot ${this.shown.at[slot] ? "again" : "open"}${beyond}`;
  }

  /** What a committed slot shows. */
  text(slot) {
    return slot === this.frame.end ? "∎" : visible(this.frame.canvas[slot] ?? "");
  }

  /** Colours span the passes from 1 to `top`. It doubles while passes come, so that few of them colour all anew. */
  #top(top) {
    this.top = top;
    this.root.style.setProperty("--top", top);
    this.scale.querySelector(".last").textContent = top;
  }

  /** Keep the block at work in sight, unless the reader has taken the canvas over. */
  #follow(block) {
    if (!this.followed) return;
    const end = block.offsetTop + block.offsetHeight;
    if (end > this.root.scrollTop + this.root.clientHeight) this.root.scrollTop = end - this.root.clientHeight;
  }

  #move(event) {
    const from = Number(event.target.dataset.slot);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.blockLength, ArrowDown: this.blockLength };
    const ends = { Home: 0, End: this.cells.length - 1 };
    const to = event.key in ends ? ends[event.key] : from + steps[event.key];
    if (!(to >= 0 && to < this.cells.length) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    for (const cell of this.root.querySelectorAll("[tabindex='0']")) cell.tabIndex = -1;
    this.cells[to].tabIndex = 0;
    this.cells[to].focus();
  }

  /** What is known of a slot, a line each. */
  describe(slot) {
    const { frame } = this;
    const lines = [`Slot ${slot + 1}, block ${1 + Math.floor(slot / this.blockLength)}`];
    const at = frame ? frame.committed_at[slot] : 0;
    if (!at) lines.push(frame?.finish_reason ? "never filled: beyond the end" : "masked");
    else {
      lines.push(frame.end === slot ? "end token" : `“${visible(frame.canvas[slot] ?? "")}”`);
      lines.push(`committed in pass ${at}`, `confidence ${frame.confidence[slot].toFixed(3)}`);
    }
    return lines;
  }
}

/** Tells of the slot that the pointer or the focus is on. */
export class Tip {
  constructor(root) {
    this.root = root;
    this.on = null;
    document.addEventListener("scroll", () => this.refresh(), { capture: true, passive: true });
  }

  watch(canvas) {
    for (const kind of ["pointerover", "focusin", "click"]) {
      canvas.root.addEventListener(kind, (event) => {
        if (event.target.dataset.slot !== undefined) this.show(canvas, event.target);
      });
    }
    for (const kind of ["pointerleave", "focusout"]) canvas.root.addEventListener(kind, () => this.hide());
  }

  show(canvas, cell) {
    if (!cell.isConnected) return this.hide();
    this.on = { canvas, cell };
    const lines = canvas.describe(Number(cell.dataset.slot));
    const said = lines.join("\n");
    cell.setAttribute("aria-label", lines.join(", "));
    if (this.root.textContent !== said) this.root.textContent = said;
    this.root.hidden = false;
    const place = cell.getBoundingClientRect();
    const left = Math.min(place.left, document.documentElement.clientWidth - this.root.offsetWidth - 8);
    const below = place.bottom + this.root.offsetHeight + 8 < window.innerHeight;
    this.root.style.left = `${Math.max(8, left)}px`;
    this.root.style.top = `${below ? place.bottom + 6 : place.top - this.root.offsetHeight - 6}px`;
  }

  hide() {
    this.on = null;
    this.root.hidden = true;
  }

  /** After a pass or a scroll: what is told, or its place, may have changed. */
  refresh() {
    if (this.on) this.show(this.on.canvas, this.on.cell);
  }
}
