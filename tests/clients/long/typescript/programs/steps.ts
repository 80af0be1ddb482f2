// What the tests do with the client, in Node and in a browser.
import {
  CallError,
  CancelTaskResponse_Outcome as Outcome,
  Client,
  EventType_Type,
  TaskNotEndedError,
  Task_Phase,
  Task_Status,
} from "@evershell/client";

interface Service {
  url: string;
  token: string;
  workspaceId: string;
}

async function failure(call: Promise<unknown>) {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof CallError)) throw error;
    // @ts-expect-error: the string is not an error code.
    if (error.code === "workspace_bussy") throw error;
    const { code, requestId, isFromService, details } = error;
    const { fields, required, resourceName } = details;
    return { code, requestId, isFromService, fields, required, resourceName };
  }
  throw new Error("the call has succeeded");
}

/** Waits for the tool call. A task that is cancelled earlier begins no iteration. */
async function toolCall(client: Client, workspaceId: string, taskId: string) {
  const end = performance.now() + 30_000;
  while ((await client.getTask({ workspaceId, taskId })).phase !== Task_Phase.tool_call) {
    if (performance.now() > end) throw new Error("the tool call has not begun");
  }
}

export const steps = {
  async errors(given: Service & { readOnly: string; nothing: string }) {
    const { url, token, workspaceId } = given;
    const client = new Client(url, () => Promise.resolve(token));
    const reason = "x".repeat(501);
    return {
      unknown: await failure(client.getWorkspace({ workspaceId: "ws_unknown" })),
      invalid: await failure(client.cancelTask({ workspaceId, reason })),
      empty: await failure(client.cancelTask({ workspaceId, taskId: "" })),
      denied: await failure(new Client(url, given.readOnly).cancelTask({ workspaceId })),
      token: await failure(new Client(url, "sk_wrong").getWorkspace({ workspaceId })),
      unreachable: await failure(new Client(given.nothing, token).cancelTask({ workspaceId })),
    };
  },

  async cancelAndWait({ url, token, workspaceId }: Service) {
    const client = new Client(url, token);
    const { taskId } = await client.submitTask({ workspaceId, description: "sleep 60" });
    for await (const event of client.watch(workspaceId, { taskId })) {
      if (event.payload.case === "taskStarted") break;
    }
    await toolCall(client, workspaceId, taskId);
    let late: TaskNotEndedError | undefined;
    try {
      await client.cancelAndWait(workspaceId, { reason: "first", timeoutMs: 1 });
    } catch (error) {
      if (error instanceof TaskNotEndedError) late = error;
    }
    const ended = await client.cancelAndWait(workspaceId, { taskId, forceAfterMs: 0 });
    const idle = await client.cancelAndWait(workspaceId);
    return {
      late: [late?.result.taskId === taskId, Outcome[late?.result.outcome ?? 0]],
      ended: [Outcome[ended.outcome], Task_Status[ended.task?.status ?? 0], ended.reason],
      idle: Outcome[idle.outcome],
    };
  },

  /** Submits and cancels a task. The first connection to each URL breaks. */
  async repeats({ token, workspaceId, urls }: Service & { urls: string[] }) {
    const [submitting, any, named] = urls.map((each) => new Client(each, token));
    const { taskId } = await submitting.submitTask({ workspaceId, description: "sleep 60" });
    await toolCall(submitting, workspaceId, taskId);
    const refused = await failure(any.cancelTask({ workspaceId }));
    const { outcome } = await named.cancelTask({ workspaceId, taskId });
    await named.cancelAndWait(workspaceId, { taskId, forceAfterMs: 0 });
    return { taskId, refused: [refused.code, refused.isFromService], outcome: Outcome[outcome] };
  },

  async waitForUnreachable({ url, token, workspaceId }: Service) {
    const result = await new Client(url, token).cancelAndWait(workspaceId);
    return [result.taskId, Outcome[result.outcome], Task_Status[result.task?.status ?? 0]];
  },

  async watch({ url, token, workspaceId, taskId }: Service & { taskId: string }) {
    const seen: [number, string][] = [];
    for await (const { seq, type } of new Client(url, token).watch(workspaceId, { taskId })) {
      seen.push([Number(seq), EventType_Type[type]]);
      // Tells the proxy of the test that the event has arrived. The proxy may cut this call too.
      const headers = { "last-event-id": String(seq) };
      while (!(await fetch(url, { headers }).catch(() => undefined)));
    }
    return seen;
  },

  /** Follows the organization until the task has ended. Returns the positions and types of its events. */
  async watchOrganization({ url, token, taskId, after }: Service & { taskId: string; after: string }) {
    const seen: [number, string][] = [];
    const options = { after: BigInt(after) };
    for await (const { position, event } of new Client(url, token).watchOrganization(options)) {
      if (event?.taskId !== taskId) continue;
      seen.push([Number(position), EventType_Type[event.type]]);
      if (event.payload.case === "taskCompleted") break;
      const headers = { "last-event-id": String(position) };
      while (!(await fetch(url, { headers }).catch(() => undefined)));
    }
    return seen;
  },

  /** Returns the position with which a watch of the organization begins. */
  async position({ url, token }: Service) {
    for await (const { position, event } of new Client(url, token).watchOrganization()) {
      return [String(position), event === undefined];
    }
    throw new Error("the watch has ended");
  },

  /** Aborts a watch after an event. Returns the reason with which the watch ends. */
  async abort({ url, token, workspaceId }: Service) {
    const stop = new AbortController();
    try {
      for await (const _ of new Client(url, token).watch(workspaceId, { signal: stop.signal })) {
        stop.abort("enough");
      }
    } catch (reason) {
      return reason;
    }
    throw new Error("the watch has ended without a reason");
  },
};
