// Follows the event log of a workspace. The browser's own EventSource cannot send a token in a
// header, so this reads the stream with fetch.
import { createParser } from "eventsource-parser";
import { fetchInTurn, noAnswer, refusal, type Schemas, type WorkspaceEvent } from "./api";
import { hear } from "./clock";
import { asFailure, backoffMs, pause } from "./connection";
import { Failure } from "./failure";
import { credentials, token } from "./session";
import { withVisibleDirections } from "./text";

// The service sends a comment after 4 s without an event. A connection that is silent for longer
// is lost, even if the browser has not noticed.
const SILENCE_MS = 10_000;
// HTTP statuses after which a retry would fail as well.
const FINAL = [400, 403, 404];

export interface Follower {
  onEvents(events: WorkspaceEvent[]): void;
  // Called with the failure of the stream, and with null when the stream is open again.
  onTrouble(failure: Failure | null): void;
}

// Calls the follower with each event once and in order, until `signal` is aborted. After a loss of
// the connection, the stream resumes after the last event.
export async function followEvents(
  workspaceId: string,
  follower: Follower,
  signal: AbortSignal,
): Promise<void> {
  let lastId = "";
  let failures = 0;
  while (!signal.aborted) {
    let failure: Failure;
    try {
      await readStream(workspaceId, lastId, signal, {
        onOpen() {
          failures = 0;
          follower.onTrouble(null);
        },
        onEvents(events) {
          lastId = events.at(-1)?.seq ?? lastId;
          follower.onEvents(events);
        },
      });
      failure = new Failure("no_connection", "The stream of events has ended.", "", 0);
    } catch (error) {
      if (signal.aborted) return;
      failure = asFailure(error);
    }
    failures += 1;
    // A stream may end at any time, for example at a restart of the service. So a failure without
    // an HTTP status is reported only if the stream cannot be opened again.
    if (failures > 1 || failure.status) follower.onTrouble(failure);
    if (FINAL.includes(failure.status)) return;
    await pause(failures === 1 ? 0 : backoffMs(failures, failure), signal);
  }
}

interface Reader {
  onOpen(): void;
  onEvents(events: WorkspaceEvent[]): void;
}

// Returns when the stream has ended. Throws Failure.
async function readStream(
  workspaceId: string,
  lastId: string,
  signal: AbortSignal,
  reader: Reader,
): Promise<void> {
  const attempt = new AbortController();
  const abort = () => attempt.abort();
  signal.addEventListener("abort", abort);
  let silence = setTimeout(abort, SILENCE_MS);
  try {
    const body = await open(workspaceId, lastId, attempt.signal);
    reader.onOpen();
    let received: WorkspaceEvent[] = [];
    let ended: Failure | null = null;
    const parser = createParser({
      onEvent({ event, data }) {
        const parsed = JSON.parse(data) as Schemas["WatchEventsResponse"];
        const message = withVisibleDirections(parsed);
        hear(message.event?.time ?? message.heartbeat?.time);
        if (message.event) received.push(message.event);
        if (event === "stream_error" && message.error) ended = inStream(message.error);
      },
    });
    for await (const part of body.pipeThrough(new TextDecoderStream())) {
      clearTimeout(silence);
      silence = setTimeout(abort, SILENCE_MS);
      parser.feed(part);
      if (received.length) reader.onEvents(received);
      received = [];
      if (ended) throw ended as Failure;
    }
  } catch (error) {
    throw error instanceof Failure ? error : noAnswer(signal.aborted ? error : null);
  } finally {
    clearTimeout(silence);
    signal.removeEventListener("abort", abort);
    attempt.abort();
  }
}

async function open(workspaceId: string, lastId: string, signal: AbortSignal) {
  const used = token.peek();
  const headers = credentials(used);
  if (lastId) headers["last-event-id"] = lastId;
  const path = `/v1/workspaces/${encodeURIComponent(workspaceId)}/events`;
  const request = new Request(path, { headers, signal, cache: "no-store" });
  const answer = await fetchInTurn(request);
  if (answer.ok && answer.body) return answer.body;
  throw refusal(answer, await answer.json().catch(() => undefined), used);
}

function inStream(error: Schemas["Error"]): Failure {
  const status = error.code === "unauthenticated" ? 401 : 0;
  const response = new Response(null, { status: status || 503 });
  return refusal(response, { error }, token.peek());
}
