// What becomes of a stop: held, all cancellations recorded, all tasks ended.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { FailureNote } from "./failure";
import { Name } from "./name";
import type { Stop, Stopping, Wishes } from "./stopping";
import { count, seconds } from "./text";

// The tasks that are listed by name.
const LISTED = 20;
const ORDER = ["hold", "cancel", "follow", "done"] as const;

interface Props {
  stopping: Stopping;
  onRepeat: (wishes: Wishes, hold: boolean) => void;
}

export function StopProgress({ stopping, onRepeat }: Props) {
  const state = stopping.state.value;
  const heading = useRef<HTMLHeadingElement>(null);
  useLayoutEffect(() => heading.current?.focus(), [stopping]);
  const { accepted, before } = state;
  const known = before ? `, ${count(before, "task")} cancelled before` : "";
  const counted = `${count(accepted, "task")}${known}`;
  return (
    <section aria-labelledby="progress-title">
      <h2 id="progress-title" ref={heading} tabIndex={-1}>
        Progress
      </h2>
      <Problem stopping={stopping} onRepeat={onRepeat} />
      <ol class="steps">
        {stopping.hold && (
          <Step of="hold" state={state}>
            <strong>On hold</strong>: new tasks are refused
          </Step>
        )}
        <Step of="cancel" state={state} tookMs={state.recordedMs}>
          <strong>Accepted</strong>: {counted}
        </Step>
        <Step of="follow" state={state} tookMs={state.endedMs}>
          {state.unfinished ? (
            <>
              <strong>{count(state.unfinished, "task")}</strong> still in an iteration
            </>
          ) : (
            <strong>All ended</strong>
          )}
        </Step>
      </ol>
      {state.step === "follow" && <Unfinished stopping={stopping} />}
    </section>
  );
}

interface StepProps {
  of: Stop["step"];
  state: Stop;
  tookMs?: number | null;
  children: ComponentChildren;
}

function Step({ of, state, tookMs, children }: StepProps) {
  const ahead = ORDER.indexOf(of) - ORDER.indexOf(state.step);
  const current = state.failure ? "refused" : "now";
  return (
    <li class={`step ${ahead < 0 ? "done" : ahead === 0 ? current : "later"}`}>
      {children}
      {ahead === 0 && state.failure && " (not done)"}
      {tookMs != null && <span class="took">{seconds(tookMs)}</span>}
    </li>
  );
}

function Problem({ stopping, onRepeat }: Props) {
  const { failure, step } = stopping.state.value;
  if (!failure) return null;
  const titles = {
    hold: "The organization is not on hold, and nothing was cancelled.",
    cancel: "Not all tasks are cancelled.",
    follow: "It is not known whether all tasks have ended.",
    done: "Not every iteration was interrupted.",
  };
  return (
    <>
      <FailureNote failure={failure} title={titles[step]} />
      <div class="buttons">
        <button
          type="button"
          class="danger"
          onClick={() => onRepeat(stopping.wishes, stopping.hold)}
        >
          Try again
        </button>
        {step === "hold" && (
          <button type="button" class="danger" onClick={() => onRepeat(stopping.wishes, false)}>
            Cancel the tasks without a hold
          </button>
        )}
      </div>
    </>
  );
}

function Unfinished({ stopping }: { stopping: Stopping }) {
  const { unfinished, results } = stopping.state.value;
  if (!unfinished) return null;
  // The service lists at most 1,000 tasks.
  const isWhole = results.length === unfinished;
  return (
    <div class="note">
      <p>
        An iteration ends by itself or at its time limits. Cancellations that an agent has not
        received are delivered as soon as it can be reached.
      </p>
      <button type="button" class="danger" onClick={() => void stopping.interrupt(results)}>
        Interrupt {isWhole ? "them all" : `the first ${results.length}`} now
      </button>
      <ul>
        {results.slice(0, LISTED).map((each) => (
          <li key={each.task_id}>
            <a href={`#/workspaces/${each.workspace_id}`}>
              <Name workspaceId={each.workspace_id} taskId={each.task_id} />
            </a>
          </li>
        ))}
      </ul>
      {results.length > LISTED && <p>and {count(results.length - LISTED, "more", "more")}</p>}
    </div>
  );
}
