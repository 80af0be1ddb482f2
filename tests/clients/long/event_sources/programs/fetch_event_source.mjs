// Prints the id and the type of each event, as JSON lines, until the workspace has stopped.
import { createRequire } from "node:module";

// What the library needs from a browser.
globalThis.window = globalThis;
globalThis.document = { removeEventListener() {} };
const { fetchEventSource } = createRequire(import.meta.url)("@microsoft/fetch-event-source");

const { URL, TOKEN } = process.env;
const ending = new AbortController();
await fetchEventSource(URL, {
  headers: { authorization: `Bearer ${TOKEN}` },
  openWhenHidden: true,
  signal: ending.signal,
  onmessage(event) {
    console.log(JSON.stringify([event.id, event.event, JSON.parse(event.data).event.seq]));
    if (event.event === "workspace_stopped") ending.abort();
  },
  onclose() {
    throw new Error("the stream has ended");
  },
});
