// Which workspaces need a person first.
import { now, sinceMs } from "./clock";
import { isOverLimit } from "./limits";
import type { Row } from "./workspaces";

// A cancellation that takes longer than this is late.
const LATE_MS = 10_000;
// Larger than any time in milliseconds, so that it separates the groups in `urgency`.
const TIME = 1e14;

// The problems that a workspace can have, the worst first.
export const TROUBLES = ["failed", "late", "over_limit"] as const;
export type Trouble = (typeof TROUBLES)[number];

// The problems of the workspace, the worst first.
export function troublesOf({ workspace, task }: Row): readonly Trouble[] {
  if (workspace.status === "failed") return ["failed"];
  if (!task) return [];
  const found: Trouble[] = [];
  if (task.cancel_requested_at) {
    // Reading `now` makes the page redraw each second.
    void now.value;
    if (sinceMs(task.cancel_requested_at) > LATE_MS) found.push("late");
  }
  if (isOverLimit(task)) found.push("over_limit");
  return found;
}

// The number by which workspaces are sorted. Those that need a person most come first: workspaces
// with a problem, then workspaces with a task, the longest task first, then all others by status,
// the newest change first.
export function urgency(row: Row): number {
  const { workspace, since } = row;
  const [trouble] = troublesOf(row);
  if (trouble === "failed") return TIME - since;
  if (trouble) return TROUBLES.indexOf(trouble) * TIME + since;
  if (workspace.current_task_id) return 3 * TIME + since;
  // All other statuses change soon, and come before these three.
  const resting = ["idle", "suspended", "stopped"].indexOf(workspace.status);
  return (resting + 6) * TIME - since;
}
