// Keeps the list of all workspaces, with the tasks that run in them.
//
// Reads the whole list, and from then on the workspaces that an event names. What changes without an
// event is read again for the rows in view. The whole list is read again each minute, because no
// event says that a workspace was created or deleted.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api, read, type Task, type Workspace, type WorkspaceEvent } from "./api";
import { pause, repeat } from "./connection";
import { Source } from "./health";
import { token } from "./session";
import { followEvents } from "./stream";

// How many workspaces a page has, and how many a call can name.
const PAGE_SIZE = 200;
// The least time between two reads of changed workspaces. A read makes two calls at a time, and the
// reads in view one: a browser opens at most six connections over HTTP/1.1, the stream and the
// hold have one each, and a cancellation needs one.
const CHANGES_MS = 300;
// The interval of the reads of the whole list, while the page is not hidden.
const WHOLE_MS = 60_000;
// The interval of the reads in view.
const IN_VIEW_MS = 2_000;
// The interval of the reads of changed workspaces while the page is hidden.
const HIDDEN_MS = 10_000;
// The least time between two drawings of the list.
const PUBLISH_MS = 200;

export interface Row {
  workspace: Workspace;
  // The current task; null if there is none, or it has not been read yet.
  task: Task | null;
  // When the task began, or else when the workspace got its status, in milliseconds.
  since: number;
}

export const rows = signal<readonly Row[]>([]);
// Whether the whole list has been read once.
export const isComplete = signal(false);
export const listSource = new Source("the list");
const inViewSource = new Source("the rows in view");
const streamSource = new Source("the events");
// The ids of the workspaces in view, set by the list.
const inView = new Set<string>();
const known = new Map<string, Row>();
// The ids of the workspaces that events have named, and that have not been read since.
const changed = new Set<string>();
// Where the stream of events resumes; empty before it has begun.
let position = "";
// Whether the whole list has been read since the stream began.
let isListed = false;
// Counts how often the stream has begun without a position.
let beginnings = 0;
// Called when there may be something to read.
let wake = () => {};
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

// Follows the list until `signal` is aborted.
async function follow(signal: AbortSignal): Promise<void> {
  begin();
  const whole = setInterval(() => {
    if (document.hidden) return;
    isListed = false;
    wake();
  }, WHOLE_MS);
  signal.addEventListener("abort", () => {
    clearInterval(whole);
    wake();
  });
  let tookMs = 0;
  const readNext = async () => {
    await readable(signal);
    const begun = performance.now();
    await (isListed ? readChanged(signal) : readAll(signal));
    tookMs = performance.now() - begun;
  };
  const pauseMs = () => (document.hidden ? HIDDEN_MS : Math.max(0, CHANGES_MS - tookMs));
  await Promise.all([
    followStream(signal),
    repeat(listSource, readNext, pauseMs, signal),
    repeat(inViewSource, () => readInView(signal), () => 0, signal),
  ]);
}

function begin(): void {
  changed.clear();
  position = "";
  isListed = false;
  beginnings += 1;
}

async function followStream(signal: AbortSignal): Promise<void> {
  streamSource.follow(signal);
  // A stream without a position begins with a heartbeat. All changes before it are in the list,
  // which is read after it.
  const onEvents = (events: WorkspaceEvent[], lastId: string) => {
    for (const event of events) changed.add(event.workspace_id);
    position = lastId;
    wake();
  };
  for (;;) {
    const failure = await followEvents("/v1/events", streamSource, onEvents, signal, position);
    if (failure?.slug !== "validation_error" || position === "") return;
    streamSource.answered();
    begin();
  }
}

// Waits until there is something to read. Throws an AbortError.
async function readable(signal: AbortSignal): Promise<void> {
  while (!signal.aborted && (!position || (isListed && !changed.size))) {
    await new Promise<void>((resolve) => (wake = resolve));
  }
  signal.throwIfAborted();
}

async function readAll(signal: AbortSignal): Promise<void> {
  const beginning = beginnings;
  await readRows({}, known.keys(), signal);
  isComplete.value = true;
  isListed = beginning === beginnings;
}

// Reads some of the workspaces that events have named, those in view first.
async function readChanged(signal: AbortSignal): Promise<void> {
  const rest = [...changed].filter((id) => !inView.has(id));
  const ids = [...[...inView].filter((id) => changed.has(id)), ...rest].slice(0, PAGE_SIZE);
  for (const id of ids) changed.delete(id);
  try {
    await readRows({ workspace_ids: ids }, ids, signal);
  } catch (error) {
    for (const id of ids) changed.add(id);
    throw error;
  }
}

