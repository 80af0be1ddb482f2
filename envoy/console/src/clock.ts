// The time of the service. The clock of this machine may be wrong, so it is used only before the
// first answer.
import { signal } from "@preact/signals";
import { knownNow } from "./health";

// How far the clock of the service is ahead of performance.now().
let aheadMs: number | null = null;

// Takes note of a time that the service has written. The time is already past when it arrives, so
// the largest difference to performance.now() is the most accurate one.
export function hear(time: string | null | undefined): void {
  const differenceMs = Date.parse(time ?? "") - performance.now();
  if (differenceMs > (aheadMs ?? -Infinity)) aheadMs = differenceMs;
}

export function serverNow(): number {
  return at(performance.now());
}

// The time of the service up to which durations are shown: it stops while the service is silent.
export function shownNow(): number {
  return at(knownNow());
}

function at(time: number): number {
  return (aheadMs ?? Date.now() - performance.now()) + time;
}

// `shownNow`, to the second.
export const now = signal(shownNow());
setInterval(() => (now.value = shownNow()), 1_000);

export function sinceMs(time: string): number {
  return Math.max(0, shownNow() - Date.parse(time));
}
