// Formats values for the pages.
import type { Schemas } from "./api";

// The formats are kept, because making a format takes longer than using it.
const TIME = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DATE_AND_TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export function preciseTime(time: string): string {
  const date = new Date(time);
  return `${TIME.format(date)}.${pad(date.getMilliseconds(), 3)}`;
}

// Rounded up to the second.
export function clockTime(time: number): string {
  return TIME.format(new Date(Math.ceil(time / 1_000) * 1_000));
}

export function fullTime(time: string): string {
  return DATE_AND_TIME.format(new Date(time));
}

export function elapsed(milliseconds: number): string {
  const seconds = Math.max(0, Math.floor(milliseconds / 1_000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${pad(seconds % 60, 2)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${pad(minutes % 60, 2)} min`;
  return `${Math.floor(hours / 24)} days`;
}

// Like `elapsed`, but more precise below a minute.
export function duration(milliseconds: number): string {
  if (milliseconds < 1_000) return `${Math.max(0, Math.round(milliseconds))} ms`;
  return milliseconds < 60_000 ? seconds(milliseconds) : elapsed(milliseconds);
}

export function seconds(milliseconds: number): string {
  return `${(Math.max(0, milliseconds) / 1_000).toFixed(1)} s`;
}

export function count(value: number, one: string, several = `${one}s`): string {
  return `${value.toLocaleString("en-US")} ${value === 1 ? one : several}`;
}

export function number(value: number): string {
  return value.toLocaleString("en-US");
}

export function inDollars({ units, nanos }: Schemas["Money"]): number {
  return Number(units ?? 0) + (nanos ?? 0) / 1_000_000_000;
}

export function dollars(amount: Schemas["Money"]): string {
  return `$${inDollars(amount).toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 6 })}`;
}

export function bytes(value: number): string {
  return value < 1_024 ? `${value} B` : `${(value / 1_024).toFixed(1)} KiB`;
}

// Writes `model_call` as `model call`.
export function words(slug: string): string {
  return slug.replaceAll("_", " ");
}

export function firstLine(text: string): string {
  return text.split("\n", 1)[0] ?? "";
}

export function between(from: string, to: string): number {
  return Date.parse(to) - Date.parse(from);
}

// The value with visible escapes (`\u202e`) for the characters that change the direction of a text.
// These characters could make a text look like another text.
export function withVisibleDirections<T>(value: T): T {
  const json = JSON.stringify(value);
  const visible = json.replace(
    /\p{Bidi_Control}/gu,
    (each) => `\\\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return visible === json ? value : (JSON.parse(visible) as T);
}

function pad(value: number, digits: number): string {
  return String(value).padStart(digits, "0");
}
