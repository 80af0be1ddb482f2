// Asks what to do with the current iteration when a task is cancelled.
import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { Dialog } from "./dialog";
import type { CancelOptions } from "./cancel_call";

const CHOICES = [
  { name: "Finish this iteration", seconds: "", help: "It ends by itself or at its time limits." },
  { name: "Interrupt in 10 s", seconds: "10", help: "Only if it still runs then." },
  { name: "Interrupt now", seconds: "0", help: "Ends the model call and all processes of the tool." },
];

interface Props {
  title: string;
  children?: ComponentChildren;
  onCancel: (options: CancelOptions) => void;
  onClose: () => void;
}

export function CancelDialog({ title, children, onCancel, onClose }: Props) {
  return (
    <Dialog title={title} onClose={onClose}>
      {children}
      <CancelForm onCancel={onCancel}>
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
  onCancel: (options: CancelOptions) => void;
}

export function CancelForm({ children, confirmation, onCancel }: FormProps) {
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
        <legend>No other iteration starts. What happens to the one that runs?</legend>
        {CHOICES.map(({ name, seconds, help }, index) => (
          <button
            key={name}
            type="submit"
            class={index === 0 ? "danger choice" : "choice"}
            value={seconds}
            ref={index === 0 ? first : null}
          >
            <strong>{name}</strong> <span>{help}</span>
          </button>
        ))}
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
