"""Judges a history, which records what callers saw of the service.

`python -m evershell.histories FILE…` reads files that a Recorder has written. It does not import
code of the service. Each line is a JSON object. `at` is the monotonic clock of the machine, in
seconds, so the files of several processes on the same machine are one history.

    {"id": "7.1", "at": 1.0, "caller": "REST", "org": "", "call": "GetTask", "arguments": {…}}
    {"id": "7.1", "at": 1.2, "request_id": "…", "answer": {…}}  or "error": slug, "details": {…}
    {"id": "7.1", "at": 1.1, "message": {…}}                    of a stream, before its answer
    {"at": 1.3, "webhook_id": "wh_1", "delivery": {…}}          an event that a receiver got

For each workspace, search.py looks for an order of the calls in which every answer is right by the
model in model.py. A call that was answered before another call began comes before that call. A task
may end at any moment, because no call shows when it ends. Of two tasks, the task whose events have
the lower `seq` was submitted first. A call that was answered `unavailable` may have its effect up
to LATE_SECONDS later, and a call without an answer at any later time. streams.py judges watchers
and webhooks.

A history must contain every call that changes its workspaces. The check has these limits:

- Calls on several workspaces (holds, CancelTasks, lists, trees) are split: each workspace gets its
  part, with the times of the whole call. So a list may show two workspaces at different moments,
  and a hold may begin in one workspace before it begins in another, but only during the call. A
  submission that begins after the answer to the hold must not be accepted in any workspace.
- If a task has limits, or if its submission was not answered, it may be cancelled although no
  caller has asked. Dry runs, children that agents submit, and limits that include descendants are
  ignored.
- The state of a workspace (stopped, failed, provisioning, suspended) is not judged, except
  `deleting`. Texts, times, usage and iterations are not judged either.
- A task that never ends is found only if a later answer says that the next task has begun.
- In a list, only the tasks that it shows are judged. A missing task is found only if it is the
  newest task, or the only task that has not ended.
- The model does not cover a SubmitTask that is repeated with an idempotency key.
- A webhook is judged at the end of the history, unless it was deleted. Only events of tasks that
  were submitted after its creation and seen by a watcher are judged. An event with a `time` after
  the end of the history, which a wrong clock has given it, is not judged.
"""
