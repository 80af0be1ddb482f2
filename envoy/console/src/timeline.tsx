// The event log of a workspace, newest first, grouped by task.
import { useState } from "preact/hooks";
import type { Schemas } from "./api";
import { asFailure } from "./connection";
import { commandOf, facts, title, toolCalls, toolOutcome } from "./events";
import { type Failure, FailureNote } from "./failure";
import { memo } from "./memo";
import { bytes, count, firstLine, fullTime, preciseTime } from "./text";
import type { LoggedEvent, OpenWorkspace } from "./workspace";

const SHOWN_AT_FIRST = 200;
const MORE = 300;

// The events of a task, or the events of the workspace between two tasks, newest first.
interface Group {
  key: string;
  taskId: string;
  events: LoggedEvent[];
}

export function Timeline({ open }: { open: OpenWorkspace }) {
  const groups = groupsOf(open.events.value);
  return (
    <section aria-labelledby="log-title">
      <h2 id="log-title">Event log</h2>
      <p class="fine">The newest event is first.</p>
      {groups.map((group, index) => (
        <GroupOfEvents
          key={group.key}
          open={open}
          group={group}
          // Opens the group of the current task, or else of the last task.
          isOpen={index === groups.findIndex((each) => each.taskId)}
        />
      ))}
      {open.olderBefore.value !== "0" && <Older open={open} />}
      {groups.length === 0 && <p class="fine">There are no events yet.</p>}
    </section>
  );
}

function Older({ open }: { open: OpenWorkspace }) {
  const [isLoading, setIsLoading] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);
  const load = async () => {
    setIsLoading(true);
    const loaded = open.loadOlder().then(() => null, asFailure);
    setFailure(await loaded);
    setIsLoading(false);
  };
  return (
    <>
      <button type="button" disabled={isLoading} onClick={() => void load()}>
        Load older events
      </button>
      {failure && <FailureNote failure={failure} title="No older events were loaded." />}
    </>
  );
}

function groupsOf(events: readonly LoggedEvent[]): Group[] {
  const groups: Group[] = [];
  for (const event of events.toReversed()) {
    const { task_id: taskId } = event;
    const last = groups.at(-1);
    if (last?.taskId === taskId) {
      last.events.push(event);
    } else {
      const newer = groups.filter((each) => each.taskId === taskId).length;
      groups.push({ key: `${taskId} ${newer}`, taskId, events: [event] });
    }
  }
  return groups;
}

function GroupOfEvents(props: { open: OpenWorkspace; group: Group; isOpen: boolean }) {
  const { open, group, isOpen } = props;
  // Whether the person has opened or closed the group; null before the first click.
  const [chosen, setChosen] = useState<boolean | null>(null);
  const [shown, setShown] = useState(SHOWN_AT_FIRST);
  const { taskId, events } = group;
  if (!taskId) return <Entries open={open} events={events} />;
  const newest = events[0];
  const submitted = events.find((event) => event.task_submitted)?.task_submitted;
  const isShown = chosen ?? isOpen;
  const more = events.length - shown;
  return (
    <details class="group" open={isShown}>
      <summary
        onClick={(event) => {
          event.preventDefault();
          setChosen(!isShown);
        }}
      >
        <strong>{submitted ? firstLine(submitted.description) : taskId}</strong>{" "}
        {newest && (
          <span class="fine">
            {title(newest)}, {fullTime(newest.time)}
            {submitted && `, ${count(events.length, "event")}`}
          </span>
        )}
      </summary>
      {isShown && <Entries open={open} events={events.slice(0, shown)} />}
      {isShown && more > 0 && (
        <button type="button" onClick={() => setShown(shown + MORE)}>
          Show older events ({more})
        </button>
      )}
    </details>
  );
}

function Entries({ open, events }: { open: OpenWorkspace; events: readonly LoggedEvent[] }) {
  return (
    <ol class="timeline" reversed start={Number(events[0]?.seq ?? 1)}>
      {events.map((event) => (
        <Entry key={event.seq} open={open} event={event} />
      ))}
    </ol>
  );
}

const Entry = memo(function Entry({ open, event }: { open: OpenWorkspace; event: LoggedEvent }) {
  const { iteration_completed: iteration, task_submitted: submitted, task_completed: end } = event;
  return (
    <li class={`entry ${event.type} ${end?.status ?? ""}`}>
      <p class="headline">
        <time dateTime={event.time} title={fullTime(event.time)}>
          {preciseTime(event.time)}
        </time>
        <strong>{title(event)}</strong>
        <span class="fine">#{event.seq}</span>
      </p>
      <ul class="facts">
        {facts(event).map((fact) => (
          <li key={fact}>{fact}</li>
        ))}
      </ul>
      {submitted && <Folded label="Description" text={submitted.description} />}
      {iteration?.model_call.content && (
        <Folded label="Model" text={iteration.model_call.content} />
      )}
      {iteration &&
        toolCalls(iteration).map((call, at) => (
          <ToolCall key={at} open={open} event={event} call={call} />
        ))}
      {end?.result && <Folded label="Result" text={end.result} />}
    </li>
  );
});

function ToolCall(props: { open: OpenWorkspace; event: LoggedEvent; call: Schemas["ToolCall"] }) {
  const { open, event, call } = props;
  const [failure, setFailure] = useState<Failure | null>(null);
  const [isAsked, setIsAsked] = useState(false);
  const { output, truncated_bytes: truncated } = call.result;
  const size = bytes(new Blob([output]).size);
  const lost = Number(truncated) > 0 ? `, ${bytes(Number(truncated))} more were dropped` : "";
  const load = async () => {
    setIsAsked(true);
    setFailure(await open.loadOutputs(event).then(() => null, asFailure));
  };
  return (
    <>
      <p class="call">
        <code>{commandOf(call.name, call.arguments)}</code>
      </p>
      {event.hasNoOutputs ? (
        <details onToggle={({ currentTarget }) => void (currentTarget.open && load())}>
          <summary>Output ({toolOutcome(call.result)})</summary>
          {failure ? <FailureNote failure={failure} /> : <p class="fine">Loading…</p>}
        </details>
      ) : output ? (
        <Folded
          label={`Output (${toolOutcome(call.result)}, ${size}${lost})`}
          text={output}
          isOpen={isAsked}
        />
      ) : (
        <p class="fine">No output ({toolOutcome(call.result)})</p>
      )}
    </>
  );
}

// Longer texts are folded. One short line is shown as it is.
function Folded({ label, text, isOpen }: { label: string; text: string; isOpen?: boolean }) {
  const first = firstLine(text);
  if (text.trimEnd() === first && first.length <= 100) {
    return (
      <p class="line">
        <span class="fine">{label}:</span> <code>{first}</code>
      </p>
    );
  }
  return (
    <details open={isOpen}>
      <summary>
        {label}: <code>{first.slice(0, 100)}…</code>
      </summary>
      <pre tabIndex={0}>{text}</pre>
    </details>
  );
}
