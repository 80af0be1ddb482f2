/*
 * An agent, its lease and its epoch.
 *
 * Covers: the start of a task, iterations, heartbeats during them, the directive in every reply, replies that
 * arrive late, signals, an agent that proposes a wrong end, a second task, death and freeze at each step, the
 * lease, the fence.
 *
 * Leaves out: the calls and reports within an iteration, force deadlines (force.pml), the steps in which a pod
 * ends (controller.pml), and time: the lease of an agent that does not run may end at any step. An agent that runs
 * and cannot renew its lease ends itself, which the model treats as a death. An agent that proposes a wrong
 * end still begins no iteration after it has learned of the cancellation.
 */

/* The next number, at most two. */
#define more(n) (n < 2 -> n + 1 : 2)

#define NOBODY 2
#define EPOCHS 2

mtype = { OPEN, COMPLETED, CANCELLED, FAILED, STARTED, ITERATED };

/* The database. */
byte current = NOBODY;
byte submitted;
byte epoch = 1;
bool up = true;
bool intent[2];
bool running[2];
mtype status[2] = OPEN;
bool lease_over;

/* The agent of the first epoch. */
byte working = NOBODY;
bool flag[2];
bool started;
bool iterating;
byte iterations;
bool alive = true;
bool frozen;
/* The heartbeat in flight: the task that its reply names, whether that task is cancelled, and whether the
   heartbeat was sent before the agent started its current task. */
bool in_flight;
byte replied = NOBODY;
bool reply_intent;
bool sent_before_start;

/* Variables for the properties. */
byte ends[2];
bool unheard;
bool unstarted;
bool dropped;

/* A task ends at most once. */
ltl one_end { [] (ends[0] <= 1 && ends[1] <= 1) }
/* A task with a recorded cancellation never ends completed, whatever its agent proposes. */
ltl cancel_decides_the_end { [] (!(intent[0] && status[0] == COMPLETED) && !(intent[1] && status[1] == COMPLETED)) }
/* A task without a recorded cancellation never ends cancelled, even if its agent proposes this. */
ltl cancelled_was_asked { [] ((status[0] == CANCELLED -> intent[0]) && (status[1] == CANCELLED -> intent[1])) }
/* No iteration begins after the agent has learned of the cancellation. */
ltl no_iteration_after_learning { [] (!unheard) }
/* No iteration begins before the start of the task is committed. */
ltl no_iteration_before_start { [] (!unstarted) }
/* An agent never drops its current task because of a late reply. */
ltl current_task_is_kept { [] (!dropped) }
/* With fair scheduling, a cancelled task ends, even if its agent dies or freezes. */
ltl cancelled_ends { [] (intent[0] -> <> (status[0] != OPEN)) }

active proctype callers()
{
    do
    /* server/evershell/core/task_lifecycle.py: submit */
    :: atomic { up && current == NOBODY && submitted < 2 -> current = submitted; submitted++ }
    /* server/evershell/core/task_lifecycle.py: request_cancel */
    :: atomic { current != NOBODY && !intent[current] -> intent[current] = true }
    od
}

#define is_fenced (epoch != 1 || !up)
#define runs (alive && !frozen)

/* Follows the directive in the reply to a commit. The directive names the current task. */
inline follow()
{
    if
    :: is_fenced -> alive = false; working = NOBODY
    :: else ->
        if
        :: working != NOBODY && current == working -> flag[working] = flag[working] || intent[working]
        :: working != NOBODY && current != working -> working = NOBODY
        :: else
        fi
    fi
}

