// The page: what is asked, run by run, and what is said about it.

import { Api, Trouble } from "./api.js";
import { Tip } from "./canvas.js";
import { Run } from "./run.js";
import { StrategyPicker } from "./strategy.js";
import { clear, compare } from "./verdict.js";

const PLAIN = { cache: "none", decoder: "topk:k=1" };
const EXAMPLES = [
  "Ana has 19 apples. She gives 4 apples to each of 2 friends and then finds 11 more. How many apples does Ana have now?",
  "Sam plants 5 rows of 6 tulips. Rabbits eat 7 of them, and Sam plants 9 more. How many tulips are in the garden?",
  "Ivy cuts 5 cakes into 5 slices each. 3 guests eat 2 slices each. How many slices are left?",
  "2 guests come to Finn. His 5 loaves have 4 slices each, and every guest eats 5 slices. How many slices stay?",
];
const ABOUT_PLAIN = {
  after: "The accelerated answer runs first, then the plain one. Neither slows the other.",
  together: "Both share the machine, and passes of the network where they can: their times are not compared.",
  no: "Only the answer with the settings above.",
};
// The embedded model was trained on short answers and does best with short blocks (its card has the numbers): that is
// what the page begins with, unless the server was given defaults of its own.
const GENERAL = { max_tokens: 128, block_length: 32 };
const TINY = { max_tokens: 64, block_length: 8 };

const at = (id) => document.getElementById(id);
const api = new Api();
const tip = new Tip(at("tip"));
const fast = new Run("Accelerated", tip);
const plain = new Run("Plain", tip);
const cache = new StrategyPicker(at("cache"), 0);
const decoder = new StrategyPicker(at("decoder"), 1);
let models = [];
const wide = matchMedia("(min-width: 62rem)"); // where settings and results are beside each other
let work = null; // the AbortController of what runs

// ---------------------------------------------------------------------------------------------- what is asked

const model = () => models.find(({ id }) => id === at("model").value);
const chosen = () => document.querySelector("[name=plain]:checked").value;
const number = (id) => (at(id).value === "" ? undefined : Number(at(id).value));

/**
 * The path and the body of a request; fields that are empty are left to the server's defaults.
 * @param seed what stands for an empty field
 */
function request(strategies, seed) {
  const raw = at("wrap").value === "raw";
  const prompt = at("prompt").value;
  const body = {
    model: at("model").value,
    ...(raw ? { prompt } : { messages: [{ role: "user", content: prompt }] }),
    max_tokens: number("gen-length"),
    temperature: number("temperature"),
    seed: number("seed") ?? seed,
    stream: true,
    fastdllm: { ...strategies, block_length: number("block-length"), stream_drafts: true },
  };
  return { path: raw ? "v1/completions" : "v1/chat/completions", body };
}

