// The state of the workspace whose page is open.
import { signal } from "@preact/signals";
import { api, read, type Task, type Workspace, type WorkspaceEvent } from "./api";
import { announce } from "./announcer";
import { repeat } from "./connection";
import { Source } from "./health";
import { followEvents } from "./stream";
import { announcement } from "./events";

const REFRESH_MS = 1_000;
const HIDDEN_REFRESH_MS = 10_000;
// An event causes a read of the workspace only if the last read began at least this long ago.
const LEAST_MS = 250;
// At most this many events are kept, the newest ones, because a log may have any number of events.
const KEPT_EVENTS = 2_000;

export class OpenWorkspace {
  readonly workspace = signal<Workspace | null>(null);
  // The current task, or else the last one.
  readonly task = signal<Task | null>(null);
  readonly events = signal<readonly WorkspaceEvent[]>([]);
  readonly dropped = signal(0);
  readonly source = new Source("the workspace");
  private readonly log = new Source("the event log");
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
    const path = `/v1/workspaces/${encodeURIComponent(this.id)}/events`;
    void followEvents(path, this.log, (events) => this.add(events), signal);
    this.refreshNow = () => {
      if (performance.now() - this.refreshedAt < LEAST_MS) return;
      // Ignores a failure, because the next regular reading reports it if it persists.
      void this.refresh(signal).catch(() => {});
    };
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
      this.dropped.value += Math.max(0, all.length - KEPT_EVENTS);
      this.events.value = all.slice(-KEPT_EVENTS);
      if (last) announce(announcement(last));
      this.refreshNow();
    });
  }
}
