// Stops everything: puts the organization on hold, cancels all tasks, and follows them to their end.
import { signal } from "@preact/signals";
import { api, read, type Schemas } from "./api";
import { announce } from "./announcer";
import { asFailure, backoffMs, pause } from "./connection";
import type { Failure } from "./failure";
import { count } from "./text";

// How often a call is repeated that the service could not answer.
const ATTEMPTS = 6;
const FOLLOW_MS = 1_000;
const HOLD_MS = 5_000;

export type Hold = Schemas["Hold"];
export type Unfinished = Schemas["CancelTasksResult"];

export interface Wishes {
  reason: string;
  // Whether to refuse new tasks until the organization is released.
  hold: boolean;
  // In seconds; null for never.
  forceAfter: number | null;
}

export interface Stop {
  readonly wishes: Wishes;
  readonly step: "hold" | "cancel" | "follow" | "done";
  // The first failure; the stop goes on only if it is repeated.
  readonly failure: Failure | null;
  readonly accepted: number;
  // Tasks whose cancellation was recorded before.
  readonly before: number;
  // How long it took to record all cancellations; null until then.
  readonly recordedMs: number | null;
  // Tasks that have not ended; null until they were counted.
  readonly unfinished: number | null;
  readonly results: readonly Unfinished[];
  readonly endedMs: number | null;
}

// What is known of the hold; null until it was read, or if the token may not read it.
export const hold = signal<Hold | null>(null);
// The last stop that this tab has begun.
export const stop = signal<Stop | null>(null);

// Counts the changes of the hold that this tab has made: a read that began before one may be old.
let changes = 0;

export async function followHold(signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const before = changes;
    try {
      const found = await read(api.GET("/v1/hold", { signal }));
      if (changes === before) hold.value = found;
    } catch {
      // The list and the page of a workspace say that the service does not answer.
    }
    await pause(HOLD_MS, signal);
  }
}

function changeHold(changed: Hold): void {
  changes += 1;
  hold.value = changed;
}

export async function release(): Promise<void> {
  changeHold(await read(api.POST("/v1/hold/release", {})));
  announce("The hold is released.");
}

// The tasks that have not ended, and those of them that are not cancelled yet.
export async function countTasks(signal?: AbortSignal): Promise<Schemas["CancelTasksResponse"]> {
  const init = { body: { all: true, dry_run: true }, ...(signal && { signal }) };
  return read(api.POST("/v1/tasks/cancel", init));
}

export async function stopEverything(wishes: Wishes): Promise<void> {
  const begun = performance.now();
  const state: Stop = {
    wishes,
    step: wishes.hold ? "hold" : "cancel",
    failure: null,
    accepted: 0,
    before: 0,
    recordedMs: null,
    unfinished: null,
    results: [],
    endedMs: null,
  };
  stop.value = state;
  try {
    if (wishes.hold) await holdOrg(wishes.reason);
    change({ step: "cancel" });
    await cancelAll(wishes);
    change({ step: "follow", recordedMs: performance.now() - begun });
    await followToTheEnd(begun);
  } catch (error) {
    change({ failure: asFailure(error) });
  }
}

// Interrupts the iterations of these tasks. Tasks that were submitted after the stop go on.
export async function interrupt(tasks: readonly Unfinished[]): Promise<void> {
  const reason = stop.peek()?.wishes.reason ?? "";
  const filter = { task_ids: tasks.map((each) => each.task_id) };
  try {
    await eachBatch({ filter, reason, force_after: "0s" }, () => {});
  } catch (error) {
    change({ failure: asFailure(error) });
  }
}

async function holdOrg(reason: string): Promise<void> {
  const answer = await insistently(() => read(api.POST("/v1/hold", { body: { reason } })));
  changeHold(answer.hold);
}

async function cancelAll({ reason, forceAfter }: Wishes): Promise<void> {
  const body = { all: true, reason, ...(forceAfter !== null && { force_after: `${forceAfter}s` }) };
  let isFirst = true;
  await eachBatch(body, (answer) => {
    const known = stop.peek();
    // Later answers count the tasks of earlier ones as recorded before.
    const before = isFirst ? answer.already_requested : (known?.before ?? 0);
    isFirst = false;
    change({ accepted: (known?.accepted ?? 0) + answer.accepted, before });
  });
}

// A call cancels at most 1,000 tasks.
async function eachBatch(
  body: Schemas["CancelTasksRequest"],
  onAnswer: (answer: Schemas["CancelTasksResponse"]) => void,
): Promise<void> {
  for (let remaining = 1; remaining > 0; ) {
    const answer = await insistently(() => read(api.POST("/v1/tasks/cancel", { body })));
    onAnswer(answer);
    remaining = answer.remaining;
    // Other transactions have locked what remains.
    if (remaining > 0 && answer.accepted === 0) await pause(FOLLOW_MS, new AbortController().signal);
  }
}

async function followToTheEnd(begun: number): Promise<void> {
  for (;;) {
    const answer = await insistently(() => countTasks());
    // Without a hold, new tasks are not part of this stop.
    const unfinished = answer.already_requested;
    const results = answer.results.filter((each) => each.outcome === "already_requested");
    change({ unfinished, results });
    if (unfinished === 0) break;
    await pause(FOLLOW_MS, new AbortController().signal);
  }
  change({ step: "done", endedMs: performance.now() - begun });
  announce(`${count((stop.peek()?.accepted ?? 0) + (stop.peek()?.before ?? 0), "task")} ended.`);
}

// Repeats a call that the service could not answer. All calls of a stop are safe to repeat.
async function insistently<T>(call: () => Promise<T>): Promise<T> {
  for (let failures = 1; ; failures += 1) {
    try {
      return await call();
    } catch (error) {
      const failure = asFailure(error);
      const isFinal = failure.status >= 400 && failure.status < 500 && failure.status !== 429;
      if (isFinal || failures >= ATTEMPTS) throw failure;
      await pause(backoffMs(failures, failure), new AbortController().signal);
    }
  }
}

function change(changed: Partial<Stop>): void {
  const known = stop.peek();
  if (known) stop.value = { ...known, ...changed };
}
