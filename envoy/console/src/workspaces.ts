// Keeps the list of all workspaces, with the tasks that run in them.
//
// The interface has no stream for an organization, so the pages of the list are read again and
// again. Their tokens stay valid, so that they can be read at the same time. Tasks are read one by
// one: those in view every second, all others in turn.
import { signal } from "@preact/signals";
import { api, read, type Task, type Workspace } from "./api";
import { repeat } from "./connection";

const PAGE_SIZE = 200;
// Calls in flight. A browser opens at most six connections over HTTP/1.1, and a cancellation needs
// one.
const AT_ONCE = 3;
const REFRESH_MS = 1_000;
// While the page is hidden.
const HIDDEN_REFRESH_MS = 10_000;
// A credential may make 100 reads a second. 5,000 workspaces need 25 for the pages.
const TASKS_PER_REFRESH = 30;
// The list takes at most this share of the time for its own calls.
const SHARE = 0.5;

export interface Row {
  workspace: Workspace;
  // What is known of the current task; null if there is none, or it has not been read yet.
  task: Task | null;
  // When the task was read.
  readAt: number;
}

// In the order of the service: newest first.
export const rows = signal<readonly Row[]>([]);
// Whether the whole list has been read once.
export const isComplete = signal(false);
// How long the last reading of all pages took.
export const refreshMs = signal(0);

// The ids of the workspaces in view, set by the list.
const inView = new Set<string>();
let known = new Map<string, Row>();
// The token of each page that has been read.
let tokens = [""];

export function setInView(ids: Iterable<string>): void {
  inView.clear();
  for (const id of ids) inView.add(id);
}

export function forget(): void {
  known = new Map();
  tokens = [""];
  rows.value = [];
  isComplete.value = false;
}

// Reads the list until `signal` is aborted.
export function follow(signal: AbortSignal): Promise<void> {
  let tookMs = 0;
  const refresh = async () => {
    const begun = performance.now();
    await readWorkspaces(signal);
    refreshMs.value = performance.now() - begun;
    await readTasks(signal);
    tookMs = performance.now() - begun;
  };
  const pauseMs = () =>
    document.hidden ? HIDDEN_REFRESH_MS : Math.max(REFRESH_MS - tookMs, tookMs * (1 / SHARE - 1));
  return repeat(refresh, pauseMs, signal);
}

async function readWorkspaces(signal: AbortSignal): Promise<void> {
  const pages: Workspace[][] = [];
  let chainIsBroken = tokens.length === 1;
  const readPage = async (index: number) => {
    const page = await listPage(tokens[index] ?? "", signal);
    pages[index] = page.workspaces;
    // Workspaces were created, so that all pages begin elsewhere.
    if (page.next !== (tokens[index + 1] ?? "")) chainIsBroken = true;
    return page.next;
  };
  if (!chainIsBroken) await inParallel(tokens.keys(), readPage);
  if (chainIsBroken) {
    const walked = [""];
    for (let index = 0; index < walked.length; index += 1) {
      tokens = [...walked, ...tokens.slice(walked.length)];
      const next = await readPage(index);
      if (next) walked.push(next);
      if (!isComplete.peek()) publish(pages.slice(0, index + 1).flat());
    }
    tokens = walked;
    pages.length = walked.length;
  }
  publish(pages.flat());
  isComplete.value = true;
}

async function listPage(token: string, signal: AbortSignal) {
  const query = token ? { page_size: PAGE_SIZE, page_token: token } : { page_size: PAGE_SIZE };
  const page = await read(api.GET("/v1/workspaces", { params: { query }, signal }));
  return { workspaces: page.workspaces, next: page.next_page_token };
}

// A row that has not changed stays the same object, so that it is not drawn again.
function publish(workspaces: Workspace[]): void {
  const next = new Map<string, Row>();
  let isChanged = workspaces.length !== known.size;
  for (const workspace of workspaces) {
    const before = known.get(workspace.id);
    const row = before && isSame(before.workspace, workspace) ? before : merged(before, workspace);
    isChanged ||= row !== before;
    next.set(workspace.id, row);
  }
  if (!isChanged) return;
  known = next;
  rows.value = [...next.values()];
}

function isSame(one: Workspace, other: Workspace): boolean {
  return (
    one.status === other.status &&
    one.current_task_id === other.current_task_id &&
    one.updated_at === other.updated_at &&
    one.status_reason === other.status_reason
  );
}

function merged(before: Row | undefined, workspace: Workspace): Row {
  const keepsTask = before?.task?.id === workspace.current_task_id;
  return keepsTask && before
    ? { ...before, workspace }
    : { workspace, task: null, readAt: 0 };
}

async function readTasks(signal: AbortSignal): Promise<void> {
  const due = [...known.values()].filter((row) => row.workspace.current_task_id);
  const rank = (row: Row) => (inView.has(row.workspace.id) ? -1 : row.readAt);
  due.sort((one, other) => rank(one) - rank(other));
  const chosen = due.slice(0, TASKS_PER_REFRESH);
  if (!chosen.length) return;
  await inParallel(chosen.keys(), async (index) => {
    const row = chosen[index];
    if (row) await readTask(row.workspace, signal);
  });
  rows.value = [...known.values()];
}

async function readTask(workspace: Workspace, signal: AbortSignal): Promise<void> {
  const path = { workspace_id: workspace.id, task_id: workspace.current_task_id };
  const task = await read(
    api.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}", { params: { path }, signal }),
  );
  const row = known.get(workspace.id);
  if (row?.workspace.current_task_id === task.id) {
    known.set(workspace.id, { ...row, task, readAt: Date.now() });
  }
}

async function inParallel(
  indexes: Iterable<number>,
  work: (index: number) => Promise<unknown>,
): Promise<void> {
  const queue = [...indexes];
  const runner = async () => {
    for (let index = queue.shift(); index !== undefined; index = queue.shift()) await work(index);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, runner));
}
