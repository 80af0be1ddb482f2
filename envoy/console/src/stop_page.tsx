// Stops everything, after the person has typed the number of tasks.
import { useEffect, useRef, useState } from "preact/hooks";
import { BulkCancellation, countTasks, lastStop } from "./bulk_cancellation";
import { BulkProgress } from "./bulk_progress";
import type { CancelOptions } from "./cancel_call";
import { CancelForm } from "./cancel_dialog";
import { asFailure } from "./connection";
import { may } from "./credential";
import { type Failure, FailureNote } from "./failure";
import { caller } from "./session";
import { count } from "./text";
import { useFollowedList } from "./workspaces";

export function StopPage() {
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  // Keeps the list of workspaces up to date, because the page shows the names in it for the tasks.
  useFollowedList();
  const bulk = lastStop.value;
  const begin = (options: CancelOptions, hold: boolean) => {
    lastStop.value?.close();
    lastStop.value = new BulkCancellation(null, options, hold);
    void lastStop.value.run();
  };
  const { step, trouble } = bulk?.state.value ?? {};
  return (
    <main class="workspace-page">
      <nav aria-label="Breadcrumb">
        <a href="#/">← All workspaces</a>
      </nav>
      <h1 ref={heading} tabIndex={-1}>
        Stop everything
      </h1>
      <Credential />
      {bulk ? (
        <BulkProgress bulk={bulk} onRepeat={begin} />
      ) : (
        may("workspace:write") && <StopForm onStop={begin} />
      )}
      {(step === "done" || trouble?.isRepeated === false) && (
        <button type="button" onClick={() => (lastStop.value = null)}>
          Count again
        </button>
      )}
    </main>
  );
}

function StopForm({ onStop }: { onStop: (options: CancelOptions, hold: boolean) => void }) {
  const [tasks, setTasks] = useState<number | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);
  const [wantsHold, setWantsHold] = useState(true);
  const [typed, setTyped] = useState("");
  const [isWrong, setIsWrong] = useState(false);
  const confirmation = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const leave = new AbortController();
    countTasks(null, leave.signal).then(
      ({ matched }) => setTasks(matched),
      (error: unknown) => !leave.signal.aborted && setFailure(asFailure(error)),
    );
    return () => leave.abort();
  }, []);
  if (failure) return <FailureNote failure={failure} title="The tasks could not be counted." />;
  if (tasks === null) return <p role="status">Counting the tasks…</p>;
  const cancel = (options: CancelOptions) => {
    if (typed.trim() === String(tasks)) return onStop(options, may("org:hold") && wantsHold);
    setIsWrong(true);
    confirmation.current?.focus();
  };
  return (
    <>
      <p>
        This cancels <strong>{count(tasks, "task")}</strong>: every task that you may cancel and that
        has not ended. Workspaces stay up.
      </p>
      <div class="stop-form">
        <CancelForm
          onCancel={cancel}
          confirmation={
            <>
              {may("org:hold") && (
                <label class="check">
                  <input
                    type="checkbox"
                    checked={wantsHold}
                    onChange={(event) => setWantsHold(event.currentTarget.checked)}
                  />
                  Also hold the organization: new tasks are refused until someone releases it
                </label>
              )}
              <label for="confirmation">Type the number of tasks ({tasks}) to confirm</label>
              <input
                id="confirmation"
                ref={confirmation}
                inputMode="numeric"
                autocomplete="off"
                aria-invalid={isWrong}
                aria-describedby={isWrong ? "wrong" : undefined}
                value={typed}
                onInput={(event) => {
                  setTyped(event.currentTarget.value);
                  setIsWrong(false);
                }}
              />
              {isWrong && (
                <p id="wrong" class="wrong" role="alert">
                  Nothing was cancelled: {typed.trim() ? `${typed.trim()} is not` : "type"} the number
                  of tasks, {tasks}.
                </p>
              )}
            </>
          }
        >
          <a href="#/">Back</a>
        </CancelForm>
      </div>
    </>
  );
}

// Whose credential it is, and what it may do.
function Credential() {
  const known = caller.value;
  if (!known) return null;
  const kind = known.credential_kind === "api_key" ? "API key" : "session token of";
  const needed = "You may not hold the organization: this needs the scope org:hold";
  return (
    <p class="note">
      You use the {kind} <strong>{known.actor_id}</strong> of the organization{" "}
      <strong>{known.org_id}</strong>.{" "}
      {may("workspace:write")
        ? "You may cancel tasks."
        : "You may not cancel tasks: this needs the scope workspace:write."}{" "}
      {may("org:hold")
        ? "You may hold the organization."
        : `${needed}${kind === "API key" ? ", which no API key has" : ""}.`}
    </p>
  );
}
