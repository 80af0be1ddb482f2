// Keeps the list of all workspaces, with the tasks that run in them.
//
// The interface has no stream for an organization, so the pages of the list are read again and
// again. Their tokens stay valid, so that they can be read at the same time. Tasks are read one by
// one: those in view each time, all others in turn. What is in view is read more often.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api, read, type Task, type Workspace } from "./api";
import { repeat } from "./connection";

const PAGE_SIZE = 200;
// Calls in flight of each of two loops. A browser opens at most six connections over HTTP/1.1, and a
// cancellation needs one.
const AT_ONCE = 2;
const REFRESH_MS = 1_000;
// What is in view is read more often.
const IN_VIEW_MS = 500;
const PAGES_IN_VIEW = 4;
// While the page is hidden.
const HIDDEN_REFRESH_MS = 10_000;
// A credential may make 100 reads a second. The pages of the list and other tasks need 35, with
// 5,000 workspaces 25 for the pages; what is in view needs at most 34.
const TASKS_IN_VIEW = 26;
const OTHER_TASKS = 10;
const PAGES_AND_OTHER_TASKS = 35;
// The least time between two drawings of the list.
const PUBLISH_MS = 200;
// The list takes at most this share of the time for its own calls.
const SHARE = 0.5;

export interface Row {
  workspace: Workspace;
  // The page of the list on which it is.
  page: number;
  // What is known of the current task; null if there is none, or it has not been read yet.
  task: Task | null;
  // When the task began, or else when the workspace got its status, in milliseconds.
  since: number;
  // When the task was read.
  readAt: number;
}

// In the order of the service: newest first.
export const rows = signal<readonly Row[]>([]);
// Whether the whole list has been read once.
export const isComplete = signal(false);
// The ids of the workspaces in view, set by the list.
const inView = new Set<string>();
const known = new Map<string, Row>();
// The token of each page that has been read.
let tokens = [""];
// Whether the rows will be published.
let isDue = false;
let publishedAt = 0;

export function rowOf(workspaceId: string): Row | undefined {
  // Draws again after a change.
  void rows.value;
  return known.get(workspaceId);
}

export function setInView(ids: Iterable<string>): void {
  inView.clear();
  for (const id of ids) inView.add(id);
}

// Reads the list until `signal` is aborted.
async function follow(signal: AbortSignal): Promise<void> {
  let tookMs = 0;
  const readAll = async () => {
    const begun = performance.now();
    await readWorkspaces(signal);
    await readTasks(otherTasks(), signal);
    tookMs = performance.now() - begun;
  };
  const readInView = async () => {
    await inParallel(pagesInView(), async (index) => {
      const page = await listPage(tokens[index] ?? "", signal);
      absorb(page.workspaces, index);
    });
    await readTasks(tasksInView(), signal);
  };
  const pauseMs = () => Math.max(REFRESH_MS - tookMs, tookMs * (1 / SHARE - 1));
  await Promise.all([
    repeat(readAll, () => (document.hidden ? HIDDEN_REFRESH_MS : pauseMs()), signal),
    repeat(readInView, () => (document.hidden ? HIDDEN_REFRESH_MS : IN_VIEW_MS), signal),
  ]);
}

async function readWorkspaces(signal: AbortSignal): Promise<void> {
  const gone = new Set(known.keys());
  let chainIsBroken = tokens.length === 1;
  const readPage = async (index: number) => {
    const page = await listPage(tokens[index] ?? "", signal);
    absorb(page.workspaces, index);
    for (const workspace of page.workspaces) gone.delete(workspace.id);
    // Workspaces were created, so that all pages begin elsewhere.
    if (page.next !== (tokens[index + 1] ?? "")) chainIsBroken = true;
    return page.next;
  };
  if (!chainIsBroken) await inParallel(tokens.keys(), readPage);
  if (chainIsBroken) await walk(readPage);
  for (const id of gone) known.delete(id);
  if (rows.peek().length !== known.size) publishSoon();
  isComplete.value = true;
}

// Reads the pages one after another, and keeps their tokens.
async function walk(readPage: (index: number) => Promise<string>): Promise<void> {
  const walked = [""];
  for (let index = 0; index < walked.length; index += 1) {
    tokens = [...walked, ...tokens.slice(walked.length)];
    const next = await readPage(index);
    if (next) walked.push(next);
  }
  tokens = walked;
}

