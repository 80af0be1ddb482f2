// The list of all workspaces.
import { useEffect, useRef } from "preact/hooks";
import { ConnectionNote } from "./connection_note";
import { Grid } from "./grid";
import { counts, selected, status, type StatusFilter, text } from "./selection";
import { count, words } from "./text";
import { follow, isComplete, rows } from "./workspaces";

const STATUSES = ["busy", "idle", "provisioning", "suspended", "stopping", "stopped", "failed"] as const;

export function ListPage() {
  useEffect(() => {
    const stop = new AbortController();
    void follow(stop.signal);
    return () => stop.abort();
  }, []);
  return (
    <main class="list-page">
      <h1 class="for-screen-readers">Workspaces</h1>
      <Filters />
      <ConnectionNote />
      <Summary />
      <Grid />
    </main>
  );
}

function Filters() {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const focus = (event: KeyboardEvent) => {
      const isTyping = event.target instanceof Element && event.target.matches("input, textarea");
      if (event.key !== "/" || isTyping || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      field.current?.focus();
    };
    addEventListener("keydown", focus);
    return () => removeEventListener("keydown", focus);
  }, []);
  return (
    <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
      <label>
        Find <span class="fine">(press / )</span>
        <input
          ref={field}
          type="search"
          placeholder="name, id or task"
          value={text.value}
          onInput={(event) => (text.value = event.currentTarget.value)}
        />
      </label>
      <label>
        Status
        <select
          value={status.value}
          onChange={(event) => (status.value = event.currentTarget.value as StatusFilter)}
        >
          <option value="all">all ({rows.value.length})</option>
          {STATUSES.map((each) => (
            <option key={each} value={each}>
              {words(each)} ({counts.value.get(each) ?? 0})
            </option>
          ))}
        </select>
      </label>
    </form>
  );
}

function Summary() {
  const all = rows.value.length;
  const shown = selected.value.length;
  const busy = counts.value.get("busy") ?? 0;
  const failed = counts.value.get("failed") ?? 0;
  return (
    <p class="summary">
      {shown === all ? count(all, "workspace") : `${shown} of ${count(all, "workspace")}`}
      {isComplete.value ? "" : " so far"}, {busy} busy, {failed} failed
    </p>
  );
}
