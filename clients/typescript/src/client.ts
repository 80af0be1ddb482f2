import { type DescMessage, type DescMethod, create, getOption } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type CallOptions, type Client as ConnectClient, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { CallError, TaskNotEndedError } from "./errors.js";
import type { Event } from "./gen/evershell/workspace/v1/event_pb.js";
import { Task_Status } from "./gen/evershell/workspace/v1/task_pb.js";
import {
  type CancelTaskResponse,
  CancelTaskResponseSchema,
  CancelTaskResponse_Outcome as Outcome,
  EdgeRule_Repeat as Repeat,
  type WatchEventsResponse,
  type WatchOrganizationResponse,
  WorkspaceService,
  edge,
} from "./gen/evershell/workspace/v1/workspace_service_pb.js";

/** An API key, a session token, or a function that returns one before each call. */
export type Credential = string | (() => string | Promise<string>);

export interface CancelAndWaitOptions {
  /** Cancels only this task. By default, the task that runs. */
  taskId?: string;
  reason?: string;
  /** Interrupts an iteration that still runs this long after the call. */
  forceAfterMs?: number;
  includeDescendants?: boolean;
  /** How long to wait for the end. By default, there is no limit. */
  timeoutMs?: number;
  /** Ends the wait. The cancellation stands if it is recorded. */
  signal?: AbortSignal;
}

export interface WatchOptions {
  /** Begins after the event with this `seq`. */
  after?: bigint;
  /** Yields only the events of this task, and returns after its end. */
  taskId?: string;
  /** Ends the watch. */
  signal?: AbortSignal;
}

export interface WatchOrganizationOptions {
  /** Begins after this position. By default, with new events. */
  after?: bigint;
  /** Ends the watch. */
  signal?: AbortSignal;
}

/** Without an event, only says how far the watch has come. */
export interface OrganizationEvent {
  position: bigint;
  event?: Event;
}

const TIMEOUT_MS = 10_000;
const MAX_RETRIES = 3;
const FIRST_BACKOFF_MS = 200;
const MAX_BACKOFF_MS = 5_000;
// The longest `wait` of CancelTask.
const MAX_WAIT_MS = 30_000;
// The least time from the beginning of one call of `cancelAndWait` to the beginning of the next.
const PAUSE_MS = 500;
// How long `cancelAndWait`, and a watch that has connected, go on while the service is unavailable.
const OUTAGE_MS = 300_000;
// How long a stream may be silent. The service sends a heartbeat after 4 s without an event.
const IDLE_MS = 10_000;
const ENDED = [Task_Status.completed, Task_Status.failed, Task_Status.cancelled, Task_Status.delivery_failed];
const RECORDED = [Outcome.accepted, Outcome.already_requested];

type Streams = "watchEvents" | "streamEvents" | "watchOrganization" | "streamOrganization";
type Calls = Omit<ConnectClient<typeof WorkspaceService>, Streams>;
// The fields that `#call` reads from a request. Only CancelTask has `wait`.
type Request = { $typeName?: string; taskId?: string; wait?: { seconds?: bigint; nanos?: number } };
type StreamMessage = Pick<WatchEventsResponse | WatchOrganizationResponse, "message">;
type Unary = (request: Request, options: CallOptions) => Promise<unknown>;

/**
 * A client of an evershell service, over gRPC-Web. It has a method for each unary RPC, and
 * `cancelAndWait`, `watch` and `watchOrganization`. A call that fails throws CallError.
 *
 * Within `timeoutMs` (by default 10 s, plus the `wait` of the request), a call is repeated up to 3
 * times while the service is unavailable or its rate limit is exceeded, if a repeat has no second
 * effect. A cancellation that names no task is never repeated.
 */
export interface Client extends Calls {}

export class Client {
  readonly #service: ConnectClient<typeof WorkspaceService>;
  readonly #credential: Credential;

  /** `url` is the URL of the REST listener, for example `https://acme.evershell.ai`. */
  constructor(url: string, credential: Credential) {
    this.#service = createClient(WorkspaceService, createGrpcWebTransport({ baseUrl: url }));
    this.#credential = credential;
    const calls: Record<string, Unary> = {};
    for (const method of WorkspaceService.methods) {
      if (method.methodKind !== "unary") continue;
      calls[method.localName] = (request, options = {}) => this.#call(method, request, options);
    }
    Object.assign(this, calls);
  }

