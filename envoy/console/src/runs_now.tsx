// What a task does now. The service tells the phase and when the iteration began; commands and their
// output are in the log once the iteration has ended.
import type { Task } from "./api";
import { now } from "./clock";
import { toolCalls, toolOutcome } from "./events";
import { elapsed, fullTime, lastLines, number, words } from "./text";
import type { OpenWorkspace } from "./workspace";

const LINES = 5;

export function RunsNow({ open, task }: { open: OpenWorkspace; task: Task }) {
  const own = open.events.value.filter((event) => event.task_id === task.id);
  const last = own.findLast((event) => event.iteration_completed);
  const began = last?.time ?? own.find((event) => event.task_started)?.time;
  if (!began || task.phase === "phase_unspecified") return null;
  const before = last?.iteration_completed;
  const call = before && toolCalls(before).at(-1);
  const output = call ? lastLines(call.result.output, LINES) : "";
  return (
    <div class="note" role="group" aria-label="Now">
      <p>
        <strong>
          Iteration {number((before?.number ?? 0) + 1)}: {words(task.phase)}
        </strong>
        , for {elapsed(now.value - Date.parse(began))}, since {fullTime(began)}
      </p>
      {before && call && (
        <>
          <p class="fine">
            Before it, iteration {number(before.number)}, {toolOutcome(call.result)}:{" "}
            <code>
              {call.name} {call.arguments}
            </code>
          </p>
          {output && <pre>{output}</pre>}
        </>
      )}
    </div>
  );
}
