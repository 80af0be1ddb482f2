// What an event means, in words.
import type { Schemas, WorkspaceEvent } from "./api";
import { isByLimit } from "./limits";
import { count, dollars, duration, number, words } from "./text";

export function title(event: WorkspaceEvent): string {
  switch (event.type) {
    case "workspace_provisioned":
      return "Workspace provisioned";
    case "workspace_stopped":
      return "Workspace stopped";
    case "workspace_failed":
      return "Workspace failed";
    case "workspace_resumed":
      return "Workspace resumed";
    case "task_submitted":
      return "Task submitted";
    case "task_started":
      return "Task started";
    case "iteration_completed":
      return `Iteration ${event.iteration_completed?.number ?? ""} completed`;
    case "task_cancel_requested":
      return "Cancellation requested";
    case "task_completed":
      return event.task_completed?.status === "cancelled"
        ? `Task cancelled${event.task_completed.forced ? ", its iteration was interrupted" : ""}`
        : `Task ${words(event.task_completed?.status ?? "ended")}`;
    default:
      return words(event.type);
  }
}

// The facts of an event, each a short clause.
export function facts(event: WorkspaceEvent): string[] {
  const { workspace_stopped, workspace_failed, task_submitted, iteration_completed } = event;
  if (workspace_stopped) return [workspace_stopped.reason];
  if (workspace_failed) return [workspace_failed.reason];
  if (task_submitted) return [`by ${task_submitted.submitted_by}`];
  if (iteration_completed) return iterationFacts(iteration_completed);
  if (event.task_cancel_requested) return intentFacts(event.task_cancel_requested.cancel);
  if (event.task_limit_approached) {
    const { limit, used, maximum } = event.task_limit_approached;
    return [`${words(limit)}: ${used} of ${maximum}`];
  }
  if (event.task_completed) return endFacts(event.task_completed);
  const epoch = (event.workspace_provisioned ?? event.workspace_resumed)?.epoch;
  return epoch ? [`epoch ${epoch}`] : [];
}

export function announcement(event: WorkspaceEvent): string {
  return [title(event), ...facts(event).slice(0, 2)].join(", ");
}

export function intentFacts(cancel: Schemas["CancelIntent"]): string[] {
  const kind = cancel.credential_kind === "api_key" ? "API key " : "";
  const clauses = [isByLimit(cancel) ? "by a limit of the task" : `by ${kind}${cancel.requested_by}`];
  clauses.push(cancel.reason ? `reason: ${cancel.reason}` : "no reason given");
  if (cancel.force_at) clauses.push(`interruption by ${cancel.force_requested_by}`);
  return clauses;
}

// A single tool call is only in the field `tool_call`.
export function toolCalls(iteration: Schemas["IterationCompleted"]): Schemas["ToolCall"][] {
  const { tool_call, tool_calls } = iteration;
  if (tool_calls?.length) return tool_calls;
  return tool_call ? [tool_call] : [];
}

// A tool call as its command, or else as its name and arguments.
export function commandOf(name: string, args: string): string {
  try {
    const { command, ...rest } = JSON.parse(args) as Record<string, unknown>;
    if (typeof command === "string" && Object.keys(rest).length === 0) return `$ ${command}`;
  } catch {
    // The service shortens long arguments, which then are no JSON.
  }
  return `${name} ${args}`;
}

export function toolOutcome(result: Schemas["ToolResult"]): string {
  if (result.status !== "exited") return words(result.status);
  return result.exit_code === 0 ? "succeeded" : `exit code ${result.exit_code}`;
}

function iterationFacts(iteration: Schemas["IterationCompleted"]): string[] {
  const { model_call } = iteration;
  const tokens = Number(model_call.input_tokens) + Number(model_call.output_tokens);
  const interrupted = model_call.status === "interrupted" ? ", interrupted" : "";
  const clauses = [
    `model call ${duration(Number(model_call.duration_ms))}${interrupted}, ` +
      count(tokens, "token"),
  ];
  const calls = toolCalls(iteration);
  calls.forEach((call, at) => {
    const name = calls.length > 1 ? `tool call ${at + 1} of ${calls.length}:` : "tool call";
    clauses.push(
      `${name} ${duration(Number(call.duration_ms))}, ${toolOutcome(call.result)}`,
    );
  });
  return clauses;
}

function endFacts(end: Schemas["TaskCompleted"]): string[] {
  const tokens = Number(end.usage.input_tokens) + Number(end.usage.output_tokens);
  const clauses = [count(end.iterations, "iteration"), `${number(tokens)} tokens`];
  if (end.iteration_lost) clauses.push("one more iteration was lost");
  if (end.usage.cost) clauses.push(`${dollars(end.usage.cost)} as reported`);
  // A cancelled task has the reason of its cancellation, which `intentFacts` adds.
  if (end.reason && end.reason !== end.cancel?.reason) clauses.push(end.reason);
  if (end.cancel) clauses.push(...intentFacts(end.cancel));
  if (end.work_stopped === "unknown") {
    clauses.push("not every process of the task is known to have ended");
  }
  return clauses;
}
