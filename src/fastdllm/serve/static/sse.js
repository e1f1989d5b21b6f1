// Server-sent events of a stream of bytes (WHATWG HTML, section 9.2.6), for what fetch returns.

/**
 * The data of each event, as text. Chunks may end anywhere: inside a character, inside a line, or between
 * the two halves of its end. An event that the stream breaks off is not given.
 */
export async function* eventData(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(done ? /\r\n|\n|\r/ : /\r\n|\n|\r(?!$)/); // a last \r may be half of \r\n: wait
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that was aborted this fails, and nothing is left to do
  }
}
