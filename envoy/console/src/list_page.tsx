// The list of all workspaces.
import { useEffect, useRef } from "preact/hooks";
import { askToCancel, CancelThese } from "./cancel_these";
import { may } from "./credential";
import { Denied } from "./denied";
import { COLUMNS, enter, Grid, open } from "./grid";
import { useKeys } from "./keys";
import {
  choose,
  chosen,
  type Column,
  counts,
  filter,
  type Filter,
  shown,
  sort,
  sortBy,
  targets,
  text,
} from "./selection";
import { count, number, words } from "./text";
import { isComplete, rows, useFollowedList } from "./workspaces";

export function ListPage() {
  useFollowedList();
  return (
    <main class="list-page">
      <h1 class="for-screen-readers">Workspaces</h1>
      <div class="filters">
        <Bar />
        <Chips />
      </div>
      <Grid />
      <Actions />
      <CancelThese />
    </main>
  );
}

function Bar() {
  const field = useRef<HTMLInputElement>(null);
  useKeys({ "/": () => field.current?.focus() });
  // Not on a phone, where the focus would open the keyboard.
  useEffect(() => {
    if (matchMedia("(pointer: fine)").matches && !enter(false)) field.current?.focus();
  }, []);
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key === "Enter") open(shown.peek()[0]);
    else if (event.key === "ArrowDown") enter(true);
    else return;
    event.preventDefault();
  };
  return (
    <form class="bar" role="search" onSubmit={(event) => event.preventDefault()}>
      <input
        ref={field}
        type="search"
        aria-label="Find"
        placeholder="Find a name, id or task"
        value={text.value}
        onInput={(event) => (text.value = event.currentTarget.value)}
        onKeyDown={onKeyDown}
      />
      <p class="fine keys">
        <kbd>/</kbd> find <kbd>Enter</kbd> open <kbd>↓</kbd> rows <kbd>Space</kbd> select{" "}
        <kbd>c</kbd> cancel
      </p>
    </form>
  );
}

const TITLES: Partial<Record<Filter, string>> = {
  busy: "running",
  late: "cancelling too long",
  over_limit: "over its limit",
};

function Chips() {
  return (
    <div class="chips" role="group" aria-label="Filter and sort">
      {[...counts.value].map(([each, all]) => (
        <button
          key={each}
          type="button"
          class={`chip ${each}`}
          aria-pressed={filter.value === each}
          onClick={() => (filter.value = filter.peek() === each ? "all" : each)}
        >
          {TITLES[each] ?? words(each)} <strong>{number(all)}</strong>
        </button>
      ))}
      <select
        class="sort"
        aria-label="Sort"
        value={sort.value.column}
        onChange={(event) => sortBy(event.currentTarget.value as Column)}
      >
        {COLUMNS.map(({ column, title }) => (
          <option key={column} value={column}>
            {column === "status" ? "Wrong first" : title}
          </option>
        ))}
      </select>
      <a href="#/last-hour" class="last-hour">
        Last hour
      </a>
    </div>
  );
}

function Actions() {
  const all = rows.value.length;
  const part = shown.value.length;
  const tasks = targets.value.length;
  return (
    <div class="actions">
      <p role="status">
        {chosen.value.size
          ? `${number(chosen.value.size)} selected`
          : part === all
            ? count(all, "workspace")
            : `${number(part)} of ${count(all, "workspace")}`}
        {isComplete.value ? "" : " so far"}
      </p>
      {chosen.value.size > 0 && (
        <button type="button" onClick={() => choose(chosen.peek(), false)}>
          Clear
        </button>
      )}
      {tasks > 0 && may("workspace:write") && (
        <button type="button" class="danger" onClick={() => askToCancel(() => targets.value)}>
          Cancel {tasks === 1 ? "this task" : `these ${number(tasks)}`}…
        </button>
      )}
      {tasks > 0 && <Denied scope="workspace:write" doing="cancel" />}
    </div>
  );
}
