// The name of a workspace and the description of its task; their ids if these are not known.
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
