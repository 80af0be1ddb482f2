"""What must always be true of a cancellation, a batch, a hold and a limit."""

from tests.faults.mutations.mutants import Rule, rule

_CORE = "server/evershell/core/"
_CLIENT = "server/evershell/agents/runtime_client.py"
_AGENT = "server/evershell/agents/"
_STORE = "server/evershell/store/"
_FLEET = "server/evershell/fleet/"
_DECIDE = f"{_STORE}functions/cancellation_outcome.sql"
_FORCE = f"{_STORE}functions/is_forced_earlier.sql"
_RECORD = f"{_STORE}functions/record_cancellation.sql"
_BATCH = f"{_STORE}functions/cancel_tasks.sql"
_SCHEMA = f"{_STORE}migrations/0001_initial.sql"

# A mutant in which a controller forgets the limits that were reached before it led.
_FORGETS_LIMITS = (
    f"{_FLEET}controller.py",
    "            for due in rows:\n                self._begin(due)\n\n"
    "    async def _reconcile_changes(",
    "            if kind is Kind.TASK_LIMIT:\n"
    "                ids = {each.workspace.id for each in rows}\n"
    '                before = self.__dict__.setdefault("before", ids)\n'
    "                rows = [each for each in rows if each.workspace.id not in before]\n"
    "            for due in rows:\n                self._begin(due)\n\n"
    "    async def _reconcile_changes(",
)

