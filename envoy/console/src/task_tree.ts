// The tree of a task, and calls that cancel a part of it.
import { signal } from "@preact/signals";
import { api, read, type Task } from "./api";
import { announce } from "./announcer";
import { asFailure, backoffMs, pause } from "./connection";
import type { Failure } from "./failure";
import { type CancelOptions, cancelFields } from "./cancel_call";
import { count } from "./text";

// The pauses between reads: OPEN_MS while a task of the tree runs and the page is visible,
// otherwise ENDED_MS.
const OPEN_MS = 2_000;
const ENDED_MS = 10_000;
const MOST = 200;

export class TaskTree {
  // The newest tasks of the tree, newest first.
  readonly tasks = signal<readonly Task[]>([]);
  readonly hasMore = signal(false);
  // Why the last cancellation failed; null if it did not fail.
  readonly failure = signal<Failure | null>(null);

  constructor(readonly rootId: string) {}

  async follow(signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; ) {
      try {
        await this.refresh(signal);
        failures = 0;
      } catch {
        // Nothing to do: the page of the workspace shows that the service does not answer.
        failures += 1;
      }
      const isOpen = this.tasks.peek().some((each) => !each.completed_at);
      const wanted = isOpen && !document.hidden ? OPEN_MS : ENDED_MS;
      await pause(failures ? backoffMs(failures, null) : wanted, signal);
    }
  }

  async cancel(task: Task, options: CancelOptions): Promise<void> {
    this.failure.value = null;
    try {
      const path = { workspace_id: task.workspace_id, task_id: task.id };
      const body = { include_descendants: true, ...cancelFields(options) };
      const answer = await read(
        api.POST("/v1/workspaces/{workspace_id}/tasks/{task_id}/cancel", { params: { path }, body }),
      );
      announce(`${count(answer.descendants_cancelled, "descendant")} cancelled.`);
      await this.refresh();
    } catch (error) {
      this.failure.value = asFailure(error);
    }
  }

  private async refresh(signal?: AbortSignal): Promise<void> {
    const query = { root_task_id: this.rootId, page_size: MOST };
    const init = { params: { query }, ...(signal && { signal }) };
    const page = await read(api.GET("/v1/tasks", init));
    this.tasks.value = page.tasks;
    this.hasMore.value = page.next_page_token !== "";
  }
}