  /**
   * Cancels a task and waits until it has ended, even while its agent cannot be reached. Once the
   * cancellation is recorded, also waits up to 5 minutes while the service is unavailable. Every
   * call after the first names the task.
   *
   * Returns the outcome of the first call, with the task as it ended. Throws TaskNotEndedError after
   * `timeoutMs`, and CallError.
   */
  async cancelAndWait(workspaceId: string, options: CancelAndWaitOptions = {}): Promise<CancelTaskResponse> {
    const { reason, includeDescendants, forceAfterMs, signal } = options;
    const deadline = performance.now() + (options.timeoutMs ?? Infinity);
    const forceAfter = forceAfterMs === undefined ? undefined : durationFromMs(forceAfterMs);
    let result: CancelTaskResponse | undefined;
    let failingSince: number | undefined;
    for (;;) {
      const began = performance.now();
      const wait = durationFromMs(Math.round(Math.min(MAX_WAIT_MS, Math.max(deadline - began, 0))));
      const first = { taskId: options.taskId, forceAfter, includeDescendants };
      const request = { workspaceId, reason, wait, ...(result ? { taskId: result.taskId } : first) };
      try {
        const answer = await this.cancelTask(request, { signal });
        // Keeps the outcome of the first call, because later calls only repeat it.
        const { outcome, descendantsCancelled } = result ?? answer;
        result = { ...answer, outcome, descendantsCancelled };
        failingSince = undefined;
      } catch (thrown) {
        if (!(thrown instanceof CallError)) throw thrown;
        const { code, details } = thrown;
        if (code === "agent_unreachable" && details.intentRecorded && details.taskId) {
          // The error does not tell whether this call or an earlier one recorded the cancellation.
          const outcome = Outcome.already_requested;
          result ??= create(CancelTaskResponseSchema, { workspaceId, taskId: details.taskId, outcome });
          failingSince = undefined;
        } else {
          failingSince ??= performance.now();
          const isOutage = isPassing(thrown) || code === "deadline_exceeded";
          if (!result || !isOutage || performance.now() - failingSince > OUTAGE_MS) throw thrown;
        }
      }
      if (!RECORDED.includes(result.outcome)) return result;
      if (result.task && ENDED.includes(result.task.status)) return result;
      if (performance.now() >= deadline) throw new TaskNotEndedError(result);
      await sleep(Math.min(began + PAUSE_MS, deadline) - performance.now(), signal);
    }
  }

  /**
   * Follows the log of a workspace: yields its events, and waits for new ones. If the connection
   * breaks, the client reconnects and continues after the last event: no event is lost or repeated.
   *
   * Leaving the loop ends the stream. Throws CallError.
   */
  async *watch(workspaceId: string, options: WatchOptions = {}): AsyncGenerator<Event, void> {
    const { taskId, signal } = options;
    let after = options.after ?? 0n;
    const open = (call: CallOptions) => this.#service.watchEvents({ workspaceId, after }, call);
    for await (const { message } of this.#messages(open, signal)) {
      if (message.case !== "event" || message.value.seq <= after) continue;
      after = message.value.seq;
      if (!taskId || message.value.taskId === taskId) yield message.value;
      if (taskId === message.value.taskId && message.value.payload.case === "taskCompleted") return;
    }
  }

  /**
   * Follows all workspaces of the organization: yields their events, and waits for new ones.
   * Reconnects and continues like `watch`. Without `after`, begins with new events, and first yields
   * the position where it begins: list the workspaces only then, to miss nothing. While there is no
   * event, yields the position every 4 s.
   *
   * Leaving the loop ends the stream. Throws CallError: `validation_error` if the log of all
   * organizations ends before `after`, or has more than 100,000 positions after it.
   */
  async *watchOrganization(options: WatchOrganizationOptions = {}): AsyncGenerator<OrganizationEvent, void> {
    let after = options.after ?? 0n;
    const open = (call: CallOptions) => this.#service.watchOrganization({ after }, call);
    for await (const { message, position } of this.#messages(open, options.signal)) {
      const event = message.case === "event" ? message.value : undefined;
      if (position < after || (event && position === after)) continue;
      after = position;
      yield { position, event };
    }
  }

