/*
 * CancelTask, in a workspace with two tasks, one after the other.
 *
 * Covers: a named call that is repeated and becomes stale, an unnamed call, `wait`, a worker that dies before
 * the record, after the record and after the signal; signals that are lost, late, doubled and out of order;
 * an agent that freezes; the controller, which repeats signals and ends the pod.
 *
 * Leaves out: force deadlines (force.pml), the states of a workspace other than up (lifecycle.pml), the steps
 * of an agent (agent.pml), the leader (controller.pml), the database (database.pml), who may call, and time:
 * any cancelled task may be overdue. Calls that share a statement are executed one after the other.
 */

/* The next number, at most two. */
#define more(n) (n < 2 -> n + 1 : 2)

#define NOBODY 2

mtype = { OPEN, COMPLETED, CANCELLED, ACCEPTED, ALREADY_REQUESTED };

/* The database: the lock of the workspace, its current task, and the tasks. */
bool locked;
byte current = NOBODY;
byte submitted;
bool intent[2];
mtype status[2] = OPEN;

/* The signals that were sent. The agent may take each one at any time, several times, or never. */
bool signalled[2];
/* The task of the agent, and the cancellations that the agent has learned of. */
byte working = NOBODY;
bool flag[2];
bool frozen;
/* How many workers may still die. */
byte deaths = 1;

/* Variables for the properties. */
byte ends[2];
byte accepted[2];
bool promised[2];
bool already_early;
bool strayed;
byte hit_unnamed;
bool foreign_end;

#define is_over(t) (status[t] != OPEN)

/* At most one call is answered accepted for a task. */
ltl one_accepted { [] (accepted[0] <= 1 && accepted[1] <= 1) }
/* A task ends at most once. */
ltl one_end { [] (ends[0] <= 1 && ends[1] <= 1) }
/* If a call was answered accepted or already_requested, its task never ends other than cancelled. */
ltl accepted_is_cancelled { [] (!(promised[0] && status[0] == COMPLETED) && !(promised[1] && status[1] == COMPLETED)) }
/* No task ends cancelled unless its cancellation was recorded. */
ltl cancelled_was_asked { [] ((status[0] == CANCELLED -> intent[0]) && (status[1] == CANCELLED -> intent[1])) }
/* A call that names a task never cancels another task. */
ltl named_hits_its_task { [] !strayed }
/* A call that names no task cancels at most one task. */
ltl unnamed_hits_one_task { [] (hit_unnamed <= 1) }
/* already_requested is answered only after a recorded cancellation. */
ltl already_after_recorded { [] !already_early }
/* A wait answers with the end of the task that it cancelled. */
ltl wait_sees_its_task { [] !foreign_end }
/* With fair scheduling, a task ends if a call for it was answered accepted. */
ltl accepted_ends { [] (promised[0] -> <> is_over(0)) }

active proctype submitter()
{
    do
    /* server/evershell/core/task_lifecycle.py: submit */
    :: atomic { submitted < 2 && !locked && current == NOBODY -> current = submitted; submitted++ }
    :: submitted == 2 -> break
    od
}

