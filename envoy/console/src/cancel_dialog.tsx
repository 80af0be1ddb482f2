// Asks how to cancel a task.
import { useState } from "preact/hooks";
import type { Wishes } from "./cancel_call";
import { Dialog } from "./dialog";

interface Props {
  isRepeated: boolean;
  // Whether the descendants are cancelled too. The call then does not wait.
  isTree?: boolean;
  onCancel: (wishes: Wishes) => void;
  onClose: () => void;
}

export function CancelDialog({ isRepeated, isTree, onCancel, onClose }: Props) {
  const [reason, setReason] = useState("");
  const [wait, setWait] = useState("");
  const [forceAfter, setForceAfter] = useState("");
  const submit = (event: Event) => {
    event.preventDefault();
    onCancel({ reason: reason.trim(), wait: seconds(wait), forceAfter: seconds(forceAfter) });
  };
  return (
    <Dialog title={isTree ? "Cancel the task and its descendants" : "Cancel the task"} onClose={onClose}>
      <p>
        {isRepeated
          ? "The cancellation is already recorded. This signals the agent again, and can interrupt the iteration earlier."
          : "The agent finishes the iteration that runs, and starts no other. The workspace stays up."}
      </p>
      <form onSubmit={submit}>
        {!isRepeated && (
          <>
            <label for="reason">Reason</label>
            <input
              id="reason"
              maxLength={500}
              autofocus
              value={reason}
              onInput={(event) => setReason(event.currentTarget.value)}
            />
          </>
        )}
        <SecondsField
          id="force-after"
          label="Interrupt the iteration after"
          max={86_400}
          value={forceAfter}
          onInput={setForceAfter}
          help="Only if the iteration still runs then. Empty: never."
        />
        {!isTree && (
          <SecondsField
            id="wait"
            label="Wait for the end"
            max={30}
            value={wait}
            onInput={setWait}
            help="How long the call waits for its answer, at most 30 s. This page shows the end in any case."
          />
        )}
        <div class="buttons">
          <button type="submit" class="danger">
            Cancel the task
          </button>
          <button type="button" onClick={onClose}>
            Back
          </button>
        </div>
      </form>
    </Dialog>
  );
}

interface SecondsProps {
  id: string;
  label: string;
  help: string;
  max: number;
  value: string;
  onInput: (value: string) => void;
}

export function SecondsField({ id, label, help, max, value, onInput }: SecondsProps) {
  return (
    <>
      <label for={id}>{label}</label>
      <div class="seconds">
        <input
          id={id}
          type="number"
          min={0}
          max={max}
          step="any"
          inputMode="decimal"
          aria-describedby={`${id}-help`}
          value={value}
          onInput={(event) => onInput(event.currentTarget.value)}
        />
        <span>seconds</span>
      </div>
      <p id={`${id}-help`} class="fine">
        {help}
      </p>
    </>
  );
}

export function seconds(entered: string): number | null {
  return entered === "" ? null : Number(entered);
}
