// What the page knows of the service: when the service answered last, and what cannot be read.
import { computed, effect, signal } from "@preact/signals";
import type { Failure } from "./failure";

// What is older than this is shown as not known. Quiet streams have a heartbeat every 4 s.
const KNOWN_MS = 5_000;
const TICK_MS = 250;

// Times by performance.now().
const tick = signal(performance.now());
const answeredAt = signal(tick.peek());
const followed = signal<readonly Source[]>([]);

setInterval(() => (tick.value = performance.now()), TICK_MS);

// Something that a page reads again and again.
export class Source {
  // Why the last read failed; null if it did not fail.
  readonly failure = signal<Failure | null>(null);
  answeredAt = performance.now();

  // `name` follows "No answer:" and precedes an error code.
  constructor(readonly name: string) {}

  // Belongs to what the page shows until `signal` is aborted.
  follow(signal: AbortSignal): void {
    this.answered();
    followed.value = [...followed.peek(), this];
    signal.addEventListener("abort", () => {
      followed.value = followed.peek().filter((each) => each !== this);
    });
  }

  // A failed call took at most 5 s. Before it, a source may have had nothing to read.
  failed(failure: Failure): void {
    const least = this.failure.peek() ? 0 : performance.now() - KNOWN_MS;
    this.answeredAt = Math.max(this.answeredAt, least);
    this.failure.value = failure;
  }

  answered(): void {
    this.answeredAt = performance.now();
    this.failure.value = null;
  }
}

// Called for each successful answer, and for each part of a stream.
export function noteAnswer(): void {
  answeredAt.value = performance.now();
}

export const failing = computed(() => followed.value.filter((each) => each.failure.value));

// The time up to which the page knows everything that it shows.
export const knownAt = computed(() =>
  Math.min(answeredAt.value, ...failing.value.map((each) => each.answeredAt)),
);
export const ageMs = computed(() => Math.max(0, tick.value - knownAt.value));
export const silentMs = computed(() => Math.max(0, tick.value - answeredAt.value));
export const isKnown = computed(() => ageMs.value <= KNOWN_MS);
export const isSilent = computed(() => silentMs.value > KNOWN_MS);

let latest = 0;

// The current time by performance.now(), which stops when nothing newer is known. It never goes back.
export function knownNow(): number {
  latest = Math.max(latest, Math.min(performance.now(), knownAt.peek() + KNOWN_MS));
  return latest;
}

effect(() => void document.documentElement.classList.toggle("stale", !isKnown.value));
