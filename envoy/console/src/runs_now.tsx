// What a task is doing now: the phase of its iteration, and the running calls, with the end of
// their output.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { api, read, type Schemas, type Task } from "./api";
import { now, serverNow } from "./clock";
import { asFailure, backoffMs, pause } from "./connection";
import { commandOf } from "./events";
import { elapsed, fullTime, number, words } from "./text";
import type { OpenWorkspace } from "./workspace";

const REFRESH_MS = 1_000;
// How far from its end a text may be scrolled and still follow new output.
const AT_END_PX = 4;

interface Reading {
  number: number;
  calls: Schemas["RunningCall"][];
  at: number;
}

export function RunsNow({ open, task }: { open: OpenWorkspace; task: Task }) {
  const reading = useReading(task);
  const own = open.events.value.filter((event) => event.task_id === task.id);
  const last = own.findLast((event) => event.iteration_completed);
  const began = last?.time ?? own.find((event) => event.task_started)?.time;
  if (!began || task.phase === "phase_unspecified") return null;
  const iteration = (last?.iteration_completed?.number ?? 0) + 1;
  // The log may be newer than the reading, whose calls then belong to an earlier iteration.
  const calls = reading?.number === iteration ? reading.calls : [];
  return (
    <div class="note" role="group" aria-label="Now">
      <p>
        <strong>
          Iteration {number(iteration)}: {words(task.phase)}
        </strong>
        , for <span class="lasting">{elapsed(now.value - Date.parse(began))}</span>, since {fullTime(began)}
      </p>
      {calls.map((call, index) => (
        <Call key={`${iteration} ${index}`} call={call} at={reading?.at ?? 0} />
      ))}
    </div>
  );
}

function Call({ call, at }: { call: Schemas["RunningCall"]; at: number }) {
  const runsMs = Number(call.duration_ms) + Math.max(0, now.value - at);
  return (
    <>
      <p>
        <code>{commandOf(call.name || words(call.phase), call.arguments)}</code>, for{" "}
        <span class="lasting">{elapsed(runsMs)}</span>
      </p>
      {call.output && <Output text={call.output} />}
    </>
  );
}

// Follows the end of the text until the person scrolls away from it.
function Output({ text }: { text: string }) {
  const box = useRef<HTMLPreElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    const pre = box.current;
    if (pre && follows.current) pre.scrollTop = pre.scrollHeight;
  }, [text]);
  const onScroll = ({ currentTarget: pre }: preact.TargetedEvent<HTMLPreElement>) => {
    const belowPx = pre.scrollHeight - pre.scrollTop - pre.clientHeight;
    follows.current = belowPx <= AT_END_PX;
  };
  return (
    <pre ref={box} class="output" tabIndex={0} aria-label="Last output" onScroll={onScroll}>
      {text}
    </pre>
  );
}

// The calls of the task, read while the page is visible. Null while the service or the agent does not
// answer.
function useReading(task: Task): Reading | null {
  const [reading, setReading] = useState<Reading | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    void follow(task, setReading, stop.signal);
    return () => stop.abort();
  }, [task.id]);
  return reading;
}

async function follow(
  task: Task,
  onReading: (reading: Reading | null) => void,
  signal: AbortSignal,
): Promise<void> {
  const path = { workspace_id: task.workspace_id, task_id: task.id };
  let failures = 0;
  while (!signal.aborted) {
    let pauseMs = REFRESH_MS;
    if (!document.hidden) {
      try {
        const { number, calls } = await read(
          api.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}/iteration", {
            params: { path },
            signal,
          }),
        );
        failures = 0;
        if (!signal.aborted) onReading({ number, calls, at: serverNow() });
      } catch (error) {
        if (signal.aborted) return;
        failures += 1;
        pauseMs = Math.max(REFRESH_MS, backoffMs(failures, asFailure(error)));
        onReading(null);
      }
    }
    await pause(pauseMs, signal);
  }
}
