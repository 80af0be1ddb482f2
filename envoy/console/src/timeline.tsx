// The event log of a workspace, newest first, grouped by task.
import { memo } from "preact/compat";
import { useState } from "preact/hooks";
import type { Schemas, WorkspaceEvent } from "./api";
import { commandOf, facts, title, toolCalls, toolOutcome } from "./events";
import { bytes, count, firstLine, fullTime, preciseTime } from "./text";
import type { OpenWorkspace } from "./workspace";

const SHOWN_AT_FIRST = 200;
const MORE = 300;

// The events of a task, or the events of the workspace between two tasks, newest first.
interface Group {
  key: string;
  taskId: string;
  events: WorkspaceEvent[];
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
          group={group}
          // Opens the group of the current task, or else of the last task.
          isOpen={index === groups.findIndex((each) => each.taskId)}
        />
      ))}
      {open.dropped.value > 0 && (
        <p class="fine">The {count(open.dropped.value, "oldest event")} are not kept here.</p>
      )}
      {groups.length === 0 && <p class="fine">There are no events yet.</p>}
    </section>
  );
}

function groupsOf(events: readonly WorkspaceEvent[]): Group[] {
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

function GroupOfEvents({ group, isOpen }: { group: Group; isOpen: boolean }) {
  // Whether the person has opened or closed the group; null before the first click.
  const [chosen, setChosen] = useState<boolean | null>(null);
  const [shown, setShown] = useState(SHOWN_AT_FIRST);
  const { taskId, events } = group;
  if (!taskId) return <Entries events={events} />;
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
            {title(newest)}, {fullTime(newest.time)}, {count(events.length, "event")}
          </span>
        )}
      </summary>
      {isShown && <Entries events={events.slice(0, shown)} />}
      {isShown && more > 0 && (
        <button type="button" onClick={() => setShown(shown + MORE)}>
          Show older events ({more})
        </button>
      )}
    </details>
  );
}

function Entries({ events }: { events: readonly WorkspaceEvent[] }) {
  return (
    <ol class="timeline" reversed start={Number(events[0]?.seq ?? 1)}>
      {events.map((event) => (
        <Entry key={event.seq} event={event} />
      ))}
    </ol>
  );
}

const Entry = memo(function Entry({ event }: { event: WorkspaceEvent }) {
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
      {iteration && toolCalls(iteration).map((call, at) => <ToolCall key={at} call={call} />)}
      {end?.result && <Folded label="Result" text={end.result} />}
    </li>
  );
});

function ToolCall({ call }: { call: Schemas["ToolCall"] }) {
  const { output, truncated_bytes: truncated } = call.result;
  const size = bytes(new Blob([output]).size);
  const lost = Number(truncated) > 0 ? `, ${bytes(Number(truncated))} more were dropped` : "";
  return (
    <>
      <p class="call">
        <code>{commandOf(call.name, call.arguments)}</code>
      </p>
      {output ? (
        <Folded
          label={`Output (${toolOutcome(call.result)}, ${size}${lost})`}
          text={output}
        />
      ) : (
        <p class="fine">No output ({toolOutcome(call.result)})</p>
      )}
    </>
  );
}

// Longer texts are folded. One short line is shown as it is.
function Folded({ label, text }: { label: string; text: string }) {
  const first = firstLine(text);
  if (text.trimEnd() === first && first.length <= 100) {
    return (
      <p class="line">
        <span class="fine">{label}:</span> <code>{first}</code>
      </p>
    );
  }
  return (
    <details>
      <summary>
        {label}: <code>{first.slice(0, 100)}…</code>
      </summary>
      <pre tabIndex={0}>{text}</pre>
    </details>
  );
}
