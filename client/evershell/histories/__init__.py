"""Judges a history, which is what callers saw of the service, without knowledge of its code.

`python -m evershell.histories FILE…` reads files that a Recorder has written, and imports nothing
of the service. Each line is a JSON object. `at` is the monotonic clock of the machine, in seconds,
so the files of several processes of one machine are one history.

    {"id": "7.1", "at": 1.0, "caller": "REST", "org": "", "call": "GetTask", "arguments": {…}}
    {"id": "7.1", "at": 1.2, "request_id": "…", "answer": {…}}  or "error": slug, "details": {…}
    {"id": "7.1", "at": 1.1, "message": {…}}                    of a stream, before its answer
    {"at": 1.3, "webhook_id": "wh_1", "delivery": {…}}          an event that a receiver got

For each workspace, search.py looks for an order of the calls in which every answer is right by the
model in model.py. A call that was answered before another call began comes before that call. A task
may end at any moment, because no call shows when. The `seq` of their events says which of two tasks
was submitted first. A call that was answered `unavailable` may have its effect until LATE_SECONDS
later, and a call without an answer at any later time. streams.py judges watchers and webhooks.

A history must contain every call that changes its workspaces. These wrong answers are not found:

- Calls on several workspaces (holds, CancelTasks, lists, trees) are split: each workspace gets its
  part, with the times of the whole call. So a list may show two workspaces at two moments, and a
  hold may begin in one workspace before it begins in another, but only during the call. No
  submission that began after the answer is accepted anywhere.
- A task may be cancelled although nobody asked, if it has limits or its submission was not
  answered. Dry runs, children that agents submit, and limits that include descendants are ignored.
- The state of a workspace (stopped, failed, provisioning, suspended) is not judged, except
  `deleting`. Neither are texts, times, usage and iterations.
- A task that never ends is found only if a later answer says that another one has begun.
- A list is judged by the tasks on it. A missing task is found only if it is the newest, or the only
  one that has not ended.
- The model does not know a SubmitTask that is repeated with an idempotency key.
- A webhook is judged at the end of the history, unless it was deleted, and only for tasks that were
  submitted after its creation and seen by a watcher.
"""
