/*
 * A fail-over of PostgreSQL with synchronous replication, and one task.
 *
 * Covers: a commit that waits for the standby, the promotion at each step, workers that still talk to the old
 * primary, a call that is given up while its commit waits (PostgreSQL then keeps the commit and makes it visible), an
 * agent that learns of such an intent, repeats of a named call.
 *
 * Leaves out: asynchronous replication, for which docs/database.md promises nothing; a standby that lacks a
 * commit that was answered; a second fail-over. A commit holds the lock of its workspace until it is visible.
 */

/* The next number, at most two. */
#define more(n) (n < 2 -> n + 1 : 2)

mtype = { OPEN, COMPLETED, CANCELLED, FAILED };

/* What each server has stored durably (0 is the old primary, 1 the standby), and what the old primary shows.
   The standby has stored everything that it has received. */
bool intent[2];
mtype status[2] = OPEN;
bool shown_intent;
mtype shown_status = OPEN;
bool waiting;
bool promoted;

/* The agent. */
bool flag;

/* What callers and the agent were told, and other variables for the properties. */
byte accepted;
bool already;
bool told_accepted;
mtype told_end = OPEN;
byte ends;
bool wrong_end;

#define settled (promoted && !waiting)

/* A cancellation that was answered accepted is on the promoted server. */
ltl accepted_is_kept { [] ((told_accepted && promoted) -> intent[1]) }
/* A cancellation that was answered already_requested is on the promoted server. */
ltl already_requested_is_kept { [] ((already && promoted) -> intent[1]) }
/* An end that was acknowledged is the end on the promoted server. */
ltl end_is_kept { [] ((told_end != OPEN && promoted) -> status[1] == told_end) }
/* At most one end of the task is acknowledged. */
ltl one_end { [] (ends <= 1) }
/* If a cancellation is recorded, the promoted server commits only cancelled as the end. */
ltl cancel_decides_the_end { [] (!wrong_end) }
/* With fair scheduling, the task ends on the promoted server if its cancellation was accepted. */
ltl accepted_ends { [] ((told_accepted && promoted) -> <> (status[1] != OPEN)) }

active proctype replication()
{
    do
    /* environment: the standby receives what the primary has */
    :: atomic { !promoted && (intent[1] != intent[0] || status[1] != status[0]) ->
        intent[1] = intent[0]; status[1] = status[0] }
    /* environment: the standby is promoted */
    :: atomic { !promoted -> promoted = true }
    od
}

#define confirmed (!promoted && intent[1] == intent[0] && status[1] == status[0])

/* Waits until the standby has the commit, and then shows the commit. */
inline wait_confirmed(answered)
{
    if
    /* environment: the standby confirms the commit, and the server answers */
    :: atomic { confirmed ->
        answered = true; waiting = false; shown_intent = intent[0]; shown_status = status[0] }
    /* server/evershell/store/connections.py: _hang_up */
    :: atomic { true -> answered = false; waiting = false; shown_intent = intent[0]; shown_status = status[0] }
    fi
}

proctype caller(byte server)
{
    bool answered;
    bool is_new;
    do
    /* server/evershell/store/functions/record_cancellation.sql: record_cancellation */
    :: atomic { server == 0 && !waiting && shown_status == OPEN ->
        waiting = true; is_new = !shown_intent; intent[0] = true };
        wait_confirmed(answered);
        if
        /* server/evershell/core/cancel_task.py: _outcome */
        :: atomic { answered ->
            if
            :: is_new -> told_accepted = true
            :: else -> already = true
            fi;
            break }
        /* server/evershell/store/connections.py: connect */
        :: atomic { !answered -> is_new = false; server = (promoted -> 1 : 0) }
        fi
    /* server/evershell/store/functions/record_cancellation.sql: record_cancellation */
    :: atomic { server == 1 && promoted && status[1] == OPEN ->
        if
        :: intent[1] -> already = true
        :: else -> told_accepted = true; intent[1] = true
        fi;
        break }
    :: server == 0 && !waiting && shown_status != OPEN -> break
    :: server == 1 && promoted && status[1] != OPEN -> break
    od
}

/* An end that the agent or the controller commits through a worker of this server. */
proctype ending(byte server; bool is_agent)
{
    bool answered;
    mtype ended = OPEN;
    do
    /* server/evershell/store/functions/renew_leases.sql: renew_leases */
    :: atomic { is_agent && server == 0 && shown_intent && !flag -> flag = true }
    /* server/evershell/core/task_lifecycle.py: _end */
    :: atomic { server == 0 && !waiting && shown_status == OPEN && (is_agent || shown_intent) ->
        waiting = true;
        ended = (shown_intent -> CANCELLED : (flag -> FAILED : COMPLETED));
        status[0] = ended };
        wait_confirmed(answered);
        if
        /* server/evershell/agents/runtime_client.py: commit */
        :: atomic { answered -> told_end = ended; ends = more(ends); break }
        /* server/evershell/store/connections.py: connect */
        :: atomic { !answered -> ended = OPEN; server = (promoted -> 1 : 0) }
        fi
    /* server/evershell/core/task_lifecycle.py: _end */
    :: atomic { server == 1 && promoted && status[1] == OPEN && (is_agent || intent[1]) ->
        status[1] = (intent[1] -> CANCELLED : (flag -> FAILED : COMPLETED));
        wrong_end = wrong_end || (intent[1] && status[1] != CANCELLED);
        told_end = status[1]; ends = more(ends);
        break }
    :: server == 1 && promoted && status[1] != OPEN -> break
    /* server/evershell/store/connections.py: is_superseded */
    :: atomic { promoted && server == 0 && !waiting -> server = 1 }
    od
}

init
{
    atomic {
        run caller(0);
        run caller(0);
        run ending(0, true);
        run ending(0, false)
    }
}
