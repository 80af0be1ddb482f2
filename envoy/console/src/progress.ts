// How far a cancellation has progressed, according to the event log and the task.
import type { Schemas, Task, WorkspaceEvent } from "./api";
import { words } from "./text";

export interface Progress {
  // When the cancellation was recorded; null if none was.
  requestedAt: string | null;
  cancel: Schemas["CancelIntent"] | null;
  // When the iteration is interrupted; null if the cancellation does not interrupt it.
  forceAt: string | null;
  // The first iteration that ended after the cancellation was recorded; null if there is none.
  iteration: WorkspaceEvent | null;
  // Whether the task ended during an iteration that is not in the log.
  isLost: boolean;
  // Whether the log has the request and the end, and so every iteration between them.
  isLogged: boolean;
  end: Schemas["TaskCompleted"] | null;
  endedAt: string | null;
}

export function progressOf(
  taskId: string,
  events: readonly WorkspaceEvent[],
  task: Task | null,
): Progress {
  const known = task?.id === taskId ? task : null;
  const own = events.filter((event) => event.task_id === taskId);
  const request = own.find((event) => event.task_cancel_requested);
  const end = own.find((event) => event.task_completed);
  const cancel = end?.task_completed?.cancel ?? request?.task_cancel_requested?.cancel ?? null;
  return {
    requestedAt: cancel?.requested_at ?? known?.cancel_requested_at ?? null,
    cancel,
    forceAt: known?.cancel_force_at ?? cancel?.force_at ?? null,
    iteration: (request && own.find((event) => isIterationAfter(event, request))) ?? null,
    isLost: end?.task_completed?.iteration_lost ?? known?.iteration_lost ?? false,
    isLogged: request !== undefined && end !== undefined,
    end: end?.task_completed ?? null,
    endedAt: end?.time ?? known?.completed_at ?? null,
  };
}

// How the task ended.
export function describe({ end }: Progress): string {
  if (!end) return "Ended";
  const status = words(end.status);
  const title = status.charAt(0).toUpperCase() + status.slice(1);
  return end.forced ? `${title}, interrupted` : title;
}

function isIterationAfter(event: WorkspaceEvent, request: WorkspaceEvent): boolean {
  return event.iteration_completed !== undefined && Number(event.seq) > Number(request.seq);
}
