// What failed and what was cancelled within the last hour.
//
// No call lists the ended tasks of an organization, so they are read for each workspace that has
// changed. The audit log adds the calls whose tasks are not among them, and calls without a task.
import { signal } from "@preact/signals";
import { api, read, type Schemas, type Task } from "./api";
import { now, serverNow } from "./clock";
import { repeat } from "./connection";
import { Failure } from "./failure";
import { Source } from "./health";
import { firstLine } from "./text";
import { isComplete, type Row, rows } from "./workspaces";

type AuditEntry = Schemas["AuditEntry"];

const HOUR_MS = 3_600_000;
const REPEAT_MS = 5_000;
// The interval until the list of workspaces has been read.
const FIRST_MS = 200;
// The tasks that are read: the newest ones of the workspaces that changed last.
export const MAX_WORKSPACES = 100;
export const MAX_TASKS = 20;
const PAGE_SIZE = 200;
// The allowed calls that cancel tasks. An entry of CancelTask has its own outcome.
const CALLS = [
  { outcome: "accepted" },
  { outcome: "ok", rpc: "CancelTasks" },
  { outcome: "ok", rpc: "HoldOrg" },
  { outcome: "ok", rpc: "StopWorkspace" },
  { outcome: "ok", rpc: "DeleteWorkspace" },
];

export interface Incident {
  id: string;
  kind: "failed" | "cancelled";
  // The status of the task or of the workspace, or the name of the call.
  status: string;
  time: string;
  workspaceId: string;
  what: string;
  by: string;
  reason: string;
}

export class LastHour {
  // The newest tasks of each workspace, and the `updated_at` at which they were read.
  private readonly tasks = signal<ReadonlyMap<string, { at: string; tasks: readonly Task[] }>>(
    new Map(),
  );
  private readonly entries = signal<readonly AuditEntry[]>([]);
  // Whether everything has been read once.
  readonly isRead = signal(false);

  async follow(mayAudit: boolean, signal: AbortSignal): Promise<void> {
    const readAll = async () => {
      if (document.hidden || !isComplete.peek()) return;
      const since = serverNow() - HOUR_MS;
      await this.readTasks(since, signal);
      if (mayAudit) await this.readAudit(since, signal);
      this.isRead.value = true;
    };
    const pauseMs = () => (this.isRead.peek() ? REPEAT_MS : FIRST_MS);
    await repeat(new Source("the last hour"), readAll, pauseMs, signal);
  }

  // The newest first.
  incidents(): Incident[] {
    const tasks = rows.value.flatMap((row) => this.tasksOf(row));
    const known = new Set(tasks.map((each) => each.id));
    const since = now.value - HOUR_MS;
    return [
      ...tasks.flatMap(ofTask),
      ...rows.value.filter((row) => this.failedAlone(row)).map(ofWorkspace),
      ...this.entries.value.filter((each) => !known.has(each.task_id)).map(ofEntry),
    ]
      .filter((each) => Date.parse(each.time) >= since)
      .sort((one, other) => Date.parse(other.time) - Date.parse(one.time));
  }

  // The tasks of the workspace that have ended, and the current one.
  private tasksOf({ workspace, task }: Row): Task[] {
    const ended = this.tasks.value.get(workspace.id)?.tasks.filter((each) => each.completed_at);
    return [...(ended ?? []), ...(task && !task.completed_at ? [task] : [])];
  }

  // Whether the workspace has failed, but no task with it.
  private failedAlone({ workspace }: Row): boolean {
    const tasks = this.tasks.value.get(workspace.id)?.tasks ?? [];
    const failedAt = Date.parse(workspace.updated_at);
    const isWithTask = tasks.some(
      (each) => each.status.endsWith("failed") && Date.parse(each.completed_at ?? "") >= failedAt,
    );
    return workspace.status === "failed" && !isWithTask;
  }

  private async readTasks(since: number, signal: AbortSignal): Promise<void> {
    const changed = rows
      .peek()
      .map(({ workspace }) => workspace)
      .filter((each) => Date.parse(each.updated_at) >= since)
      .sort((one, other) => Date.parse(other.updated_at) - Date.parse(one.updated_at))
      .slice(0, MAX_WORKSPACES);
    for (const { id, updated_at: at } of changed) {
      if (this.tasks.peek().get(id)?.at === at) continue;
      const tasks = await newestTasks(id, signal);
      this.tasks.value = new Map(this.tasks.peek()).set(id, { at, tasks });
    }
  }

  private async readAudit(since: number, signal: AbortSignal): Promise<void> {
    const start_time = new Date(since).toISOString();
    const found: AuditEntry[] = [];
    for (const call of CALLS) found.push(...(await newestEntries({ ...call, start_time }, signal)));
    this.entries.value = found;
  }
}

async function newestTasks(workspace_id: string, signal: AbortSignal): Promise<readonly Task[]> {
  const params = { path: { workspace_id }, query: { page_size: MAX_TASKS } };
  try {
    const call = api.GET("/v1/workspaces/{workspace_id}/tasks", { params, signal });
    return (await read(call)).tasks;
  } catch (error) {
    // It was deleted.
    if (error instanceof Failure && error.slug === "workspace_not_found") return [];
    throw error;
  }
}

// At most about PAGE_SIZE entries.
async function newestEntries(
  filter: { rpc?: string; outcome: string; start_time: string },
  signal: AbortSignal,
): Promise<AuditEntry[]> {
  const found: AuditEntry[] = [];
  let page_token = "";
  do {
    const query = { ...filter, page_size: PAGE_SIZE, ...(page_token && { page_token }) };
    const page = await read(api.GET("/v1/audit", { params: { query }, signal }));
    found.push(...page.entries);
    page_token = page.next_page_token;
  } while (page_token && found.length < PAGE_SIZE);
  return found;
}

function ofTask(task: Task): Incident[] {
  const isFailed = task.status.endsWith("failed");
  const time = task.completed_at ?? task.cancel_requested_at;
  if (!time || !(isFailed || task.cancel_requested_at)) return [];
  return [
    {
      id: task.id,
      kind: isFailed ? "failed" : "cancelled",
      status: task.completed_at ? task.status : "cancelling",
      time,
      workspaceId: task.workspace_id,
      what: firstLine(task.description),
      by: task.cancel_requested_by,
      reason: isFailed ? task.reason : task.cancel_reason,
    },
  ];
}

function ofWorkspace({ workspace }: Row): Incident {
  const { id, updated_at: time, status_reason: reason } = workspace;
  return { id, kind: "failed", status: "failed", time, workspaceId: id, what: "", by: "", reason };
}

function ofEntry(entry: AuditEntry): Incident {
  return {
    id: entry.id,
    kind: "cancelled",
    // Writes `CancelTasks` as `cancel tasks`.
    status: entry.rpc.replace(/[A-Z]/g, (each) => ` ${each.toLowerCase()}`).trim(),
    time: entry.time,
    workspaceId: entry.workspace_id,
    what: entry.task_id,
    by: entry.actor_id,
    reason: entry.reason,
  };
}
