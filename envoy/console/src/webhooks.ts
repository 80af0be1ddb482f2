// Follows the delivery of a task's events to webhooks, and replays it on request.
import { signal } from "@preact/signals";
import { api, read, type Schemas } from "./api";
import { announce } from "./announcer";
import { asFailure, repeat } from "./connection";
import type { Failure } from "./failure";
import { Source } from "./health";

// The pause between reads while events wait for a receiver and the page is visible.
const PENDING_MS = 1_000;
// The pause between reads at other times.
const SETTLED_MS = 5_000;

export type Delivery = Schemas["WebhookDelivery"];
export type Webhook = Schemas["Webhook"];

export class TaskDeliveries {
  readonly deliveries = signal<readonly Delivery[]>([]);
  // The webhooks that the token may read, by id.
  readonly webhooks = signal<ReadonlyMap<string, Webhook>>(new Map());
  // Why the last replay failed; null if it did not fail.
  readonly failure = signal<Failure | null>(null);
  private readonly source = new Source("webhooks");

  constructor(
    readonly workspaceId: string,
    readonly taskId: string,
  ) {}

  async follow(signal: AbortSignal): Promise<void> {
    const pauseMs = () => {
      const isPending = this.deliveries.peek().some((each) => each.status === "pending");
      return isPending && !document.hidden ? PENDING_MS : SETTLED_MS;
    };
    await repeat(this.source, () => this.refresh(signal), pauseMs, signal);
  }

  async replay(delivery: Delivery): Promise<void> {
    this.failure.value = null;
    try {
      const path = { webhook_id: delivery.webhook_id };
      const body = { task_id: delivery.task_id };
      await read(api.POST("/v1/webhooks/{webhook_id}/replay", { params: { path }, body }));
      announce("The events are sent again.");
      await this.refresh();
    } catch (error) {
      this.failure.value = asFailure(error);
    }
  }

  private async refresh(signal?: AbortSignal): Promise<void> {
    const path = { workspace_id: this.workspaceId, task_id: this.taskId };
    const init = { params: { path }, ...(signal && { signal }) };
    const { deliveries } = await read(
      api.GET("/v1/workspaces/{workspace_id}/tasks/{task_id}/webhook-deliveries", init),
    );
    this.deliveries.value = deliveries;
    if (deliveries.some((each) => !this.webhooks.peek().has(each.webhook_id))) {
      const { webhooks } = await read(api.GET("/v1/webhooks", signal ? { signal } : {}));
      this.webhooks.value = new Map(webhooks.map((each) => [each.id, each]));
    }
  }
}
