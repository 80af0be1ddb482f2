// Cancels the tasks of several workspaces, after showing which ones.
import { signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { BulkCancellation, type Counted, countTasks } from "./bulk_cancellation";
import { BulkProgress } from "./bulk_progress";
import type { CancelOptions } from "./cancel_call";
import { CancelForm, takenOf } from "./cancel_dialog";
import { asFailure } from "./connection";
import { may } from "./credential";
import { Dialog } from "./dialog";
import { type Failure, FailureNote } from "./failure";
import { Name } from "./name";
import { choose } from "./selection";
import { count } from "./text";
import { type Row, rowOf } from "./workspaces";

interface Asked {
  // The tasks, by the ids of their workspaces, that the person was asked about.
  taskIds: ReadonlyMap<string, string>;
  // The current rows of the workspaces that were chosen.
  meant: () => readonly Row[];
}

const asked = signal<Asked | null>(null);

// Opens the dialog for the tasks that run in these workspaces.
export function askToCancel(meant: () => readonly Row[]): void {
  const running = meant().filter((row) => row.workspace.current_task_id);
  if (running.length === 0 || !may("workspace:write")) return;
  const taskIds = running.map(
    ({ workspace }) => [workspace.id, workspace.current_task_id] as const,
  );
  asked.value = { taskIds: new Map(taskIds), meant };
}

export function CancelThese() {
  return asked.value && <CancelTheseDialog {...asked.value} />;
}

function CancelTheseDialog({ taskIds, meant }: Asked) {
  const [counted, setCounted] = useState<Counted | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [bulk, setBulk] = useState<BulkCancellation | null>(null);
  useEffect(() => {
    const leave = new AbortController();
    countTasks([...taskIds.values()], leave.signal).then(setCounted, (error: unknown) => {
      if (!leave.signal.aborted) setFailure(asFailure(error));
    });
    return () => leave.abort();
  }, [taskIds]);
  useEffect(() => () => bulk?.close(), [bulk]);
  const close = () => (asked.value = null);
  const cancel = (options: CancelOptions) => {
    // Cancels exactly the tasks that this dialog shows.
    const begun = new BulkCancellation(counted?.results.map((each) => each.task_id) ?? [], options);
    void begun.run();
    setBulk(begun);
    choose(taskIds.keys(), false);
  };
  const back = (
    <button type="button" autofocus={!counted?.matched} onClick={close}>
      {bulk ? "Close" : "Back"}
    </button>
  );
  // A row that shows another task by now says nothing about the task.
  const taken = takenOf(
    [...taskIds].map(([id, taskId]) => [rowOf(id)?.task].find((task) => task?.id === taskId)),
  );
  const number = counted?.matched ?? taskIds.size;
  return (
    <Dialog title={`Cancel ${count(number, "task")}`} onClose={close}>
      {failure && <FailureNote failure={failure} title="Nothing was cancelled." />}
      {!counted && !failure && <p role="status">Looking up the tasks…</p>}
      {counted && !bulk && <Names counted={counted} asked={taskIds.size} />}
      {bulk && <BulkProgress bulk={bulk} onRepeat={cancel} />}
      <BegunSince taskIds={taskIds} meant={meant} />
      {counted?.matched && !bulk ? (
        <CancelForm onCancel={cancel} taken={taken}>
          {back}
        </CancelForm>
      ) : (
        <div class="buttons">{back}</div>
      )}
    </Dialog>
  );
}

// The tasks that the button cancels.
function Names({ counted, asked }: { counted: Counted; asked: number }) {
  const { matched, before, results } = counted;
  return (
    <>
      {matched < asked && <p>{count(asked - matched, "task")} ended or not yours to cancel.</p>}
      {before > 0 && <p>{count(before, "task")} being cancelled already, shown too.</p>}
      <ul class="names" tabIndex={0} aria-label="Tasks">
        {results.map((each) => (
          <li key={each.task_id}>
            <Name workspaceId={each.workspace_id} taskId={each.task_id} />
          </li>
        ))}
      </ul>
    </>
  );
}

// Tasks that were submitted after the person was asked.
function BegunSince({ taskIds, meant }: Asked) {
  const known = new Set(taskIds.values());
  const since = meant().filter(({ workspace }) => {
    return workspace.current_task_id && !known.has(workspace.current_task_id);
  });
  if (since.length === 0) return null;
  return (
    <div class="note warning" role="status">
      <strong>{count(since.length, "task")} began since, and will not be cancelled:</strong>
      <ul>
        {since.map(({ workspace }) => (
          <li key={workspace.id}>
            <Name workspaceId={workspace.id} taskId={workspace.current_task_id} />
          </li>
        ))}
      </ul>
    </div>
  );
}
