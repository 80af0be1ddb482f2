// Follows a stream of events: of a workspace, or of all workspaces of the organization. The browser's
// own EventSource cannot send a token in a header, so this reads the stream with fetch.
import { createParser } from "eventsource-parser";
import { fetchInTurn, noAnswer, refusal, type Schemas, type WorkspaceEvent } from "./api";
import { hear } from "./clock";
import { asFailure, backoffMs, pause } from "./connection";
import { Failure, NO_CONNECTION } from "./failure";
import { noteAnswer, type Source } from "./health";
import { credentials, token } from "./session";
import { withVisibleDirections } from "./text";

// The service sends a heartbeat after 4 s without an event. A connection that is silent for much
// longer is lost, even if the browser has not noticed.
const SILENCE_MS = 9_000;
const SILENCE = new Failure(NO_CONNECTION, "The stream of events was silent for 9 s.", "", 0);
// HTTP statuses after which a retry would fail as well.
const FINAL = [400, 403, 404];

type Message = Schemas["WatchEventsResponse"] | Schemas["WatchOrganizationResponse"];

// Called with new events, and with the id after which the stream resumes. There may be no event,
// because in the stream of an organization heartbeats have ids too.
type OnEvents = (events: WorkspaceEvent[], lastId: string) => void;

// Calls `onEvents` with each event once and in order, until `signal` is aborted, and keeps the state
// of the source. Begins after the event with the id `lastId`. After a loss of the connection, the
// stream resumes after the last event. Returns a failure after which a retry would fail as well.
export async function followEvents(
  path: string,
  source: Source,
  onEvents: OnEvents,
  signal: AbortSignal,
  lastId = "",
): Promise<Failure | null> {
  let failures = 0;
  while (!signal.aborted) {
    let failure: Failure;
    try {
      const onPart: OnEvents = (events, id) => {
        failures = 0;
        source.answered();
        if (!id) return;
        lastId = id;
        onEvents(events, id);
      };
      await readStream(path, lastId, onPart, signal);
      failure = new Failure(NO_CONNECTION, "The stream of events has ended.", "", 0);
    } catch (error) {
      if (signal.aborted) return null;
      failure = asFailure(error);
    }
    failures += 1;
    if (FINAL.includes(failure.status)) {
      source.failure.value = failure;
      return failure;
    }
    // A stream may end at any time, for example at a restart of the service. So an end is reported
    // only if the stream cannot be opened again.
    if (failures > 1 || failure.status || failure === SILENCE) source.failure.value = failure;
    await pause(failures === 1 ? 0 : backoffMs(failures, failure), signal);
  }
  return null;
}

// Returns when the stream has ended. Calls `onPart` when the stream is open, and after each part of
// it, with an empty id if the part ends no message. Throws Failure.
async function readStream(
  path: string,
  lastId: string,
  onPart: OnEvents,
  signal: AbortSignal,
): Promise<void> {
  const attempt = new AbortController();
  const abort = () => attempt.abort();
  const giveUp = () => attempt.abort(SILENCE);
  signal.addEventListener("abort", abort);
  let silence = setTimeout(giveUp, SILENCE_MS);
  try {
    const body = await open(path, lastId, attempt.signal);
    onPart([], "");
    let received: WorkspaceEvent[] = [];
    let id = "";
    let ended: Failure | null = null;
    const parser = createParser({
      onEvent({ event, data, id: its }) {
        const message = withVisibleDirections(JSON.parse(data) as Message);
        hear(message.event?.time ?? message.heartbeat?.time);
        if (message.event) received.push(message.event);
        id = its ?? id;
        if (event === "stream_error" && message.error) ended = endOf(message.error);
      },
    });
    for await (const part of body.pipeThrough(new TextDecoderStream())) {
      clearTimeout(silence);
      silence = setTimeout(giveUp, SILENCE_MS);
      noteAnswer();
      parser.feed(part);
      onPart(received, id);
      received = [];
      id = "";
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

async function open(path: string, lastId: string, signal: AbortSignal) {
  const used = token.peek();
  const headers = credentials(used);
  if (lastId) headers["last-event-id"] = lastId;
  const request = new Request(path, { headers, signal, cache: "no-store" });
  const answer = await fetchInTurn(request);
  if (answer.ok && answer.body) return answer.body;
  throw refusal(answer, await answer.json().catch(() => undefined), used);
}

// An error in the stream says only that the stream has ended. If its token has expired, the next
// stream has that of the renewed session, or is refused.
function endOf({ code, message, request_id }: Schemas["Error"]): Failure {
  return new Failure(code, message, request_id, 0);
}
