// The tree that the task of a workspace belongs to, with a button on each task.
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Task } from "./api";
import { cancelCallOf } from "./cancel_call";
import { CancelDialog, takenOf } from "./cancel_dialog";
import { may } from "./credential";
import { PressNote } from "./press_note";
import { TaskTree } from "./task_tree";
import { taskState } from "./state";
import { firstLine } from "./text";
import type { OpenWorkspace } from "./workspace";

export function Tree({ open }: { open: OpenWorkspace }) {
  const rootId = open.task.value?.root_task_id ?? "";
  const tree = useMemo(() => new TaskTree(rootId), [rootId]);
  const [asked, setAsked] = useState<Task | null>(null);
  const [pressed, setPressed] = useState<Task | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    if (rootId) void tree.follow(stop.signal);
    return () => stop.abort();
  }, [tree, rootId]);
  const tasks = tree.tasks.value;
  const press = pressed ? cancelCallOf(pressed.id) : null;
  if (tasks.length < 2) return null;
  const ids = new Set(tasks.map((each) => each.id));
  const tops = tasks.filter((each) => !ids.has(each.parent_task_id));
  return (
    <section aria-labelledby="tree-title">
      <h2 id="tree-title">Tree</h2>
      {press && <PressNote call={press} isRecorded={false} />}
      {tree.hasMore.value && <p class="fine">The newest {tasks.length} tasks.</p>}
      <Branch of={tops} tasks={tasks} hasMore={tree.hasMore.value} onAsk={setAsked} />
      {asked && (
        <CancelDialog
          title={`${reach(asked, tasks, tree.hasMore.value)}: “${firstLine(asked.description)}”`}
          taken={takenOf(openOf(asked, tasks))}
          onCancel={(options) => {
            setAsked(null);
            setPressed(asked);
            void tree.cancel(asked, options);
          }}
          onClose={() => setAsked(null)}
        />
      )}
    </section>
  );
}

interface BranchProps {
  of: readonly Task[];
  tasks: readonly Task[];
  // Whether the tree has tasks that are not in `tasks`.
  hasMore: boolean;
  onAsk: (task: Task) => void;
}

function Branch({ of, tasks, hasMore, onAsk }: BranchProps) {
  return (
    <ul class="tree">
      {of.map((task) => {
        const children = tasks.filter((each) => each.parent_task_id === task.id);
        const name = firstLine(task.description);
        return (
          <li key={task.id}>
            <p>
              <span class={`badge ${taskState(task)}`}>{taskState(task)}</span>{" "}
              <a href={`#/workspaces/${task.workspace_id}`}>{name}</a>{" "}
              {openOf(task, tasks).length > 0 && may("workspace:write") && (
                <button
                  type="button"
                  class="danger"
                  aria-label={`${reach(task, tasks, hasMore)}: ${name}`}
                  onClick={() => onAsk(task)}
                >
                  {reach(task, tasks, hasMore)}
                </button>
              )}
            </p>
            {children.length > 0 && <Branch of={children} tasks={tasks} hasMore={hasMore} onAsk={onAsk} />}
          </li>
        );
      })}
    </ul>
  );
}

// What a press on the button of the task cancels.
function reach(task: Task, tasks: readonly Task[], hasMore: boolean): string {
  const found = openOf(task, tasks).filter((each) => each !== task).length;
  const below = found && hasMore ? `${found} or more` : found;
  if (task.completed_at) return `Cancel the ${below} below this task`;
  return below ? `Cancel this task and ${below} below it` : "Cancel this task";
}

// The task and its descendants, without those that have ended.
function openOf(task: Task, tasks: readonly Task[]): Task[] {
  const children = tasks.filter((each) => each.parent_task_id === task.id);
  const below = children.flatMap((each) => openOf(each, tasks));
  return task.completed_at ? below : [task, ...below];
}