  /** Yields the messages of a stream, and opens it again after a break. Throws CallError. */
  async *#messages<T extends StreamMessage>(
    open: (call: CallOptions) => AsyncIterable<T>,
    signal?: AbortSignal,
  ): AsyncGenerator<T, void> {
    let hasConnected = false;
    let failures = 0;
    let failingSince = 0;
    for (;;) {
      const stream = new AbortController();
      const idle = () => setTimeout(() => stream.abort(broken("Nothing arrived on the stream.")), IDLE_MS);
      let timer = idle();
      try {
        const headers = await this.#headers();
        const signals = signal ? [signal, stream.signal] : [stream.signal];
        const call = { headers, signal: AbortSignal.any(signals) };
        for await (const each of open(call)) {
          clearTimeout(timer);
          if (each.message.case === "error") throw CallError.ofStream(each.message.value);
          hasConnected = true;
          failures = 0;
          yield each;
          timer = idle();
        }
        throw broken("The stream of events has ended.");
      } catch (thrown) {
        signal?.throwIfAborted();
        const error = CallError.from(thrown);
        failingSince = failures ? failingSince : performance.now();
        failures += 1;
        hasConnected ||= error.isFromService;
        // The token may have expired. The next stream gets a new one.
        const isRenewed =
          error.code === "unauthenticated" && typeof this.#credential === "function" && failures === 1;
        const pause = backoffMs(failures, error);
        const limit = hasConnected ? OUTAGE_MS : TIMEOUT_MS;
        const isOver = performance.now() + pause - failingSince > limit;
        if (isOver || !(isPassing(error) || isRenewed)) throw error;
        await sleep(pause, signal);
      } finally {
        clearTimeout(timer);
        stream.abort();
      }
    }
  }

  async #headers(more?: HeadersInit): Promise<Headers> {
    const credential = this.#credential;
    const headers = new Headers(more);
    headers.set("authorization", `Bearer ${typeof credential === "string" ? credential : await credential()}`);
    return headers;
  }

  /** Makes a call. Repeats it after a passing failure if the protos say that a repeat is safe. */
  async #call(method: DescMethod, request: Request, options: CallOptions): Promise<unknown> {
    const call = this.#service[method.localName as keyof Calls] as unknown as Unary;
    const { repeat } = getOption(method, edge);
    if (request.taskId === "" && !request.$typeName) {
      throw new CallError("validation_error", "`taskId` must not be empty; leave it out to match any.");
    }
    const { seconds = 0n, nanos = 0 } = request.wait ?? {};
    const limit = options.timeoutMs ?? TIMEOUT_MS + Number(seconds) * 1000 + nanos / 1e6;
    const deadline = performance.now() + limit;
    const key = new Headers(options.headers).get("idempotency-key") ?? newKey();
    const canRepeat =
      repeat === Repeat.always ||
      repeat === Repeat.with_idempotency_key ||
      (repeat === Repeat.if_task_is_named && Boolean(request.taskId));
    for (let failures = 1; ; failures++) {
      try {
        const headers = await this.#headers(options.headers);
        if (repeat === Repeat.with_idempotency_key) headers.set("idempotency-key", key);
        return await call(request, { ...options, headers, timeoutMs: Math.max(deadline - performance.now(), 1) });
      } catch (thrown) {
        options.signal?.throwIfAborted();
        const error = CallError.from(thrown);
        const pause = backoffMs(failures, error);
        const isOver = failures > MAX_RETRIES || performance.now() + pause >= deadline;
        if (!canRepeat || !isPassing(error) || isOver) throw error;
        await sleep(pause, options.signal);
      }
    }
  }
}

/**
 * Whether the failure is expected to pass, so that a repeat may succeed. After `agent_unreachable`,
 * a cancellation or submission is not repeated, because it has taken effect.
 */
function isPassing({ code }: CallError): boolean {
  return code === "unavailable" || code === "rate_limited";
}

function broken(text: string): CallError {
  return new CallError("unavailable", text, undefined, "", false);
}

/** The pause that the service asks for, or else exponential backoff with jitter. */
function backoffMs(failures: number, { details }: CallError): number {
  if (details.retryAfterSeconds !== undefined) return details.retryAfterSeconds * 1000;
  return Math.min(FIRST_BACKOFF_MS * 2 ** (failures - 1), MAX_BACKOFF_MS) * (0.5 + Math.random() / 2);
}

/** Replaces randomUUID, which browsers provide only on pages with TLS or from this machine. */
function newKey(): string {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join("-");
}

function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      signal?.aborted ? reject(signal.reason) : resolve();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end);
  });
}
