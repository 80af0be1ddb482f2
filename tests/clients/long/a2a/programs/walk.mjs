// Walks through A2A with the client of @a2a-js/sdk, and prints what it has seen as JSON.
// Environment: CARD (the URL of the card), BINDING, TOKEN, QUICK and LONG (texts of messages), GATE
// (the named pipe at which an iteration of LONG waits once the file HOLD exists), PUSH (the URL of a
// receiver) and PUSH_TOKEN.
import { randomUUID } from "node:crypto";
import { open, writeFile } from "node:fs/promises";
import { ClientFactory, DefaultAgentCardResolver } from "@a2a-js/sdk/client";
import { GrpcTransportFactory } from "@a2a-js/sdk/client/grpc";
import { RestTransportFactory } from "@a2a-js/sdk/client";
import { TaskState, taskStateToJSON } from "@a2a-js/sdk";

const { CARD, BINDING, TOKEN, QUICK, LONG, GATE, HOLD, PUSH, PUSH_TOKEN } = process.env;
const options = { serviceParameters: { authorization: `Bearer ${TOKEN}` } };
const authorized = (url, init) =>
  fetch(url, { ...init, headers: { ...init?.headers, authorization: `Bearer ${TOKEN}` } });
const resolver = new DefaultAgentCardResolver({ fetchImpl: authorized });
const card = await resolver.resolve(CARD, "");
const factory = new ClientFactory({
  transports: [BINDING === "GRPC" ? new GrpcTransportFactory() : new RestTransportFactory()],
});
const client = await factory.createFromAgentCard(card);

const message = (text) => ({
  message: {
    messageId: randomUUID(), contextId: "", taskId: "", role: 1, extensions: [], referenceTaskIds: [],
    parts: [{ content: { $case: "text", value: text }, filename: "", mediaType: "text/plain" }],
  },
  tenant: "",
});
const kind = (event) => event.payload.$case;
const state = (task) => taskStateToJSON(task.status.state);
const refusal = async (call) => {
  try {
    await call();
    return "none";
  } catch (error) {
    return error.constructor.name.replace(/^(Grpc|Rest)/, "").replace(/Error$/, "") + `|${error.message}`;
  }
};

const seen = {};
seen.card = (await client.getAgentCard(options)).name;
const quick = await client.sendMessage(message(QUICK), options);
seen.sent = { state: state(quick), text: quick.artifacts[0].parts[0].content.value };

let id;
const cut = new AbortController();
seen.first = [];
try {
  for await (const event of client.sendMessageStream(message(LONG), { ...options, signal: cut.signal })) {
    seen.first.push(kind(event));
    if (kind(event) === "task") id = event.payload.value.id;
    if (seen.first.length === 4) cut.abort();
  }
} catch (error) {
  seen.cut = error.name;
}
await client.createTaskPushNotificationConfig(
  { tenant: "", id: "", taskId: id, url: PUSH, token: PUSH_TOKEN, authentication: undefined },
  options,
);

seen.resumed = [];
let cancelling;
for await (const event of client.resubscribeTask({ id, tenant: "" }, options)) {
  seen.resumed.push(kind(event));
  if (kind(event) === "statusUpdate") seen.last = state(event.payload.value);
  if (seen.resumed.length === 2) {
    cancelling = (async () => {
      await writeFile(HOLD, "");
      // The pipe opens for writing once an iteration waits at the gate.
      const gate = await open(GATE, "w");
      seen.cancelled = await client.cancelTask({ id, tenant: "", metadata: undefined }, options);
      seen.again = await client.cancelTask({ id, tenant: "", metadata: undefined }, options);
      await gate.writeFile("open\n");
      await gate.close();
    })();
  }
}
await cancelling;
for (const name of ["cancelled", "again"]) {
  seen[name] = { state: state(seen[name]), requested: seen[name].metadata.cancel_requested_at };
}
seen.after = await refusal(() => client.cancelTask({ id, tenant: "", metadata: undefined }, options));
seen.unknown = await refusal(() => client.getTask({ id: "task_unknown", tenant: "" }, options));
seen.ended = await refusal(async () => {
  for await (const _ of client.resubscribeTask({ id, tenant: "" }, options));
});
const page = await client.listTasks(
  { tenant: "", contextId: "", status: TaskState.TASK_STATE_CANCELED, pageSize: 5, pageToken: "" },
  options,
);
seen.listed = page.tasks.map((task) => task.id);
seen.id = id;
console.log(JSON.stringify(seen));
process.exit(0);
