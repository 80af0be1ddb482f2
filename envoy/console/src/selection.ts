// Which workspaces the list shows, in which order, and which of them are selected.
import { computed, signal } from "@preact/signals";
import { tokensUsed } from "./limits";
import { inDollars } from "./text";
import { type Trouble, TROUBLES, troublesOf, urgency } from "./urgency";
import { type Row, rows } from "./workspaces";

export type Column =
  | "name"
  | "status"
  | "task"
  | "iterations"
  | "phase"
  | "since"
  | "tokens"
  | "cost";
// All workspaces, or the workspaces with a problem or in a status.
export type Filter = "all" | Trouble | Row["workspace"]["status"];

const STATUSES = [
  "busy",
  "provisioning",
  "stopping",
  "deleting",
  "idle",
  "suspended",
  "stopped",
] as const;

export const text = signal("");
export const filter = signal<Filter>("all");
export const sort = signal<{ column: Column; descending: boolean }>({
  column: "status",
  descending: false,
});
// The ids of the selected workspaces.
export const chosen = signal<ReadonlySet<string>>(new Set());

export const shown = computed<readonly Row[]>(() => {
  const wanted = text.value.trim().toLowerCase();
  const found = rows.value.filter(
    (row) => matches(row, filter.value) && (!wanted || searchable(row).includes(wanted)),
  );
  const { column, descending } = sort.value;
  const direction = descending ? -1 : 1;
  return found
    .map((row) => ({ row, key: sortKey(row, column) }))
    .sort((one, other) => direction * compare(one.key, other.key) || byId(one.row, other.row))
    .map(({ row }) => row);
});

// How many workspaces each filter matches: all, then the problems, then the statuses. A filter that
// matches none is left out, unless it is the chosen one.
export const counts = computed<ReadonlyMap<Filter, number>>(() => {
  const order: Filter[] = ["all", ...TROUBLES, ...STATUSES];
  const found = new Map<Filter, number>(order.map((each) => [each, 0]));
  const add = (each: Filter) => found.set(each, (found.get(each) ?? 0) + 1);
  for (const row of rows.value) {
    add("all");
    add(row.workspace.status);
    for (const trouble of troublesOf(row)) if (trouble !== "failed") add(trouble);
  }
  return new Map([...found].filter(([each, all]) => all > 0 || each === "all" || each === filter.value));
});

// The workspaces whose tasks "Cancel these" cancels: the selected ones or, if the list shows only a
// part, the ones that it shows.
export const targets = computed<readonly Row[]>(() => {
  const isPart = text.value.trim() !== "" || filter.value !== "all";
  const meant = chosen.value.size
    ? rows.value.filter((row) => chosen.value.has(row.workspace.id))
    : isPart
      ? shown.value
      : [];
  return meant.filter((row) => row.workspace.current_task_id);
});

export function choose(workspaceIds: Iterable<string>, isChosen: boolean): void {
  const changed = new Set(chosen.peek());
  for (const id of workspaceIds) {
    if (isChosen) changed.add(id);
    else changed.delete(id);
  }
  chosen.value = changed;
}

export function sortBy(column: Column): void {
  const { column: current, descending } = sort.peek();
  // Numbers and times are most useful from the largest down.
  const first = ["iterations", "since", "tokens", "cost"].includes(column);
  sort.value = { column, descending: column === current ? !descending : first };
}

function matches(row: Row, wanted: Filter): boolean {
  if (wanted === "all" || row.workspace.status === wanted) return true;
  return (troublesOf(row) as readonly Filter[]).includes(wanted);
}

// The value by which a column sorts. Among numbers and times, a workspace without a task has the
// lowest value, so the order from the largest down ends with these workspaces.
function sortKey(row: Row, column: Column): string | number {
  const { workspace, task } = row;
  switch (column) {
    case "name":
      return workspace.name || workspace.id;
    case "status":
      return urgency(row);
    case "task":
      return task?.description ?? "";
    case "iterations":
      return task?.iterations ?? -1;
    case "phase":
      return task?.phase ?? "";
    case "since":
      return -row.since - (workspace.current_task_id ? 0 : 1e14);
    case "tokens":
      return task ? tokensUsed(task) : -1;
    case "cost":
      return task?.usage.cost ? inDollars(task.usage.cost) : -1;
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
