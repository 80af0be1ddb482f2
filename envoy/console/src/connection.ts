// Reads that are repeated, and calls that are repeated until the service answers them.
import { Failure, NO_CONNECTION } from "./failure";
import type { Source } from "./health";
import { token } from "./session";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

// Runs `read` again and again until `signal` is aborted, and keeps the state of the source. Between
// two runs, waits for `pauseMs()` after a success, and longer and longer after failures. Some events
// end a wait early: see `pause`.
export async function repeat(
  source: Source,
  read: () => Promise<void>,
  pauseMs: () => number,
  signal: AbortSignal,
): Promise<void> {
  source.follow(signal);
  let failures = 0;
  while (!signal.aborted) {
    try {
      await read();
      if (signal.aborted) return;
      failures = 0;
      source.answered();
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      source.failed(asFailure(error));
    }
    await pause(failures ? backoffMs(failures, source.failure.peek()) : pauseMs(), signal);
  }
}

// Repeats a call until the service answers it. Only for calls that are safe to repeat. Calls
// `onFailure` before each repeat. After `leave` is aborted, a failure is not repeated.
export async function untilAnswered<T>(
  call: () => Promise<T>,
  onFailure: (failure: Failure) => void,
  leave = new AbortController().signal,
): Promise<T> {
  for (let failures = 1; ; failures += 1) {
    try {
      return await call();
    } catch (error) {
      if (error instanceof DOMException) throw error;
      const failure = asFailure(error);
      if (isFinal(failure) || leave.aborted) throw failure;
      onFailure(failure);
      await pause(backoffMs(failures, failure), leave);
    }
  }
}

// Whether a repeat of the call would have the same answer. After `agent_unreachable`, the
// cancellation is recorded.
function isFinal({ status, slug }: Failure): boolean {
  const isOfConsole = status === 0 && slug !== NO_CONNECTION;
  const isRefused = status >= 400 && status < 500 && status !== 429;
  return isOfConsole || isRefused || slug === "agent_unreachable";
}

export function asFailure(error: unknown): Failure {
  if (error instanceof Failure) return error;
  return new Failure("internal", `Internal error of the console: ${String(error)}`, "", 0);
}

export function backoffMs(failures: number, failure: Failure | null): number {
  const wanted = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (failures - 1));
  const least = (failure?.retryAfterSeconds ?? 0) * 1_000;
  return Math.max(least, wanted * (0.5 + Math.random() / 2));
}

// Waits for this time. The wait ends early when `signal` is aborted, the browser is online again,
// the page is shown again, or the user's token changes.
export function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      removeEventListener("online", end);
      unsubscribe();
      document.removeEventListener("visibilitychange", shown);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const shown = () => {
      if (!document.hidden) end();
    };
    const timer = setTimeout(end, milliseconds);
    const used = token.peek();
    const unsubscribe = token.subscribe((current) => {
      if (current !== used) queueMicrotask(end);
    });
    addEventListener("online", end);
    document.addEventListener("visibilitychange", shown);
    signal.addEventListener("abort", end);
    if (signal.aborted) end();
  });
}

export function isNoConnection(failure: Failure | null): boolean {
  return failure?.slug === NO_CONNECTION;
}
