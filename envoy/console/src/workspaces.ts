// Keeps the list of all workspaces, with the tasks that run in them.
//
// The API has no stream for an organization, so the lists of workspaces and of active tasks are
// read again and again. The page tokens of the list of workspaces stay valid, so several pages can be
// read at the same time. Pages in view are read more often.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api, read, type Task, type Workspace } from "./api";
import { repeat } from "./connection";

const PAGE_SIZE = 200;
// How many pages of the list of all workspaces are read at the same time. Each of the other loops
// makes one call at a time: a browser opens at most six connections over HTTP/1.1, and a
// cancellation needs one of them.
const AT_ONCE = 2;
const REFRESH_MS = 1_000;
// Workspaces in view are read more often.
const IN_VIEW_MS = 500;
const PAGES_IN_VIEW = 4;
// The interval of all loops while the page is hidden.
const HIDDEN_REFRESH_MS = 10_000;
// The least time between two drawings of the list.
const PUBLISH_MS = 200;
// The maximum share of the time that a loop spends on reading a whole list.
const SHARE = 0.5;

export interface Row {
  workspace: Workspace;
  // The number of the workspace's page in the list.
  page: number;
  // The current task; null if there is none, or it has not been read yet.
  task: Task | null;
  // When the task began, or else when the workspace got its status, in milliseconds.
  since: number;
}

export const rows = signal<readonly Row[]>([]);
// Whether the whole list has been read once.
export const isComplete = signal(false);
// The ids of the workspaces in view, set by the list.
const inView = new Set<string>();
const known = new Map<string, Row>();
// The active tasks, by the ids of their workspaces.
let tasks: ReadonlyMap<string, Task> = new Map();
// The token of each page that has been read.
let tokens = [""];
// Whether a timer has been started that will set `rows`.
let isDue = false;
let publishedAt = 0;

export function rowOf(workspaceId: string): Row | undefined {
  // Reading `rows` makes the component draw again after a change.
  void rows.value;
  return known.get(workspaceId);
}

export function setInView(ids: Iterable<string>): void {
  inView.clear();
  for (const id of ids) inView.add(id);
}

// Reads the lists until `signal` is aborted.
async function follow(signal: AbortSignal): Promise<void> {
  const readInView = async () => {
    for (const index of pagesInView()) {
      const page = await listPage(tokens[index] ?? "", signal);
      absorb(page.workspaces, index);
    }
  };
  await Promise.all([
    repeatSparingly(() => readWorkspaces(signal), signal),
    repeatSparingly(() => readTasks(signal), signal),
    repeat(readInView, () => (document.hidden ? HIDDEN_REFRESH_MS : IN_VIEW_MS), signal),
  ]);
}

// Reads every REFRESH_MS. If that would take more than SHARE of the time, reads less often.
async function repeatSparingly(readAll: () => Promise<void>, signal: AbortSignal): Promise<void> {
  let tookMs = 0;
  const measured = async () => {
    const begun = performance.now();
    await readAll();
    tookMs = performance.now() - begun;
  };
  const pauseMs = () => Math.max(REFRESH_MS - tookMs, tookMs * (1 / SHARE - 1));
  await repeat(measured, () => (document.hidden ? HIDDEN_REFRESH_MS : pauseMs()), signal);
}

async function readWorkspaces(signal: AbortSignal): Promise<void> {
  const gone = new Set(known.keys());
  let chainIsBroken = tokens.length === 1;
  const readPage = async (index: number) => {
    const page = await listPage(tokens[index] ?? "", signal);
    absorb(page.workspaces, index);
    for (const workspace of page.workspaces) gone.delete(workspace.id);
    // Workspaces were created or deleted, so the later pages now begin elsewhere.
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

// The pages with the most workspaces in view; the first page if no workspace is in view.
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

// Sets `rows` at most once in PUBLISH_MS, because sorting thousands of rows takes most of a frame.
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
  const isCurrent = (task?: Task | null) => task?.id === workspace.current_task_id;
  const task = [tasks.get(workspace.id), before?.task].find(isCurrent) ?? null;
  const since = Date.parse(task?.started_at ?? workspace.updated_at);
  return { workspace, page, task, since };
}

async function readTasks(signal: AbortSignal): Promise<void> {
  const listed = new Map<string, Task>();
  let token = "";
  do {
    const query = { active: true, page_size: PAGE_SIZE, ...(token && { page_token: token }) };
    const page = await read(api.GET("/v1/tasks", { params: { query }, signal }));
    for (const task of page.tasks) listed.set(task.workspace_id, task);
    token = page.next_page_token;
  } while (token);
  const before = tasks;
  tasks = listed;
  for (const [workspaceId, task] of listed) {
    // A row that has not changed stays the same object, so that it is not drawn again.
    if (JSON.stringify(before.get(workspaceId)) === JSON.stringify(task)) continue;
    const row = known.get(workspaceId);
    if (!row) continue;
    known.set(workspaceId, merged(row, row.workspace, row.page));
    publishSoon();
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

export function useFollowedList(): void {
  useEffect(() => {
    const stop = new AbortController();
    void follow(stop.signal);
    return () => stop.abort();
  }, []);
}
