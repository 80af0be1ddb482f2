// Whose credential it is, and what it may do. The service decides; this is what the pages offer.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { api, read, type Schemas } from "./api";
import { pause } from "./connection";

const REPEAT_MS = 5_000;

// Null until it is known.
export const caller = signal<Schemas["Caller"] | null>(null);

export function may(scope: "workspace:write" | "tasks:write" | "org:hold"): boolean {
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
  caller.value = null;
  while (!caller.peek() && !signal.aborted) {
    try {
      caller.value = await read(api.GET("/v1/caller", { signal }));
    } catch {
      // The pages say that the service does not answer.
      await pause(REPEAT_MS, signal);
    }
  }
}
