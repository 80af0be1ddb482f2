// The rows of the list. Only those in view are in the document, so that thousands of rows scroll
// smoothly. All rows have the same height, so their positions need no library.
import { signal } from "@preact/signals";
import { memo } from "preact/compat";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { type Column, selected, since, sort, sortBy, tokensUsed } from "./selection";
import { elapsed, firstLine, fullTime, now, number, words } from "./text";
import { type Row, setInView } from "./workspaces";

const WIDE_ROW_PIXELS = 36;
const NARROW_ROW_PIXELS = 84;
const NARROW = matchMedia("(max-width: 760px)");
// Rows above and below the view, so that scrolling shows no gaps.
const EXTRA_ROWS = 10;

const COLUMNS: readonly { column: Column; title: string }[] = [
  { column: "name", title: "Workspace" },
  { column: "status", title: "Status" },
  { column: "task", title: "Task" },
  { column: "iterations", title: "Iteration" },
  { column: "phase", title: "Phase" },
  { column: "since", title: "Running since" },
  { column: "tokens", title: "Tokens" },
];

const rowPixels = signal(NARROW.matches ? NARROW_ROW_PIXELS : WIDE_ROW_PIXELS);
NARROW.addEventListener("change", () => {
  rowPixels.value = NARROW.matches ? NARROW_ROW_PIXELS : WIDE_ROW_PIXELS;
});
// What is in view. Kept while another page is shown.
const scrolled = signal({ top: 0, height: 800 });
// The workspace whose row has the focus, or gets it with the Tab key.
const active = signal("");

export function Grid() {
  const view = useRef<HTMLDivElement>(null);
  const list = selected.value;
  const height = rowPixels.value;
  const first = Math.max(0, Math.floor(scrolled.value.top / height) - EXTRA_ROWS);
  const last = Math.ceil((scrolled.value.top + scrolled.value.height) / height) + EXTRA_ROWS;
  const found = list.findIndex((row) => row.workspace.id === active.value);
  const activeIndex = Math.max(0, found);
  const indexes = inView(first, Math.min(last, list.length), activeIndex, list.length);
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
    };
  }, []);

  const focusRow = useRef(false);
  useEffect(() => {
    if (!focusRow.current) return;
    focusRow.current = false;
    view.current?.querySelector<HTMLElement>("[role=row][tabindex='0']")?.focus();
  });
  const move = (index: number) => {
    const row = list[Math.min(Math.max(0, index), list.length - 1)];
    if (!row) return;
    active.value = row.workspace.id;
    focusRow.current = true;
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const page = Math.max(1, Math.floor(scrolled.value.height / height) - 1);
    const targets: Record<string, number> = {
      ArrowDown: activeIndex + 1,
      ArrowUp: activeIndex - 1,
      PageDown: activeIndex + page,
      PageUp: activeIndex - page,
      Home: 0,
      End: list.length - 1,
    };
    const target = targets[event.key];
    if (event.key === "Enter") open(list[activeIndex]);
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
      aria-colcount={COLUMNS.length}
    >
      <Header />
      <div class="rows" role="rowgroup" ref={view} tabIndex={-1} onKeyDown={onKeyDown}>
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
                  isActive={index === activeIndex}
                />
              )
            );
          })}
        </div>
        {list.length === 0 && <p class="empty">No workspace matches.</p>}
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
  return (
    <div class="header" role="rowgroup">
      <div class="row" role="row" aria-rowindex={1}>
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
}

const WorkspaceRow = memo(function WorkspaceRow({ row, index, top, isActive }: RowProps) {
  const { workspace, task } = row;
  const shownStatus = task?.cancel_requested_at ? "cancelling" : workspace.status;
  return (
    <div
      class="row"
      role="row"
      aria-rowindex={index + 2}
      tabIndex={isActive ? 0 : -1}
      style={{ transform: `translateY(${top}px)` }}
      onFocus={() => (active.value = workspace.id)}
      onClick={() => open(row)}
    >
      <div class="name" role="gridcell">
        <a href={`#/workspaces/${workspace.id}`} tabIndex={-1} title={workspace.id}>
          {workspace.name || workspace.id}
        </a>
      </div>
      <div class="status" role="gridcell">
        <span class={`badge ${shownStatus}`}>{words(shownStatus)}</span>
      </div>
      <div class="task" role="gridcell">
        {task ? firstLine(task.description) : workspace.current_task_id || workspace.status_reason}
      </div>
      <div class="iterations" role="gridcell">
        {task ? number(task.iterations) : ""}
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
    </div>
  );
});

function Since({ row }: { row: Row }) {
  const began = since(row);
  return (
    <time dateTime={new Date(began).toISOString()} title={fullTime(new Date(began).toISOString())}>
      {elapsed(now.value - began)}
    </time>
  );
}

function open(row: Row | undefined): void {
  if (!row) return;
  active.value = row.workspace.id;
  location.hash = `#/workspaces/${row.workspace.id}`;
}
