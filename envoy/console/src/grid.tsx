// The rows of the list. Only the rows in view are in the document, so that thousands of rows scroll
// smoothly. All rows have the same height, so their positions are computed without a library.
import { computed, signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import type { Task } from "./api";
import { askToCancel } from "./cancel_these";
import { now, sinceMs } from "./clock";
import { tokensUsed } from "./limits";
import { memo } from "./memo";
import { choose, chosen, type Column, shown, sort, sortBy } from "./selection";
import { stateOf } from "./state";
import { dollars, elapsed, firstLine, fullTime, number, words } from "./text";
import { troublesOf } from "./urgency";
import { isComplete, type Row, rowOf, rows, setInView } from "./workspaces";

const WIDE_ROW_PIXELS = 36;
const NARROW_ROW_PIXELS = 84;
const NARROW = matchMedia("(max-width: 760px)");
// Rows above and below the view, so that scrolling shows no gaps.
const EXTRA_ROWS = 10;

export const COLUMNS: readonly { column: Column; title: string }[] = [
  { column: "name", title: "Workspace" },
  { column: "status", title: "Status" },
  { column: "task", title: "Task" },
  { column: "iterations", title: "Iteration" },
  { column: "phase", title: "Phase" },
  { column: "since", title: "Running for" },
  { column: "tokens", title: "Tokens" },
  { column: "cost", title: "Cost" },
];

const rowPixels = signal(NARROW.matches ? NARROW_ROW_PIXELS : WIDE_ROW_PIXELS);
NARROW.addEventListener("change", () => {
  rowPixels.value = NARROW.matches ? NARROW_ROW_PIXELS : WIDE_ROW_PIXELS;
});
// The part of the list that is in view, in pixels. Kept while another page is shown.
const scrolled = signal({ top: 0, height: 800 });
// The workspace whose row has the focus, or gets it with the Tab key.
const active = signal("");
const activeIndex = computed(() => {
  const found = shown.value.findIndex((row) => row.workspace.id === active.value);
  return Math.max(0, found);
});
// Whether the active row gets the focus when it is drawn next.
const isDue = signal(false);

// Gives the focus to the first row, or to the row that had it before. Returns whether the list has
// such a row.
export function enter(isFirst: boolean): boolean {
  const list = shown.peek();
  const row = isFirst ? list[0] : list.find((each) => each.workspace.id === active.peek());
  if (row) focus(row);
  return row !== undefined;
}

// Gives the row the focus: at once if the row is in the document, so that the next key reaches it,
// and otherwise when it is drawn.
function focus({ workspace }: Row): void {
  active.value = workspace.id;
  const element = document.getElementById(`row-${workspace.id}`);
  if (element) element.focus();
  else isDue.value = true;
}

export function Grid() {
  const view = useRef<HTMLDivElement>(null);
  const list = shown.value;
  const height = rowPixels.value;
  const first = Math.max(0, Math.floor(scrolled.value.top / height) - EXTRA_ROWS);
  const last = Math.ceil((scrolled.value.top + scrolled.value.height) / height) + EXTRA_ROWS;
  const indexes = inView(first, Math.min(last, list.length), activeIndex.value, list.length);
  setInView(indexes.map((index) => list[index]?.workspace.id ?? ""));

  useLayoutEffect(() => {
    const element = view.current;
    if (!element) return;
    element.scrollTop = scrolled.peek().top;
    const measure = () => {
      scrolled.value = { top: element.scrollTop, height: element.clientHeight };
    };
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    element.addEventListener("scroll", measure, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", measure);
      setInView([]);
    };
  }, []);

  useEffect(() => {
    if (!isDue.value) return;
    isDue.value = false;
    document.getElementById(`row-${active.peek()}`)?.focus();
  });
  const move = (index: number) => {
    const row = list[Math.min(Math.max(0, index), list.length - 1)];
    if (row) focus(row);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    // Reads the latest values, because keys may come faster than the list is drawn.
    const list = shown.peek();
    const at = activeIndex.peek();
    const page = Math.max(1, Math.floor(scrolled.value.height / height) - 1);
    const targets: Record<string, number> = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      PageDown: at + page,
      PageUp: at - page,
      Home: 0,
      End: list.length - 1,
    };
    const target = targets[event.key];
    const row = list[at];
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter") open(row);
    else if (event.key === " " && row) choose([row.workspace.id], !isChosen(row));
    else if (event.key === "c" && row) askToCancel(() => current(row));
    else if (target === undefined) return;
    else move(target);
    event.preventDefault();
  };

  return (
    <div
      class="grid"
      role="grid"
      aria-label="Workspaces"
      aria-rowcount={list.length + 1}
      aria-colcount={COLUMNS.length + 1}
      aria-multiselectable="true"
    >
      <Header />
      <div class="rows" role="rowgroup" ref={view} tabIndex={-1} onKeyDown={onKeyDown}>
        {list.length === 0 && <Empty />}
        <div class="height" role="presentation" style={{ height: `${list.length * height}px` }}>
          {indexes.map((index) => {
            const row = list[index];
            return (
              row && (
                <WorkspaceRow
                  key={row.workspace.id}
                  row={row}
                  index={index}
                  top={index * height}
                  isActive={index === activeIndex.value}
                  isChosen={isChosen(row)}
                />
              )
            );
          })}
        </div>
      </div>
    </div>
  );
}

