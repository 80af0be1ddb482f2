// Tells screen readers what has changed.
import { signal } from "@preact/signals";

const said = signal("");

export function announce(text: string): void {
  said.value = text;
}

export function Announcer() {
  return (
    <div role="status" aria-live="polite" class="for-screen-readers">
      {said.value}
    </div>
  );
}
