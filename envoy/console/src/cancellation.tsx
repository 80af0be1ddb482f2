// The progress of a cancellation, in three steps: it is accepted, the iteration has ended, the task
// has ended.
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { announce } from "./announcer";
import { type CancelCall, cancelCallOf, cancelTask } from "./cancel_call";
import { shownNow, sinceMs } from "./clock";
import { may } from "./credential";
import { intentFacts, toolCalls, toolOutcome } from "./events";
import { PressNote } from "./press_note";
import { describe, type Progress, progressOf } from "./progress";
import { between, clockTime, duration, elapsed, preciseTime, words } from "./text";
import type { OpenWorkspace } from "./workspace";

// If an agent has not interrupted its iteration this long after `forceAt`, the service ends the
// agent's work.
const FORCE_MARGIN_MS = 2_000;

export function Cancellation({ open }: { open: OpenWorkspace }) {
  const task = open.task.value;
  const taskId = task?.id ?? "";
  const call = cancelCallOf(taskId);
  const progress = progressOf(taskId, open.events.value, task);
  const isPending = progress.requestedAt !== null && progress.endedAt === null;
  useTick(isPending);
  useAnnouncedChanges(progress, call);
  if (!call && !progress.requestedAt) return null;
  return (
    <section class="cancellation" aria-labelledby="cancellation-title">
      <h2 id="cancellation-title" tabIndex={-1}>
        Cancellation
      </h2>
      {call && !progress.endedAt && <PressNote call={call} isRecorded={progress.requestedAt !== null} />}
      <ol class="steps">
        <AcceptedStep progress={progress} call={call} />
        <IterationStep progress={progress} phase={task?.phase} />
        <EndStep progress={progress} />
      </ol>
      {isPending && <Lateness progress={progress} open={open} taskId={taskId} />}
    </section>
  );
}

type State = "done" | "lost" | "now" | "later";

function Step(props: { state: State; title: string; took?: string; children?: ComponentChildren }) {
  const { state, title, took, children } = props;
  return (
    <li class={`step ${state}`} aria-current={state === "now" ? "step" : undefined}>
      <strong>{title}</strong> {took && <span class="took">{took}</span>}
      {children && <p class="fine">{children}</p>}
    </li>
  );
}

function AcceptedStep({ progress, call }: { progress: Progress; call: CancelCall | null }) {
  const answered = call?.answerMs == null ? "" : `answered in ${duration(call.answerMs)}`;
  if (progress.requestedAt) {
    const who = progress.cancel ? intentFacts(progress.cancel).join(", ") : "";
    const isBefore = call?.outcome === "already_requested" && !call.isUnanswered;
    const title = isBefore ? "Accepted before, signalled again" : "Accepted";
    return (
      <Step state="done" title={title} took={answered}>
        Recorded at {preciseTime(progress.requestedAt)}, {who}
      </Step>
    );
  }
  if (call?.outcome === "already_finished" || call?.outcome === "no_active_task") {
    return <Step state="done" title={`Nothing to cancel: ${words(call.outcome)}`} took={answered} />;
  }
  const isSent = call?.isRepeated !== false || !call.failure;
  return <Step state={isSent ? "now" : "later"} title="Sent to the service" took={answered} />;
}

function IterationStep({ progress, phase }: { progress: Progress; phase: string | undefined }) {
  const { requestedAt, iteration, isLost, isLogged, endedAt } = progress;
  if (!requestedAt) return endedAt ? null : <Step state="later" title="The iteration ends" />;
  if (iteration) {
    const { iteration_completed: ended } = iteration;
    const outcomes = ended ? toolCalls(ended).map((call) => toolOutcome(call.result)) : [];
    const name = outcomes.length > 1 ? "tool calls" : "tool call";
    return (
      <Step
        state="done"
        title={`Iteration ${ended?.number} has ended`}
        took={`${duration(between(requestedAt, iteration.time))} after the request`}
      >
        {outcomes.length > 0 ? `Its ${name}: ${outcomes.join(", ")}.` : "It made no tool call."}
      </Step>
    );
  }
  if (isLost) {
    return (
      <Step state="lost" title="The iteration was lost with its agent">
        What it had done is not recorded. The usage that it had reported still counts.
      </Step>
    );
  }
  if (isLogged) return <Step state="done" title="No iteration was in flight" />;
  if (endedAt) return <Step state="later" title="Not known here: how the iteration ended" />;
  const doing = phase && phase !== "phase_unspecified" ? words(phase) : "iteration";
  return (
    <Step
      state="now"
      title={`Waiting for the ${doing} in flight`}
      took={duration(sinceMs(requestedAt))}
    >
      No further iteration starts.
    </Step>
  );
}

function EndStep({ progress }: { progress: Progress }) {
  const { requestedAt, endedAt, end } = progress;
  if (!endedAt) return <Step state="later" title="Cancelled" />;
  const took = requestedAt
    ? `${duration(between(requestedAt, endedAt))} after the request`
    : preciseTime(endedAt);
  return (
    <Step state="done" title={describe(progress)} took={took}>
      {end?.work_stopped === "unknown" &&
        "The agent is gone. Not every process of the task is known to have ended."}
    </Step>
  );
}

function Lateness(props: { progress: Progress; open: OpenWorkspace; taskId: string }) {
  const { progress, open, taskId } = props;
  const { requestedAt, forceAt } = progress;
  if (!requestedAt || progress.iteration) return null;
  const interrupt = () => void cancelTask(open.id, taskId, { reason: "", forceAfter: 0 });
  const button = may("workspace:write") && (
    <button type="button" class="danger" onClick={interrupt}>
      Stop now
    </button>
  );
  if (forceAt) {
    const lateMs = shownNow() - Date.parse(forceAt);
    if (lateMs < 0) {
      return (
        <div class="note">
          <p>
            The iteration is stopped in <span class="lasting">{elapsed(-lateMs + 999)}</span>. The task
            ends by {clockTime(Date.parse(forceAt) + FORCE_MARGIN_MS)} at the latest.
          </p>
          {button}
        </div>
      );
    }
    if (lateMs < FORCE_MARGIN_MS) return <p class="note">The iteration is being interrupted.</p>;
    return (
      <div class="note warning">
        <strong>The end is late.</strong> The agent should have interrupted the iteration{" "}
        {elapsed(lateMs)} ago. The service ends the agent's work itself; nothing has to be done.
      </div>
    );
  }
  return (
    <div class="note">
      <p>The iteration ends by itself or at its time limits.</p>
      {button}
    </div>
  );
}

function useTick(isOn: boolean): void {
  const [, setTick] = useState(0);
  useEffect(() => {
    if (!isOn) return;
    const timer = setInterval(() => setTick((tick) => tick + 1), 200);
    return () => clearInterval(timer);
  }, [isOn]);
}

// The log announces its events. This function announces what only the answer to the call says.
function useAnnouncedChanges(progress: Progress, call: CancelCall | null): void {
  const outcome = call?.outcome ?? "";
  const isRecorded = progress.requestedAt !== null;
  useEffect(() => {
    if (outcome) announce(`The cancellation: ${words(outcome)}.`);
  }, [outcome, isRecorded]);
}
