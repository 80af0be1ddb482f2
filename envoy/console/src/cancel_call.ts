// The calls of CancelTask that this page has made.
import { type Signal, signal } from "@preact/signals";
import { api, read, type Schemas } from "./api";
import { asFailure, untilAnswered } from "./connection";
import type { Failure } from "./failure";

export interface CancelOptions {
  reason: string;
  // After how many seconds an iteration that still runs is interrupted; null for never.
  forceAfter: number | null;
}

// The fields that CancelTask and CancelTasks share.
export function cancelFields({ reason, forceAfter }: CancelOptions) {
  return {
    ...(reason && { reason }),
    ...(forceAfter !== null && { force_after: `${forceAfter}s` }),
  };
}

export interface CancelCall {
  readonly outcome: Schemas["CancelTaskResponseOutcome"] | null;
  // Why the last try failed; null if it did not fail.
  readonly failure: Failure | null;
  // Whether the call is being repeated.
  readonly isRepeated: boolean;
  // Whether a try may have been recorded without an answer.
  readonly isUnanswered: boolean;
  // How long the service took to answer the last try; null without an answer.
  readonly answerMs: number | null;
}

// The last call for each task, by its id.
const calls = signal<ReadonlyMap<string, Signal<CancelCall>>>(new Map());

export function cancelCallOf(taskId: string): CancelCall | null {
  return calls.value.get(taskId)?.value ?? null;
}

// Repeats the call until it is answered. It names the task, so that it never cancels the next task.
export async function cancelTask(
  workspaceId: string,
  taskId: string,
  options: CancelOptions,
  withDescendants = false,
): Promise<void> {
  const call = signal<CancelCall>({
    outcome: null,
    failure: null,
    isRepeated: false,
    isUnanswered: false,
    answerMs: null,
  });
  const change = (changed: Partial<CancelCall>) => (call.value = { ...call.peek(), ...changed });
  calls.value = new Map(calls.peek()).set(taskId, call);
  const path = { workspace_id: workspaceId, task_id: taskId };
  const fields = { ...cancelFields(options), ...(withDescendants && { include_descendants: true }) };
  let begun = 0;
  const send = () => {
    begun = performance.now();
    const init = { params: { path }, body: fields };
    return read(api.POST("/v1/workspaces/{workspace_id}/tasks/{task_id}/cancel", init));
  };
  const onFailure = (failure: Failure) => {
    const isUnanswered = call.peek().isUnanswered || failure.status !== 429;
    change({ failure, isUnanswered, isRepeated: true });
  };
  try {
    const { outcome } = await untilAnswered(send, onFailure);
    const answerMs = performance.now() - begun;
    change({ outcome, failure: null, isRepeated: false, answerMs });
  } catch (error) {
    const failure = asFailure(error);
    const answerMs = failure.status ? performance.now() - begun : null;
    change({ failure, isRepeated: false, answerMs });
  }
}
