// The hold of the organization.
import { signal } from "@preact/signals";
import { api, read, type Schemas } from "./api";
import { announce } from "./announcer";
import { repeat } from "./connection";
import { Source } from "./health";

const FOLLOW_MS = 5_000;

export type Hold = Schemas["Hold"];

// The hold; null until it was read, or if the token may not read it.
export const hold = signal<Hold | null>(null);

const source = new Source("the hold");

// Counts the changes of the hold that this tab has made. The result of a read that began before a
// change is ignored, because it may be the previous hold.
let changes = 0;

export async function followHold(signal: AbortSignal): Promise<void> {
  const follow = async () => {
    const before = changes;
    const found = await read(api.GET("/v1/hold", { signal }));
    if (changes === before) hold.value = found;
  };
  await repeat(source, follow, () => FOLLOW_MS, signal);
}

export async function holdOrg(reason: string): Promise<void> {
  change((await read(api.POST("/v1/hold", { body: { reason } }))).hold);
}

export async function release(): Promise<void> {
  change(await read(api.POST("/v1/hold/release", {})));
  announce("The hold is released.");
}

function change(changed: Hold): void {
  changes += 1;
  hold.value = changed;
}
