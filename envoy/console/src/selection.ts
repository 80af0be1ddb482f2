// Which rows the list shows, in which order.
import { computed, signal } from "@preact/signals";
import type { Task } from "./api";
import { type Row, rows } from "./workspaces";

export type Column = "name" | "status" | "task" | "iterations" | "phase" | "since" | "tokens";
export type StatusFilter = "all" | Row["workspace"]["status"];

export const text = signal("");
export const status = signal<StatusFilter>("all");
export const sort = signal<{ column: Column; descending: boolean }>({
  column: "since",
  descending: true,
});

export const selected = computed<readonly Row[]>(() => {
  const wanted = text.value.trim().toLowerCase();
  const found = rows.value.filter(
    (row) =>
      (status.value === "all" || row.workspace.status === status.value) &&
      (!wanted || searchable(row).includes(wanted)),
  );
  const { column, descending } = sort.value;
  const direction = descending ? -1 : 1;
  return found
    .map((row) => ({ row, key: sortKey(row, column) }))
    .sort((one, other) => direction * compare(one.key, other.key) || byId(one.row, other.row))
    .map(({ row }) => row);
});

// The number of workspaces of each status.
export const counts = computed(() => {
  const found = new Map<string, number>();
  for (const { workspace } of rows.value) {
    found.set(workspace.status, (found.get(workspace.status) ?? 0) + 1);
  }
  return found;
});

export function sortBy(column: Column): void {
  const { column: current, descending } = sort.peek();
  // Numbers and times are most useful from the largest down.
  const first = column === "iterations" || column === "since" || column === "tokens";
  sort.value = { column, descending: column === current ? !descending : first };
}

// When the task began, or else when the workspace got its status.
export function since({ workspace, task }: Row): number {
  return Date.parse(task?.started_at ?? workspace.updated_at);
}

export function tokensUsed(task: Task): number {
  return Number(task.usage.input_tokens) + Number(task.usage.output_tokens);
}

// A workspace with a task comes before those without one in every order from the largest down.
function sortKey(row: Row, column: Column): string | number {
  const { workspace, task } = row;
  switch (column) {
    case "name":
      return workspace.name || workspace.id;
    case "status":
      return workspace.status;
    case "task":
      return task?.description ?? "";
    case "iterations":
      return task?.iterations ?? -1;
    case "phase":
      return task?.phase ?? "";
    case "since":
      return workspace.current_task_id ? since(row) : since(row) - 1e14;
    case "tokens":
      return task ? tokensUsed(task) : -1;
  }
}

function compare(one: string | number, other: string | number): number {
  return one < other ? -1 : one > other ? 1 : 0;
}

function byId(one: Row, other: Row): number {
  return compare(other.workspace.id, one.workspace.id);
}

function searchable({ workspace, task }: Row): string {
  return `${workspace.id}\n${workspace.name}\n${workspace.current_task_id}\n${task?.description ?? ""}`.toLowerCase();
}
