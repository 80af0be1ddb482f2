// Which actions the scopes of the credential allow; the pages offer no others. The service still
// checks each call: a scope that ends in `:own` covers only the caller's own workspaces.
import { useEffect } from "preact/hooks";
import { api, read } from "./api";
import { pause } from "./connection";
import { caller } from "./session";

const REPEAT_MS = 5_000;

export type Scope = "workspace:write" | "tasks:write" | "org:hold" | "audit:read";

export function may(scope: Scope): boolean {
  const scopes = caller.value?.scopes ?? [];
  return scopes.includes(scope) || scopes.includes(`${scope}:own`);
}

export function useCaller(credential: string): void {
  useEffect(() => {
    if (!credential) return;
    const leave = new AbortController();
    void follow(leave.signal);
    return () => leave.abort();
  }, [credential]);
}

async function follow(signal: AbortSignal): Promise<void> {
  while (!caller.peek() && !signal.aborted) {
    try {
      caller.value = await read(api.GET("/v1/caller", { signal }));
    } catch {
      // Nothing to do: the pages say that the service does not answer.
      await pause(REPEAT_MS, signal);
    }
  }
}
