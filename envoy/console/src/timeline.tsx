// The event log of a workspace, oldest first.
import { signal } from "@preact/signals";
import { memo } from "preact/compat";
import { useLayoutEffect, useRef } from "preact/hooks";
import type { Schemas, WorkspaceEvent } from "./api";
import { facts, title, toolCalls, toolOutcome } from "./events";
import { bytes, count, firstLine, fullTime, preciseTime } from "./text";
import type { OpenWorkspace } from "./workspace";

const SHOWN_AT_FIRST = 200;
const MORE = 300;
// How near to its end the page counts as being at its end.
const NEAR_PIXELS = 80;

const shown = signal(SHOWN_AT_FIRST);

export function Timeline({ open }: { open: OpenWorkspace }) {
  const events = open.events.value;
  const visible = events.slice(-shown.value);
  const hidden = events.length - visible.length;
  useFollowedEnd(events.length);
  return (
    <section aria-labelledby="log-title">
      <h2 id="log-title">Event log</h2>
      {open.dropped.value > 0 && hidden === 0 && (
        <p class="fine">The {count(open.dropped.value, "oldest event")} are not kept here.</p>
      )}
      {hidden > 0 && (
        <button type="button" onClick={() => (shown.value += MORE)}>
          Show older events ({hidden})
        </button>
      )}
      <ol class="timeline" start={Number(visible[0]?.seq ?? 1)}>
        {visible.map((event) => (
          <Entry key={event.seq} event={event} />
        ))}
      </ol>
      {events.length === 0 && <p class="fine">There are no events yet.</p>}
    </section>
  );
}

// Keeps the end of the page in view if it was in view before the log grew.
function useFollowedEnd(length: number): void {
  const wasAtEnd = useRef(false);
  const page = document.scrollingElement ?? document.documentElement;
  wasAtEnd.current = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_PIXELS;
  useLayoutEffect(() => {
    if (wasAtEnd.current && page.scrollTop > 0) page.scrollTop = page.scrollHeight;
  }, [length]);
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
        <code>
          {call.name} {call.arguments}
        </code>
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

// One short line is shown as it is.
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
