// One workspace: its task, the button that cancels it, and its event log.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Task, Workspace } from "./api";
import { CancelDialog } from "./cancel_dialog";
import { type CancelOptions, cancelTask } from "./cancel_call";
import { Cancellation } from "./cancellation";
import { now } from "./clock";
import { asFailure } from "./connection";
import { may } from "./credential";
import { Denied } from "./denied";
import { Deliveries } from "./deliveries";
import { type Failure, FailureNote } from "./failure";
import { useKeys } from "./keys";
import { limitsOf, tokensUsed } from "./limits";
import { RunsNow } from "./runs_now";
import { stateOf, taskState } from "./state";
import { dollars, elapsed, firstLine, fullTime, number } from "./text";
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
  const failure = open.source.failure.value;
  return (
    <main class="workspace-page">
      <nav aria-label="Breadcrumb">
        <a href="#/">← All workspaces</a>
      </nav>
      <h1 ref={heading} tabIndex={-1}>
        {workspace?.name || id}
      </h1>
      {workspace && <Facts open={open} workspace={workspace} />}
      {!workspace && failure && <FailureNote failure={failure} />}
      <Cancellation open={open} />
      <CurrentTask open={open} />
      <Tree open={open} />
      <Deliveries open={open} />
      <Timeline open={open} />
    </main>
  );
}

function Facts({ open, workspace }: { open: OpenWorkspace; workspace: Workspace }) {
  const { status, created_by_user_id: creator } = workspace;
  const current = open.task.value?.id === workspace.current_task_id ? open.task.value : null;
  const state = stateOf(workspace, current);
  const mayResume = may("workspace:write") || may("tasks:write");
  return (
    <>
      <p>
        <span class={`badge ${state}`}>{state}</span> {workspace.status_reason}
      </p>
      {["failed", "stopped"].includes(status) && mayResume && <Resume open={open} />}
      <p class="fine">
        <code class="id">{workspace.id}</code>, created {fullTime(workspace.created_at)}
        {creator && ` by ${creator}`}
      </p>
    </>
  );
}

function Resume({ open }: { open: OpenWorkspace }) {
  const [failure, setFailure] = useState<Failure | null>(null);
  const resume = () => open.resume().catch((error: unknown) => setFailure(asFailure(error)));
  return (
    <>
      <div class="buttons">
        <button type="button" class="primary" onClick={() => void resume()}>
          Resume
        </button>
      </div>
      {failure && <FailureNote failure={failure} title="The workspace was not resumed." />}
    </>
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
  const isOpen = task !== null && !task.completed_at && !task.cancel_requested_at;
  const mayAsk = isOpen && may("workspace:write");
  useKeys({ c: () => setIsAsking(mayAsk) });
  if (!task) return null;
  const isOver = Boolean(task.completed_at);
  const cancel = (options: CancelOptions) => {
    setIsAsking(false);
    void cancelTask(open.id, task.id, options);
    // The button with the focus disappears once the cancellation is recorded.
    requestAnimationFrame(() => document.getElementById("cancellation-title")?.focus());
  };
  return (
    <section aria-labelledby="task-title">
      <div class="task-head">
        <h2 id="task-title">{isOver ? "Last task" : "Task"}</h2>
        {mayAsk && (
          <button
            type="button"
            class="danger large"
            aria-keyshortcuts="c"
            onClick={() => setIsAsking(true)}
          >
            Cancel this task <kbd class="wide" aria-hidden="true">c</kbd>
          </button>
        )}
        {!isOver && <Denied scope="workspace:write" doing="cancel" />}
      </div>
      <pre class="description" tabIndex={0} aria-label="Description">
        {task.description}
      </pre>
      {!isOver && <RunsNow open={open} task={task} />}
      <TaskFacts task={task} />
      {isAsking && (
        <CancelDialog
          title={`Cancel “${firstLine(task.description)}”`}
          onCancel={cancel}
          onClose={() => setIsAsking(false)}
        />
      )}
    </section>
  );
}

function TaskFacts({ task }: { task: Task }) {
  const began = task.started_at ?? task.created_at;
  const state = taskState(task);
  const { cost } = task.usage;
  return (
    <dl class="properties">
      <Fact name="Status">
        <span class={`badge ${state}`}>{state}</span> {task.reason}
      </Fact>
      <Fact name="Iterations">
        {number(task.iterations)} ended, of at most {number(task.max_iterations)}
      </Fact>
      <Fact name={task.completed_at ? "Ran for" : "Running for"}>
        <span class={task.completed_at ? "" : "lasting"}>
          {elapsed((task.completed_at ? Date.parse(task.completed_at) : now.value) - Date.parse(began))}
        </span>
        , since {fullTime(began)}
      </Fact>
      <Fact name="Tokens">{number(tokensUsed(task))}</Fact>
      <Fact name="Cost">
        {cost ? `${task.forced ? "at least " : ""}${dollars(cost)}` : "not known"}
      </Fact>
      {task.limits && <Fact name="Limits">{limitsOf(task).join(", ")}</Fact>}
      <Fact name="Task id">
        <code class="id">{task.id}</code>
      </Fact>
    </dl>
  );
}
