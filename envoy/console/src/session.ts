// The credential of this tab.
import { signal } from "@preact/signals";
import type { Failure } from "./failure";

// It is in memory only, so that it never is on the disk: browsers write sessionStorage to it. After
// a reload the user signs in again, with the browser's password manager if it has the token.
export const token = signal("");

// Why the service no longer accepts the token.
export const rejection = signal<Failure | null>(null);

// Called after a 401. An answer to an earlier token changes nothing.
export function rejectToken(used: string, failure: Failure): void {
  if (used && used === token.peek()) rejection.value = failure;
}

export function signIn(accepted: string): void {
  token.value = accepted;
  rejection.value = null;
}

// Everything is forgotten with the document.
export function signOut(): void {
  location.hash = "";
  location.reload();
}
