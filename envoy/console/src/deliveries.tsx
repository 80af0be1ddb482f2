// The deliveries of a task's events to webhooks.
import { useEffect, useMemo } from "preact/hooks";
import { now } from "./clock";
import { FailureNote } from "./failure";
import { count, elapsed, fullTime, words } from "./text";
import { type Delivery, TaskDeliveries } from "./webhooks";
import type { OpenWorkspace } from "./workspace";

export function Deliveries({ open }: { open: OpenWorkspace }) {
  const taskId = open.task.value?.id ?? "";
  const followed = useMemo(() => new TaskDeliveries(open.id, taskId), [open, taskId]);
  useEffect(() => {
    const stop = new AbortController();
    if (taskId) void followed.follow(stop.signal);
    return () => stop.abort();
  }, [followed, taskId]);
  const deliveries = followed.deliveries.value;
  const failure = followed.failure.value;
  if (deliveries.length === 0) return null;
  // After a refusal, no replay with this token can succeed.
  const mayReplay = failure?.slug !== "permission_denied";
  return (
    <section aria-labelledby="deliveries-title">
      <h2 id="deliveries-title">Webhooks</h2>
      {failure && <FailureNote failure={failure} title="Nothing was sent again." />}
      <ul class="deliveries">
        {deliveries.map((each) => (
          <Entry
            key={each.webhook_id}
            delivery={each}
            url={followed.webhooks.value.get(each.webhook_id)?.url}
            onReplay={mayReplay ? () => void followed.replay(each) : null}
          />
        ))}
      </ul>
    </section>
  );
}

function Entry(props: {
  delivery: Delivery;
  url: string | undefined;
  onReplay: (() => void) | null;
}) {
  const { delivery, url, onReplay } = props;
  return (
    <li>
      <p class="headline">
        <span class={`badge ${delivery.status}`}>{words(delivery.status)}</span>
        <strong>{url ?? delivery.webhook_id}</strong>
      </p>
      <ul class="facts">
        {factsOf(delivery).map((fact) => (
          <li key={fact}>{fact}</li>
        ))}
      </ul>
      {delivery.status === "failed" && onReplay && (
        <button type="button" aria-label={`Replay to ${url ?? delivery.webhook_id}`} onClick={onReplay}>
          Replay
        </button>
      )}
    </li>
  );
}

function factsOf(delivery: Delivery): string[] {
  const facts = [`delivered up to #${delivery.delivered_seq} of #${delivery.last_seq}`];
  if (delivery.attempts > 0) facts.push(count(delivery.attempts, "failed attempt"));
  if (delivery.last_error) facts.push(delivery.last_error);
  if (delivery.last_attempt_at) facts.push(`last attempt ${fullTime(delivery.last_attempt_at)}`);
  if (delivery.next_attempt_at) {
    const waitMs = Date.parse(delivery.next_attempt_at) - now.value;
    facts.push(waitMs > 0 ? `next attempt in ${elapsed(waitMs + 999)}` : "next attempt now");
  }
  return facts;
}
