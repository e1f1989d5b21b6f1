// What the page asks of its server, and what goes wrong, in words.

import { eventData } from "./sse.js";

/** Something that the reader of the page has to know. `status` is HTTP's, 0 where there was no answer. */
export class Trouble extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

const GONE = "The server cannot be reached. It may have been stopped, or the network is gone.";
const BROKEN = "The connection broke off before the answer was finished.";

export class Api {
  #key = ""; // in memory alone

  useKey(key) {
    this.#key = key;
  }

  /** The models that are served, as /v1/models describes them. */
  async models() {
    const answer = await this.#fetch("v1/models", {});
    return (await answer.json()).data;
  }

  /**
   * The passes of one answer as they arrive: the `fastdllm` objects of the chunks.
   * Aborting the signal closes the connection, by which the server knows that nobody waits.
   */
  async *passes(path, body, signal) {
    const answer = await this.#fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    let complete = false;
    try {
      for await (const data of eventData(answer.body)) {
        complete ||= data === "[DONE]"; // the stream is read to its end: who leaves before it is gone, to the server
        if (complete) continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Trouble(chunk.error.message, { param: chunk.error.param });
        if (chunk.fastdllm?.canvas) yield chunk.fastdllm;
      }
    } catch (error) {
      throw error instanceof TypeError ? new Trouble(BROKEN) : error; // what fetch calls a network error
    }
    if (!complete) throw new Trouble(BROKEN);
  }

  async #fetch(path, options) {
    const headers = { ...options.headers, ...(this.#key && { Authorization: `Bearer ${this.#key}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      throw error instanceof TypeError ? new Trouble(GONE) : error;
    }
    if (!answer.ok) throw await refusal(answer, Boolean(this.#key));
    return answer;
  }
}

async function refusal(answer, hadKey) {
  const { status } = answer;
  const { error } = await answer.json().catch(() => ({}));
  const said = sentence(error?.message ?? `The server answered ${status} ${answer.statusText}`);
  const param = error?.param ?? null;
  if (status === 401) {
    const why = hadKey ? "The server does not know this API key." : "This server asks for an API key.";
    return new Trouble(why, { status });
  }
  const after = answer.headers.get("Retry-After");
  if ((after || status === 429) && !/try again/i.test(said)) return new Trouble(`${said} ${retry(after)}`, { status, param });
  return new Trouble(said, { status, param });
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** When to try again: the header has seconds or a date. */
function retry(after) {
  const seconds = Math.ceil(/^\d+$/.test(after ?? "") ? Number(after) : (Date.parse(after) - Date.now()) / 1000);
  if (!(seconds > 0)) return "Try again in a moment.";
  return `Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.`;
}
