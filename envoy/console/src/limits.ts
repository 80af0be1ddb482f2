// The limits of a task, and whether a limit has cancelled it.
import type { Schemas, Task } from "./api";
import { count, dollars, elapsed, number } from "./text";

// The limits of the task, each as a short clause.
export function limitsOf({ limits, cancel_requested_by }: Task): string[] {
  if (!limits) return [];
  const clauses: string[] = [];
  if (limits.max_duration) clauses.push(`limit ${duration(limits.max_duration)}`);
  if (limits.max_total_tokens) {
    clauses.push(`limit ${count(Number(limits.max_total_tokens), "token")}`);
  }
  if (limits.max_cost) clauses.push(`limit ${dollars(limits.max_cost)}`);
  if (limits.force_after) {
    clauses.push(`its iteration is interrupted ${duration(limits.force_after)} later`);
  }
  if (cancel_requested_by === REQUESTER) clauses.push("a limit was reached and cancelled the task");
  return clauses;
}

// Whether a limit has cancelled the task.
export function isOverLimit(task: Task): boolean {
  return task.cancel_requested_by === REQUESTER;
}

export function tokensUsed(task: Task): number {
  return Number(task.usage.input_tokens) + Number(task.usage.output_tokens);
}

export function isByLimit(cancel: Schemas["CancelIntent"]): boolean {
  return cancel.requested_by === REQUESTER;
}

const REQUESTER = "system:limit";

// A duration in JSON is a number of seconds, followed by `s`.
function duration(text: string): string {
  const seconds = Number.parseFloat(text);
  return seconds < 60 ? `${number(seconds)} s` : elapsed(seconds * 1_000);
}
