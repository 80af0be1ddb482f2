// The tree of a task, and calls that cancel a part of it.
import { signal } from "@preact/signals";
import { api, read, type Task } from "./api";
import { cancelTask, type CancelOptions } from "./cancel_call";
import { repeat } from "./connection";
import { Source } from "./health";

// The pauses between reads: OPEN_MS while a task of the tree runs and the page is visible,
// otherwise ENDED_MS.
const OPEN_MS = 2_000;
const ENDED_MS = 10_000;
const MOST = 200;

export class TaskTree {
  // The newest tasks of the tree, newest first.
  readonly tasks = signal<readonly Task[]>([]);
  readonly hasMore = signal(false);
  private readonly source = new Source("the tree");

  constructor(readonly rootId: string) {}

  async follow(signal: AbortSignal): Promise<void> {
    const pauseMs = () => {
      const isOpen = this.tasks.peek().some((each) => !each.completed_at);
      return isOpen && !document.hidden ? OPEN_MS : ENDED_MS;
    };
    await repeat(this.source, () => this.refresh(signal), pauseMs, signal);
  }

  async cancel(task: Task, options: CancelOptions): Promise<void> {
    await cancelTask(task.workspace_id, task.id, options, true);
    // A failure is reported by the next regular reading if it persists.
    await this.refresh(new AbortController().signal).catch(() => {});
  }

  private async refresh(signal: AbortSignal): Promise<void> {
    const query = { root_task_id: this.rootId, page_size: MOST };
    const page = await read(api.GET("/v1/tasks", { params: { query }, signal }));
    this.tasks.value = page.tasks;
    this.hasMore.value = page.next_page_token !== "";
  }
}
