// The tree that the task of a workspace belongs to, with a button on each task.
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Task } from "./api";
import { cancelCallOf } from "./cancel_call";
import { CancelDialog } from "./cancel_dialog";
import { may } from "./credential";
import { PressNote } from "./press_note";
import { TaskTree } from "./task_tree";
import { firstLine, words } from "./text";
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
      <Branch of={tops} tasks={tasks} onAsk={setAsked} />
      {asked && (
        <CancelDialog
          title={`Cancel “${firstLine(asked.description)}” and its descendants`}
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
  onAsk: (task: Task) => void;
}

function Branch({ of, tasks, onAsk }: BranchProps) {
  return (
    <ul class="tree">
      {of.map((task) => {
        const children = tasks.filter((each) => each.parent_task_id === task.id);
        const name = firstLine(task.description);
        return (
          <li key={task.id}>
            <p>
              <span class={`badge ${task.status}`}>{words(task.status)}</span>{" "}
              <a href={`#/workspaces/${task.workspace_id}`}>{name}</a>{" "}
              {hasOpen(task, tasks) && may("workspace:write") && (
                <button
                  type="button"
                  class="danger"
                  aria-label={`Cancel ${name} and its descendants`}
                  onClick={() => onAsk(task)}
                >
                  Cancel…
                </button>
              )}
            </p>
            {children.length > 0 && <Branch of={children} tasks={tasks} onAsk={onAsk} />}
          </li>
        );
      })}
    </ul>
  );
}

// Whether the task or one of its descendants has not ended.
function hasOpen(task: Task, tasks: readonly Task[]): boolean {
  return (
    !task.completed_at ||
    tasks.some((each) => each.parent_task_id === task.id && hasOpen(each, tasks))
  );
}
