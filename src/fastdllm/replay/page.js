"use strict";
// Plays the recording that stands in the page. What the model wrote is only ever set as text.
(() => {
  const recording = JSON.parse(document.getElementById("recording").textContent);
  const at = (id) => document.getElementById(id);
  const SECONDS = 0.5; // a pass at speed 1
  const WIDEST = 14; // characters that a slot keeps room for
  const VISIBLE = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
  let prompt = 0;
  let pass = 0; // how many passes have been done
  let timer = null;
  let slots = [];
  let tokens = [];
  let canvas = [];

  const visible = (text) => text.replace(/[\n\t\r]/g, (character) => VISIBLE[character]);
  const passes = () => recording.prompts[prompt].passes;
  const element = (kind, name, parent) => {
    const made = document.createElement(kind);
    made.className = name;
    parent.append(made);
    return made;
  };

  /** The canvas after the first `count` passes: for each slot its text, token, pass and confidence, or null. */
  function canvasAfter(count) {
    const found = Array(recording.slots).fill(null);
    const texts = Array(recording.slots).fill("");
    passes().slice(0, count).forEach((one, index) => {
      for (const [slot, token, confidence] of one.written) found[slot] = { token, confidence, pass: index + 1 };
      for (const slot of one.opened) found[slot] = null;
      for (const [slot, text] of one.text) texts[slot] = text;
    });
    return found.map((slot, index) => slot && { ...slot, text: texts[index] });
  }

  function build() {
    const answer = at("answer");
    answer.replaceChildren();
    slots = [];
    for (let first = 0; first < recording.slots; first += recording.block) {
      const block = element("div", "block", answer);
      block.setAttribute("role", "group");
      block.setAttribute("aria-label", `Block ${1 + first / recording.block}`);
      for (let slot = first; slot < Math.min(first + recording.block, recording.slots); slot++) {
        const button = element("button", "slot", block);
        button.type = "button";
        button.tabIndex = slot ? -1 : 0;
        button.dataset.slot = slot;
        slots.push(button);
      }
    }
    keepRoom();
    at("prompt").replaceChildren();
    tokens = recording.prompts[prompt].tokens.map((text) => {
      const token = element("span", "token", at("prompt"));
      token.textContent = text;
      return token;
    });
    at("slider").max = passes().length;
    at("scale-last").textContent = passes().length;
  }

  /** Make each slot as wide as the longest text it will ever hold, so that nothing moves while it plays. */
  function keepRoom() {
    const widest = Array(recording.slots).fill(1);
    for (const one of passes()) {
      for (const [slot, text] of one.text) widest[slot] = Math.max(widest[slot], Math.min(WIDEST, text.length));
    }
    slots.forEach((slot, index) => slot.style.setProperty("--wide", widest[index]));
  }

  /** Show the canvas as it stands after `pass` passes. */
  function show() {
    const all = passes();
    const now = pass ? all[pass - 1] : null;
    const end = now ? now.answer : recording.slots;
    const done = Boolean(now && now.end);
    canvas = canvasAfter(pass);
    canvas.forEach((slot, index) => {
      const button = slots[index];
      const opened = Boolean(now && now.opened.includes(index));
      const named = ["slot"];
      if (opened) named.push("opened");
      else if (!slot) named.push("open");
      if (slot && slot.pass === pass) named.push("now");
      if (slot ? index > end : done) named.push("beyond");
      button.className = named.join(" ");
      button.textContent = slot ? visible(slot.text) : "·";
      button.style.setProperty("--when", slot ? (slot.pass - 1) / Math.max(1, all.length - 1) : 0);
      button.setAttribute("aria-label", describe(index).join(", "));
    });
    markComputed(now);
    document.querySelectorAll(".block").forEach((block, index) => {
      block.classList.toggle("at-work", index === (now ? now.block : 0));
    });
    at("slider").value = pass;
    at("slider").setAttribute("aria-valuetext", `pass ${pass} of ${all.length}`);
    at("status").textContent = sentence(now);
    if (timer === null) at("spoken").textContent = sentence(now);
    at("first").disabled = at("back").disabled = pass === 0;
    at("last").disabled = at("next").disabled = pass === all.length;
    refreshTip();
  }

  function markComputed(now) {
    const before = tokens.length;
    const computed = new Set();
    for (const [first, last] of (now && now.computed) || []) {
      for (let place = first; place < last; place++) computed.add(place);
    }
    tokens.forEach((token, place) => token.classList.toggle("computed", computed.has(place)));
    slots.forEach((slot, index) => slot.classList.toggle("computed", computed.has(before + index)));
  }

  function sentence(now) {
    const total = passes().length;
    if (!now) return `Pass 0 of ${total}: all slots are open`;
    const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
    const blocks = Math.ceil(recording.slots / recording.block);
    const parts = [
      `Pass ${pass} of ${total}`,
      `block ${now.block + 1} of ${blocks}`,
      `${count(now.written.length, "token")} committed`,
    ];
    if (now.opened.length) parts.push(`${now.opened.length} opened again`);
    parts.push(`${count(now.rows, "row")} computed, of a canvas of ${tokens.length + recording.slots}`);
    if (now.end) parts.push(now.end === "stop" ? "ended by an end token" : "all slots filled");
    return parts.join(" · ");
  }

  /** What is known of a slot, a line each. */
  function describe(index) {
    const slot = canvas[index];
    const lines = [`Slot ${index + 1}`];
    if (!slot) return [...lines, "open"];
    return [
      ...lines,
      `“${visible(slot.text)}” (token ${slot.token})`,
      `committed in pass ${slot.pass}`,
      `confidence ${slot.confidence.toFixed(3)}`,
    ];
  }

  let tipped = null;
  function showTip(button) {
    tipped = button;
    const tip = at("tip");
    tip.textContent = describe(Number(button.dataset.slot)).join("\n");
    tip.hidden = false;
    const place = button.getBoundingClientRect();
    const left = Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = place.bottom + tip.offsetHeight + 8 < window.innerHeight;
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${(below ? place.bottom + 6 : place.top - tip.offsetHeight - 6) + window.scrollY}px`;
  }
  function hideTip() {
    tipped = null;
    at("tip").hidden = true;
  }
  const refreshTip = () => tipped && showTip(tipped);

  function go(to) {
    pass = Math.max(0, Math.min(passes().length, to));
    show();
  }
  function step(by) {
    pause();
    go(pass + by);
  }
  function pause() {
    clearTimeout(timer);
    timer = null;
    at("play").textContent = "Play";
  }
  function play() {
    if (pass === passes().length) go(0);
    at("play").textContent = "Pause";
    const tick = () => {
      go(pass + 1);
      if (pass === passes().length) {
        pause();
        show();
      } else timer = setTimeout(tick, (1000 * SECONDS) / Number(at("speed").value));
    };
    timer = setTimeout(tick, 0);
  }
  const toggle = () => (timer === null ? play() : (pause(), show()));

  function choose(number) {
    pause();
    hideTip();
    prompt = number;
    pass = 0;
    build();
    show();
  }

  function moveFocus(from, key) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -recording.block, ArrowDown: recording.block };
    const to = Math.max(0, Math.min(slots.length - 1, from + steps[key]));
    slots.forEach((slot, index) => (slot.tabIndex = index === to ? 0 : -1));
    slots[to].focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const on = event.target;
    const slot = on.dataset && on.dataset.slot;
    const typing = on.matches("select, input");
    const actions = { ",": () => step(-1), ".": () => step(1), Escape: hideTip };
    if (slot !== undefined && event.key.startsWith("Arrow")) actions[event.key] = () => moveFocus(Number(slot), event.key);
    else if (!typing) Object.assign(actions, { ArrowLeft: () => step(-1), ArrowRight: () => step(1) });
    if (!typing) Object.assign(actions, { Home: () => step(-pass), End: () => step(passes().length - pass) });
    if (!on.matches("button, select")) actions[" "] = toggle;
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  });

  at("first").addEventListener("click", () => step(-pass));
  at("back").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("last").addEventListener("click", () => step(passes().length - pass));
  at("play").addEventListener("click", toggle);
  at("slider").addEventListener("input", (event) => (pause(), go(Number(event.target.value))));
  at("prompt-number").addEventListener("change", (event) => choose(Number(event.target.value)));
  for (const kind of ["mouseover", "focusin", "click"]) {
    at("answer").addEventListener(kind, (event) => event.target.dataset.slot !== undefined && showTip(event.target));
  }
  for (const kind of ["mouseleave", "focusout"]) at("answer").addEventListener(kind, hideTip);

  at("settings").textContent = [
    `${recording.slots} slots in blocks of ${recording.block}`,
    ...Object.entries(recording.settings).map(([name, value]) => `${name} ${value}`),
  ].join(" · ");
  recording.prompts.forEach((one, index) => {
    const option = element("option", "", at("prompt-number"));
    option.value = index;
    option.textContent = `${index + 1}: ${one.name}`;
  });
  at("choose").hidden = recording.prompts.length < 2;
  choose(0);
})();
