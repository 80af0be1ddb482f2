// The state of the workspace whose page is open.
import { signal } from "@preact/signals";
import { api, read, type Task, type Workspace, type WorkspaceEvent } from "./api";
import { announce } from "./announcer";
import { asFailure, repeat, untilAnswered } from "./connection";
import { Source } from "./health";
import { followEvents } from "./stream";
import { announcement } from "./events";

const REFRESH_MS = 1_000;
const HIDDEN_REFRESH_MS = 10_000;
// An event causes a read of the workspace only if the last read began at least this long ago.
const LEAST_MS = 250;
// How many events are kept, the newest ones, because a log may have any number of events.
const KEPT_EVENTS = 2_000;
const PAGE_EVENTS = 50;

// An event of the log. Older events are read without the outputs of their tool calls.
export interface LoggedEvent extends WorkspaceEvent {
  hasNoOutputs?: boolean;
}

export class OpenWorkspace {
  readonly workspace = signal<Workspace | null>(null);
  // The current task, or else the last one.
  readonly task = signal<Task | null>(null);
  readonly events = signal<readonly LoggedEvent[]>([]);
  // The log has older events than those that are kept, before this `seq`. "0" if it has none.
  readonly olderBefore = signal("0");
  readonly source = new Source("the workspace");
  private readonly log = new Source("the event log");
  private kept = KEPT_EVENTS;
  private waiting: WorkspaceEvent[] = [];
  private refreshedAt = 0;
  private refreshNow = () => {};

  constructor(readonly id: string) {}

  follow(signal: AbortSignal): void {
    void repeat(
      this.source,
      () => this.refresh(signal),
      () => (document.hidden ? HIDDEN_REFRESH_MS : REFRESH_MS),
      signal,
    );
    this.log.follow(signal);
    void this.followLog(signal);
    this.refreshNow = () => {
      if (performance.now() - this.refreshedAt < LEAST_MS) return;
      // Ignores a failure, because the next regular reading reports it if it persists.
      void this.refresh(signal).catch(() => {});
    };
  }

  // Begins near the end of the log, which may be long.
  private async followLog(signal: AbortSignal): Promise<void> {
    try {
      await untilAnswered(() => this.loadOlder(), (failure) => this.log.failed(failure), signal);
    } catch (error) {
      this.log.failed(asFailure(error));
      return;
    }
    const path = `/v1/workspaces/${encodeURIComponent(this.id)}/events`;
    const last = this.events.peek().at(-1)?.seq;
    await followEvents(path, this.log, (events) => this.add(events), signal, last);
  }

  // Adds the events before the oldest one that is kept. Throws Failure.
  async loadOlder(): Promise<void> {
    const before = this.olderBefore.peek();
    const { events, next_before } = await this.list(before, PAGE_EVENTS, true);
    if (this.olderBefore.peek() !== before) return;
    const older = events.toReversed().map((event) => ({ ...event, hasNoOutputs: true }));
    this.events.value = [...older, ...this.events.peek()];
    this.kept = Math.max(this.kept, this.events.peek().length);
    this.olderBefore.value = next_before;
  }

  // Reads the outputs of an event. Throws Failure.
  async loadOutputs(event: LoggedEvent): Promise<void> {
    const { events } = await this.list(String(BigInt(event.seq) + 1n), 1, false);
    const whole = events[0];
    if (whole?.seq !== event.seq) return;
    this.events.value = this.events.peek().map((each) => (each.seq === whole.seq ? whole : each));
  }

  private list(before: string, page_size: number, omit_outputs: boolean) {
    const path = { workspace_id: this.id };
    const query = { before, page_size, omit_outputs };
    return read(api.GET("/v1/workspaces/{workspace_id}/events/list", { params: { path, query } }));
  }

  private async refresh(signal: AbortSignal): Promise<void> {
    this.refreshedAt = performance.now();
    const path = { workspace_id: this.id };
    const workspace = await read(
      api.GET("/v1/workspaces/{workspace_id}", { params: { path }, signal }),
    );
    this.workspace.value = workspace;
    const known = this.task.peek();
    const taskId = workspace.current_task_id || this.lastTaskId();
    // An ended task does not change any more.
    if (!taskId || (known?.id === taskId && known.completed_at)) return;
    this.task.value = await read(
      api.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}", {
        params: { path: { ...path, task_id: taskId } },
        signal,
      }),
    );
  }

  // Throws Failure.
  async resume(): Promise<void> {
    const path = { workspace_id: this.id };
    const init = { params: { path } };
    this.workspace.value = await read(api.POST("/v1/workspaces/{workspace_id}/resume", init));
  }

  private lastTaskId(): string {
    const logged = this.events.peek().findLast((event) => event.task_id)?.task_id ?? "";
    const known = this.task.peek()?.id ?? "";
    // The log may be behind. Ids of later tasks are greater.
    return known > logged ? known : logged;
  }

  // Adds events to the page, at most once for each frame, however many events come.
  private add(events: WorkspaceEvent[]): void {
    this.waiting.push(...events);
    if (this.waiting.length > events.length) return;
    requestAnimationFrame(() => {
      const all = [...this.events.peek(), ...this.waiting];
      const last = this.waiting.at(-1);
      this.waiting = [];
      this.events.value = all.slice(-this.kept);
      if (all.length > this.kept) this.olderBefore.value = this.events.peek()[0]?.seq ?? "0";
      if (last) announce(announcement(last));
      this.refreshNow();
    });
  }
}