function Empty() {
  const text = !isComplete.value
    ? "Looking up the workspaces…"
    : rows.value.length > 0
      ? "No workspace matches."
      : "There are no workspaces yet.";
  return (
    <div role="row">
      <div role="gridcell" class="empty">
        {text}
      </div>
    </div>
  );
}

// The row with the focus stays in the document, so that the focus is not lost.
function inView(first: number, end: number, activeIndex: number, all: number): number[] {
  const indexes = [];
  for (let index = first; index < end; index += 1) indexes.push(index);
  if (activeIndex < first && activeIndex < all) indexes.unshift(activeIndex);
  if (activeIndex >= end && activeIndex < all) indexes.push(activeIndex);
  return indexes;
}

function Header() {
  const { column: sorted, descending } = sort.value;
  const list = shown.value;
  return (
    <div class="header" role="rowgroup">
      <div class="row" role="row" aria-rowindex={1}>
        <div class="check" role="columnheader">
          <input
            type="checkbox"
            aria-label="Select all that are shown"
            checked={list.length > 0 && list.every(isChosen)}
            onChange={(event) => {
              const ids = list.map((row) => row.workspace.id);
              choose(ids, event.currentTarget.checked);
            }}
          />
        </div>
        {COLUMNS.map(({ column, title }) => (
          <div
            key={column}
            class={column}
            role="columnheader"
            aria-sort={column !== sorted ? "none" : descending ? "descending" : "ascending"}
          >
            <button type="button" onClick={() => sortBy(column)}>
              {title}
              <span aria-hidden="true">{column !== sorted ? "" : descending ? " ▼" : " ▲"}</span>
            </button>
          </div>
        ))}
      </div>
    </div>
  );
}

interface RowProps {
  row: Row;
  index: number;
  top: number;
  isActive: boolean;
  isChosen: boolean;
}

const WorkspaceRow = memo(function WorkspaceRow(props: RowProps) {
  const { row, index, top, isActive, isChosen } = props;
  const { workspace, task } = row;
  return (
    <div
      id={`row-${workspace.id}`}
      class="row"
      role="row"
      aria-rowindex={index + 2}
      aria-selected={isChosen}
      tabIndex={isActive ? 0 : -1}
      style={{ transform: `translateY(${top}px)` }}
      onFocus={() => (active.value = workspace.id)}
      onClick={() => open(row)}
    >
      <div class="check" role="gridcell" onClick={(event) => event.stopPropagation()}>
        <input
          type="checkbox"
          tabIndex={-1}
          aria-label={`Select ${workspace.name || workspace.id}`}
          checked={isChosen}
          onChange={(event) => choose([workspace.id], event.currentTarget.checked)}
        />
      </div>
      <div class="name" role="gridcell">
        <a href={`#/workspaces/${workspace.id}`} tabIndex={-1} title={workspace.id}>
          {workspace.name || workspace.id}
        </a>
      </div>
      <div class="status" role="gridcell">
        <Status row={row} />
      </div>
      <div class="task" role="gridcell">
        {task ? firstLine(task.description) : workspace.current_task_id || workspace.status_reason}
      </div>
      <div class="iterations" role="gridcell">
        {task ? number(iterationOf(task)) : ""}
      </div>
      <div class="phase" role="gridcell">
        {task && task.phase !== "phase_unspecified" ? words(task.phase) : ""}
      </div>
      <div class="since" role="gridcell">
        {workspace.current_task_id ? <Since row={row} /> : ""}
      </div>
      <div class="tokens" role="gridcell">
        {task ? number(tokensUsed(task)) : ""}
      </div>
      <div class="cost" role="gridcell">
        {task?.usage.cost ? dollars(task.usage.cost) : ""}
      </div>
    </div>
  );
});

function Status({ row }: { row: Row }) {
  const { workspace, task } = row;
  const [trouble] = troublesOf(row);
  if (trouble === "late" && task?.cancel_requested_at) {
    const late = elapsed(sinceMs(task.cancel_requested_at));
    return <span class="badge late lasting">cancelling {late}</span>;
  }
  if (trouble === "over_limit") return <span class="badge over_limit">over its limit</span>;
  const state = stateOf(workspace, task);
  return <span class={`badge ${state}`}>{state}</span>;
}

// The iteration that runs, or else the last one.
function iterationOf({ iterations, phase }: Task): number {
  return phase === "phase_unspecified" ? iterations : iterations + 1;
}

function Since({ row }: { row: Row }) {
  const began = row.since;
  return (
    <time class="lasting" dateTime={new Date(began).toISOString()} title={fullTime(new Date(began).toISOString())}>
      {elapsed(now.value - began)}
    </time>
  );
}

function isChosen({ workspace }: Row): boolean {
  return chosen.value.has(workspace.id);
}

// The current version of the row.
function current({ workspace }: Row): readonly Row[] {
  const found = rowOf(workspace.id);
  return found ? [found] : [];
}

export function open(row: Row | undefined): void {
  if (!row) return;
  active.value = row.workspace.id;
  location.hash = `#/workspaces/${row.workspace.id}`;
}