// The pages with most of the workspaces in view; the first one if there are none.
function pagesInView(): number[] {
  const counts = new Map<number, number>();
  for (const id of inView) {
    const page = known.get(id)?.page;
    if (page !== undefined) counts.set(page, (counts.get(page) ?? 0) + 1);
  }
  const ordered = [...counts].sort(([, one], [, other]) => other - one);
  return ordered.length ? ordered.map(([page]) => page).slice(0, PAGES_IN_VIEW) : [0];
}

async function listPage(token: string, signal: AbortSignal) {
  const query = token ? { page_size: PAGE_SIZE, page_token: token } : { page_size: PAGE_SIZE };
  const page = await read(api.GET("/v1/workspaces", { params: { query }, signal }));
  return { workspaces: page.workspaces, next: page.next_page_token };
}

function absorb(workspaces: Workspace[], page: number): void {
  let isChanged = false;
  for (const workspace of workspaces) {
    const before = known.get(workspace.id);
    if (before && before.page === page && isSame(before.workspace, workspace)) continue;
    known.set(workspace.id, merged(before, workspace, page));
    isChanged = true;
  }
  if (isChanged) publishSoon();
}

// To sort thousands of rows takes most of a frame.
function publishSoon(): void {
  if (isDue) return;
  isDue = true;
  const publish = () => {
    isDue = false;
    publishedAt = performance.now();
    rows.value = [...known.values()];
  };
  setTimeout(publish, publishedAt + PUBLISH_MS - performance.now());
}

function isSame(one: Workspace, other: Workspace): boolean {
  return (
    one.status === other.status &&
    one.current_task_id === other.current_task_id &&
    one.updated_at === other.updated_at &&
    one.status_reason === other.status_reason
  );
}

function merged(before: Row | undefined, workspace: Workspace, page: number): Row {
  const keepsTask = before?.task?.id === workspace.current_task_id;
  const { task, readAt } = keepsTask && before ? before : { task: null, readAt: 0 };
  return { workspace, page, task, since: sinceOf(workspace, task), readAt };
}

function sinceOf(workspace: Workspace, task: Task | null): number {
  return Date.parse(task?.started_at ?? workspace.updated_at);
}

function tasksInView(): Row[] {
  const found = [...inView].map((id) => known.get(id)).filter((row) => row !== undefined);
  return found.filter((row) => hasTask(row) && isDueForReading(row)).slice(0, TASKS_IN_VIEW);
}

// A new task is read at once, and then every second.
function isDueForReading({ readAt }: Row): boolean {
  return Date.now() - readAt >= REFRESH_MS - IN_VIEW_MS / 2;
}

// Those that were read the longest ago.
function otherTasks(): Row[] {
  const others = [...known.values()].filter((row) => !inView.has(row.workspace.id) && hasTask(row));
  const most = Math.max(OTHER_TASKS, PAGES_AND_OTHER_TASKS - tokens.length);
  return others.sort((one, other) => one.readAt - other.readAt).slice(0, most);
}

function hasTask({ workspace }: Row): boolean {
  return Boolean(workspace.current_task_id);
}

async function readTasks(chosen: Row[], signal: AbortSignal): Promise<void> {
  await inParallel(chosen.keys(), async (index) => {
    const row = chosen[index];
    if (row) await readTask(row.workspace, signal);
  });
}

async function readTask(workspace: Workspace, signal: AbortSignal): Promise<void> {
  const path = { workspace_id: workspace.id, task_id: workspace.current_task_id };
  const task = await read(
    api.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}", { params: { path }, signal }),
  );
  const row = known.get(workspace.id);
  if (row?.workspace.current_task_id !== task.id) return;
  row.readAt = Date.now();
  // A row that has not changed stays the same object, so that it is not drawn again.
  if (JSON.stringify(row.task) === JSON.stringify(task)) return;
  known.set(workspace.id, { ...row, task, since: sinceOf(row.workspace, task) });
  publishSoon();
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

export function useFollowedList(): void {
  useEffect(() => {
    const stop = new AbortController();
    void follow(stop.signal);
    return () => stop.abort();
  }, []);
}
