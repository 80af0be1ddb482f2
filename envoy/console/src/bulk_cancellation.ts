// Cancels many tasks, and follows them to their end.
import { signal } from "@preact/signals";
import { api, read, type Schemas } from "./api";
import { announce } from "./announcer";
import { type CancelOptions, cancelFields } from "./cancel_call";
import { asFailure, pause, untilAnswered } from "./connection";
import type { Failure } from "./failure";
import { holdOrg } from "./hold";
import { count } from "./text";

const FOLLOW_MS = 1_000;
// The maximum number of tasks that a filter can name.
const MOST_IDS = 1_000;

export type Result = Schemas["CancelTasksResult"];
type Kind = "trouble" | "interruption";
type Filters = Pick<Schemas["CancelTasksRequest"], "all" | "filter">[];

// The failure of a call.
export interface Trouble {
  readonly failure: Failure;
  readonly isRepeated: boolean;
  // Whether a try may have been recorded without an answer.
  readonly isUnanswered: boolean;
}

export interface BulkState {
  readonly step: "hold" | "cancel" | "follow" | "done";
  // Why the cancellation does not continue; null if it does.
  readonly trouble: Trouble | null;
  // Why the last interruption failed; null if it did not fail.
  readonly interruption: Trouble | null;
  readonly accepted: number;
  // Tasks that had been cancelled before this cancellation.
  readonly before: number;
  // How long it took to record all cancellations; null until then.
  readonly recordedMs: number | null;
  // Tasks that have not ended; null until they were counted.
  readonly unfinished: number | null;
  readonly results: readonly Result[];
  readonly endedMs: number | null;
}

// The tasks that match and have not ended.
export interface Counted {
  readonly matched: number;
  // The matching tasks that are already cancelled.
  readonly before: number;
  // A result for each task with one of the ids; if all tasks were counted, at most 1,000 results.
  readonly results: readonly Result[];
}

// The last cancellation of all tasks that this tab has begun.
export const lastStop = signal<BulkCancellation | null>(null);

// Counts the tasks with these ids, or all tasks, without cancelling them. Throws Failure.
export async function countTasks(
  taskIds: readonly string[] | null,
  signal: AbortSignal,
): Promise<Counted> {
  let found: Counted = { matched: 0, before: 0, results: [] };
  for (const part of filters(taskIds)) {
    const init = { body: { ...part, dry_run: true }, signal };
    const { matched, already_requested, results } = await read(api.POST("/v1/tasks/cancel", init));
    found = {
      matched: found.matched + matched,
      before: found.before + already_requested,
      results: [...found.results, ...results],
    };
  }
  return found;
}

export class BulkCancellation {
  readonly state = signal<BulkState>({
    step: "cancel",
    trouble: null,
    interruption: null,
    accepted: 0,
    before: 0,
    recordedMs: null,
    unfinished: null,
    results: [],
    endedMs: null,
  });
  private readonly begun = performance.now();
  private readonly leave = new AbortController();

  // `taskIds` is null for all tasks. `hold` says whether to refuse new tasks first, until the
  // organization is released.
  constructor(
    readonly taskIds: readonly string[] | null,
    readonly options: CancelOptions,
    readonly hold = false,
  ) {}

  async run(): Promise<void> {
    try {
      if (this.hold) {
        this.change({ step: "hold" });
        await this.answered("trouble", () => holdOrg(this.options.reason));
      }
      this.change({ step: "cancel" });
      await this.cancelAll();
      this.change({ step: "follow", recordedMs: performance.now() - this.begun });
      await this.followToTheEnd();
    } catch (error) {
      if (!this.leave.signal.aborted) this.fail("trouble", error);
    }
  }

  // Stops following. What is cancelled stays cancelled.
  close(): void {
    this.leave.abort();
  }