active proctype loop()
{
    mtype proposed = OPEN;
    do
    /* server/evershell/agents/session.py: start */
    :: atomic { runs && working == NOBODY && current != NOBODY && !is_fenced ->
        working = current; flag[working] = flag[working] || intent[working];
        started = false; iterating = false; iterations = 0; sent_before_start = true }
    /* server/evershell/agents/session.py: cancel */
    :: atomic { runs && intent[0] && !flag[0] -> flag[0] = true }
    /* server/evershell/agents/loop.py: run_task */
    :: atomic { runs && working != NOBODY && !started ->
        /* server/evershell/core/task_lifecycle.py: commit, _commit_one */
        if
        :: !is_fenced && current == working -> running[working] = true
        :: else
        fi;
        started = true;
        follow() }
    /* server/evershell/agents/loop.py: __anext__ */
    :: atomic { runs && working != NOBODY && started && !iterating && iterations < 2 &&
        !flag[working] ->
        unheard = unheard || flag[working];
        unstarted = unstarted || !running[working];
        iterating = true }
    /* server/evershell/agents/loop.py: _commit_ended */
    :: atomic { runs && working != NOBODY && iterating ->
        iterating = false; iterations++;
        /* server/evershell/core/runtime.py: commit_events, _directive */
        follow() }
    /* server/evershell/agents/loop.py: _ending */
    :: atomic { runs && working != NOBODY && started && !iterating ->
        /* environment: an agent may lie about the end */
        if
        :: proposed = COMPLETED
        :: proposed = CANCELLED
        fi;
        /* server/evershell/core/task_lifecycle.py: _is_current */
        if
        :: !is_fenced && current == working ->
            /* server/evershell/core/task_lifecycle.py: _end */
            if
            :: intent[working] -> status[working] = CANCELLED
            :: !intent[working] && proposed == CANCELLED -> status[working] = FAILED
            :: else -> status[working] = proposed
            fi;
            ends[working] = more(ends[working]); current = NOBODY
        :: else
        fi;
        proposed = OPEN;
        /* environment: the reply may be lost, and the agent repeats the commit */
        if
        :: true -> working = NOBODY
        :: true
        fi;
        if
        :: is_fenced -> alive = false; working = NOBODY
        :: else
        fi }
    od
}

active proctype heartbeat()
{
    do
    /* server/evershell/core/runtime.py: heartbeat */
    :: atomic { runs && !in_flight ->
        in_flight = true; sent_before_start = false;
        /* server/evershell/store/functions/renew_leases.sql: renew_leases */
        if
        :: is_fenced -> replied = NOBODY; alive = false; working = NOBODY
        :: else -> replied = current; lease_over = false;
            reply_intent = (current != NOBODY -> intent[current] : false)
        fi }
    /* server/evershell/agents/session.py: apply */
    :: atomic { runs && in_flight ->
        in_flight = false;
        if
        :: working != NOBODY && replied == working -> flag[working] = flag[working] || reply_intent
        /* server/evershell/agents/session.py: apply */
        :: working != NOBODY && replied != working && !sent_before_start ->
            dropped = dropped || (current == working && !is_fenced);
            working = NOBODY
        :: else
        fi;
        replied = NOBODY; reply_intent = false }
    od
}

active proctype faults()
{
    do
    /* server/evershell/store/due.py: due */
    :: atomic { up && !runs && !lease_over -> lease_over = true }
    /* server/evershell/agents/lease.py: wait_over */
    /* environment: the agent dies, or ends itself because it cannot renew its lease */
    :: atomic { alive -> alive = false; working = NOBODY; iterating = false }
    /* environment: the agent freezes, and may continue at any time */
    :: atomic { alive && !frozen -> frozen = true }
    /* environment: a frozen agent continues */
    :: atomic { alive && frozen -> frozen = false }
    od
}

active proctype controller()
{
    do
    /* server/evershell/core/workspace_lifecycle.py: lose_agent */
    :: atomic { up && (!alive || lease_over || (current != NOBODY && intent[current])) ->
        if
        :: current != NOBODY ->
            status[current] = (intent[current] -> CANCELLED : FAILED); ends[current] = more(ends[current]); current = NOBODY
        :: else
        fi;
        up = false }
    od
}
