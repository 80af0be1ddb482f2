// The time of the service. The clock of this machine may be wrong, so it is used only before the
// first answer.
import { signal } from "@preact/signals";

// How far the clock of the service is ahead of performance.now().
let aheadMs: number | null = null;

// Takes note of a time that the service has written. The time is already past when it arrives, so
// the largest difference to performance.now() is the most accurate one.
export function hear(time: string | null | undefined): void {
  const differenceMs = Date.parse(time ?? "") - performance.now();
  if (differenceMs > (aheadMs ?? -Infinity)) aheadMs = differenceMs;
}

export function serverNow(): number {
  return aheadMs === null ? Date.now() : aheadMs + performance.now();
}

// The time of the service, to the second.
export const now = signal(serverNow());
setInterval(() => (now.value = serverNow()), 1_000);

export function sinceMs(time: string): number {
  return Math.max(0, serverNow() - Date.parse(time));
}
