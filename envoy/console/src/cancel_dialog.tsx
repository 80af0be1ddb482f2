// Asks what to do with the current iteration when a task is cancelled.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Dialog } from "./dialog";
import type { Task } from "./api";
import type { CancelOptions } from "./cancel_call";
import { now } from "./clock";

// The hardest choice is the last one.
const CHOICES = [
  { name: "Finish", seconds: "" },
  { name: "Stop in 10 s", seconds: "10" },
  { name: "Stop now", seconds: "0" },
];

// How many of CHOICES an earlier cancellation of all of these tasks leaves nothing to do for.
export function takenOf(tasks: readonly (Task | null | undefined)[]): number {
  const isLeft = (task: Task | null | undefined) => !task?.cancel_requested_at;
  if (tasks.length === 0 || tasks.some(isLeft)) return 0;
  const inTenSeconds = now.value + 10_000;
  const isSooner = (task: Task | null | undefined) =>
    Date.parse(task?.cancel_force_at ?? "") <= inTenSeconds;
  return tasks.every(isSooner) ? 2 : 1;
}

interface Props {
  title: string;
  taken?: number;
  onCancel: (options: CancelOptions) => void;
  onClose: () => void;
}

export function CancelDialog({ title, taken = 0, onCancel, onClose }: Props) {
  return (
    <Dialog title={title} onClose={onClose}>
      <CancelForm onCancel={onCancel} taken={taken}>
        <button type="button" onClick={onClose}>
          Back
        </button>
      </CancelForm>
    </Dialog>
  );
}

interface FormProps {
  // Shown after the fields.
  children: ComponentChildren;
  // Shown before the choices.
  confirmation?: ComponentChildren;
  taken?: number;
  onCancel: (options: CancelOptions) => void;
}

export function CancelForm({ children, confirmation, taken = 0, onCancel }: FormProps) {
  const [reason, setReason] = useState("");
  const first = useRef<HTMLButtonElement>(null);
  const isConfirmed = !confirmation;
  useLayoutEffect(() => {
    if (isConfirmed) first.current?.focus();
  }, [isConfirmed]);
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const { value = "" } = (event.submitter ?? {}) as Partial<HTMLButtonElement>;
    onCancel({ reason: reason.trim(), forceAfter: value === "" ? null : Number(value) });
  };
  return (
    <form onSubmit={submit} noValidate>
      {confirmation}
      <fieldset>
        <legend>The current step:</legend>
        <div class="buttons">
          {CHOICES.slice(taken).map(({ name, seconds }, index) => (
            <button
              key={name}
              type="submit"
              class={seconds === "0" ? "danger" : ""}
              value={seconds}
              ref={index === 0 ? first : null}
            >
              {name}
            </button>
          ))}
        </div>
      </fieldset>
      <label for="reason">Reason (may be empty)</label>
      <input
        id="reason"
        maxLength={500}
        value={reason}
        onInput={(event) => setReason(event.currentTarget.value)}
      />
      <div class="buttons">{children}</div>
    </form>
  );
}
