// Calls operations on workspaces, tasks and the audit log with openapi-fetch and the types that
// openapi-typescript has generated.
//
// Its arguments are the URL, a token, and a token that may only read. Prints what it has seen as
// JSON.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.d.ts";

type Failed = components["schemas"]["ErrorEnvelope"];
const [url, token, readOnlyToken] = process.argv.slice(2);
const LIMIT_MS = 30_000;

function clientOf(bearer?: string) {
  const headers: Record<string, string> = bearer ? { authorization: `Bearer ${bearer}` } : {};
  return createClient<paths>({ baseUrl: url, headers });
}

function ok<T>(answer: { data?: T; error?: Failed }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

function failed(answer: { data?: unknown; error?: Failed }): components["schemas"]["Error"] {
  if (answer.error === undefined) throw new Error("the call has succeeded");
  const { code, message, request_id, details } = answer.error.error;
  return { code, message, request_id, details: details ?? {} };
}

function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  const end = Date.now() + LIMIT_MS;
  while (!(await holds())) {
    check(Date.now() < end, "the limit is over");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

const client = clientOf(token);
const created = ok(await client.POST("/v1/workspaces", { body: { name: "walk" } }));
check(created.status === "provisioning", created.status);
const workspace = { params: { path: { workspace_id: created.id } } };
const status = async () => ok(await client.GET("/v1/workspaces/{workspace_id}", workspace)).status;
await until(async () => (await status()) === "idle");
const all = ok(await client.GET("/v1/workspaces", { params: { query: { page_size: 200 } } }));
check(all.workspaces.some((each) => each.id === created.id), "the list has the workspace");

const submit = {
  params: { ...workspace.params, header: { "idempotency-key": "walk-2" } },
  body: { description: "sleep 60", metadata: { ticket: "7" } },
};
const submitted = ok(await client.POST("/v1/workspaces/{workspace_id}/tasks", submit));
const again = ok(await client.POST("/v1/workspaces/{workspace_id}/tasks", submit));
check(again.task_id === submitted.task_id, "the key makes the call safe to repeat");
const named = { params: { path: { workspace_id: created.id, task_id: submitted.task_id } } };
const task = async () => ok(await client.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}", named));
await until(async () => (await task()).phase === "tool_call");
check((await task()).metadata.ticket === "7", "the metadata");
const tasks = ok(await client.GET("/v1/workspaces/{workspace_id}/tasks", workspace)).tasks;
check(tasks.length === 1 && tasks[0].id === submitted.task_id, "the list has the task");

const CANCEL = "/v1/workspaces/{workspace_id}/task/cancel";
const unknown = { params: { path: { workspace_id: "ws_unknown" } } };
const noTask = { params: { path: { workspace_id: created.id, task_id: "task_unknown" } } };
const errors = {
  busy: failed(
    await client.POST("/v1/workspaces/{workspace_id}/tasks", {
      ...workspace,
      body: { description: "true" },
    }),
  ),
  invalid: failed(await client.POST(CANCEL, { ...workspace, body: { reason: "x".repeat(501) } })),
  unknown: failed(await client.GET("/v1/workspaces/{workspace_id}", unknown)),
  no_task: failed(await client.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}", noTask)),
  denied: failed(await clientOf(readOnlyToken).POST(CANCEL, workspace)),
  no_token: failed(await clientOf().GET("/v1/workspaces/{workspace_id}", workspace)),
};

const accepted = ok(await client.POST(CANCEL, workspace));
check(accepted.outcome === "accepted" && accepted.task_id === submitted.task_id, "accepted");
check(accepted.task?.cancel_requested_at === accepted.requested_at, "the task is cancelled");
const ended = await client.POST("/v1/workspaces/{workspace_id}/tasks/{task_id}/cancel", {
  ...named,
  body: { reason: "again", force_after: "0.1s", wait: "20s" },
});
check(ended.response.status === 200, String(ended.response.status));
check(ok(ended).outcome === "already_requested", ok(ended).outcome);
check(ok(ended).task?.status === "cancelled", "the task has ended");
const entries = ok(await client.GET("/v1/workspaces/{workspace_id}/audit", workspace)).entries;
check(entries.some((each) => each.outcome === "accepted"), "the audit log of the workspace");
const query = { params: { query: { outcome: "permission_denied" } } };
// The entry of a refused call is listed within a second.
const refused = async () => ok(await client.GET("/v1/audit", query)).entries;
await until(async () => (await refused()).some((each) => each.workspace_id === created.id));

const STOP = "/v1/workspaces/{workspace_id}/stop";
check(ok(await client.POST(STOP, workspace)).id === created.id, "stop");
await until(async () => (await status()) === "stopped");
const stopped = failed(await client.POST(CANCEL, workspace));
ok(await client.POST("/v1/workspaces/{workspace_id}/resume", workspace));
await until(async () => (await status()) === "idle");
ok(await client.POST(STOP, workspace));
console.log(
  JSON.stringify({
    workspace: created.id,
    task: submitted.task_id,
    errors: { ...errors, stopped },
  }),
);