proctype caller(bool named; byte calls)
{
    byte task = NOBODY;
    byte waited = NOBODY;
    mtype outcome = OPEN;
again:
    calls--;
    /* server/evershell/store/functions/record_cancellation.sql: record_cancellation */
    atomic { !locked && submitted > 0 -> locked = true; task = (named -> 0 : current) }
    if
    /* environment: the worker dies before the commit, so nothing is recorded */
    :: atomic { deaths > 0 -> deaths--; locked = false; goto unavailable }
    /* server/evershell/store/functions/cancellation_outcome.sql: cancellation_outcome */
    :: atomic { task == NOBODY || is_over(task) -> locked = false; goto answered }
    /* server/evershell/store/functions/record_cancellation.sql: record_cancellation */
    :: atomic { task != NOBODY && !is_over(task) && !intent[task] ->
        outcome = ACCEPTED;
        intent[task] = true;
        accepted[task] = more(accepted[task]);
        strayed = strayed || (named && task != 0);
        hit_unnamed = (named -> hit_unnamed : more(hit_unnamed));
        locked = false }
    /* server/evershell/store/functions/cancellation_outcome.sql: cancellation_outcome */
    :: atomic { task != NOBODY && !is_over(task) && intent[task] ->
        outcome = ALREADY_REQUESTED; locked = false }
    fi;
    if
    /* environment: the worker dies before the signal */
    :: atomic { deaths > 0 -> deaths--; goto unavailable }
    /* server/evershell/core/cancel_task.py: _signal */
    :: atomic { true -> signalled[task] = true }
    fi;
    if
    /* environment: the worker dies before the answer */
    :: atomic { deaths > 0 -> deaths--; goto unavailable }
    /* server/evershell/core/cancel_task.py: _outcome */
    :: atomic { true ->
        promised[task] = true;
        already_early = already_early || (outcome == ALREADY_REQUESTED && accepted[task] == 0) }
    fi;
    if
    /* server/evershell/core/cancel_task.py: await_end */
    :: atomic { is_over(task) -> waited = task; foreign_end = foreign_end || waited != task }
    :: skip
    fi;
    goto answered;
unavailable:
    /* The caller does not know the outcome. It repeats a call only if the call names its task. */
    if
    /* server/evershell/core/cancel_task.py: cancel_task */
    :: atomic { named && calls > 0 -> outcome = OPEN; goto again }
    :: else -> goto gone
    fi;
answered:
    if
    /* server/evershell/core/cancel_task.py: cancel_task */
    :: atomic { named && calls > 0 -> outcome = OPEN; goto again }
    :: else
    fi;
gone:
    skip
}

active proctype agent()
{
    bool seen;
    do
    /* server/evershell/agents/session.py: start */
    :: atomic { !frozen && working == NOBODY && current != NOBODY ->
        working = current; flag[working] = flag[working] || intent[working] }
    /* server/evershell/agents/session.py: cancel */
    :: atomic { !frozen && signalled[0] && !flag[0] -> flag[0] = true }
    /* server/evershell/agents/session.py: cancel */
    :: atomic { !frozen && signalled[1] && !flag[1] -> flag[1] = true }
    /* server/evershell/core/runtime.py: heartbeat, commit_events */
    :: atomic { !frozen && working != NOBODY && current == working && intent[working] && !flag[working] ->
        flag[working] = true }
    /* environment: the agent freezes */
    :: atomic { working != NOBODY && !frozen -> frozen = true }
    /* server/evershell/store/transitions.py: transition */
    :: atomic { !frozen && working != NOBODY && !locked && current == working ->
        locked = true; seen = intent[working] };
        /* server/evershell/core/task_lifecycle.py: _end */
        atomic {
            status[working] = (seen -> CANCELLED : COMPLETED);
            ends[working] = more(ends[working]);
            current = NOBODY; working = NOBODY; seen = false;
            locked = false }
    od
}

active proctype controller()
{
    byte task = NOBODY;
    do
    /* server/evershell/fleet/redelivery.py: due */
    :: atomic { current != NOBODY && intent[current] && !signalled[current] -> signalled[current] = true }
    /* server/evershell/core/bounds.py: violation */
    :: atomic { current != NOBODY && intent[current] && !locked ->
        task = current; working = NOBODY; frozen = false };
        /* server/evershell/core/task_lifecycle.py: end_open_task */
        atomic { !locked ->
            if
            :: current == task ->
                status[task] = CANCELLED; ends[task] = more(ends[task]); current = NOBODY; working = NOBODY
            :: else
            fi;
            task = NOBODY }
    od
}

init
{
    atomic {
        run caller(true, 2);
        run caller(false, 1)
    }
}
