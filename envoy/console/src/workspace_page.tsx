// One workspace: its task, the button that cancels it, and its event log.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Task, Workspace } from "./api";
import { CancelDialog } from "./cancel_dialog";
import { cancelTask, type Wishes } from "./cancel_call";
import { Cancellation } from "./cancellation";
import { trouble } from "./connection";
import { ConnectionNote } from "./connection_note";
import { Deliveries } from "./deliveries";
import { FailureNote } from "./failure";
import { limitsOf } from "./limits";
import { tokensUsed } from "./selection";
import { elapsed, firstLine, fullTime, now, number, words } from "./text";
import { Timeline } from "./timeline";
import { Tree } from "./tree";
import { OpenWorkspace } from "./workspace";

export function WorkspacePage({ id }: { id: string }) {
  const open = useMemo(() => new OpenWorkspace(id), [id]);
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => {
    const stop = new AbortController();
    open.follow(stop.signal);
    heading.current?.focus();
    return () => stop.abort();
  }, [open]);
  const workspace = open.workspace.value;
  const streamTrouble = open.streamTrouble.value;
  return (
    <main class="workspace-page">
      <nav aria-label="Breadcrumb">
        <a href="#/">← All workspaces</a>
      </nav>
      <h1 ref={heading} tabIndex={-1}>
        {workspace?.name || id}
      </h1>
      <ConnectionNote />
      {streamTrouble && !trouble.value && streamTrouble.status !== 401 && (
        <FailureNote failure={streamTrouble} title="The event log is not up to date." />
      )}
      {workspace && <Facts workspace={workspace} />}
      <CurrentTask open={open} />
      <Cancellation open={open} />
      <Tree open={open} />
      <Deliveries open={open} />
      <Timeline open={open} />
    </main>
  );
}

function Facts({ workspace }: { workspace: Workspace }) {
  return (
    <dl class="properties">
      <Fact name="Status">
        <span class={`badge ${workspace.status}`}>{words(workspace.status)}</span>{" "}
        {workspace.status_reason}
      </Fact>
      <Fact name="Id">
        <code class="id">{workspace.id}</code>
      </Fact>
      <Fact name="Created">
        {fullTime(workspace.created_at)}
        {workspace.created_by_user_id && ` by ${workspace.created_by_user_id}`}
      </Fact>
    </dl>
  );
}

function Fact({ name, children }: { name: string; children: preact.ComponentChildren }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function CurrentTask({ open }: { open: OpenWorkspace }) {
  const [isAsking, setIsAsking] = useState(false);
  const task = open.task.value;
  if (!task) return null;
  const isOver = Boolean(task.completed_at);
  const cancel = (wishes: Wishes) => {
    setIsAsking(false);
    void cancelTask(open.id, task.id, wishes);
    // The button may be gone when the task has ended.
    requestAnimationFrame(() => document.getElementById("cancellation-title")?.focus());
  };
  return (
    <section aria-labelledby="task-title">
      <div class="task-head">
        <h2 id="task-title">{isOver ? "Last task" : "Task"}</h2>
        {!isOver && (
          <button type="button" class="danger large" onClick={() => setIsAsking(true)}>
            {task.cancel_requested_at ? "Cancel again…" : "Cancel…"}
          </button>
        )}
      </div>
      <TaskFacts task={task} />
      {isAsking && (
        <CancelDialog
          isRepeated={Boolean(task.cancel_requested_at)}
          onCancel={cancel}
          onClose={() => setIsAsking(false)}
        />
      )}
    </section>
  );
}

function TaskFacts({ task }: { task: Task }) {
  const began = task.started_at ?? task.created_at;
  const phase = task.phase === "phase_unspecified" ? "none" : words(task.phase);
  return (
    <dl class="properties">
      <Fact name="Description">{firstLine(task.description)}</Fact>
      <Fact name="Status">
        <span class={`badge ${task.status}`}>{words(task.status)}</span> {task.reason}
      </Fact>
      {!task.completed_at && <Fact name="Phase">{phase}</Fact>}
      <Fact name="Iterations">
        {number(task.iterations)} of at most {number(task.max_iterations)}
      </Fact>
      <Fact name={task.completed_at ? "Ran" : "Running since"}>
        {task.completed_at
          ? elapsed(Date.parse(task.completed_at) - Date.parse(began))
          : `${fullTime(began)}, ${elapsed(now.value - Date.parse(began))}`}
      </Fact>
      <Fact name="Tokens">{number(tokensUsed(task))}</Fact>
      {task.limits && <Fact name="Limits">{limitsOf(task).join(", ")}</Fact>}
      <Fact name="Task id">
        <code class="id">{task.id}</code>
      </Fact>
    </dl>
  );
}
