// Calls the REST listener by gRPC-Web with Connect's unchanged client for browsers.
//
// Reads the descriptor set, the URL, the token and a workspace from its arguments. Prints JSON.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const [descriptorSet, baseUrl, token, workspaceId] = process.argv.slice(2);
const registry = createFileRegistry(
  fromBinary(FileDescriptorSetSchema, readFileSync(descriptorSet)),
);
const service = registry.getService("evershell.workspace.v1.WorkspaceService");
const client = createClient(service, createGrpcWebTransport({ baseUrl }));
const headers = { authorization: `Bearer ${token}` };
const printed = (name, message) =>
  toJson(registry.getMessage(`evershell.workspace.v1.${name}`), message, {
    registry,
    useProtoFieldName: true,
    alwaysEmitImplicit: true,
  });

async function failure(call) {
  try {
    await call();
  } catch (error) {
    const found = ConnectError.from(error);
    const details = registry.getMessage("google.rpc.ErrorInfo");
    return {
      code: Code[found.code],
      message: found.rawMessage,
      request_id: found.metadata.get("x-request-id"),
      info: found.findDetails(details).map((each) => toJson(details, each)),
    };
  }
  throw new Error("the call has succeeded");
}

const submitted = await client.submitTask({ workspaceId, description: "sleep 60" }, { headers });
// Waits for the tool call, because a task that is cancelled earlier begins no iteration.
const started = performance.now();
for (let phase = ""; phase !== "tool_call"; ) {
  if (performance.now() - started > 30_000) throw new Error("the tool call has not begun");
  const task = await client.getTask({ workspaceId, taskId: submitted.taskId }, { headers });
  phase = printed("Task", task).phase;
}
const cancelled = await client.cancelTask(
  { workspaceId, forceAfter: { seconds: 0n, nanos: 100_000_000 }, wait: { seconds: 20n } },
  { headers, timeoutMs: 30_000 },
);
const types = [];
const stream = new AbortController();
try {
  for await (const message of client.watchEvents({ workspaceId }, { headers, signal: stream.signal })) {
    types.push(printed("WatchEventsResponse", message).event.type);
    // Leaving the loop would not end the call.
    if (types.at(-1) === "task_completed") stream.abort();
  }
} catch (error) {
  if (ConnectError.from(error).code !== Code.Canceled) throw error;
}
console.log(
  JSON.stringify({
    submitted: printed("SubmitTaskResponse", submitted),
    cancelled: printed("CancelTaskResponse", cancelled),
    types,
    unknown: await failure(() => client.getWorkspace({ workspaceId: "ws_unknown" }, { headers })),
    no_token: await failure(() => client.getWorkspace({ workspaceId })),
    invalid: await failure(() =>
      client.cancelTask({ workspaceId, reason: "x".repeat(501) }, { headers }),
    ),
    too_large: await failure(() =>
      client.cancelTask({ workspaceId, reason: "x".repeat(20_000) }, { headers }),
    ),
  }),
);
