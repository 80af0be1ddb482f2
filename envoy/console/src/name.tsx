// A task by name, in its workspace.
import { firstLine } from "./text";
import { rowOf } from "./workspaces";

export function Name({ workspaceId, taskId }: { workspaceId: string; taskId: string }) {
  const row = rowOf(workspaceId);
  const task = row?.task?.id === taskId ? firstLine(row.task.description) : taskId;
  return (
    <>
      <strong>{row?.workspace.name || workspaceId}</strong> {task}
    </>
  );
}
