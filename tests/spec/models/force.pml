/*
 * The force deadlines of one cancelled task.
 *
 * Covers: three calls, of which two have different deadlines and one has none; signals that carry a deadline and
 * are lost, late, doubled and out of order; directives; the interruption by the agent, and the end of the pod by
 * the controller when the agent does not interrupt.
 *
 * Leaves out: the clocks. A deadline is only earlier or later than another one; the agent gets durations, and
 * counts them with its own clock.
 */

#define NEVER 2

mtype = { OPEN, COMPLETED, CANCELLED };

/* The database. */
bool intent;
byte force_at = NEVER;
mtype status = OPEN;
bool forced;

/* The deadlines of the signals that were sent, as a set. */
byte signals;
/* The agent. */
bool flag;
byte agent_force_at = NEVER;
bool stuck;

/* Variables for the properties. */
byte asked = NEVER;
byte heard = NEVER;
bool forced_unasked;
bool answered;

#define is_over (status != OPEN)

/* The recorded deadline is never later than the deadline of a call that was answered. */
ltl earliest_force_is_recorded { [] (force_at <= asked) }
/* The agent never replaces a deadline with a later one. */
ltl agent_keeps_earliest_force { [] (agent_force_at <= heard) }
/* An end is forced only if a call asked for it. */
ltl forced_was_asked { [] (!forced_unasked) }
/* With fair scheduling, a task with a deadline ends, even if its agent is stuck. */
ltl forced_ends { [] ((answered && force_at != NEVER) -> <> is_over) }

proctype caller(byte deadline)
{
    byte recorded = NEVER;
    if
    /* server/evershell/store/functions/cancellation_outcome.sql: cancellation_outcome */
    :: atomic { is_over -> goto gone }
    /* server/evershell/store/functions/record_cancellation.sql: record_cancellation */
    :: atomic { !is_over && !intent -> intent = true; force_at = deadline }
    /* server/evershell/store/functions/is_forced_earlier.sql: is_forced_earlier */
    :: atomic { !is_over && intent ->
        if
        :: deadline < force_at -> force_at = deadline
        :: else
        fi }
    fi;
    /* server/evershell/core/cancel_task.py: _outcome */
    atomic {
        answered = true;
        if
        :: deadline < asked -> asked = deadline
        :: else
        fi;
        recorded = force_at
    }
    /* server/evershell/fleet/agent_client.py: cancel_task */
    atomic { true -> signals = signals | (1 << recorded); recorded = NEVER }
gone:
    skip
}

inline hear(deadline)
{
    flag = true;
    if
    :: deadline < heard -> heard = deadline
    :: else
    fi;
    if
    :: deadline < agent_force_at -> agent_force_at = deadline
    :: else
    fi
}

active proctype agent()
{
    do
    /* server/evershell/agents/active_task.py: request */
    :: atomic { !stuck && (signals & 1) -> hear(0) }
    /* server/evershell/agents/active_task.py: request */
    :: atomic { !stuck && (signals & 2) -> hear(1) }
    /* server/evershell/agents/active_task.py: request */
    :: atomic { !stuck && (signals & 4) -> hear(2) }
    /* server/evershell/agents/session.py: _apply_cancellation */
    :: atomic { !stuck && intent -> hear(force_at) }
    /* environment: the iteration does not end and cannot be interrupted */
    :: atomic { !stuck -> stuck = true }
    /* server/evershell/agents/loop.py: _interrupt, _ending */
    :: atomic { !stuck && !is_over && agent_force_at != NEVER ->
        forced_unasked = forced_unasked || (force_at == NEVER);
        status = CANCELLED; forced = true }
    /* server/evershell/agents/loop.py: _ending */
    :: atomic { !stuck && !is_over -> status = (intent -> CANCELLED : COMPLETED) }
    od
}

active proctype controller()
{
    do
    /* server/evershell/fleet/redelivery.py: due */
    :: atomic { !is_over && intent && !(signals & (1 << force_at)) -> signals = signals | (1 << force_at) }
    /* server/evershell/core/bounds.py: violation */
    :: atomic { !is_over && intent && force_at != NEVER ->
        stuck = true };
        /* server/evershell/core/task_lifecycle.py: end_open_task */
        atomic {
            if
            :: !is_over ->
                forced_unasked = forced_unasked || (force_at == NEVER);
                status = CANCELLED; forced = true
            :: else
            fi }
    od
}

init
{
    atomic {
        run caller(NEVER);
        run caller(1);
        run caller(0)
    }
}
