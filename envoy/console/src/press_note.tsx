// What is known about a press that has not been answered, or was not answered at first.
import type { CancelCall } from "./cancel_call";
import { FailureNote } from "./failure";
import { words } from "./text";

// `isRecorded` says whether the log or the task has the cancellation.
export function PressNote({ call, isRecorded }: { call: CancelCall; isRecorded: boolean }) {
  const { failure, outcome, isRepeated, isUnanswered } = call;
  if (failure) {
    const again = isRepeated ? " Trying again." : "";
    return <FailureNote failure={failure} title={`${known(call, isRecorded)}${again}`} />;
  }
  if (!outcome || !isUnanswered) return null;
  const texts: Record<string, string> = {
    accepted: "The first try was not recorded. The repeat was.",
    already_requested: "It was recorded.",
  };
  return (
    <p class="note" role="status">
      {texts[outcome] ?? `There was nothing to cancel: ${words(outcome)}.`}
    </p>
  );
}

function known({ failure, isUnanswered, isRepeated }: CancelCall, isRecorded: boolean): string {
  if (failure?.slug === "agent_unreachable") {
    return "The agent does not answer. The cancellation is recorded and will be delivered.";
  }
  if (isUnanswered) {
    return isRecorded ? "A cancellation is recorded." : "It is not known whether it was recorded.";
  }
  return isRepeated ? "It was not recorded." : "The task was not cancelled by this call.";
}
