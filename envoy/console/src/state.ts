// The one word for the state of a workspace or a task, on every page.
import type { Task, Workspace } from "./api";
import { words } from "./text";

export function stateOf({ status }: Workspace, task: Task | null): string {
  // A workspace that is being stopped or deleted cancels its task.
  const isOpen = task && !task.completed_at && (status === "busy" || task.cancel_requested_at);
  if (isOpen) return taskState(task);
  return status === "busy" ? "running" : words(status);
}

export function taskState({ status, completed_at, cancel_requested_at }: Task): string {
  if (completed_at) return words(status);
  if (cancel_requested_at) return "cancelling";
  return ["submitted", "delivered"].includes(status) ? "starting" : words(status);
}
