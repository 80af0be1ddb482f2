// Whether the service answers.
import { computed, signal } from "@preact/signals";
import { serverNow } from "./clock";
import { Failure, NO_CONNECTION } from "./failure";
import { token } from "./session";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

// The failure of the last read; null if it succeeded.
export const trouble = signal<Failure | null>(null);
// The time of the last successful read.
export const lastAnswer = signal(0);

export const isConnected = computed(() => trouble.value === null);

// Runs `read` again and again until `signal` is aborted. Between two runs, waits for `pauseMs()`
// after a success, and longer and longer after failures. Some events end a wait early: see `pause`.
export async function repeat(
  read: () => Promise<void>,
  pauseMs: () => number,
  signal: AbortSignal,
): Promise<void> {
  let failures = 0;
  while (!signal.aborted) {
    try {
      await read();
      if (signal.aborted) return;
      failures = 0;
      trouble.value = null;
      lastAnswer.value = serverNow();
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      trouble.value = asFailure(error);
    }
    await pause(failures ? backoffMs(failures, trouble.peek()) : pauseMs(), signal);
  }
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
