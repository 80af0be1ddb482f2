// Stops everything, after the person has typed the number of tasks.
import { useEffect, useRef, useState } from "preact/hooks";
import { seconds, SecondsField } from "./cancel_dialog";
import { asFailure } from "./connection";
import { countTasks, stop, stopEverything } from "./emergency";
import { type Failure, FailureNote } from "./failure";
import { StopProgress } from "./stop_progress";
import { count } from "./text";

export function StopPage() {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  const isUnderWay = stop.value !== null;
  return (
    <main class="workspace-page">
      <nav aria-label="Breadcrumb">
        <a href="#/">← All workspaces</a>
      </nav>
      <h1 ref={heading} tabIndex={-1}>
        Stop everything
      </h1>
      {isUnderWay ? <StopProgress /> : <StopForm />}
    </main>
  );
}

function StopForm() {
  const [tasks, setTasks] = useState<number | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [hold, setHold] = useState(true);
  const [reason, setReason] = useState("");
  const [forceAfter, setForceAfter] = useState("");
  const [typed, setTyped] = useState("");
  useEffect(() => {
    const leave = new AbortController();
    countTasks(leave.signal).then(
      (answer) => setTasks(answer.matched),
      (error: unknown) => !leave.signal.aborted && setFailure(asFailure(error)),
    );
    return () => leave.abort();
  }, []);
  if (failure) return <FailureNote failure={failure} title="The tasks could not be counted." />;
  if (tasks === null) return <p role="status">Counting the tasks…</p>;
  const submit = (event: Event) => {
    event.preventDefault();
    void stopEverything({ hold, reason: reason.trim(), forceAfter: seconds(forceAfter) });
  };
  return (
    <form class="stop-form" onSubmit={submit}>
      <p>
        This cancels <strong>{count(tasks, "task")}</strong>: every task that you may cancel and that
        has not ended. Each agent finishes its iteration and starts no other. Workspaces stay up.
      </p>
      <label class="check">
        <input
          type="checkbox"
          checked={hold}
          onChange={(event) => setHold(event.currentTarget.checked)}
        />
        Also hold the organization: new tasks are refused until someone releases it
      </label>
      <label for="reason">Reason</label>
      <input
        id="reason"
        maxLength={500}
        value={reason}
        onInput={(event) => setReason(event.currentTarget.value)}
      />
      <SecondsField
        id="force-after"
        label="Interrupt the iterations after"
        max={86_400}
        value={forceAfter}
        onInput={setForceAfter}
        help="Only the iterations that still run then. Empty: never."
      />
      <label for="confirmation">Type the number of tasks ({tasks}) to confirm</label>
      <input
        id="confirmation"
        inputMode="numeric"
        autocomplete="off"
        required
        pattern={`\\s*${tasks}\\s*`}
        title={`Type ${tasks}.`}
        value={typed}
        onInput={(event) => setTyped(event.currentTarget.value)}
      />
      <div class="buttons">
        <button type="submit" class="danger large" disabled={typed.trim() !== String(tasks)}>
          Stop everything
        </button>
        <a href="#/">Back</a>
      </div>
    </form>
  );
}
