// What becomes of a stop: held, all cancellations recorded, all tasks ended.
import { useLayoutEffect, useRef } from "preact/hooks";
import { interrupt, type Stop, stop, stopEverything } from "./emergency";
import { FailureNote } from "./failure";
import { count, milliseconds } from "./text";

// The tasks that are listed by name.
const LISTED = 20;

export function StopProgress() {
  const state = stop.value;
  const heading = useRef<HTMLHeadingElement>(null);
  useLayoutEffect(() => heading.current?.focus(), []);
  if (!state) return null;
  const isOver = state.step === "done" || state.failure !== null;
  return (
    <section aria-labelledby="progress-title">
      <h2 id="progress-title" ref={heading} tabIndex={-1}>
        Progress
      </h2>
      {state.failure && <Problem state={state} />}
      <ol class="steps">
        {state.wishes.hold && <HoldStep state={state} />}
        <RecordStep state={state} />
        <EndStep state={state} />
      </ol>
      {state.step === "follow" && <Unfinished state={state} />}
      {isOver && (
        <button type="button" onClick={() => (stop.value = null)}>
          Count again
        </button>
      )}
    </section>
  );
}

function Problem({ state }: { state: Stop }) {
  const failure = state.failure;
  if (!failure) return null;
  const titles = {
    hold: "The organization is not on hold, and nothing was cancelled.",
    cancel: "Not all tasks are cancelled.",
    follow: "It is not known whether all tasks have ended.",
    done: "Not every iteration was interrupted.",
  };
  return (
    <>
      <FailureNote failure={failure} title={titles[state.step]} />
      <div class="buttons">
        <button type="button" class="danger" onClick={() => void stopEverything(state.wishes)}>
          Try again
        </button>
        {state.step === "hold" && (
          <button
            type="button"
            class="danger"
            onClick={() => void stopEverything({ ...state.wishes, hold: false })}
          >
            Cancel the tasks without a hold
          </button>
        )}
      </div>
    </>
  );
}

function HoldStep({ state }: { state: Stop }) {
  if (state.step === "hold") return <li class="step now">Putting the organization on hold</li>;
  return (
    <li class="step done">
      <strong>On hold</strong>: new tasks are refused
    </li>
  );
}

function RecordStep({ state }: { state: Stop }) {
  if (state.step === "hold") return <li class="step later">Accepted</li>;
  const before = state.before ? `, ${count(state.before, "task")} had been cancelled before` : "";
  const counted = `${count(state.accepted, "task")}${before}`;
  if (state.recordedMs === null) return <li class="step now">Accepted so far: {counted}</li>;
  return (
    <li class="step done">
      <strong>Accepted</strong>: {counted}
      <span class="took">{milliseconds(state.recordedMs)}</span>
    </li>
  );
}

function EndStep({ state }: { state: Stop }) {
  if (state.unfinished === null) return <li class="step later">Ended</li>;
  if (state.endedMs === null) {
    return (
      <li class="step now">
        <strong>{count(state.unfinished, "task")}</strong> still in an iteration
      </li>
    );
  }
  return (
    <li class="step done">
      <strong>All ended</strong>
      <span class="took">{milliseconds(state.endedMs)}</span>
    </li>
  );
}

function Unfinished({ state }: { state: Stop }) {
  if (!state.unfinished) return null;
  // The service lists at most 1,000 tasks.
  const isWhole = state.results.length === state.unfinished;
  return (
    <div class="note">
      <p>
        An iteration ends by itself or at its time limits. Cancellations that an agent has not
        received are delivered as soon as it can be reached.
      </p>
      <button type="button" class="danger" onClick={() => void interrupt(state.results)}>
        Interrupt {isWhole ? "them all" : `the first ${state.results.length}`} now
      </button>
      <ul>
        {state.results.slice(0, LISTED).map((each) => (
          <li key={each.task_id}>
            <a href={`#/workspaces/${each.workspace_id}`}>{each.workspace_id}</a>
          </li>
        ))}
      </ul>
      {state.results.length > LISTED && <p>and {count(state.results.length - LISTED, "more", "more")}</p>}
    </div>
  );
}
