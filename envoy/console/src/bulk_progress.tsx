// The progress of a cancellation of many tasks, in three steps: the organization is held, all
// cancellations are recorded, all tasks have ended.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import type { BulkCancellation, BulkState, Trouble } from "./bulk_cancellation";
import type { CancelOptions } from "./cancel_call";
import { FailureNote } from "./failure";
import { Name } from "./name";
import { count, seconds } from "./text";

// The maximum number of tasks that are listed by name.
const LISTED = 20;
const ORDER = ["hold", "cancel", "follow", "done"] as const;

interface Props {
  bulk: BulkCancellation;
  onRepeat: (options: CancelOptions, hold: boolean) => void;
}

export function BulkProgress({ bulk, onRepeat }: Props) {
  const state = bulk.state.value;
  const heading = useRef<HTMLHeadingElement>(null);
  useLayoutEffect(() => heading.current?.focus(), [bulk]);
  const { accepted, before, trouble, interruption } = state;
  const known = before ? `, ${count(before, "task")} being cancelled already` : "";
  const counted = `${count(accepted, "task")}${known}`;
  return (
    <section aria-labelledby="progress-title">
      <h2 id="progress-title" ref={heading} tabIndex={-1}>
        Progress
      </h2>
      <Problem bulk={bulk} onRepeat={onRepeat} />
      {interruption && (
        <TroubleNote
          trouble={interruption}
          title="Not every iteration was interrupted."
          unknown="It is not known whether the iterations are interrupted."
        />
      )}
      <ol class="steps">
        {bulk.hold && (
          <Step of="hold" state={state}>
            <strong>On hold</strong>: new tasks are refused
          </Step>
        )}
        <Step of="cancel" state={state} tookMs={state.recordedMs}>
          <strong>Accepted</strong>:{" "}
          {state.step === "cancel" && trouble?.isUnanswered ? "not known yet" : counted}
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
      {state.step === "follow" && <Unfinished bulk={bulk} />}
    </section>
  );
}

interface StepProps {
  of: BulkState["step"];
  state: BulkState;
  tookMs?: number | null;
  children: ComponentChildren;
}

function Step({ of, state, tookMs, children }: StepProps) {
  const ahead = ORDER.indexOf(of) - ORDER.indexOf(state.step);
  const isRefused = state.trouble?.isRepeated === false;
  const current = isRefused ? "refused" : "now";
  return (
    <li class={`step ${ahead < 0 ? "done" : ahead === 0 ? current : "later"}`}>
      {children}
      {ahead === 0 && isRefused && " (not done)"}
      {tookMs != null && <span class="took">{seconds(tookMs)}</span>}
    </li>
  );
}

function Problem({ bulk, onRepeat }: Props) {
  const { trouble, step } = bulk.state.value;
  if (!trouble) return null;
  const titles = {
    hold: "The organization is not on hold, and nothing was cancelled.",
    cancel: "Not all tasks are cancelled.",
    follow: "It is not known whether all tasks have ended.",
    done: "",
  };
  const unknown = {
    hold: "It is not known whether the organization is on hold.",
    cancel: "It is not known whether it was recorded.",
    follow: titles.follow,
    done: "",
  };
  return (
    <>
      <TroubleNote trouble={trouble} title={titles[step]} unknown={unknown[step]} />
      <div class="buttons">
        {!trouble.isRepeated && (
          <button type="button" class="danger" onClick={() => onRepeat(bulk.options, bulk.hold)}>
            Try again
          </button>
        )}
        {step === "hold" && (
          <button type="button" class="danger" onClick={() => onRepeat(bulk.options, false)}>
            Cancel the tasks without a hold
          </button>
        )}
      </div>
    </>
  );
}

// `unknown` is the title if a try may have been recorded without an answer.
function TroubleNote(props: { trouble: Trouble; title: string; unknown: string }) {
  const { failure, isRepeated, isUnanswered } = props.trouble;
  const title = isUnanswered ? props.unknown : props.title;
  return <FailureNote failure={failure} title={isRepeated ? `${title} Trying again.` : title} />;
}

function Unfinished({ bulk }: { bulk: BulkCancellation }) {
  const { unfinished, results } = bulk.state.value;
  if (!unfinished) return null;
  // The service lists at most 1,000 tasks.
  const isWhole = results.length === unfinished;
  return (
    <div class="note">
      <p>
        An iteration ends by itself or at its time limits. Cancellations that an agent has not
        received are delivered as soon as it can be reached.
      </p>
      <button type="button" class="danger" onClick={() => void bulk.interrupt(results)}>
        Stop {isWhole ? "them all" : `the first ${results.length}`} now
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
