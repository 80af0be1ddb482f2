// How this tab authenticates.
import { signal } from "@preact/signals";
import type { Schemas } from "./api";
import type { Failure } from "./failure";

// The token, or COOKIES; empty before the user has signed in. It is only in memory, because
// browsers write sessionStorage to the disk. After a reload the user signs in again, with the
// browser's password manager if it has the token.
export const token = signal("");

// Stands for a session of an identity provider: its tokens are in cookies that no script can read.
export const COOKIES = "cookies";

// The addresses that begin and end a session of an identity provider; empty without a provider.
export interface Provider {
  sign_in?: string;
  sign_out?: string;
}
export const provider = signal<Provider>({});

// Whose credential it is, what it may do and when it expires; null until it is known.
export const caller = signal<Schemas["Caller"] | null>(null);

// What a call sends to authenticate. The browser adds the cookies.
export function credentials(used: string): Record<string, string> {
  return used === COOKIES ? {} : { authorization: `Bearer ${used}` };
}

// Why the service no longer accepts the token.
export const rejection = signal<Failure | null>(null);

// Called after a 401. The answer to a call with an earlier token changes nothing.
export function rejectToken(used: string, failure: Failure): void {
  if (used && used === token.peek()) rejection.value = failure;
}

export function signIn(accepted: string, whose: Schemas["Caller"] | null = null): void {
  caller.value = whose;
  token.value = accepted;
  rejection.value = null;
}

// A session of an identity provider ends at the address `sign_out`. A token is only in the memory
// of the page, so it is forgotten when the page is loaded again.
export function signOut(): void {
  const { sign_out } = provider.peek();
  if (token.peek() === COOKIES && sign_out) return location.assign(sign_out);
  // Not a reload, after which the page would say why it asks again.
  location.assign(location.pathname);
}