// Reads what changes without an event: the phase and the use of a running iteration, when it will be
// interrupted, and the end of a workspace.
async function readInView(signal: AbortSignal): Promise<void> {
  let running: string[] = [];
  let passing: string[] = [];
  while (!running.length && !passing.length) {
    await pause(IN_VIEW_MS, signal);
    signal.throwIfAborted();
    if (document.hidden || !isListed) continue;
    const seen = [...inView].flatMap((id) => known.get(id) ?? []);
    // No event says that a workspace is gone, so those that are deleted are read out of view too.
    const deleted = [...known.values()].filter((row) => row.workspace.status === "deleting");
    running = idsOf(seen.filter((row) => row.workspace.current_task_id && !isPassing(row)));
    passing = idsOf([...seen.filter(isPassing), ...deleted]);
  }
  if (running.length) await readTasks({ workspace_ids: running }, signal);
  if (passing.length) await readRows({ workspace_ids: passing }, passing, signal);
}

function isPassing({ workspace }: Row): boolean {
  return ["provisioning", "stopping", "deleting"].includes(workspace.status);
}

function idsOf(some: readonly Row[]): string[] {
  return [...new Set(some.map((row) => row.workspace.id))].slice(0, PAGE_SIZE);
}

interface Filter {
  workspace_ids?: string[];
}

// Reads these workspaces and their tasks. Those of `expected` that are not found are removed.
async function readRows(
  filter: Filter,
  expected: Iterable<string>,
  signal: AbortSignal,
): Promise<void> {
  const gone = new Set(expected);
  const tasks = new Map<string, Task>();
  await Promise.all([readWorkspaces(filter, gone, tasks, signal), readTasks(filter, signal, tasks)]);
  for (const id of gone) if (known.delete(id)) publishSoon();
}

async function readWorkspaces(
  filter: Filter,
  gone: Set<string>,
  tasks: ReadonlyMap<string, Task>,
  signal: AbortSignal,
): Promise<void> {
  await eachPage(async (page) => {
    const query = { ...filter, ...page };
    const found = await read(api.GET("/v1/workspaces", { params: { query }, signal }));
    for (const workspace of found.workspaces) {
      gone.delete(workspace.id);
      keep(workspace, tasks.get(workspace.id));
    }
    return found.next_page_token;
  });
}

// Reads the active tasks, and adds them to `tasks`.
async function readTasks(
  filter: Filter,
  signal: AbortSignal,
  tasks = new Map<string, Task>(),
): Promise<void> {
  await eachPage(async (page) => {
    const query = { ...filter, active: true, ...page };
    const found = await read(api.GET("/v1/tasks", { params: { query }, signal }));
    for (const task of found.tasks) {
      tasks.set(task.workspace_id, task);
      const row = known.get(task.workspace_id);
      if (row) keep(row.workspace, task);
    }
    return found.next_page_token;
  });
}

// Calls `readPage`, which returns the token of the next page, for one page after another.
async function eachPage(
  readPage: (page: { page_size: number; page_token?: string }) => Promise<string>,
): Promise<void> {
  let token = await readPage({ page_size: PAGE_SIZE });
  while (token) token = await readPage({ page_size: PAGE_SIZE, page_token: token });
}

// A row that has not changed stays the same object, so that it is not drawn again.
function keep(workspace: Workspace, read: Task | undefined): void {
  const before = known.get(workspace.id);
  const isCurrent = (task?: Task | null) => task?.id === workspace.current_task_id;
  const task = [read, before?.task].find(isCurrent) ?? null;
  if (before && isSame(before.workspace, workspace) && isSame(before.task, task)) return;
  const since = Date.parse(task?.started_at ?? workspace.updated_at);
  known.set(workspace.id, { workspace, task, since });
  publishSoon();
}

function isSame<T>(one: T, other: T): boolean {
  return one === other || JSON.stringify(one) === JSON.stringify(other);
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

export function useFollowedList(): void {
  useEffect(() => {
    const stop = new AbortController();
    void follow(stop.signal);
    return () => stop.abort();
    // Another token may be that of another organization.
  }, [token.value]);
}
