// Prints the id and the type of each event, as JSON lines, until the workspace has stopped.
import { EventSource } from "eventsource";

const { URL, TOKEN, TYPES } = process.env;
const source = new EventSource(URL, {
  fetch: (input, init) =>
    fetch(input, { ...init, headers: { ...init.headers, authorization: `Bearer ${TOKEN}` } }),
});
for (const type of TYPES.split(",")) {
  source.addEventListener(type, (event) => {
    console.log(JSON.stringify([event.lastEventId, event.type, JSON.parse(event.data).event.seq]));
    if (type === "workspace_stopped") source.close();
  });
}
source.onmessage = (event) => console.log(JSON.stringify(["?", "message", event.data]));