CANCELLING: tuple[Rule, ...] = (
    rule(
        "the intent is committed before the agent is signalled",
        "tests/unit/core/test_cancel_task.py",
        (
            f"{_CORE}cancel_task.py",
            "    recorded = await record(",
            "    early = await store.get_workspace(request.workspace_id)\n"
            "    if early is not None and early.current_task_id is not None:\n"
            "        open_task = await store.get_task(early.id, early.current_task_id)\n"
            "        with suppress(AgentUnreachableError):\n"
            "            await agents.cancel_task(early, open_task)\n"
            "    recorded = await record(",
        ),
    ),
    rule(
        "the agent is signalled, again by a repeat",
        "tests/unit/core/test_cancel_task.py",
        (
            f"{_CORE}cancel_task.py",
            "if outcome in (Outcome.ACCEPTED, Outcome.ALREADY_REQUESTED):",
            "if outcome is Outcome.ACCEPTED:",
        ),
    ),
    rule(
        "a recorded intent decides the end",
        "tests/unit/core/test_task_lifecycle.py",
        (
            f"{_CORE}task_lifecycle.py",
            "status, reason = TaskStatus.CANCELLED, reason or",
            "status, reason = status, reason or",
        ),
    ),
    rule(
        "the database refuses another end of a task with an intent",
        "tests/unit/store/test_postgres_store.py",
        (
            _SCHEMA,
            "cancel_requested_at IS NULL OR status NOT IN ('completed',",
            "cancel_requested_at IS NULL OR status IS NOT NULL OR status NOT IN ('completed',",
        ),
    ),
    rule(
        "the result of a final answer stays on a cancelled task",
        "tests/unit/core/test_task_lifecycle.py",
        (
            f"{_CORE}task_lifecycle.py",
            "result=proposed.result or task.result,",
            "result=task.result if task.cancel else proposed.result,",
        ),
    ),
    rule(
        "without an intent no task ends cancelled",
        "tests/unit/core/test_task_lifecycle.py",
        (f"{_CORE}task_lifecycle.py", "elif status is TaskStatus.CANCELLED:", "elif False:"),
    ),
    rule(
        "the control plane enforces the bounds without the agent",
        "tests/unit/fleet/test_due.py tests/unit/fleet/test_controller.py",
        (
            f"{_CORE}bounds.py",
            'return "its agent did not interrupt the task in time"',
            "return None",
        ),
        (
            f"{_CORE}bounds.py",
            "requested_at + iteration + CANCEL_MARGIN",
            "requested_at + 100 * iteration",
        ),
        (
            f"{_CORE}bounds.py",
            "if unnamed_since is not None and is_over(unnamed_since + lease)",
            "if unnamed_since is not None and is_over(now + lease)",
        ),
        (
            f"{_CORE}bounds.py",
            "            return workspace.agent_breach\n",
            "            return None\n",
        ),
    ),
    rule(
        "no agent is ended because the control plane does not answer",
        "tests/unit/core/test_bounds.py tests/unit/fleet/test_due.py "
        "tests/unit/fleet/test_controller.py",
        (f"{_CORE}bounds.py", "SILENT_SECONDS < each < self.lease_seconds", "False"),
        (f"{_CORE}bounds.py", "bool(silences) and not any(", "not any("),
        (f"{_CORE}task.py", "max(self.force_at, self.requested_at)", "self.force_at"),
        (
            f"{_CORE}bounds.py",
            "SILENT_SECONDS < each < self.lease_seconds",
            "SILENT_SECONDS < each",
        ),
        (f"{_CORE}bounds.py", "min(last_outage_at + recovery, bound + lease)", "bound"),
        (
            f"{_CORE}bounds.py",
            "min(last_outage_at + recovery, bound + lease)",
            "last_outage_at + recovery",
        ),
        (
            f"{_FLEET}steps.py",
            "        await self._reader.read_workers()\n        current",
            "        current",
        ),
        (
            f"{_FLEET}steps.py",
            "        await self._reader.read_workers()\n        return",
            "        return",
        ),
        (
            f"{_FLEET}controller.py",
            "if time.monotonic() - scan_at > LATE_SECONDS:",
            "if time.monotonic() - scan_at > 1e9:",
        ),
    ),
    rule(
        "the end of a forced task does not wait for a silent worker",
        "tests/unit/agents/test_repeats.py",
        (_CLIENT, "if not first.done() and len(self._stubs) > 1:", "if False:"),
        (_CLIENT, "if not first.done() and len(self._stubs) > 1:", "if not first.done():"),
        (
            _CLIENT,
            "        await cancel.wait_force_due()\n        self._leave",
            "        self._leave",
        ),
        (
            _CLIENT,
            "                await cancel.wait_force_due()\n",
            "                await asyncio.sleep(seconds)\n",
        ),
        (_CLIENT, "min(seconds, FORCE_BACKOFF_SECONDS)", "seconds"),
        (
            _CLIENT,
            "BUSY_BACKOFF_SECONDS if _is_busy(error) else FIRST_BACKOFF_SECONDS",
            "FIRST_BACKOFF_SECONDS",
        ),
        (
            _CLIENT,
            "backoff(failures, first, self._lease.max_backoff_seconds)",
            "backoff(failures, first, 10.0)",
        ),
    ),
    rule(
        "a task ends once",
        "tests/unit/core/test_task_lifecycle.py tests/unit/core/test_runtime.py",
        (f"{_CORE}task_lifecycle.py", "        and not task.status.is_terminal\n", ""),
    ),
    rule(
        "the database has one end and one request of a task",
        "tests/unit/store/test_postgres_store.py",
        (_SCHEMA, "CREATE UNIQUE INDEX events_one_end", "CREATE INDEX events_one_end"),
        (
            _SCHEMA,
            "CREATE UNIQUE INDEX events_one_cancel_request",
            "CREATE INDEX events_one_cancel_request",
        ),
        (
            _SCHEMA,
            "CREATE UNIQUE INDEX events_one_of_each_iteration",
            "CREATE INDEX events_one_of_each_iteration",
        ),
        (_SCHEMA, "CREATE UNIQUE INDEX tasks_one_open", "CREATE INDEX tasks_one_open"),
    ),
    rule(
        "no iteration starts after the signal",
        "tests/unit/agents/test_loop.py",
        (
            f"{_AGENT}loop.py",
            "if self.task.cancel.is_requested or self._is_used_up:",
            "if self._is_used_up:",
        ),
    ),
    rule(
        "the iteration in flight ends normally",
        "tests/unit/agents/test_loop.py tests/unit/agents/test_force.py",
        (
            f"{_AGENT}active_task.py",
            "return self.force_at is not None and self.force_at <= self._clock()",
            "return self.is_requested",
        ),
    ),
    rule(
        "no tool call is committed without its result, no iteration out of order",
        "tests/unit/core/test_agent_rules.py tests/unit/core/test_runtime.py "
        "tests/unit/core/test_task_lifecycle.py",
        (f"{_CORE}agent_rules.py", "        if result is None:\n", "        if False:\n"),
        (f"{_CORE}task_lifecycle.py", "if iteration.number != task.iterations + 1:", "if False:"),
        (
            f"{_CORE}task_lifecycle.py",
            "    if iteration.number <= task.iterations:\n",
            "    if iteration.number < task.iterations:\n",
        ),
    ),
    rule(
        "a task counts its iterations and its usage",
        "tests/unit/core/test_task_lifecycle.py tests/unit/core/test_runtime.py",
        (
            f"{_CORE}task_lifecycle.py",
            "usage=task.usage + usage,",
            "usage=usage,",
        ),
        (
            f"{_CORE}task_lifecycle.py",
            "content or next(filter(None, reversed(outputs)), task.result)",
            "task.result",
        ),
    ),
    rule(
        "an intent belongs to a task",
        "tests/contracts/test_store_cancellations.py tests/contracts/test_store_agreement.py",
        (
            _RECORD,
            "WHERE id = coalesce(p_request.task_id, w.current_task_id) AND",
            "WHERE id = w.current_task_id AND",
        ),
    ),
    rule(
        "a signal for another task does not cancel the current one",
        "tests/unit/agents/test_session.py",
        (
            f"{_AGENT}session.py",
            "if self._task is not None and self._task.id == task_id:\n            return self",
            "if self._task is not None:\n            return self",
        ),
    ),
    rule(
        "the workspace is idle after a cancellation, and its agent takes the next task",
        "tests/unit/core/test_task_lifecycle.py tests/unit/agents/test_session.py",
        (
            f"{_CORE}task_lifecycle.py",
            "idle = WorkspaceStatus.IDLE if",
            "idle = WorkspaceStatus.FAILED if",
        ),
        (f"{_AGENT}session.py", "if following is not None and", "if False and"),
    ),
    rule(
        "agent_unreachable says that the intent is recorded, and what to do",
        "tests/unit/core/test_cancel_task.py",
        (f"{_CORE}cancel_task.py", "intent_recorded=True", "intent_recorded=False"),
        (f"{_CORE}cancel_task.py", "            if is_named\n", "            if True\n"),
    ),
    rule(
        "an agent that does not answer is given up within 2 s",
        "tests/unit/fleet/test_agent_client.py",
        (
            f"{_FLEET}agent_client.py",
            "deadline.left_of_call(SIGNAL_BUDGET_SECONDS, _LEAST_SECONDS),\n        )\n",
            "deadline.bounded(60),\n        )\n",
        ),
        (
            f"{_FLEET}agent_client.py",
            "deadline.left_of_call(SIGNAL_BUDGET_SECONDS, _LEAST_SECONDS),\n        )\n",
            "deadline.bounded(SIGNAL_BUDGET_SECONDS),\n        )\n",
        ),
    ),
    rule(
        "callers who poll silent agents cost a signal neither time nor its stream",
        "tests/unit/fleet/test_agent_reads.py",
        (
            f"{_FLEET}agent_reads.py",
            "if time.monotonic() < self._silent.get(agent, 0.0):",
            "if False:",
        ),
        (f"{_FLEET}agent_reads.py", "reading = self._reads.get(key)", "reading = None"),
        (f"{_FLEET}agent_client.py", "                self._reads.answered(key)\n", ""),
        (f"{_FLEET}agent_client.py", "if not agent.is_signalled", "if True"),
        (
            f"{_FLEET}agent_reads.py",
            "max(_SILENT_SECONDS, len(self._silent) / _READS_A_SECOND)",
            "_SILENT_SECONDS",
        ),
    ),
    rule(
        "whatever an agent does to its stream, a recorded cancellation is not an internal error",
        "tests/unit/fleet/test_agent_ends.py",
        (
            "server/evershell/pod/signal_stream.py",
            'raise NotAcknowledgedError("the call was ended") from None',
            "raise",
        ),
    ),
    rule(
        "an acknowledgement counts only for its own signal",
        "tests/unit/fleet/test_agent_client.py",
        (
            "server/evershell/pod/signal_stream.py",
            "waiting = self._waiting.get(signal_id)",
            "waiting = next(iter(self._waiting.values()), None)",
        ),
    ),
    rule(
        "an intent is delivered later",
        "tests/unit/fleet/test_redelivery.py",
        (
            f"{_FLEET}redelivery.py",
            "            if next_at is not None and",
            "            if False and",
        ),
        (f"{_FLEET}redelivery.py", "        if await self._is_delivered(due):", "        if True:"),
    ),
    rule(
        "no kind of work delays another one",
        "tests/unit/fleet/long/test_starvation.py tests/unit/fleet/test_due.py "
        "tests/contracts/test_store_due.py",
        (f"{_FLEET}work.py", "FEW = 4", "FEW = 10_000"),
        (f"{_STORE}due.sql", "        LIMIT %(limit)s\n", ""),
        (
            f"{_STORE}due.sql",
            "            AND (since, coalesce(task_id, workspace_id)) > (after_since, after_id)\n",
            "",
        ),
        (f"{_FLEET}due.py", "self._places[kind] = rows[-1].place", "pass"),
    ),
    rule(
        "a lost agent's work ends before its task",
        "tests/unit/fleet/test_controller.py tests/unit/fleet/test_due.py",
        (
            f"{_FLEET}steps.py",
            "        stopped = await self._end_pod(workspace, 0)\n",
            "        stopped = True\n",
        ),
    ),
    rule(
        "an end says whether the work has stopped",
        "tests/unit/core/test_workspace_lifecycle.py tests/unit/core/test_task_lifecycle.py "
        "tests/unit/fleet/test_controller.py",
        (f"{_CORE}event.py", '"yes" if work_stopped else "unknown"', '"yes"'),
    ),
    rule(
        "a late write of an earlier epoch is refused",
        "tests/unit/core/test_runtime.py tests/unit/core/test_task_lifecycle.py "
        "tests/unit/core/test_workspace_lifecycle.py",
        (
            f"{_CORE}workspace.py",
            "return epoch != self.epoch or not (",
            "return not (",
        ),
        (f"{_CORE}workspace.py", "or self.agent_breach is not None", ""),
        (f"{_CORE}workspace.py", "epoch=self.epoch + 1", "epoch=self.epoch"),
    ),
    rule(
        "the lease of an earlier epoch is not renewed",
        "tests/contracts/test_store_leases.py",
        (
            f"{_STORE}functions/renew_leases.sql",
            "AND epoch = p_epochs[n] AND",
            "AND",
        ),
    ),
    rule(
        "an agent ends its tools and itself before its lease is over",
        "tests/unit/agents/test_renewal.py tests/unit/agents/test_program.py "
        "tests/unit/agents/test_exit.py",
        (f"{_AGENT}lease.py", "sent_at + left_seconds - margin_seconds", "sent_at + left_seconds"),
        (
            f"{_AGENT}agent.py",
            "        await self._lease.wait_over()\n",
            "        await asyncio.Event().wait()\n",
        ),
    ),
    rule(
        "a repeat is already_requested, and the first intent stays",
        "tests/contracts/test_store_cancellations.py tests/contracts/test_store_agreement.py",
        (_DECIDE, "WHEN t.cancel_requested_at IS NOT NULL THEN", "WHEN false THEN"),
        (f"{_CORE}task_lifecycle.py", "    if task.cancel is None:\n", "    if True:\n"),
    ),
    rule(
        "of many calls at once one is accepted",
        "tests/contracts/test_store_cancellations.py tests/contracts/test_store_cancel_tasks.py "
        "tests/unit/store/test_postgres_store.py",
        (_RECORD, "        FOR UPDATE;\n", "        ;\n"),
        (_BATCH, "        FOR UPDATE SKIP LOCKED\n", ""),
    ),
    rule(
        "every reply to an agent has the intent",
        "tests/unit/core/test_runtime.py tests/wire/api/test_agent_codec.py",
        (
            f"{_CORE}runtime.py",
            "task=task if is_open else None",
            'task=__import__("dataclasses").replace(task, cancel=None) if is_open else None',
        ),
        (
            "server/evershell/pod/messages.py",
            "        cancellation=cancellation_fields(task, now),\n",
            "",
        ),
    ),
    rule(
        "the agent applies the intent of a directive, before its first iteration too",
        "tests/unit/agents/test_session.py tests/unit/agents/test_start.py",
        (
            f"{_AGENT}session.py",
            'if assignment.HasField("cancellation"):',
            "if False:",
        ),
    ),
    rule(
        "without wait, the answer does not wait; with it, it returns at the end",
        "tests/unit/core/test_cancel_task.py",
        (f"{_CORE}cancel_task.py", "        if request.wait_seconds:\n", "        if False:\n"),
        (f"{_CORE}cancel_task.py", "or not await changes.wait(left_seconds)", ""),
    ),
    rule(
        "a force deadline interrupts the model call and the tool call",
        "tests/unit/agents/test_force.py tests/unit/agents/test_tools.py",
        (f"{_AGENT}loop.py", "            cancel(each)\n", "            pass\n"),
        (
            f"{_AGENT}step.py",
            '"completed" if has_ended else "interrupted"',
            '"completed"',
        ),
        (
            f"{_AGENT}loop.py",
            "return TaskEnded(status=TaskStatus.CANCELLED, forced=True, result=result)",
            "return TaskEnded(status=TaskStatus.CANCELLED, result=result)",
        ),
        (f"{_AGENT}descendants.py", "os.kill(pid, signal.SIGKILL)", "os.kill(pid, 0)"),
        (
            f"{_AGENT}tools.py",
            "status = ToolStatus.INTERRUPTED\n",
            "status = ToolStatus.TIMED_OUT\n",
        ),
    ),
    rule(
        "an agent says that a task has ended only when all that it has started has ended",
        "tests/unit/agents/test_library.py tests/unit/agents/test_library_ends.py "
        "tests/unit/agents/test_library_processes.py",
        (f"{_AGENT}loop.py", "            await asyncio.wait(pending)\n", "            return\n"),
        (
            f"{_AGENT}loop.py",
            "        await self._descendants.wait_gone(0, _KILLED_SECONDS)\n",
            "",
        ),
        (
            f"{_AGENT}loop.py",
            '            raise RuntimeError("a call still runs',
            '            print("a call still runs',
        ),
    ),
    rule(
        "the earliest force deadline wins",
        "tests/contracts/test_store_cancellations.py tests/contracts/test_store_cancel_tasks.py "
        "tests/unit/core/test_task_lifecycle.py tests/unit/agents/test_force.py "
        "tests/unit/agents/test_session.py",
        (
            _FORCE,
            "p_force_at < coalesce(t.cancel_force_at, 'infinity')",
            "p_force_at IS NOT NULL",
        ),
        (_BATCH, " AND decided.is_forced_earlier\n", "\n"),
        (
            f"{_CORE}task.py",
            "(self.force_at is None or force_at < self.force_at)",
            "True",
        ),
        (f"{_AGENT}active_task.py", "or force_at < self.force_at", ""),
    ),
    rule(
        "an end is forced only if a caller has asked for it",
        "tests/unit/core/test_task_lifecycle.py tests/unit/core/test_workspace_lifecycle.py",
        (
            f"{_CORE}task_lifecycle.py",
            "forced=proposed.forced and may_be_forced",
            "forced=proposed.forced",
        ),
        (
            f"{_CORE}task_lifecycle.py",
            "forced = force_at is not None and force_at <= now",
            "forced = False",
        ),
    ),
    rule(
        "GetTask shows the request and the phase of the agent",
        "tests/wire/api/test_codec.py tests/unit/core/test_runtime.py "
        "tests/unit/core/test_workspace_lifecycle.py",
        (
            "server/evershell/api/codec.py",
            '"cancel_requested_by": intent.requested_by if intent is not None else ""',
            '"cancel_requested_by": ""',
        ),
        (
            f"{_CORE}workspace_lifecycle.py",
            "task = replace(task, phase=phase)",
            "task = replace(task)",
        ),
    ),
    rule(
        "the log of a workspace has no gap and has every request",
        "tests/contracts/test_store_cancellations.py tests/contracts/test_store_transitions.py "
        "tests/contracts/test_store_cancel_tasks.py",
        (_RECORD, "w.last_seq := w.last_seq + 1", "w.last_seq := w.last_seq + 2"),
        (
            _BATCH,
            "SET last_seq = workspaces.last_seq + 1",
            "SET last_seq = workspaces.last_seq + 2",
        ),
        (
            f"{_STORE}transitions.py",
            "enumerate(change.events, seq + 1)",
            "enumerate(change.events, seq + 2)",
        ),
        (_RECORD, "'task_cancel_requested', p_request", "'task_started', p_request"),
    ),
    rule(
        "a call and its entry of the audit log are committed together",
        "tests/contracts/test_store_audit.py tests/contracts/test_store_cancel_tasks.py",
        (_RECORD, "    IF p_request.audit IS NOT NULL THEN\n", "    IF false THEN\n"),
        (_RECORD, "entry.outcome := outcome", "entry.outcome := 'ok'"),
        (_BATCH, "        WHERE p_request.audit IS NOT NULL\n", "        WHERE false\n"),
    ),
    rule(
        "a batch cancels what matches, of the organization and of its caller, the oldest first",
        "tests/contracts/test_store_cancel_tasks.py tests/unit/core/test_cancel_tasks.py",
        (
            f"{_STORE}cancel_tasks.sql",
            "ORDER BY is_pending DESC, task_id\n",
            "ORDER BY is_pending DESC, task_id DESC\n",
        ),
        (
            f"{_STORE}cancel_tasks.sql",
            "WHERE w.org_id = %(org_id)s AND",
            "WHERE w.org_id <= %(org_id)s AND",
        ),
        (f"{_STORE}cancel_tasks.sql", "(NOT %(own_only)s OR", "(NOT %(own_only)s OR true OR"),
        (
            _BATCH,
            "true, p_request.own_only, p_request.user_id) AS outcome",
            "true, false, NULL) AS outcome",
        ),
        (_BATCH, " AND decided.outcome = 'accepted'\n", "\n"),
        (_BATCH, " WHERE decided.outcome IN ('accepted', 'already_requested')", ""),
        (f"{_CORE}cancel_tasks.py", "    if request.dry_run:\n", "    if False:\n"),
        (
            f"{_CORE}cancel_tasks.py",
            "wanted, intent.force_at, MAX_TASKS)\n    pending",
            "wanted, intent.force_at, 10**6)\n    pending",
        ),
    ),
    rule(
        "a batch names its tasks, or says explicitly that it means all of them",
        "tests/unit/core/test_cancel_tasks.py tests/unit/core/test_validation.py "
        "tests/wire/api/test_codec.py",
        (
            f"{_CORE}task_filter.py",
            "if all(getattr(self, name) is None for name in self.__slots__):",
            "if False:",
        ),
        ("server/evershell/api/codec.py", "    if not request.all:\n", "    if False:\n"),
        ("server/evershell/api/codec.py", "        if request.all:\n", "        if False:\n"),
        (f"{_CORE}task_filter.py", "if not 1 <= count <= most:", "if not count <= most:"),
    ),
    rule(
        "the agents of a batch are signalled at once",
        "tests/contracts/test_store_cancel_tasks.py tests/unit/fleet/test_redelivery.py",
        (
            f"{_STORE}cancel_tasks.py",
            "        if rows:\n            self._publish(UNDELIVERED,",
            "        if False:\n            self._publish(UNDELIVERED,",
        ),
        (
            f"{_FLEET}controller.py",
            "            if UNDELIVERED in workspace_ids:\n",
            "            if False:\n",
        ),
    ),
    rule(
        "a batch keeps force_after",
        "tests/unit/core/test_cancel_tasks.py tests/faults/invariants/test_invariants.py",
        (
            f"{_CORE}cancel_tasks.py",
            "intent_of(caller, request.reason, request.force_after_seconds, origin, clock)",
            "intent_of(caller, request.reason, None, origin, clock)",
        ),
    ),
    rule(
        "a hold refuses submissions, creations and resumptions, and cancels what all have started",
        "tests/unit/core/test_hold.py tests/unit/core/test_tasks.py "
        "tests/unit/core/test_workspaces.py tests/contracts/test_store_hold.py",
        (f"{_CORE}tasks.py", "        locked.require_no_hold()\n", ""),
        (f"{_CORE}workspaces.py", "        locked.require_no_hold()\n", ""),
        (f"{_CORE}hold.py", "own_only=False", "own_only=True"),
    ),
    rule(
        "no submission is committed after a hold, and the first hold stays",
        "tests/contracts/test_store_hold.py",
        (
            f"{_STORE}holds.py",
            "    await connection.execute(SQL.share_hold_lock, org, prepare=True)\n",
            "",
        ),
        (
            f"{_STORE}holds.sql",
            "ON CONFLICT (org_id) DO NOTHING",
            "ON CONFLICT (org_id) DO UPDATE SET reason = EXCLUDED.reason",
        ),
    ),
    rule(
        "a limit that is reached cancels the task",
        "tests/unit/core/test_limits.py",
        (f"{_CORE}task_limits.py", "        if due <= now:\n", "        if False:\n"),
        (
            f"{_CORE}task_limits.py",
            "self.used >= self.maximum",
            "self.used > self.maximum",
        ),
        (
            f"{_CORE}task_limits.py",
            "return self.used is None or self.used >=",
            "return bool(self.used) and self.used >=",
        ),
        (
            f"{_CORE}task_limits.py",
            "not (then.is_approached or now.is_reached)",
            "not now.is_reached",
        ),
        (f"{_CORE}task_limits.py", 'REQUESTER = "system:limit"', 'REQUESTER = "system"'),
        (
            f"{_CORE}task_limits.py",
            "force_at=None if seconds is None else since + timedelta(seconds=seconds)",
            "force_at=None",
        ),
    ),
    rule(
        "a limit is not forgotten while an agent is lost or a controller restarts",
        "tests/unit/core/test_limits.py tests/unit/fleet/test_controller.py "
        "tests/contracts/test_store_limits.py",
        (
            f"{_CORE}task_lifecycle.py",
            "    limited = apply_limits(locked, now)\n    task",
            "    limited = unchanged(locked)\n    task",
        ),
        (
            f"{_FLEET}limits.py",
            'change = await self._change(due, task_lifecycle.apply_limits, "limit_reached")',
            "change = None",
        ),
    ),
    rule(
        "the invariants find a limit that is forgotten, and a hold that is not read",
        "tests/faults/invariants/long/test_invariants.py::test_invariants_hold_in_memory",
        (
            f"{_CORE}task_lifecycle.py",
            "    limited = apply_limits(locked, now)\n    task",
            "    limited = unchanged(locked)\n    task",
        ),
        (f"{_CORE}tasks.py", "        locked.require_no_hold()\n", ""),
        _FORGETS_LIMITS,
        # The cost of the task's own iterations is forgotten.
        (f"{_CORE}task.py", "else of(own, others)", "else others"),
    ),
)