  // Interrupts the iterations of these tasks. Tasks that were submitted later continue.
  async interrupt(tasks: readonly Result[]): Promise<void> {
    try {
      for (const part of filters(tasks.map((each) => each.task_id))) {
        const body = { ...part, reason: this.options.reason, force_after: "0s" };
        await this.eachBatch("interruption", body, () => {});
      }
    } catch (error) {
      this.fail("interruption", error);
    }
  }

  private async cancelAll(): Promise<void> {
    for (const part of filters(this.taskIds)) {
      let isFirst = true;
      await this.eachBatch("trouble", { ...part, ...cancelFields(this.options) }, (answer) => {
        const known = this.state.peek();
        // In later answers, `already_requested` includes the tasks that earlier calls cancelled.
        const before = isFirst ? known.before + answer.already_requested : known.before;
        isFirst = false;
        this.change({ accepted: known.accepted + answer.accepted, before });
      });
    }
  }

  private async followToTheEnd(): Promise<void> {
    for (;;) {
      const answer = await this.answered("trouble", () =>
        countTasks(this.taskIds, this.leave.signal),
      );
      // Without a hold, new tasks can start. They do not belong to this cancellation.
      const isOwn = (each: Result) => this.taskIds !== null || each.outcome === "already_requested";
      const unfinished = this.taskIds ? answer.matched : answer.before;
      this.change({ unfinished, results: answer.results.filter(isOwn) });
      if (unfinished === 0) break;
      await pause(FOLLOW_MS, this.leave.signal);
    }
    this.change({ step: "done", endedMs: performance.now() - this.begun });
    const { accepted, before } = this.state.peek();
    announce(`${count(accepted + before, "task")} ended.`);
  }

  // Repeats the call until no task remains, because one call cancels at most 1,000 tasks.
  private async eachBatch(
    kind: Kind,
    body: Schemas["CancelTasksRequest"],
    onAnswer: (answer: Schemas["CancelTasksResponse"]) => void,
  ): Promise<void> {
    for (let remaining = 1; remaining > 0; ) {
      // With the key, a repeat gets the first answer, which counts what this press cancelled.
      const headers = { "idempotency-key": newKey() };
      const send = () => read(api.POST("/v1/tasks/cancel", { body, headers }));
      const answer = await this.answered(kind, send);
      onAnswer(answer);
      remaining = answer.remaining;
      // Other transactions have locked the remaining tasks.
      const isBlocked = remaining > 0 && answer.accepted === 0;
      if (isBlocked) await pause(FOLLOW_MS, new AbortController().signal);
    }
  }

  // Repeats the call until it is answered. All calls of this module are safe to repeat.
  private async answered<T>(kind: Kind, call: () => Promise<T>): Promise<T> {
    const onFailure = (failure: Failure) => {
      const isUnanswered = this.isUnanswered(kind) || failure.status !== 429;
      this.change({ [kind]: { failure, isRepeated: true, isUnanswered } });
    };
    const answer = await untilAnswered(call, onFailure, this.leave.signal);
    this.change({ [kind]: null });
    return answer;
  }

  private fail(kind: Kind, error: unknown): void {
    const isUnanswered = this.isUnanswered(kind);
    this.change({ [kind]: { failure: asFailure(error), isRepeated: false, isUnanswered } });
  }

  private isUnanswered(kind: Kind): boolean {
    return this.state.peek()[kind]?.isUnanswered ?? false;
  }

  private change(changed: Partial<BulkState>): void {
    this.state.value = { ...this.state.peek(), ...changed };
  }
}

// crypto.randomUUID() is missing on pages without TLS.
function newKey(): string {
  return crypto.getRandomValues(new Uint32Array(4)).join("-");
}

function filters(taskIds: readonly string[] | null): Filters {
  if (taskIds === null) return [{ all: true }];
  const parts: Filters = [];
  for (let first = 0; first < taskIds.length; first += MOST_IDS) {
    parts.push({ filter: { task_ids: taskIds.slice(first, first + MOST_IDS) } });
  }
  return parts;
}