function changed() {
  if (!models.length) return;
  const strategies = { cache: cache.spec, decoder: decoder.spec };
  const { path, body } = request(strategies);
  at("request").textContent = `POST /${path}\n${JSON.stringify(body, null, 2)}`;
  at("method").textContent = `${cache.spec} / ${decoder.spec}`;
  at("about-plain").textContent = ABOUT_PLAIN[chosen()];
  if (!work && !fast.frame && !plain.frame) say("Ready.");
  for (const marked of document.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  if (!work && !fast.frame && !plain.frame) lay();
}

/** Empty canvases of the shape that is asked for. */
function lay() {
  const defaults = model().fastdllm.defaults;
  const length = (id, name) => Math.max(1, Math.min(1 << 16, Math.trunc(number(id) ?? defaults[name]) || 1));
  const shape = [length("gen-length", "max_tokens"), length("block-length", "block_length")];
  fast.reset(`${cache.spec} / ${decoder.spec}`, ...shape);
  plain.reset(`${PLAIN.cache} / ${PLAIN.decoder}`, ...shape);
  const wanted = chosen() === "no" ? [fast] : [fast, plain];
  at("runs").replaceChildren(...wanted.map(({ root }) => root));
  at("runs").classList.toggle("alone", wanted.length === 1);
  at("verdict").hidden = wanted.length === 1;
  clear(at("verdict"));
}

// ------------------------------------------------------------------------------------------------ what runs

async function run() {
  if (work || !models.length) return;
  if (!at("prompt").value.trim()) {
    say("Write a prompt first.");
    return at("prompt").focus();
  }
  settle(true);
  forget();
  lay();
  if (!wide.matches) document.querySelector(".results").scrollIntoView();
  const mode = chosen();
  const seed = Math.floor(Math.random() * 2 ** 31);
  const asked = [[fast, request({ cache: cache.spec, decoder: decoder.spec }, seed)]]; // as the controls stand now
  if (mode !== "no") asked.push([plain, request(PLAIN, seed)]);
  const { signal } = work;
  try {
    if (mode === "together") {
      say("Both are running.");
      await all(asked.map(([one, what]) => follow(one, what, signal)));
    } else {
      for (const [one, what] of asked) {
        say(`${one.name}: running.`);
        await follow(one, what, signal);
      }
    }
    say(...closing(mode));
  } catch (error) {
    fail(error);
  } finally {
    settle(false);
  }
}

async function follow(one, { path, body }, signal) {
  try {
    await one.follow(api.passes(path, body, signal));
  } catch (error) {
    one.say(signal.aborted ? stopped(one) : "failed");
    throw error;
  }
}

const stopped = (one) => (one.passes ? `stopped after pass ${one.passes}` : "stopped before its first pass");

/** All of them; where one fails the others are stopped and waited for. */
async function all(promises) {
  const { signal } = work;
  for (const one of promises) one.catch(() => work?.abort());
  const results = await Promise.allSettled(promises);
  const failed = results.map(({ reason }) => reason).filter(Boolean);
  if (failed.length) throw failed.find((error) => error.name !== "AbortError") ?? signal.reason;
}

function closing(mode) {
  if (mode === "no") return [`Finished: ${fast.passes} passes, ${fast.seconds.toFixed(2)} seconds.`];
  const same = fast.frame.text === plain.frame.text;
  at("status").classList.toggle("differ", !same);
  return [`The answers ${same ? "are identical" : "differ"}.`, compare(at("verdict"), fast, plain, mode === "together")];
}

function fail(error) {
  if (error.name === "AbortError") {
    const done = [fast, plain].filter((one) => one.finished && one.root.isConnected);
    const kept = done.length ? ` The ${done[0].name.toLowerCase()} answer had finished.` : "";
    return say(`Stopped. The server drops the answer at its next pass, and its slot is free.${kept}`);
  }
  say("");
  tell(error, null);
}

/** Buttons follow what runs; the focus goes along. */
function settle(running) {
  work = running ? new AbortController() : null;
  document.querySelector("main").classList.toggle("working", running);
  const from = running ? at("run") : at("stop");
  const to = running ? at("stop") : at("run");
  const focused = document.activeElement === from;
  to.disabled = false;
  if (focused) to.focus();
  from.disabled = true;
}

// ------------------------------------------------------------------------------------------------ what is said

/** @param spoken what is seen elsewhere already, for those who hear the page */
function say(text, spoken = "") {
  const more = document.createElement("span");
  more.className = "unseen";
  more.textContent = ` ${spoken}`;
  at("status").replaceChildren(text, ...(spoken ? [more] : []));
}

function forget() {
  at("status").classList.remove("differ");
  at("trouble").hidden = true;
  at("trouble-text").textContent = "";
}

/** Show what went wrong. @param again what the button "Try again" does, if there is to be one */
function tell(error, again) {
  const known = error instanceof Trouble;
  if (known && error.status === 401) askForKey();
  at("trouble-text").textContent = known ? error.message : `Something went wrong in this page: ${error.message}`;
  at("trouble").hidden = false;
  at("again").hidden = !again;
  at("again").onclick = again;
  if (known && error.param) control(error)?.setAttribute("aria-invalid", "true");
  at("trouble").scrollIntoView({ block: "nearest" });
  if (!known) console.error(error);
}

/** The control of the field that the server names, or of the parameter that its sentence names. */
function control({ param, message }) {
  const fields = {
    "fastdllm.cache": "cache-name", "fastdllm.decoder": "decoder-name", "fastdllm.block_length": "block-length",
    max_tokens: "gen-length", max_completion_tokens: "gen-length", temperature: "temperature", seed: "seed",
    messages: "prompt", prompt: "prompt", model: "model",
  };
  const named = document.querySelectorAll(`#${CSS.escape(param.replace("fastdllm.", ""))} [data-parameter]`);
  const parameter = [...named].find(({ dataset }) => new RegExp(`\\b${dataset.parameter}=`, "i").test(message));
  return parameter ?? (fields[param] ? at(fields[param]) : null);
}

function askForKey() {
  at("key-form").hidden = false;
  at("key").focus();
}

// ------------------------------------------------------------------------------------------------ the beginning

async function load() {
  forget();
  try {
    models = (await api.models()).filter((one) => one.fastdllm);
    if (!models.length) throw new Trouble("This server has no model that the page could ask.");
  } catch (error) {
    return tell(error, error.status === 401 ? null : load);
  }
  at("key-form").hidden = true;
  at("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  at("model").disabled = models.length < 2;
  at("run").disabled = false;
  document.querySelector("main").classList.remove("unready");
  choose();
}

/** Fill the controls from what the server tells of the model. */
function choose() {
  const { id, fastdllm: about } = model();
  const untouched = Object.entries(GENERAL).every(([name, value]) => about.defaults[name] === value);
  const defaults = { ...about.defaults, ...(id === "tiny" && untouched && TINY) };
  cache.fill(about.caches, defaults.cache);
  decoder.fill(about.decoders, defaults.decoder);
  at("gen-length").value = defaults.max_tokens;
  at("block-length").value = defaults.block_length;
  at("gen-length").max = about.max_model_len;
  at("temperature").value = defaults.temperature;
  at("wrap").value = about.chat ? "chat" : "raw";
  at("wrap").options[0].disabled = !about.chat;
  at("about-model").hidden = id !== "tiny";
  changed();
}

function prepare() {
  at("prompt").value = EXAMPLES[0];
  for (const text of EXAMPLES) at("example").append(new Option(text, text));
  at("example").addEventListener("change", () => {
    if (at("example").value) at("prompt").value = at("example").value;
    at("example").value = "";
    changed();
    at("prompt").focus();
  });
  at("model").addEventListener("change", choose);
  at("ask").addEventListener("input", changed);
  at("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  at("stop").addEventListener("click", () => work?.abort());
  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.useKey(at("key").value.trim());
    at("key").value = "";
    load();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape") {
      tip.hide();
      work?.abort();
    }
  });
  const unfold = () => (document.querySelector(".settings").open = wide.matches);
  wide.addEventListener("change", unfold);
  unfold();
}

prepare();
load();
