// What failed, what was cancelled and by whom, within the last hour.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { may } from "./credential";
import { Denied } from "./denied";
import { type Incident, LastHour, MAX_TASKS, MAX_WORKSPACES } from "./last_hour";
import { text } from "./selection";
import { caller, token } from "./session";
import { fullTime, number, preciseTime, words } from "./text";
import { rowOf, useFollowedList } from "./workspaces";

const MOST_SHOWN = 200;

export function LastHourPage() {
  useFollowedList();
  const [kind, setKind] = useState("all");
  const heading = useRef<HTMLHeadingElement>(null);
  const mayAudit = may("audit:read");
  const hour = useMemo(() => new LastHour(), [token.value, mayAudit]);
  useEffect(() => heading.current?.focus(), []);
  useEffect(() => {
    const leave = new AbortController();
    void hour.follow(mayAudit, leave.signal);
    return () => leave.abort();
  }, [hour]);
  const wanted = text.value.trim().toLowerCase();
  const found = hour.incidents().filter((each) => !wanted || searchable(each).includes(wanted));
  const shown = found.filter((each) => kind === "all" || each.kind === kind);
  return (
    <main class="workspace-page">
      <nav aria-label="Breadcrumb">
        <a href="#/">← All workspaces</a>
      </nav>
      <h1 ref={heading} tabIndex={-1}>
        The last hour
      </h1>
      <form class="bar" role="search" onSubmit={(event) => event.preventDefault()}>
        <input
          type="search"
          aria-label="Find"
          placeholder="Find a name, id, task or person"
          value={text.value}
          onInput={(event) => (text.value = event.currentTarget.value)}
        />
      </form>
      <div class="chips" role="group" aria-label="Filter">
        {["all", "failed", "cancelled"].map((each) => (
          <button
            key={each}
            type="button"
            class="chip"
            aria-pressed={kind === each}
            onClick={() => setKind(each)}
          >
            {each}{" "}
            <strong>
              {number(found.filter((one) => each === "all" || one.kind === each).length)}
            </strong>
          </button>
        ))}
      </div>
      <Denied scope="audit:read" doing="read the audit log" />
      <p role="status" class="fine">
        {!hour.isRead.value
          ? "Looking up the last hour…"
          : shown.length === 0
            ? "Nothing was found."
            : shown.length > MOST_SHOWN && `The newest ${MOST_SHOWN} are shown.`}
      </p>
      <ol class="timeline">
        {shown.slice(0, MOST_SHOWN).map((each) => (
          <Entry key={each.id} incident={each} />
        ))}
      </ol>
      <p class="fine">
        The last {MAX_TASKS} tasks of the {MAX_WORKSPACES} workspaces that changed last
        {mayAudit && ", and the audit log"}. The newest is first.
      </p>
    </main>
  );
}

function Entry({ incident }: { incident: Incident }) {
  const { status, time, workspaceId, what, by, reason } = incident;
  return (
    <li class="entry">
      <div class="headline">
        <time dateTime={time} title={fullTime(time)}>
          {preciseTime(time)}
        </time>
        <span class={`badge ${status}`}>{words(status)}</span>
        {workspaceId && <a href={`#/workspaces/${workspaceId}`}>{nameOf(workspaceId)}</a>}
      </div>
      {what && <p>{what}</p>}
      <ul class="facts">
        {by && <li>by {by === caller.value?.actor_id ? "you" : by}</li>}
        {reason && <li>{reason}</li>}
      </ul>
    </li>
  );
}

function nameOf(workspaceId: string): string {
  return rowOf(workspaceId)?.workspace.name || workspaceId;
}

function searchable(incident: Incident): string {
  return [nameOf(incident.workspaceId), ...Object.values(incident)].join("\n").toLowerCase();
}
