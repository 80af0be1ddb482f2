// Keys of a whole page. They do nothing while a person types, or while a dialog is open.
import { useEffect } from "preact/hooks";

export function useKeys(actions: Record<string, () => void>): void {
  useEffect(() => {
    const act = (event: KeyboardEvent) => {
      const isTyping = event.target instanceof Element && event.target.matches("input, select");
      const isOther = event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented;
      const action = actions[event.key];
      if (!action || isTyping || isOther || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      action();
    };
    addEventListener("keydown", act);
    return () => removeEventListener("keydown", act);
  });
}
