// A call of CancelTask that this page has made.
import { signal } from "@preact/signals";
import { api, read, type Schemas } from "./api";
import { asFailure } from "./connection";
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
  readonly taskId: string;
  readonly outcome: Schemas["CancelTaskResponseOutcome"] | null;
  readonly failure: Failure | null;
  // How long the service took to answer; null until then.
  readonly answerMs: number | null;
}

// The last call of CancelTask that this page has made.
export const cancelCall = signal<CancelCall | null>(null);

// The call names the task, so that it never cancels the next task.
export async function cancelTask(
  workspaceId: string,
  taskId: string,
  options: CancelOptions,
): Promise<void> {
  const begun = performance.now();
  const pending = { taskId, outcome: null, failure: null, answerMs: null };
  cancelCall.value = pending;
  const body = cancelFields(options);
  const path = { workspace_id: workspaceId, task_id: taskId };
  try {
    const reply = await read(
      api.POST("/v1/workspaces/{workspace_id}/tasks/{task_id}/cancel", { params: { path }, body }),
    );
    const answerMs = performance.now() - begun;
    cancelCall.value = { ...pending, outcome: reply.outcome, answerMs };
  } catch (error) {
    const answerMs = performance.now() - begun;
    cancelCall.value = { ...pending, failure: asFailure(error), answerMs };
  }
}
